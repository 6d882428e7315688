//! Processes as the kernel knows them: which they are, when they end, and how to end one without
//! ever hitting another. A pidfd (pidfd_open(2)) pins the process; start time and marker prove that
//! it is the right one.

use super::Accelerator;
use super::arguments::cpu_model_in;
use super::oom::OomKills;
use crate::{CONFINED_UIDS, Error, ProcessIdentity, Result};
use mvm_model::accelerator::Processor;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// How a process ended, as far as it can be known: only its parent learns the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Status(i32),
    Signal(i32),
    /// Killed by the kernel for want of memory.
    OutOfMemory,
    Unknown,
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => write!(f, "exit status {status}"),
            // The memory file is mapped: a page that gets no block raises a bus error.
            Self::Signal(7) => {
                f.write_str("killed by signal 7, SIGBUS: no space left for its memory file?")
            }
            Self::Signal(9) => f.write_str(
                "killed by signal 9 (SIGKILL): perhaps the kernel's OOM killer, see the host's kernel log",
            ),
            Self::Signal(signal) => write!(f, "killed by signal {signal}{}", name_of(*signal)),
            Self::OutOfMemory => f.write_str(
                "killed by signal 9 (SIGKILL): the kernel's OOM killer, for want of memory on the host or in its cgroup",
            ),
            Self::Unknown => f.write_str("ended; how is unknown, since an earlier agent started it"),
        }
    }
}

/// Returns the name of a signal that ends processes, in brackets; empty if it is not listed here.
fn name_of(signal: i32) -> &'static str {
    match signal {
        libc::SIGHUP => " (SIGHUP)",
        libc::SIGINT => " (SIGINT)",
        libc::SIGQUIT => " (SIGQUIT)",
        libc::SIGILL => " (SIGILL)",
        libc::SIGTRAP => " (SIGTRAP)",
        libc::SIGABRT => " (SIGABRT)",
        libc::SIGFPE => " (SIGFPE)",
        libc::SIGSEGV => " (SIGSEGV)",
        libc::SIGPIPE => " (SIGPIPE)",
        libc::SIGTERM => " (SIGTERM)",
        libc::SIGXCPU => " (SIGXCPU)",
        libc::SIGXFSZ => " (SIGXFSZ)",
        libc::SIGSYS => " (SIGSYS)",
        _ => "",
    }
}

/// A live or ended process that is known to be the one that its identity names.
#[derive(Debug, Clone)]
pub(super) struct Process {
    pub(super) identity: ProcessIdentity,
    pidfd: Arc<OwnedFd>,
    ending: watch::Receiver<Option<Ending>>,
}

impl Process {
    /// Opens the process that `identity` names; `None` if it is gone or another has its pid. Needs
    /// a Tokio runtime: a task waits for the end, and reaps the process if it is a child.
    pub(super) fn open(identity: &ProcessIdentity) -> Result<Option<Self>> {
        let Some(pidfd) = open_pidfd(identity.pid)? else { return Ok(None) };
        // The pidfd is opened first: what is read now belongs to the pinned process or, if that
        // ended in between, to one with another start time.
        if identify(identity.pid).as_ref() != Some(identity) {
            return Ok(None);
        }
        Self::watch(identity.clone(), pidfd).map(Some)
    }

    /// Like [`Process::open`], for a child that was just spawned and has not been waited for.
    pub(super) fn of_child(pid: u32, marker: &str) -> Result<Self> {
        let gone = || Error::io(format!("process {pid}"))(std::io::ErrorKind::NotFound.into());
        let pidfd = open_pidfd(pid)?.ok_or_else(gone)?;
        let start_time = start_time(pid).ok_or_else(gone)?;
        Self::watch(ProcessIdentity { pid, start_time, marker: marker.to_owned() }, pidfd)
    }

    fn watch(identity: ProcessIdentity, pidfd: OwnedFd) -> Result<Self> {
        let pidfd = Arc::new(pidfd);
        let oom_kills = OomKills::of(identity.pid);
        let (sender, ending) = watch::channel(None);
        let interest = tokio::io::Interest::READABLE;
        // SAFETY: an OwnedFd stays open, and the same, for as long as the AsyncFd holds it.
        let readable = unsafe { AsyncFd::register_with_interest(Arc::clone(&pidfd), interest) }
            .map_err(std::io::Error::from)
            .map_err(Error::io(format!("cannot watch process {}", identity.pid)))?;
        tokio::spawn(async move {
            // A pidfd becomes readable, for good, when its process ends.
            let _ = readable.readable().await;
            let ending = match reap(readable.get_ref().as_fd()) {
                // For a process that is not a child, its cgroup is the only source.
                Ending::Signal(9) | Ending::Unknown
                    if oom_kills.as_ref().is_some_and(OomKills::any) =>
                {
                    Ending::OutOfMemory
                }
                ending => ending,
            };
            sender.send_replace(Some(ending));
        });
        Ok(Self { identity, pidfd, ending })
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ending.borrow().is_some()
    }

