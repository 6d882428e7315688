//! Notices programs that the guest's kernel has ended for want of memory (proc(5), `oom_kill` of
//! vmstat).

use crate::protocol::Exit;

/// How many programs the kernel had ended when a program was started.
pub struct OomKills(u64);

impl OomKills {
    /// Reads the present count.
    pub fn now() -> OomKills {
        OomKills(counted(&std::fs::read_to_string("/proc/vmstat").unwrap_or_default()))
    }

    /// Returns a line for the user of a failed program if the kernel has ended programs meanwhile:
    /// a user who cannot read the kernel's log would not learn of it otherwise.
    pub fn words(&self, exit: Exit) -> Option<Vec<u8>> {
        words(exit, || OomKills::now().0.saturating_sub(self.0)).map(String::into_bytes)
    }
}

/// Returns the line. `ended` counts the programs that the kernel has ended meanwhile; it is called
/// only for a program that failed.
fn words(exit: Exit, ended: impl FnOnce() -> u64) -> Option<String> {
    if exit.code == Some(0) {
        return None;
    }
    let what = match ended() {
        0 => return None,
        1 => "a program",
        _ => "programs",
    };
    Some(format!("mvm: the machine was out of memory, and its kernel ended {what}\n"))
}

fn counted(vmstat: &str) -> u64 {
    let line = vmstat.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_failed_hears_of_others_that_were_ended() {
        let exit = |code, signal| Exit { code, signal };
        assert_eq!(words(exit(Some(1), None), || 0), None);
        assert_eq!(words(exit(Some(0), None), || 2), None);
        assert!(words(exit(None, Some(9)), || 1).is_some_and(|w| w.ends_with("a program\n")));
        // A shell reports its child's end in this way.
        assert!(words(exit(Some(137), None), || 2).is_some_and(|w| w.ends_with("programs\n")));
        assert_eq!(counted("pgfault 7\noom_kill 3\noom_kill_x 9\n"), 3);
        assert_eq!(counted(""), 0);
    }
}
