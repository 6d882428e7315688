//! The errors of this crate, each with a stable code.

use mvm_model::cpu::CpuIdentity;
use mvm_model::cpu_model::CpuModelFault;
use mvm_model::{Code, CpuModel};
use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed call. Every failure names the machine or file concerned, the cause and, where there is
/// one, the next step. [`Error::code`] is stable for programs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `PATH` has no QEMU.
    #[error(
        "qemu-system-x86_64 is not in PATH: install it, on Debian with \
         `apt-get install qemu-system-x86`"
    )]
    QemuNotFound,
    /// The program exists, but does not report a readable version, or its version is too old.
    #[error("{}: {reason}; QEMU 7.2 or newer is needed", program.display())]
    QemuUnusable {
        /// The program that was asked for its version.
        program: PathBuf,
        /// What its answer was, or why there was none.
        reason: String,
    },
    /// The machine was started under KVM, which this host does not offer now.
    #[error("machine {id} was started under KVM, which cannot be had: {reason}")]
    KvmUnavailable {
        /// [`crate::VmSpec::id`]
        id: String,
        /// Why KVM cannot be had.
        reason: String,
    },
    /// The machine was started on a CPU that shows its guest something else.
    #[error("machine {id} began on {was}, and this host has {here}: {reason}")]
    CpuDiffers {
        /// [`crate::VmSpec::id`]
        id: String,
        /// The CPU that it began on.
        was: Box<CpuIdentity>,
        /// The CPU of this host.
        here: Box<CpuIdentity>,
        /// How they differ, for people.
        reason: String,
    },
    /// No machine with this CPU model can be started here.
    #[error("no machine with the CPU model {model} can be started under {on}: {why}")]
    CpuModelUnavailable {
        /// The model.
        model: CpuModel,
        /// What would execute its instructions, and on which CPU, for people.
        on: String,
        /// Why not.
        why: CpuModelFault,
        /// The names of models that can be had, for people; empty if there are none.
        choices: String,
    },
    /// The specification itself cannot be run.
    #[error("machine {id}: {reason}")]
    InvalidSpec {
        /// [`crate::VmSpec::id`]
        id: String,
        /// The field, its value, and what it should be.
        reason: String,
    },
    /// The process could not be started.
    #[error("machine {id}: cannot start {what}: {source}")]
    SpawnFailed {
        /// [`crate::VmSpec::id`]
        id: String,
        /// What was being prepared or executed.
        what: String,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The process ended before the machine ran.
    #[error("machine {id}: QEMU ended before the machine ran ({status}){}", tail(.log, .console))]
    DiedAtBoot {
        /// [`crate::VmSpec::id`]
        id: String,
        /// `exit status 1` or `killed by signal 9`.
        status: String,
        /// Last lines of `qemu.log`.
        log: String,
        /// Last lines of `console.log`.
        console: String,
    },
    /// The process lives but did not answer in time.
    #[error("machine {id}: no answer to `{command}` within {} ms", after.as_millis())]
    QmpTimeout {
        /// [`crate::VmSpec::id`]
        id: String,
        /// The QMP command, or `connect`.
        command: String,
        /// The deadline that passed.
        after: Duration,
    },
    /// The process refused a command, or did not speak QMP.
    #[error("machine {id}: `{command}` failed: {reason}")]
    QmpFailed {
        /// [`crate::VmSpec::id`]
        id: String,
        /// The QMP command.
        command: String,
        /// QEMU's own error message.
        reason: String,
    },
    /// The device state could not be written; the machine is unchanged.
    #[error("machine {id}: snapshot to {} failed, the machine is paused as before: {reason}", to.display())]
    SnapshotFailed {
        /// [`crate::VmSpec::id`]
        id: String,
        /// The file that should have been written.
        to: PathBuf,
        /// The cause, for people.
        reason: String,
    },
    /// A file system is full (or over quota).
    #[error("machine {id}: no space left for {}: free some, or use another disk, and try again", path.display())]
    NoSpace {
        /// [`crate::VmSpec::id`]
        id: String,
        /// The file that did not fit.
        path: PathBuf,
    },
    /// A snapshot was asked of a machine that runs; only a paused one can be snapshotted.
    #[error("machine {id} is running; pause it before it is snapshotted")]
    NotPaused {
        /// [`crate::VmSpec::id`]
        id: String,
    },
    /// The device state could not be loaded; the process is gone.
    #[error("machine {id}: cannot restore from {}: {reason}", snapshot.display())]
    RestoreFailed {
        /// [`crate::VmSpec::id`]
        id: String,
        /// The device state file.
        snapshot: PathBuf,
        /// QEMU's own error message, or the driver's.
        reason: String,
    },
    /// A live process has the recorded pid but is not the recorded process.
    #[error("process {pid} is not {marker}: it is left alone")]
    NotOurs {
        /// The pid that was recorded.
        pid: u32,
        /// The marker that was expected.
        marker: String,
    },
    /// A live process holds the machine's directory.
    #[error("machine {id} runs already in {}: adopt or kill its process first", dir.display())]
    AlreadyRunning {
        /// [`crate::VmSpec::id`]
        id: String,
        /// [`crate::VmSpec::dir`]
        dir: PathBuf,
    },
    /// The machine has ended.
    #[error("machine {id} has ended: {reason}")]
    Gone {
        /// [`crate::VmSpec::id`]
        id: String,
        /// [`crate::Exit::reason`]
        reason: String,
    },
    /// A system call failed that normally does not.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, and to which file.
        what: String,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A fault that a [`crate::sim::FaultPlan`] asked for.
    #[error("machine {id}: simulated fault at `{call}`")]
    Injected {
        /// [`crate::VmSpec::id`]
        id: String,
        /// The call that failed.
        call: String,
    },
}

