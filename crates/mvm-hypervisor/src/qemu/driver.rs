//! Starting, restoring and adopting machines.

use super::arguments::{Handed, arguments};
use super::machine::QemuMachine;
use super::process::{self, ExitWatch};
use super::qmp::Qmp;
use crate::{
    Description, Error, Hypervisor, Machine, OnStarted, ProcessIdentity, RestoreMemory, Result,
    VmSpec,
};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a new process may take until its monitor answers.
const START: Duration = Duration::from_secs(20);
/// How long the device state may take to load.
const LOAD: Duration = Duration::from_secs(20);

/// The driver.
#[derive(Clone, Debug)]
pub struct QemuDriver {
    program: PathBuf,
    version: String,
    accelerator: String,
}

impl QemuDriver {
    /// `qemu-system-x86_64` in PATH.
    pub fn find_binary() -> Result<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|dir| dir.join("qemu-system-x86_64"))
            .find(|file| file.is_file())
            .ok_or(Error::QemuNotFound)
    }

    /// A driver of this program with this accelerator, `kvm` or `tcg`.
    pub async fn new(program: PathBuf, accelerator: String) -> Result<QemuDriver> {
        let unusable = |reason: String| Error::QemuUnusable { program: program.clone(), reason };
        let output = tokio::process::Command::new(&program)
            .arg("--version")
            .output()
            .await
            .map_err(|e| unusable(e.to_string()))?;
        let words = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = words
            .split_whitespace()
            .skip_while(|word| *word != "version")
            .nth(1)
            .map(str::to_owned)
            .ok_or_else(|| unusable(format!("it says {words:?}")))?;
        let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        if (numbers.next(), numbers.next()) < (Some(7), Some(2)) {
            return Err(unusable(format!("it has version {version}")));
        }
        Ok(QemuDriver { program, version, accelerator })
    }

    /// Starts the process and waits for its monitor. On an error there is no process.
    async fn start(
        &self,
        spec: &VmSpec,
        memory: RestoreMemory,
        state: Option<OwnedFd>,
        started: OnStarted<'_>,
    ) -> Result<QemuMachine> {
        let qmp = listen(spec, "qmp.sock")?;
        let channel = listen(spec, "channel.sock")?;
        let disks = open_disks(spec)?;
        let handed = Handed {
            disks: disks
                .iter()
                .map(|(id, f)| (id.clone(), f.each_ref().map(AsRawFd::as_raw_fd)))
                .collect(),
            qmp: qmp.as_raw_fd(),
            channel: channel.as_raw_fd(),
            state: state.as_ref().map(AsRawFd::as_raw_fd),
        };
        let words = arguments(spec, &self.accelerator, memory, &handed);
        let mut fds = vec![handed.qmp, handed.channel];
        fds.extend(handed.state);
        fds.extend(handed.disks.values().flatten());
        let (identity, exit) = process::start(&self.program, &words, &fds, spec)?;
        let guard = KillOnDrop(Some(identity.clone()));
        started(&identity);
        // Our copies: only the process keeps them, so that its end ends the connections.
        drop((qmp, channel, state, disks));
        let socket = spec.dir.join("qmp.sock");
        let monitor = until_exit(&exit, Qmp::connect(&spec.id, &socket, START)).await;
        let monitor = match monitor {
            Ok(Ok(monitor)) => {
                if let Some(state) = handed.state {
                    monitor.ignore_shared().await?;
                    // A state that is no good ends the process; `await_loaded` finds out.
                    let _ = monitor.incoming(state).await;
                }
                monitor
            }
            // A connection that breaks is a process that is ending: its end says more.
            Ok(Err(Error::QmpFailed { .. })) | Err(()) => return Err(died(spec, exit).await),
            Ok(Err(error)) => return Err(error),
        };
        guard.keep();
        Ok(QemuMachine::new(spec, identity, exit, Some(monitor), memory))
    }
}

/// Runs `work` unless the process ends first.
async fn until_exit<T>(
    exit: &ExitWatch,
    work: impl Future<Output = T>,
) -> std::result::Result<T, ()> {
    let mut exit = exit.clone();
    tokio::select! {
        done = work => Ok(done),
        _ = exit.wait_for(Option::is_some) => Err(()),
    }
}

async fn died(spec: &VmSpec, mut exit: ExitWatch) -> Error {
    let wait = exit.wait_for(Option::is_some);
    let status = match tokio::time::timeout(Duration::from_secs(2), wait).await {
        Ok(Ok(exit)) => exit.as_ref().map(|exit| exit.reason.clone()).unwrap_or_default(),
        _ => "its monitor closed".to_owned(),
    };
    Error::DiedAtBoot {
        id: spec.id.clone(),
        status,
        log: process::tail(&spec.dir.join("qemu.log"), 10),
        console: process::tail(&spec.dir.join("console.log"), 15),
    }
}

