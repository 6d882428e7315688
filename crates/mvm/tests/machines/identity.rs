//! A small fleet in the test's own network namespace: an authority, a node that joins it, and
//! people who use the node over mutual TLS.

use crate::lab::{Lab, run, text, wait_for};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Output, Stdio};

const SIGNER: &str = "127.0.0.1:4433";
const NODE: &str = "127.0.0.1:4434";
const COORDINATOR: &str = "127.0.0.1:4435";

/// A server process that is killed when the test ends.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Fleet {
    // Dropped first, since the processes use the lab's directory.
    served: Vec<Served>,
    lab: Lab,
}

impl Fleet {
    /// Starts an authority, and issues certificates for `alice` (operator), `bob` (of tenant `ci`)
    /// and `eve` (of tenant `lab`).
    fn new(lab: Lab, node_lifetime: &str) -> Fleet {
        run(Command::new("ip").args(["-n", &lab.netns, "link", "set", "lo", "up"]));
        let mut fleet = Fleet { served: Vec::new(), lab };
        let ca = fleet.path("ca");
        fleet.lab.ok(&["ca", "init", "--dir", &ca]);
        for words in [
            &["--role", "operator", "--name", "alice"][..],
            &["--role", "tenant-operator", "--tenant", "ci", "--name", "bob"],
            &["--role", "tenant-operator", "--tenant", "lab", "--name", "eve"],
        ] {
            let out = fleet.path(words[words.len() - 1]);
            let issue = ["ca", "issue", "--dir", &ca, "--out", &out];
            fleet.lab.ok(&[&issue[..], words].concat());
        }
        let serve = ["ca", "serve", "--dir", &ca, "--listen", SIGNER];
        fleet.serve("nobody", &[&serve[..], &["--node-lifetime", node_lifetime]].concat());
        let list = ["node", "list", "--coordinator", SIGNER];
        wait_for("the signer", || fleet.run("alice", &list).status.success());
        fleet
    }

    fn path(&self, name: &str) -> String {
        self.lab.root.join(name).display().to_string()
    }

    /// Returns an `mvm` command in the namespace, as one of the people.
    fn mvm(&self, who: &str, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.lab.netns, env!("CARGO_BIN_EXE_mvm")]);
        command.args(words).env("MVM_IDENTITY", self.path(who)).stdin(Stdio::null());
        // No state directory can exist at this path, so every command works on the node.
        command.env("MVM_ROOT", "/dev/null/none").env_remove("MVM_COORDINATOR");
        command.env("XDG_RUNTIME_DIR", &self.lab.root);
        command
    }

    fn run(&self, who: &str, words: &[&str]) -> Output {
        self.mvm(who, words).output().expect("mvm")
    }

    fn ok(&self, who: &str, words: &[&str]) -> String {
        let output = self.run(who, words);
        assert!(output.status.success(), "{who}: {words:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn refused(&self, who: &str, words: &[&str], code: &str) {
        let output = self.run(who, words);
        let said = text(&output.stderr);
        assert!(said.contains(&format!("error[{code}]")), "{who}: {words:?}: {said}");
    }

    fn serve(&mut self, who: &str, words: &[&str]) {
        let log = std::fs::File::create(
            self.lab.root.join(format!("{}-{who}.log", words[0].trim_start_matches('-'))),
        );
        let child = self.mvm(who, words).stderr(log.expect("log")).spawn().expect("mvm");
        self.served.push(Served(child));
    }

    /// Lets the lab's own state directory join as node `n1`, whose agent serves.
    fn join(&mut self) {
        let token = self.ok("alice", &["node", "invite", "n1", "--coordinator", SIGNER]);
        self.join_with(&token, None);
        self.join_with(&token, Some("exists"));
        // If a directory is named, the identity goes there and nowhere else.
        let token = self.ok("alice", &["node", "invite", "n2", "--coordinator", SIGNER]);
        let (root, place) = (self.path("n2-root"), self.path("n2"));
        let words = ["--root", &root, "node", "join", &token, "--identity", &place];
        let said = self.ok("nobody", &words);
        assert!(said.contains(&format!("--identity {place}")), "{said}");
        let has = |folder: &str| std::fs::read_dir(folder).is_ok_and(|all| all.count() > 0);
        assert!(has(&place) && !has(&format!("{root}/identity")) && !has(&self.path("nobody")));
        let mut serve = self.lab.mvm(&["agent", "serve", "--listen", NODE]);
        let log = std::fs::File::create(self.lab.root.join("agent.log")).expect("log");
        self.served.push(Served(serve.stderr(log).spawn().expect("mvm")));
        let list = ["coordinator", "list", "--node", NODE];
        wait_for("the node", || self.run("alice", &list).status.success());
    }

    /// Starts a coordinator to whose fleet the node belongs.
    fn coordinator(&mut self) {
        let (ca, out, root) = (self.path("ca"), self.path("c1"), self.path("c1-root"));
        let issue = ["ca", "issue", "--dir", &ca, "--role", "coordinator", "--name", "c1"];
        self.lab.ok(&[&issue[..], &["--out", &out]].concat());
        let serve = ["--root", &root, "coordinator", "serve", "--fleet", "f"];
        self.serve("c1", &[&serve[..], &["--listen", COORDINATOR, "--identity", &out]].concat());
        let add = ["--coordinator", COORDINATOR, "fleet", "add", "n1", NODE];
        wait_for("the coordinator", || self.run("alice", &add).status.success());
    }

    /// Joins with the token on standard input, which nobody else can read.
    fn join_with(&self, token: &str, code: Option<&str>) {
        let root = self.lab.root.display().to_string();
        self.join_at(&root, token, code);
    }

    fn join_at(&self, root: &str, token: &str, code: Option<&str>) {
        let mut join = self.mvm("nobody", &["--root", root, "node", "join", "-"]);
        let join = join.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut join = join.spawn().expect("mvm");
        join.stdin.take().expect("stdin").write_all(token.as_bytes()).expect("write");
        let output = join.wait_with_output().expect("wait");
        let said = text(&output.stderr);
        match code {
            None => assert!(output.status.success(), "{said}"),
            Some(code) => assert!(said.contains(&format!("error[{code}]")), "{said}"),
        }
    }

    /// Returns the words of `mvm coordinator VERB …` for an instance.
    fn on<'a>(&self, verb: &'a str, instance: &'a str) -> Vec<&'a str> {
        let parts: Vec<&str> = instance.split('/').collect();
        let target = ["--tenant", parts[0], "--pool", parts[1], "--instance", parts[2]];
        [&["coordinator", verb, "--node", NODE][..], &target].concat()
    }

    /// Returns the serial number of the node's certificate.
    fn serial(&self) -> String {
        let list = ["node", "list", "--coordinator", SIGNER, "-o", "json"];
        let views: Value = serde_json::from_str(&self.ok("alice", &list)).expect("JSON");
        let all = views[0]["certificates"].as_array().expect("certificates");
        all.last().expect("one")["serial"].as_str().expect("serial").to_owned()
    }
}

