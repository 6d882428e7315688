//! A rolling upgrade under load: agents and coordinators are replaced one by one, and old and new
//! ones work together.

use crate::failures::{COORDINATORS, Fleet};
use crate::lab::{Lab, text, wait_for};
use serde_json::Value;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};

impl Fleet {
    /// Makes another binary, from which all later processes start.
    fn new_binary(&mut self) {
        let next = self.lab.root.join("mvm-next");
        std::fs::copy(env!("CARGO_BIN_EXE_mvm"), &next).expect("copy");
        self.lab.binary = next;
    }

    /// Replaces the agents. Each node is drained first, except two, whose agents are replaced while
    /// they work.
    pub fn agents_are_upgraded(&mut self) {
        self.new_binary();
        for node in ["n1", "n2"] {
            self.lab.ok("hub", &["fleet", "drain", node, "--wait", "100"]);
            self.replace(node);
            self.lab.ok("hub", &["fleet", "uncordon", node]);
        }
        self.tell("two were drained and replaced");
        let failed = self.clients.since(self.fault);
        let failed: Vec<_> = failed.iter().filter(|call| !call.success).collect();
        assert!(failed.is_empty(), "{failed:?}");
        // A machine with a manual lease and data in memory, on a real node.
        let machine = Machine::take(&self.lab, "n6");
        let spares = self.of_node("n3");
        self.replace("n3");
        self.replace("n6");
        self.tell("two were replaced in the midst of their work");
        let after = self.of_node("n3");
        assert!(spares.iter().any(|spare| after.contains(spare)), "{spares:?} {after:?}");
        machine.is_as_it_was(&self.lab);
        machine.give_back(&self.lab);
        self.level();
    }

    fn replace(&mut self, node: &str) {
        self.lab.kill(node);
        self.lab.node(node);
        self.lab.runs(node);
        // The new agent is the only one that answers, but the coordinator's data may still be the
        // old agent's.
        let socket = self.lab.path(&format!("{node}/agent.sock"));
        wait_for("the new agent", || UnixStream::connect(&socket).is_ok());
        let seen = |lab: &Lab| lab.json(&["fleet", "nodes", node])["up_to_date"] == true;
        wait_for("it to come back", || self.lab.alive(node) && seen(&self.lab));
    }

    /// Replaces the coordinators, the leader first. A command through another coordinator is not
    /// disturbed.
    pub fn coordinators_are_upgraded(&mut self) {
        let leader = self.leader();
        let front = COORDINATORS.into_iter().find(|name| *name != leader).expect("another");
        let other = COORDINATORS.into_iter().find(|name| *name != leader && *name != front);
        let command = Steady::begin(&self.lab, front, 15);
        for name in [leader, other.expect("a third")] {
            self.lab.kill(name);
            self.lab.coordinator(name);
            self.lab.runs(name);
            self.lab.front = name.to_owned();
            self.served();
        }
        command.ends();
        self.tell("a command went on all the time");
        self.lab.kill(front);
        self.lab.coordinator(front);
        self.lab.runs(front);
        self.served();
        self.level();
    }
}

impl Lab {
    /// Waits until a process of the lab runs the current binary.
    fn runs(&self, process: &str) {
        let at = |pid: u32| std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let runs = || at(self.pid(process)) == *self.binary;
        wait_for("the new binary", runs);
    }
}

/// A long command through one coordinator.
pub struct Steady(Child);

impl Steady {
    pub fn begin(lab: &Lab, front: &str, seconds: u32) -> Steady {
        let script = format!("echo begun > begun; sleep {seconds}; cat begun; cat /etc/hostname");
        let mut run =
            lab.asker("hub").mvm(front, &["run", "ci/runners", "--", "sh", "-c", &script]);
        let run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("mvm");
        // The command has its machine.
        let long = |lease: &Value| lease["purpose"] == "run";
        wait_for("its lease", || {
            lab.json(&["lease", "list"]).as_array().expect("list").iter().any(long)
        });
        std::thread::sleep(std::time::Duration::from_secs(1));
        Steady(run)
    }

    /// Waits for the command's end, and checks that it has succeeded.
    pub fn ends(self) {
        let output = self.0.wait_with_output().expect("mvm");
        let said = text(&output.stdout);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(said.starts_with("begun\n"), "{said}");
    }
}

/// A real machine with a manual lease.
pub struct Machine {
    reference: String,
    before: String,
}

impl Machine {
    pub fn take(lab: &Lab, node: &str) -> Machine {
        let on_node =
            |i: &&Value| i["node_id"] == node && i["state"] == "warm" && i["lease"].is_null();
        let mut reference = String::new();
        wait_for("a spare", || {
            let all = lab.json(&["fleet", "instances", "ci/real"]);
            let found = all.as_array().expect("list").iter().find(on_node).cloned();
            reference = found.map_or(String::new(), |i| i["reference"].as_str().expect("r").into());
            // A claim may have taken the woken machine just before.
            let ours = |lease: &Value| {
                lease["instance"] == reference.as_str() && lease["purpose"] == "manual"
            };
            let mut wake = lab.mvm("hub", &["instance", "wake", &reference]);
            !reference.is_empty()
                && wake.output().expect("mvm").status.success()
                && lab.json(&["lease", "list"]).as_array().expect("list").iter().any(ours)
        });
        let mut machine = Machine { reference, before: String::new() };
        machine.exec(lab, "echo kept > /run/mark");
        machine.before = machine.identity(lab);
        machine
    }

    fn exec(&self, lab: &Lab, script: &str) -> String {
        lab.ok("hub", &["instance", "exec", &self.reference, "--", "sh", "-c", script])
    }

    /// Returns the content of the machine's memory, its lease and its process.
    fn identity(&self, lab: &Lab) -> String {
        let info = lab.json(&["instance", "info", &self.reference]);
        let memory = self.exec(lab, "cat /run/mark /proc/sys/kernel/random/boot_id");
        format!("{memory} {} {}", info["lease"]["id"], info["pid"])
    }

    pub fn is_as_it_was(&self, lab: &Lab) {
        assert_eq!(self.identity(lab), self.before);
    }

    pub fn give_back(&self, lab: &Lab) {
        lab.ok("hub", &["instance", "destroy", &self.reference]);
    }
}