impl Error {
    /// Returns the stable code of the failure, for programs.
    pub fn code(&self) -> Code {
        match self {
            Self::QemuNotFound => Code::QemuNotFound,
            Self::QemuUnusable { .. } => Code::QemuUnusable,
            Self::KvmUnavailable { .. } => Code::KvmUnavailable,
            Self::CpuDiffers { .. } => Code::CpuDiffers,
            Self::CpuModelUnavailable { .. } => Code::CpuModelUnavailable,
            Self::InvalidSpec { .. } => Code::InvalidSpec,
            Self::SpawnFailed { .. } => Code::SpawnFailed,
            Self::DiedAtBoot { .. } => Code::DiedAtBoot,
            Self::QmpTimeout { .. } => Code::QmpTimeout,
            Self::QmpFailed { .. } => Code::QmpFailed,
            Self::SnapshotFailed { .. } => Code::SnapshotFailed,
            Self::NoSpace { .. } => Code::NoSpace,
            Self::NotPaused { .. } => Code::NotPaused,
            Self::RestoreFailed { .. } => Code::RestoreFailed,
            Self::NotOurs { .. } => Code::NotOurs,
            Self::AlreadyRunning { .. } => Code::AlreadyRunning,
            Self::Gone { .. } => Code::Gone,
            Self::Io { .. } => Code::Io,
            Self::Injected { .. } => Code::Injected,
        }
    }

    /// Returns what to do next, or nothing: most messages say it themselves.
    pub fn hint(&self) -> Cow<'static, str> {
        match self {
            Self::CpuModelUnavailable { choices, .. } if choices.is_empty() => {
                "use --cpu-model host, or a node that offers the model".into()
            }
            Self::CpuModelUnavailable { choices, .. } => format!(
                "use --cpu-model host, a model that can be had here ({choices}), or a node that \
                 offers this one"
            )
            .into(),
            _ => "".into(),
        }
    }

    /// Wraps an I/O error with a text that says what was being done.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

fn tail(log: &str, console: &str) -> String {
    let mut text = String::new();
    for (name, lines) in [("qemu.log", log), ("console.log", console)] {
        if !lines.is_empty() {
            text.push_str(&format!("\n--- {name}\n{lines}"));
        }
    }
    text
}
