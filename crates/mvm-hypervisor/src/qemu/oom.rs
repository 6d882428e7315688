//! Whether the kernel's OOM killer has ended a process, from the counts of its cgroup.

use std::path::{Path, PathBuf};

/// Where cgroups are mounted.
const MOUNT: &str = "/sys/fs/cgroup";

/// The OOM kills of a cgroup, counted from when a process in it was opened.
#[derive(Debug)]
pub(super) struct OomKills {
    file: PathBuf,
    before: u64,
}

impl OomKills {
    /// Opens the count of the process's cgroup; `None` if the kernel keeps none, or cgroups are
    /// mounted elsewhere.
    pub(super) fn of(pid: u32) -> Option<OomKills> {
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        files(Path::new(MOUNT), &cgroups)
            .into_iter()
            .find_map(|file| Some(OomKills { before: count(&file)?, file }))
    }

    /// Returns whether the OOM killer has ended any process of the cgroup since. Kills for the
    /// whole host's lack of memory are counted, too.
    pub(super) fn any(&self) -> bool {
        count(&self.file).is_some_and(|now| now > self.before)
    }
}

/// Returns the files that may hold the count, for cgroups of version 2 and of version 1.
fn files(mount: &Path, cgroups: &str) -> Vec<PathBuf> {
    let file = |line: &str| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let path = path.trim_start_matches('/');
        match controllers {
            "" => Some(mount.join(path).join("memory.events")),
            _ if controllers.split(',').any(|name| name == "memory") => {
                Some(mount.join("memory").join(path).join("memory.oom_control"))
            }
            _ => None,
        }
    };
    cgroups.lines().filter_map(file).collect()
}

fn count(file: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::process::{Ending, Process};
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn the_files_that_count_are_found_by_either_version() {
        let of = |text: &str| files(Path::new("/c"), text);
        assert_eq!(of("0::/mvm.slice/a\n"), [Path::new("/c/mvm.slice/a/memory.events")]);
        let one = "9:name=systemd:/\n4:memory,cpu:/a/b\n2:cpuset:/\n";
        assert_eq!(of(one), [Path::new("/c/memory/a/b/memory.oom_control")]);
        assert_eq!(of("nonsense\n::\n"), [Path::new("/c/memory.events")]);
    }

    /// A cgroup with little memory, beside our own or at the root.
    struct Small(PathBuf);

    impl Small {
        fn new() -> Small {
            let name = format!("mvm-test-{}", std::process::id());
            let own = std::fs::read_to_string("/proc/self/cgroup").expect("cgroups");
            let first =
                files(Path::new(MOUNT), &own).into_iter().find(|file| count(file).is_some());
            let v1 = first.filter(|file| file.ends_with("memory.oom_control"));
            let dir =
                v1.map_or(PathBuf::from(MOUNT).join(&name), |file| file.with_file_name(&name));
            std::fs::create_dir(&dir).expect("a cgroup: run the tests as root");
            let small = Small(dir);
            for (file, limit) in
                [("memory.limit_in_bytes", "16M"), ("memory.max", "16M"), ("memory.swap.max", "0")]
            {
                let file = small.0.join(file);
                if file.exists() {
                    std::fs::write(file, limit).expect("limit");
                }
            }
            small
        }
    }

    impl Drop for Small {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir(&self.0);
        }
    }

    #[tokio::test]
    async fn a_process_that_the_oom_killer_ends_is_told_from_one_that_somebody_kills() {
        let small = Small::new();
        let procs = small.0.join("cgroup.procs");
        for eats in [true, false] {
            let script = "echo $$ > \"$0\" && echo in && read go && exec tail /dev/zero";
            let mut shell = Command::new("sh");
            shell.arg("-c").arg(script).arg(&procs);
            let mut child =
                shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a shell");
            let mut said = [0; 3];
            let out = child.stdout.as_mut().expect("output");
            std::io::Read::read_exact(out, &mut said).expect("it is in the cgroup");
            let process = Process::of_child(child.id(), "test").expect("process");
            match eats {
                true => child.stdin.as_mut().expect("input").write_all(b"go\n").expect("go"),
                false => process.kill_now(),
            }
            let ending = process.ended().await;
            // The process was reaped already; this only closes the handle.
            let _ = child.wait();
            let words = ending.to_string();
            if eats {
                assert_eq!(ending, Ending::OutOfMemory);
                assert!(words.contains("signal 9 (SIGKILL): the kernel's OOM killer"), "{words}");
            } else {
                assert_eq!(ending, Ending::Signal(9));
                assert!(words.contains("perhaps the kernel's OOM killer"), "{words}");
            }
        }
    }
}