    /// Waits until the process has ended.
    pub(super) async fn ended(&self) -> Ending {
        let mut ending = self.ending.clone();
        match ending.wait_for(Option::is_some).await {
            Ok(value) => value.unwrap_or(Ending::Unknown),
            Err(_) => Ending::Unknown,
        }
    }

    /// Sends SIGKILL; does nothing if the process has ended.
    pub(super) fn kill_now(&self) {
        let _ = pidfd_send_signal(&*self.pidfd, Signal::KILL);
    }

    /// Sends SIGKILL and waits for the end, at most 30 s. Error: `io` if the process does not end.
    pub(super) async fn kill(&self) -> Result<Ending> {
        self.kill_now();
        // Only a process stuck in the kernel outlives SIGKILL.
        tokio::time::timeout(Duration::from_secs(30), self.ended()).await.map_err(|_| Error::Io {
            what: format!("process {} was killed and does not end", self.identity.pid),
            source: std::io::ErrorKind::TimedOut.into(),
        })
    }
}

/// Kills the process that `identity` names and waits for its end, see
/// [`crate::Hypervisor::kill_stray`].
pub async fn kill_stray(identity: &ProcessIdentity) -> Result<()> {
    match Process::open(identity)? {
        Some(process) => process.kill().await.map(drop),
        None if start_time(identity.pid).is_some_and(|_| !is_zombie(identity.pid)) => {
            Err(Error::NotOurs { pid: identity.pid, marker: identity.marker.clone() })
        }
        None => Ok(()),
    }
}

/// Returns all processes whose marker starts with this prefix, of our own user and of those that
/// confined machines run as. Anybody may run a program whose arguments look like a machine's.
pub fn find(marker_prefix: &str) -> Result<Vec<ProcessIdentity>> {
    let entries = std::fs::read_dir("/proc").map_err(Error::io("cannot list /proc"))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(identify)
        .filter(|identity| identity.marker.starts_with(marker_prefix))
        .collect())
}

fn open_pidfd(pid: u32) -> Result<Option<OwnedFd>> {
    let Some(pid_) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    match pidfd_open(pid_, PidfdFlags::NONBLOCK) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => Ok(None),
        Err(e) => Err(Error::io(format!("cannot open process {pid}"))(e.into())),
    }
}

fn reap(pidfd: std::os::fd::BorrowedFd<'_>) -> Ending {
    match waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Ending::Status(code),
            (None, Some(signal)) => Ending::Signal(signal),
            (None, None) => Ending::Unknown,
        },
        // The process is not a child, or was reaped elsewhere first.
        _ => Ending::Unknown,
    }
}

fn identify(pid: u32) -> Option<ProcessIdentity> {
    let start_time = start_time(pid)?;
    let uid = std::fs::metadata(format!("/proc/{pid}")).ok()?.uid();
    if uid != rustix::process::geteuid().as_raw() && !CONFINED_UIDS.contains(&uid) {
        return None;
    }
    let marker = marker_in(&std::fs::read(format!("/proc/{pid}/cmdline")).ok()?)?;
    Some(ProcessIdentity { pid, start_time, marker })
}

/// Returns what /proc has of a process; `None` if it is gone.
pub(super) fn proc_of(pid: u32) -> Option<procfs::process::Process> {
    procfs::process::Process::new(i32::try_from(pid).ok()?).ok()
}

fn start_time(pid: u32) -> Option<u64> {
    Some(proc_of(pid)?.stat().ok()?.starttime)
}

fn is_zombie(pid: u32) -> bool {
    proc_of(pid).and_then(|process| process.stat().ok()).is_none_or(|stat| stat.state == 'Z')
}

/// How an adopted process was started, read from its argument vector.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LaunchOptions {
    /// The machine type; `None` if the vector has none.
    pub(super) machine: Option<String>,
    /// The accelerator and the CPU model; `None` if the vector lacks one of them.
    pub(super) processor: Option<Processor>,
    /// Whether its memory is mapped privately, as a clone's is.
    pub(super) private: bool,
}

/// Reads the argument vector of a process; `None` if the process is gone.
pub(super) fn launch_options_of(pid: u32) -> Option<LaunchOptions> {
    std::fs::read(format!("/proc/{pid}/cmdline")).ok().as_deref().map(launch_options_in)
}

