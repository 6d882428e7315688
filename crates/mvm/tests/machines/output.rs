//! Output that cannot be written ends the command with an error: on a full disk with status 125 and
//! the reason, on a closed pipe with 141. This is tested with every command of the command line.

use crate::lab::{Lab, nixpkgs, text, wait_for};
use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};

/// Commands that are not tested, and why.
const NOT_TRIED: [(&str, &str); 23] = [
    ("agent serve", "prints nothing"),
    ("ca serve", "prints nothing"),
    ("coordinator serve", "prints nothing"),
    ("instance ssh", "OpenSSH prints"),
    ("coordinator ssh", "OpenSSH prints"),
    ("coordinator destroy", "as instance destroy, at a node over TLS"),
    ("coordinator exec", "as instance exec, at a node over TLS"),
    ("coordinator info", "as instance info, at a node over TLS"),
    ("coordinator list", "as instance list, at a node over TLS"),
    ("coordinator sleep", "as instance sleep, at a node over TLS"),
    ("coordinator start", "as instance start, at a node over TLS"),
    ("coordinator stop", "as instance stop, at a node over TLS"),
    ("coordinator wake", "as instance wake, at a node over TLS"),
    ("coordinator warm", "as instance warm, at a node over TLS"),
    ("ca renew", "needs a coordinator that signs"),
    ("node join", "needs a coordinator that signs"),
    ("node leave", "needs a fleet"),
    ("kernel fetch", "needs the distribution's servers"),
    ("kernel import", "takes long"),
    ("kernel remove", "needs a kernel that no pool has"),
    ("image fetch", "needs another node"),
    ("pool rollback", "needs two revisions"),
    ("bench", "takes long"),
];

/// How output fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Full,
    Closed,
}

impl Way {
    fn output(self) -> Stdio {
        match self {
            Way::Full => {
                let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
                full.expect("/dev/full").into()
            }
            // The other end is closed before the command starts.
            Way::Closed => std::io::pipe().expect("pipe").1.into(),
        }
    }
}

struct Trial<'a> {
    lab: &'a Lab,
    way: Way,
    /// The tenant that the commands work on.
    tenant: &'static str,
    tried: BTreeSet<String>,
}