#[test]
fn a_node_joins_is_used_renewed_and_removed() {
    let mut fleet = Fleet::new(Lab::simulated("fleet"), "30s");
    fleet.join();
    fleet.lab.tenant_and_pool("ci", "61");
    fleet.lab.tenant_and_pool("lab", "62");
    let (vm, other) = (fleet.lab.start("ci/small"), fleet.lab.start("lab/small"));

    // The command of the specification, then the other verbs.
    fleet.lab.ok(&["lease", "release", &vm]);
    fleet.ok("alice", &fleet.on("sleep", &vm));
    assert_eq!(fleet.lab.state(&vm), "sleeping");
    fleet.ok("alice", &fleet.on("wake", &vm));
    let info: Value = serde_json::from_str(
        &fleet.ok("alice", &[&fleet.on("info", &vm)[..], &["-o", "json"]].concat()),
    )
    .expect("JSON");
    assert_eq!(info["state"], "running");
    assert_eq!(info["lease"]["holder"], "operator:alice", "{info}");
    let exec = [&fleet.on("exec", &vm)[..], &["--", "cat", "/etc/hostname"]].concat();
    assert!(fleet.ok("alice", &exec).starts_with("small-"));
    fleet.ok("alice", &fleet.on("warm", &vm));
    assert_eq!(fleet.lab.state(&vm), "warm");

    // Each person sees the instances of their own tenant only.
    let list = |who: &str| fleet.ok(who, &["coordinator", "list", "--node", NODE]);
    assert!(list("alice").contains(&vm) && list("alice").contains(&other));
    assert!(list("bob").contains(&vm) && !list("bob").contains(&other));
    assert!(!list("eve").contains(&vm) && list("eve").contains(&other));
    fleet.ok("bob", &fleet.on("wake", &vm));
    fleet.refused("bob", &fleet.on("wake", &other), "forbidden");
    fleet.refused("eve", &fleet.on("destroy", &vm), "forbidden");
    fleet.refused("bob", &["node", "invite", "n2", "--coordinator", SIGNER], "forbidden");

    // A stream stays open while the node gets new certificates.
    let mut cat = fleet.mvm("bob", &[&fleet.on("exec", &vm)[..], &["-i", "--", "cat"]].concat());
    let mut cat = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("mvm");
    let (mut to, mut from) =
        (cat.stdin.take().expect("stdin"), BufReader::new(cat.stdout.take().expect("stdout")));
    let mut echoed = |word: &str| {
        to.write_all(format!("{word}\n").as_bytes()).expect("write");
        let mut line = String::new();
        from.read_line(&mut line).expect("read");
        assert_eq!(line.trim(), word);
    };
    echoed("before");
    let agent = fleet.lab.json(&["agent", "status"])["pid"].clone();
    for _ in 0..2 {
        let before = fleet.serial();
        wait_for("a new certificate", || fleet.serial() != before);
        echoed("after");
    }
    fleet.ok("alice", &fleet.on("info", &vm));
    assert_eq!(fleet.lab.json(&["agent", "status"])["pid"], agent, "nothing was restarted");

    // A revoked person is refused everywhere, and their open streams are cut.
    let revoke = ["ca", "revoke", "--role", "tenant-operator", "--tenant", "ci", "--name", "bob"];
    fleet.ok("alice", &[&revoke[..], &["--coordinator", SIGNER]].concat());
    fleet.refused("bob", &["node", "list", "--coordinator", SIGNER], "certificate_refused");
    let info = fleet.on("info", &vm);
    wait_for("the node to hear of it", || !fleet.run("bob", &info).status.success());
    fleet.refused("bob", &info, "certificate_refused");
    assert!(!cat.wait().expect("wait").success(), "the stream is cut off");
    fleet.ok("alice", &info);

    // So is a removed node. Its name may be used again.
    fleet.ok("alice", &["node", "remove", "n1", "--coordinator", SIGNER]);
    fleet.refused("alice", &info, "peer_untrusted");
    let token = fleet.ok("alice", &["node", "invite", "n1", "--coordinator", SIGNER]);
    let elsewhere = fleet.path("elsewhere");
    fleet.join_at(&elsewhere, &token, None);
    fleet.join_at(&fleet.path("third"), &token, Some("token_used"));
    fleet.join_at(&fleet.path("third"), &token[..token.len() / 2], Some("token_invalid"));
}

