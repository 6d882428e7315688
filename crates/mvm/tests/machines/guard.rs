//! Cleans up after a test that a signal ends, since its destructors do not run.

use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Waits until the test has ended in whatever way, then removes what its own destructors have left.
const CLEAN: &str = r#"
read -r _ || true
[ -e "$ROOT" ] || exit 0
names() { ip netns list | while read -r name _; do
  case $name in "$NAME" | "$NAME"-*) echo "$name" ;; esac
done; }
for name in $(names); do
  ip netns pids "$name" | xargs -r kill -9
done
pgrep -f -- "$ROOT(/| |\$)" | xargs -r kill -9
for name in $(names); do ip netns del "$name"; done
while read -r _ at _; do
  case $at in "$ROOT" | "$ROOT"/*) umount -l "$at" ;; esac
done </proc/mounts
rm -rf "$ROOT" "$ROOT.img"
"#;

/// A process in a session of its own, which a signal to the test's process group does not reach.
pub struct Guard(Child);

impl Guard {
    /// Starts the guard. `name` is the test's network namespace, or the common prefix of several.
    pub fn new(root: &Path, name: &str) -> Guard {
        let mut guard = Command::new("setsid");
        guard.args(["sh", "-c", CLEAN]).env("ROOT", root).env("NAME", name);
        guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Guard(guard.spawn().expect("setsid"))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // The call closes the guard's standard input first, which makes the guard end.
        let _ = self.0.wait();
    }
}