fn launch_options_in(cmdline: &[u8]) -> LaunchOptions {
    let words: Vec<&[u8]> = cmdline.split(|b| *b == 0).collect();
    let value = |option: &[u8]| {
        let at = words.iter().position(|word| *word == option)?;
        words.get(at + 1).and_then(|value| std::str::from_utf8(value).ok())
    };
    let machine = value(b"-machine").and_then(|value| value.split(',').next());
    // The driver's own JSON, see `arguments::memory_object`: the first object is the memory.
    let memory = value(b"-object").and_then(|v| serde_json::from_str::<serde_json::Value>(v).ok());
    let share = memory.as_ref().and_then(|memory| memory.get("share")?.as_bool());
    let accelerator = value(b"-accel").and_then(|value| Accelerator::of(value.split(',').next()?));
    let model = value(b"-cpu").and_then(cpu_model_in);
    let processor = accelerator.zip(model);
    let processor = processor.map(|(accelerator, model)| Processor { accelerator, model });
    LaunchOptions { machine: machine.map(str::to_owned), processor, private: share == Some(false) }
}

/// Returns the marker in a NUL-separated argument vector: the word after `-name`, without its
/// `guest=`.
fn marker_in(cmdline: &[u8]) -> Option<String> {
    let mut words = cmdline.split(|b| *b == 0);
    words.find(|word| *word == b"-name")?;
    let marker = words.next()?.strip_prefix(b"guest=")?;
    String::from_utf8(marker.to_vec()).ok().filter(|marker| !marker.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_model::Code;
    use proptest::prelude::*;

    #[test]
    fn markers_are_read_from_argument_vectors() {
        assert_eq!(marker_in(b"qemu\0-name\0guest=mvm:a:b\0-S\0").as_deref(), Some("mvm:a:b"));
        for other in [&b"qemu\0-name\0"[..], b"", b"-name", b"x\0guest=mvm:a:b\0", b"-name\0guest="]
        {
            assert_eq!(marker_in(other), None);
        }
    }

    #[test]
    fn what_a_machine_was_started_with_is_read_from_its_arguments() {
        let words =
            |accel: &str| format!("qemu\0-accel\0{accel}\0-cpu\0host\0-machine\0pc-1,x=y\0");
        let asked = launch_options_in(words("kvm").as_bytes());
        let processor = Processor { accelerator: Accelerator::Kvm, model: "host".into() };
        assert_eq!((asked.machine.as_deref(), asked.processor), (Some("pc-1"), Some(processor)));
        let asked = launch_options_in(words("tcg,thread=multi").as_bytes());
        assert_eq!(asked.processor.map(|p| p.accelerator), Some(Accelerator::Tcg));
        assert_eq!(launch_options_in(words("xen").as_bytes()).processor, None);
        assert_eq!(launch_options_in(b"qemu\0-accel\0kvm\0").processor, None);
    }

    proptest! {
        #[test]
        fn any_argument_vector_is_read_without_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            let _ = marker_in(&bytes);
            let _ = launch_options_in(&bytes);
        }
    }

    #[test]
    fn a_program_of_another_user_is_no_machine() {
        use std::os::unix::process::CommandExt;
        // Two commands, so that the shell stays, with the words after the script as its arguments.
        let begin = |uid| {
            let mut shell = std::process::Command::new("sh");
            shell.args(["-c", "sleep 60; :", "-name", "guest=mvm:test:imitated"]).uid(uid);
            shell.process_group(0).spawn().expect("a shell")
        };
        let found = || -> Vec<u32> {
            find("mvm:test:imitated").expect("/proc").into_iter().map(|one| one.pid).collect()
        };
        let nobody = begin(65_534);
        let confined = begin(CONFINED_UIDS.start);
        let expected = [confined.id()];
        let seen = found();
        for mut child in [nobody, confined] {
            let group = Pid::from_child(&child);
            rustix::process::kill_process_group(group, Signal::KILL).expect("killed");
            child.wait().expect("waited for");
        }
        assert_eq!(seen, expected);
    }

    #[tokio::test]
    async fn a_process_of_others_is_left_alone() {
        let pid = std::process::id();
        let identity = ProcessIdentity {
            pid,
            start_time: start_time(pid).unwrap(),
            marker: "mvm:test:nobody".into(),
        };
        assert!(Process::open(&identity).unwrap().is_none());
        assert_eq!(kill_stray(&identity).await.unwrap_err().code(), Code::NotOurs);
        let gone = ProcessIdentity { pid: 0x3fff_fff0, ..identity };
        assert!(Process::open(&gone).unwrap().is_none());
        kill_stray(&gone).await.unwrap();
    }
}