#[test]
fn exec_and_ssh_reach_a_real_machine_elsewhere() {
    let mut fleet = Fleet::new(Lab::new("elsewhere"), "1h");
    fleet.join();
    fleet.lab.tenant_and_pool("ci", "61");
    let vm = fleet.lab.start("ci/small");
    // The person who started the instance has it until they release it.
    fleet.refused("bob", &fleet.on("sleep", &vm), "leased");
    let lease = fleet.lab.json(&["instance", "info", &vm])["lease"]["id"].clone();
    fleet.lab.ok(&["lease", "release", lease.as_str().expect("a lease")]);
    fleet.ok("bob", &fleet.on("sleep", &vm));
    let began = std::time::Instant::now();
    fleet.ok("bob", &fleet.on("wake", &vm));
    println!("a sleeper is awake after {:?}, the client's start included", began.elapsed());
    fleet.coordinator();
    let wake = ["--coordinator", COORDINATOR, "instance", "wake", &vm];
    wait_for("the coordinator to find it", || fleet.run("bob", &wake).status.success());
    // ssh passes its words to a shell once more.
    let (exec, ssh) =
        (["-i", "--", "sh", "-c", "cat; exit 3"], ["--", "sh", "-c", "'cat; exit 3'"]);
    let through = |verb| ["--coordinator", COORDINATOR, "instance", verb, &vm];
    for (verb, words) in [
        ("exec", [&fleet.on("exec", &vm)[..], &exec].concat()),
        ("ssh", [&fleet.on("ssh", &vm)[..], &ssh].concat()),
        ("exec through the coordinator", [&through("exec")[..], &exec].concat()),
        ("ssh through the coordinator", [&through("ssh")[..], &ssh].concat()),
    ] {
        let mut command = fleet.mvm("bob", &words);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut command = command.spawn().expect("mvm");
        command.stdin.take().expect("stdin").write_all(b"through").expect("write");
        let output = command.wait_with_output().expect("wait");
        assert_eq!(output.status.code(), Some(3), "{verb}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "through", "{verb}");
    }
    fleet.refused("eve", &fleet.on("ssh", &vm), "forbidden");
    fleet.refused("eve", &through("ssh"), "forbidden");
    // No key is left behind.
    let mine = std::fs::read_dir(&fleet.lab.root).expect("list");
    let left = mine.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("mvm-ssh-"));
    assert_eq!(left.count(), 0);
    fleet.ok("bob", &fleet.on("destroy", &vm));
    assert_eq!(fleet.lab.machines(), 0);
}
