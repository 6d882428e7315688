//! The agent as its systemd unit runs it: with sd_notify, and with the unit's capabilities.

use crate::lab::{Lab, wait_for};
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// The service manager's side of sd_notify.
struct Manager {
    said: Receiver<String>,
    agent: Option<Child>,
}

impl Manager {
    fn new(lab: &Lab) -> Manager {
        let socket = UnixDatagram::bind(lab.root.join("notify")).expect("socket");
        let (tell, said) = std::sync::mpsc::channel();
        // Always receives, as systemd does. The thread ends with the manager.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = socket.recv(&mut buffer) {
                let words = String::from_utf8_lossy(&buffer[..count]).into_owned();
                if tell.send(words).is_err() {
                    return;
                }
            }
        });
        Manager { said, agent: None }
    }

    /// Starts the agent as the unit does, and waits until it is ready.
    fn start(&mut self, lab: &Lab) {
        let mut command = Command::new("setpriv");
        command.args(["--inh-caps=-all", "--no-new-privs"]);
        command.arg(format!("--bounding-set=-all,{}", capabilities()));
        command.arg(env!("CARGO_BIN_EXE_mvm")).arg("--root").arg(&lab.root);
        command.args(["agent", "serve"]).env("MVM_NETNS", &lab.netns);
        command.env("NOTIFY_SOCKET", lab.root.join("notify")).env("WATCHDOG_USEC", "3000000");
        command.stdin(Stdio::null()).stderr(Stdio::null());
        self.agent = Some(command.spawn().expect("setpriv"));
        self.hears("READY=1");
    }

    fn hears(&self, wanted: &str) {
        let soon = Duration::from_secs(120);
        while !self.said.recv_timeout(soon).expect(wanted).lines().any(|line| line == wanted) {}
    }

    fn stop(&mut self) {
        let mut agent = self.agent.take().expect("it runs");
        let pid = rustix::process::Pid::from_child(&agent);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal");
        self.hears("STOPPING=1");
        assert!(agent.wait().expect("wait").success());
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

/// Returns the unit's capabilities in setpriv(1)'s format.
fn capabilities() -> String {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("workspace");
    let unit = workspace.join("packaging/systemd/mvm-agent.service");
    let unit = std::fs::read_to_string(unit).expect("unit");
    let line = unit.lines().find_map(|l| l.strip_prefix("CapabilityBoundingSet=")).expect("set");
    let names = line.split_whitespace().map(|name| name.to_lowercase().replace("cap_", "+"));
    names.collect::<Vec<_>>().join(",")
}

#[test]
fn the_units_agent_can_do_its_work_and_its_restart_touches_no_machine() {
    let lab = Lab::new("unit");
    let mut manager = Manager::new(&lab);
    manager.start(&lab);
    manager.hears("WATCHDOG=1");
    lab.tenant_and_pool("ci", "27");
    let vm = lab.start("ci/small");
    lab.start_counter(&vm);
    let count = lab.count(&vm);
    manager.stop();
    assert_eq!(lab.machines(), 1, "the machine goes on");
    manager.start(&lab);
    wait_for("the counter to go on", || lab.count(&vm) > count);
    for (verb, state) in
        [("warm", "warm"), ("wake", "running"), ("sleep", "sleeping"), ("wake", "running")]
    {
        lab.ok(&["instance", verb, &vm]);
        assert_eq!(lab.state(&vm), state);
    }
    assert!(lab.count(&vm) > count, "it is the same machine");
    lab.ok(&["pool", "destroy", "ci/small"]);
    lab.ok(&["tenant", "destroy", "ci"]);
    assert_eq!((lab.machines(), lab.links()), (0, Vec::new()));
    manager.stop();
}

/// A connection to a stopped process still succeeds, because the kernel accepts it.
#[test]
fn nobody_waits_for_an_agent_that_was_stopped() {
    let lab = Lab::simulated("stopped");
    lab.ok(&["tenant", "create", "ci", "--net-id", "37", "--subnet", "10.240.37.0/24"]);
    let pid = lab.json(&["agent", "status"])["pid"].as_u64().expect("pid");
    let signal = |name: &str| {
        let sent = Command::new("kill").args([name, &pid.to_string()]).status().expect("kill");
        assert!(sent.success());
    };
    signal("-STOP");
    let tried = [
        &["tenant", "list"][..],
        &["tenant", "create", "lab", "--net-id", "38", "--subnet", "10.240.38.0/24"],
    ];
    let tried = tried.map(|words| {
        lab.mvm(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("mvm")
    });
    for child in tried {
        let output = child.wait_with_output().expect("an end");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("error[agent_silent]") && said.contains("ps(1)"), "{said}");
    }
    signal("-CONT");
    wait_for("the agent to go on", || {
        lab.mvm(&["tenant", "list"]).status().expect("mvm").success()
    });
}

/// No other command starts the next agent here.
#[test]
fn who_waits_for_a_killed_agent_starts_the_next_and_for_an_ended_one_does_not() {
    let lab = Lab::simulated("revived");
    lab.ok(&["tenant", "create", "ci", "--net-id", "39", "--subnet", "10.240.39.0/24"]);
    let serves = || lab.mvm(&["agent", "status"]).status().expect("mvm").success();
    let mut events = lab.mvm(&["events", "--follow"]);
    let mut events = events.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("mvm");
    let lines = BufReader::new(events.stderr.take().expect("stderr")).lines();
    let (tell, said) = std::sync::mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| tell.send(line)));
    let hears = |what: &str, within: u64| {
        let ends = Instant::now() + Duration::from_secs(within);
        let line = || said.recv_timeout(ends.saturating_duration_since(Instant::now()));
        std::iter::from_fn(|| line().ok()).any(|line| line.contains(what))
    };
    // A first kill may come before the follower has reached its agent: then it starts one as any
    // command does, without a word.
    let revived = (0..6).any(|_| {
        wait_for("the agent", serves);
        lab.kill_agent();
        hears("the agent was killed; starting the next one", 10)
    });
    assert!(revived, "the follower starts the next agent");
    wait_for("the next agent", serves);
    lab.ok(&["agent", "stop"]);
    assert!(hears("trying again", 60), "it says that it waits");
    std::thread::sleep(Duration::from_secs(4));
    assert!(!serves(), "an agent that was ended stays away");
    events.kill().expect("kill");
    events.wait().expect("wait");
}