/// Opens every disk that can be written, for reading and writing and for reading only.
fn open_disks(spec: &VmSpec) -> Result<BTreeMap<String, [File; 2]>> {
    let open = |disk: &crate::Disk| {
        let writable = File::options().read(true).write(true).open(&disk.path)?;
        Ok::<_, std::io::Error>([writable, File::open(&disk.path)?])
    };
    spec.disks
        .iter()
        .filter(|disk| !disk.read_only)
        .map(|disk| {
            let opened = open(disk).map_err(|source| Error::SpawnFailed {
                id: spec.id.clone(),
                what: format!("the disk {}", disk.path.display()),
                source,
            })?;
            Ok((disk.id.clone(), opened))
        })
        .collect()
}

/// Binds a socket of the machine's, in place of one that an earlier process left.
fn listen(spec: &VmSpec, name: &str) -> Result<UnixListener> {
    let path = spec.dir.join(name);
    let _ = std::fs::remove_file(&path);
    UnixListener::bind(&path).map_err(|source| Error::SpawnFailed {
        id: spec.id.clone(),
        what: format!("the socket {}", path.display()),
        source,
    })
}

#[async_trait]
impl Hypervisor for QemuDriver {
    fn description(&self) -> Description {
        Description {
            name: "qemu".to_owned(),
            version: self.version.clone(),
            accelerator: self.accelerator.clone(),
            simulated: false,
        }
    }

    async fn boot(&self, spec: &VmSpec, started: OnStarted<'_>) -> Result<Arc<dyn Machine>> {
        let what = format!("make the memory file {}", spec.memory.display());
        File::create(&spec.memory)
            .and_then(|file| file.set_len(spec.mem_mib << 20))
            .map_err(|e| no_space(spec, &spec.memory, e, what))?;
        let machine = self.start(spec, RestoreMemory::Own, None, started).await?;
        Ok(Arc::new(machine))
    }

    async fn restore(
        &self,
        spec: &VmSpec,
        snapshot: &Path,
        memory: RestoreMemory,
        started: OnStarted<'_>,
    ) -> Result<Arc<dyn Machine>> {
        let failed = |reason: String| Error::RestoreFailed {
            id: spec.id.clone(),
            snapshot: snapshot.to_owned(),
            reason,
        };
        let mut file = File::open(snapshot).map_err(|e| failed(e.to_string()))?;
        let (near, far) = UnixStream::pair().map_err(|e| failed(e.to_string()))?;
        // The state may be more than a socket holds: it is fed while QEMU reads.
        let feeding = tokio::task::spawn_blocking(move || {
            let mut near = near;
            std::io::copy(&mut file, &mut near)
        });
        let machine = match self.start(spec, memory, Some(far.into()), started).await {
            Ok(machine) => machine,
            Err(Error::DiedAtBoot { status, log, .. }) => {
                return Err(failed(format!("{status}\n{log}")));
            }
            Err(error) => return Err(error),
        };
        let guard = KillOnDrop(Some(machine.process()));
        machine.await_loaded(LOAD).await.map_err(|e| failed(e.to_string()))?;
        drop(feeding);
        guard.keep();
        Ok(Arc::new(machine))
    }

    async fn adopt(
        &self,
        spec: &VmSpec,
        process: &ProcessIdentity,
    ) -> Result<Option<Arc<dyn Machine>>> {
        if process.marker != spec.marker || !process::is_alive(process) {
            return Ok(None);
        }
        let exit = process::watch_adopted(process)?;
        let monitor = Qmp::connect(&spec.id, &spec.dir.join("qmp.sock"), START).await?;
        let memory = RestoreMemory::Own;
        Ok(Some(Arc::new(QemuMachine::new(spec, process.clone(), exit, Some(monitor), memory))))
    }

    async fn kill_stray(&self, process: &ProcessIdentity) -> Result<()> {
        process::kill(process)?;
        for _ in 0..1000 {
            if !process::is_alive(process) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err(Error::NotOurs { pid: process.pid, marker: process.marker.clone() })
    }

    fn find(&self, marker_prefix: &str) -> Result<Vec<ProcessIdentity>> {
        process::find(marker_prefix)
    }
}

/// An I/O error; a full disk is told apart.
pub fn no_space(spec: &VmSpec, path: &Path, source: std::io::Error, what: String) -> Error {
    match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            Error::NoSpace { id: spec.id.clone(), path: path.to_owned() }
        }
        _ => Error::Io { what, source },
    }
}

/// Ends a process that nobody holds yet, when the future that started it ends early.
struct KillOnDrop(Option<ProcessIdentity>);

impl KillOnDrop {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(process) = &self.0
            && let Err(error) = process::kill(process)
        {
            tracing::error!("cannot end a process that failed to start: {error}");
        }
    }
}