impl Trial<'_> {
    /// Runs a command whose output must fail. The command still does its work.
    fn fails(&mut self, words: &[&str]) {
        let words: Vec<String> = words.iter().map(|w| w.replace("TENANT", self.tenant)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = self.lab.mvm(&words);
        let ran = command.stdout(self.way.output()).output().expect("mvm");
        let said = text(&ran.stderr);
        let reason = said.contains("error[output_failed]") && said.contains("No space left");
        let wanted = match self.way {
            Way::Full => (Some(125), true),
            Way::Closed => (Some(141), false),
        };
        assert_eq!((ran.status.code(), reason), wanted, "{:?}: mvm {words:?}: {said}", self.way);
        self.tried.insert(words[..2.min(words.len())].join(" "));
        self.tried.insert(words[0].to_owned());
    }

    fn node(&mut self) {
        let root = self.lab.root.display().to_string();
        let subnet =
            if self.way == Way::Full { ("31", "10.77.31.0/24") } else { ("32", "10.77.32.0/24") };
        let (net, subnet) = subnet;
        self.fails(&["tenant", "create", "TENANT", "--net-id", net, "--subnet", subnet]);
        self.fails(&["tenant", "list"]);
        self.fails(&["tenant", "info", "TENANT"]);
        self.fails(&["tenant", "update", "TENANT", "--max-running", "9"]);
        let flake = format!("{root}/flake");
        let shape = ["--flake", &flake, "--profile", "small", "--mem", "256"];
        self.fails(&[&["pool", "create", "TENANT/small"], &shape[..]].concat());
        let own = nixpkgs();
        self.fails(&["pool", "build", "TENANT/small", "--override-input", &own]);
        self.fails(&["pool", "list"]);
        self.fails(&["pool", "info", "TENANT/small"]);
        self.fails(&["pool", "revisions", "TENANT/small"]);
        self.fails(&["pool", "update", "TENANT/small", "--max-jobs", "9"]);
        self.fails(&["pool", "scale", "TENANT/small", "--warm", "1", "--wait"]);
        let listen = ["--listen", "0.0.0.0:8099", "--to", "80"];
        self.fails(&[&["pool", "expose", "TENANT/small"], &listen[..]].concat());
        self.fails(&["pool", "unexpose", "TENANT/small"]);
        self.instances();
        self.jobs();
        let document = format!("{root}/document.json");
        std::fs::write(&document, self.lab.ok(&["agent", "desired"])).expect("document");
        self.fails(&["agent", "desired"]);
        self.fails(&["agent", "status"]);
        self.fails(&["agent", "probe"]);
        self.fails(&["agent", "reconcile", "--desired", &document]);
        self.fails(&["audit", "list", "TENANT"]);
        self.fails(&["audit", "list", "TENANT", "-f"]);
        self.fails(&["audit", "export", "TENANT"]);
        self.fails(&["audit", "verify"]);
        self.fails(&["audit", "prune", "--before", "1d", "--tenant", "TENANT"]);
        self.fails(&["events"]);
        self.fails(&["events", "-f"]);
        self.fails(&["metrics"]);
        self.fails(&["kernel", "list"]);
        self.fails(&["image", "list"]);
        self.fails(&["image", "gc"]);
        self.fails(&["pool", "destroy", "TENANT/small"]);
        self.fails(&["tenant", "destroy", "TENANT"]);
        self.fails(&["agent", "stop"]);
    }

    fn instances(&mut self) {
        self.fails(&["instance", "create", "TENANT/small"]);
        let pool = format!("{}/small", self.tenant);
        let vm = self.lab.start(&pool);
        let note = self.lab.root.join("note");
        std::fs::write(&note, "note").expect("note");
        let note = note.display().to_string();
        for verb in ["info", "logs", "stats", "stop", "start", "warm", "wake", "sleep", "wake"] {
            self.fails(&["instance", verb, &vm]);
        }
        self.fails(&["instance", "list"]);
        self.fails(&["instance", "exec", &vm, "--", "echo", "words"]);
        self.fails(&["lease", "list"]);
        self.fails(&["lease", "extend", &vm, "--lease", "600"]);
        // A command that prints nothing cannot fail to print.
        let copied = self.lab.mvm(&["instance", "cp", &note, &format!("{vm}:/tmp")]);
        assert!({ copied }.stdout(self.way.output()).status().expect("mvm").success());
        self.tried.insert("instance cp".to_owned());
        self.fails(&["lease", "release", &vm]);
        let vm = self.lab.start(&pool);
        self.fails(&["instance", "destroy", &vm]);
    }

    fn jobs(&mut self) {
        self.fails(&["run", "TENANT/small", "--", "echo", "words"]);
        // A command is ended, too, if nobody can take its output.
        self.fails(&["run", "TENANT/small", "--", "sh", "-c", "echo words; sleep 600"]);
        self.fails(&["run", "-i", "TENANT/small", "--", "sh", "-c", "echo words; sleep 600"]);
        self.fails(&["job", "submit", "TENANT/small", "--", "echo", "words"]);
        let pool = format!("{}/small", self.tenant);
        let submit = ["job", "submit", &pool, "--artifact", "/tmp/a", "--"];
        let script = ["sh", "-c", "echo words; echo words > /tmp/a; sleep 600"];
        let job = self.lab.ok(&[&submit[..], &script].concat()).trim().to_owned();
        wait_for("a job's words", || self.lab.ok(&["job", "logs", &job]).contains("words"));
        self.fails(&["job", "logs", &job]);
        self.fails(&["job", "logs", "-f", &job]);
        self.fails(&["job", "list"]);
        self.fails(&["net", "verify"]);
        self.fails(&["net", "clean"]);
        self.fails(&["job", "info", &job]);
        self.fails(&["job", "cancel", &job]);
        for verb in ["wait", "artifacts"] {
            // These print nothing, or only messages on standard error.
            self.tried.insert(format!("job {verb}"));
            let ran = self.lab.mvm(&["job", verb, &job]).stdout(self.way.output()).output();
            let said = text(&ran.expect("mvm").stderr);
            assert!(!said.contains("panicked") && !said.contains("internal"), "{verb}: {said}");
        }
    }

    fn fleet(&mut self) {
        let (name, address) = (self.tenant, "unix:/nowhere/agent.sock");
        let document = self.lab.root.join("fleet.json").display().to_string();
        std::fs::write(&document, r#"{"schema_version":1,"fleet_id":"fleet","tenants":[]}"#)
            .expect("document");
        self.fails(&["coordinator", "status"]);
        self.fails(&["fleet", "apply", &document]);
        self.fails(&["fleet", "show"]);
        self.fails(&["fleet", "status"]);
        self.fails(&["fleet", "instances"]);
        self.fails(&["fleet", "add", name, address]);
        wait_for("the node to be known", || {
            self.lab.mvm(&["fleet", "nodes", name]).output().expect("mvm").status.success()
        });
        self.fails(&["fleet", "nodes"]);
        for verb in ["cordon", "uncordon", "drain", "remove"] {
            self.fails(&["fleet", verb, name]);
        }
    }

    fn without_a_server(&mut self) {
        let path = |name: &str| self.lab.root.join(self.tenant).join(name).display().to_string();
        let (ca, alice) = (path("ca"), path("alice"));
        let authority = ["--dir", &ca];
        self.fails(&[&["ca", "init"], &authority[..]].concat());
        let role = ["--role", "operator", "--name", "alice"];
        self.fails(&[&["ca", "issue"], &authority[..], &role, &["--out", &alice]].concat());
        self.fails(&[&["ca", "list"], &authority[..]].concat());
        self.fails(&[&["ca", "revoke"], &authority[..], &role].concat());
        let invite = ["node", "invite", "n1", "--address", "127.0.0.1:9"];
        self.fails(&[&invite[..], &authority].concat());
        self.fails(&[&["node", "list"], &authority[..]].concat());
        self.fails(&[&["node", "remove", "n1"], &authority[..]].concat());
        self.fails(&["doctor"]);
        self.fails(&["api", "describe"]);
        self.fails(&["completions", "bash"]);
        self.fails(&["man"]);
        for words in [&["--help"][..], &["--version"], &["pool", "create", "--help"]] {
            self.fails(words);
        }
    }
}

/// Returns every command, as words. The list comes from clap, through the manual pages.
fn commands(lab: &Lab) -> BTreeSet<String> {
    let pages = lab.root.join("man");
    lab.ok(&["man", &pages.display().to_string()]);
    let names: BTreeSet<String> = std::fs::read_dir(pages)
        .expect("pages")
        .map(|page| page.expect("page").file_name().to_string_lossy().into_owned())
        .filter_map(|name| Some(name.strip_prefix("mvm-")?.strip_suffix(".1")?.to_owned()))
        .collect();
    let is_group = |name: &String| names.iter().any(|o| o.starts_with(&format!("{name}-")));
    names.iter().filter(|name| !is_group(name)).map(|name| name.replacen('-', " ", 1)).collect()
}

/// A coordinator process that is killed when the test ends.
struct Coordinator(Child);

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn output_that_cannot_be_written_ends_every_command() {
    let lab = Lab::simulated("output");
    let commands = commands(&lab);
    let mut serve = lab.mvm(&["coordinator", "serve"]);
    let coordinator = serve.stderr(Stdio::null()).spawn().expect("coordinator");
    let _coordinator = Coordinator(coordinator);
    wait_for("the coordinator", || {
        lab.mvm(&["fleet", "status"]).output().expect("mvm").status.success()
    });
    for (way, tenant) in [(Way::Full, "full"), (Way::Closed, "closed")] {
        let mut trial = Trial { lab: &lab, way, tenant, tried: BTreeSet::new() };
        trial.without_a_server();
        trial.fleet();
        trial.node();
        let known = |name: &String| {
            trial.tried.contains(name) || NOT_TRIED.iter().any(|(other, _)| other == name)
        };
        let left: Vec<&String> = commands.iter().filter(|name| !known(name)).collect();
        assert!(left.is_empty(), "{way:?}: nobody has tried {left:?}");
    }
}

/// If standard error cannot be written either, the status alone shows the error, and nothing
/// panics.
#[test]
fn a_standard_error_that_takes_nothing_changes_no_status() {
    let mvm = |words: &[&str], way: Way| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mvm"));
        command.args(words).env("MVM_ROOT", "/dev/null/none").stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(way.output()).status().expect("mvm").code()
    };
    for way in [Way::Full, Way::Closed] {
        assert_eq!(mvm(&["no-such-command"], way), Some(2));
        assert_eq!(mvm(&["tenant", "list"], way), Some(1));
        assert_eq!(mvm(&["run", "a/b", "--", "true"], way), Some(125));
    }
}
