//! Faults of machines: cut links, wrong clocks and full disks.

#![allow(dead_code, reason = "not every test needs all of these")]

use crate::lab::{Lab, run};
use std::io::Write;
use std::process::Command;

/// The direction in which a link is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutDirection {
    /// The machine receives nothing.
    In,
    /// Nobody receives anything from the machine.
    Out,
    /// Both directions.
    Both,
}

impl Lab {
    /// Cuts a machine off from all others, in one direction or both: packets are dropped without a
    /// message.
    pub fn cut(&self, machine: &str, way: CutDirection) {
        let drop = |hook: &str, eth: &str| {
            format!(
                "add chain inet lab {hook} {{ type filter hook {hook} priority -400; }}\n\
                 add rule inet lab {hook} {eth} eth0 drop\n"
            )
        };
        let mut rules = "add table inet lab\n".to_owned();
        if way != CutDirection::Out {
            rules.push_str(&drop("input", "iifname"));
        }
        if way != CutDirection::In {
            rules.push_str(&drop("output", "oifname"));
        }
        let mut nft = self.inside(machine, "nft");
        let mut nft =
            nft.args(["-f", "-"]).stdin(std::process::Stdio::piped()).spawn().expect("nft");
        nft.stdin.take().expect("a pipe").write_all(rules.as_bytes()).expect("rules");
        assert!(nft.wait().expect("nft").success(), "{rules}");
    }

    /// Reconnects the machine.
    pub fn join(&self, machine: &str) {
        run(self.inside(machine, "nft").args(["delete", "table", "inet", "lab"]));
    }

    /// Returns a command that runs a program on a machine.
    fn inside(&self, machine: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.netns(machine), program]);
        command
    }

    /// Returns the environment in which a process reads the clock of its machine.
    pub fn clock(&self, machine: &str) -> Vec<(&'static str, String)> {
        let file = self.path(&format!("{machine}.clock"));
        if !std::fs::exists(&file).expect("file") {
            self.set_clock(machine, "+0");
        }
        let found = Command::new("sh")
            .args(["-c", "ls /usr/lib/*/faketime/libfaketimeMT.so.1"])
            .output()
            .expect("sh");
        let library = crate::lab::text(&found.stdout).trim().to_owned();
        assert!(!library.is_empty(), "install libfaketime");
        vec![
            ("LD_PRELOAD", library),
            ("FAKETIME_TIMESTAMP_FILE", file),
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }

    /// Sets the clock of a machine wrong, by `+10m` for example, while its processes run.
    pub fn set_clock(&self, machine: &str, by: &str) {
        let file = self.path(&format!("{machine}.clock"));
        let new = format!("{file}.new");
        std::fs::write(&new, format!("{by}\n")).expect("clock");
        std::fs::rename(new, file).expect("clock");
    }

    /// Fills the disk of a node's state to the last byte.
    pub fn fill(&self, node: &str) {
        let path = self.root.join(node).join("filling");
        let mut file = std::fs::File::create(path).expect("file");
        let mut piece = vec![0u8; 1 << 20];
        while !piece.is_empty() {
            while file.write_all(&piece).is_ok() {}
            piece.truncate(piece.len() / 2);
        }
    }

    /// Frees the disk again.
    pub fn empty(&self, node: &str) {
        std::fs::remove_file(self.root.join(node).join("filling")).expect("file");
    }
}
