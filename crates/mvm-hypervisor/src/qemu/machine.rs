//! One live QEMU process.

use super::driver::no_space;
use super::process::{self, ExitWatch};
use super::qmp::Qmp;
use crate::{Error, Exit, Machine, MachineStats, ProcessIdentity, RestoreMemory, Result, VmSpec};
use async_trait::async_trait;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;
use tokio::sync::Mutex;

/// How long the device state may take to be written.
const SAVE: Duration = Duration::from_secs(60);
/// How long a process may take to end after it was asked to.
const QUIT: Duration = Duration::from_secs(3);

/// A machine.
pub struct QemuMachine {
    spec: VmSpec,
    process: ProcessIdentity,
    exit: ExitWatch,
    monitor: Mutex<Option<Qmp>>,
    memory: RestoreMemory,
}

impl QemuMachine {
    /// The machine behind a process whose monitor answers.
    pub(super) fn new(
        spec: &VmSpec,
        process: ProcessIdentity,
        exit: ExitWatch,
        monitor: Option<Qmp>,
        memory: RestoreMemory,
    ) -> QemuMachine {
        QemuMachine { spec: spec.clone(), process, exit, monitor: Mutex::new(monitor), memory }
    }

    fn ended(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }

    fn gone(&self) -> Error {
        let reason = self.ended().map_or_else(|| "it was ended".to_owned(), |exit| exit.reason);
        Error::Gone { id: self.spec.id.clone(), reason }
    }

    /// Waits until the state that is coming in has been loaded.
    pub(super) async fn await_loaded(&self, deadline: Duration) -> Result<()> {
        let monitor = self.monitor.lock().await;
        let monitor = monitor.as_ref().ok_or_else(|| self.gone())?;
        let ends = tokio::time::Instant::now() + deadline;
        loop {
            let status = match monitor.status().await {
                Ok(status) => status,
                Err(error) => {
                    // The process ends with an error of its own when the state is no good.
                    let mut exit = self.exit.clone();
                    let wait = exit.wait_for(Option::is_some);
                    let told = tokio::time::timeout(QUIT, wait).await.is_ok();
                    return Err(if told { self.gone() } else { error });
                }
            };
            if status.status != qapi::qmp::RunState::inmigrate {
                return Ok(());
            }
            if tokio::time::Instant::now() >= ends {
                return Err(Error::QmpTimeout {
                    id: self.spec.id.clone(),
                    command: "incoming".to_owned(),
                    after: deadline,
                });
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Receives the device state on a socket and writes it to `part`.
    async fn save(&self, monitor: &Qmp, part: &Path) -> Result<()> {
        let failed = |reason: String| Error::SnapshotFailed {
            id: self.spec.id.clone(),
            to: part.to_owned(),
            reason,
        };
        let socket = self.spec.dir.join("state.sock");
        let _ = std::fs::remove_file(&socket);
        let _remove = RemoveOnDrop(&socket);
        let listener = UnixListener::bind(&socket).map_err(|e| failed(e.to_string()))?;
        // The directory is closed to everybody but the machine's own user.
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666))
            .map_err(|e| failed(e.to_string()))?;
        let seen = match self.spec.confine {
            Some(_) => PathBuf::from("/state.sock"),
            None => socket.clone(),
        };
        monitor.migrate(format!("unix:{}", seen.display())).await?;
        let receive = async {
            let (mut stream, _) = listener.accept().await?;
            let mut state = Vec::new();
            stream.read_to_end(&mut state).await?;
            Ok::<_, std::io::Error>(state)
        };
        let state = match tokio::time::timeout(SAVE, receive).await {
            Ok(Ok(state)) => state,
            Ok(Err(e)) => return Err(failed(e.to_string())),
            Err(_) => return Err(failed(format!("no end within {} s", SAVE.as_secs()))),
        };
        loop {
            let (status, error) = monitor.migration().await?;
            match status.as_str() {
                "completed" => break,
                "failed" | "cancelled" => return Err(failed(format!("{status}: {error}"))),
                _ => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
        let (path, memory) = (part.to_owned(), self.spec.memory.clone());
        let written = tokio::task::spawn_blocking(move || write_durably(&path, &state, &memory));
        let written = written.await.map_err(|e| failed(e.to_string()))?;
        written.map_err(|e| no_space(&self.spec, part, e, format!("write {}", part.display())))
    }
}

fn write_durably(path: &Path, state: &[u8], memory: &Path) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    std::io::Write::write_all(&mut file, state)?;
    file.sync_all()?;
    File::open(memory)?.sync_data()
}

#[async_trait]
impl Machine for QemuMachine {
    fn process(&self) -> ProcessIdentity {
        self.process.clone()
    }

    fn channel(&self) -> PathBuf {
        self.spec.dir.join("channel.sock")
    }

    async fn pause(&self) -> Result<()> {
        let monitor = self.monitor.lock().await;
        monitor.as_ref().ok_or_else(|| self.gone())?.stop().await
    }

    async fn resume(&self) -> Result<()> {
        let monitor = self.monitor.lock().await;
        monitor.as_ref().ok_or_else(|| self.gone())?.cont().await
    }

    async fn snapshot(&self, to: &Path) -> Result<()> {
        if self.memory == RestoreMemory::Clone {
            return Err(Error::NotSnapshottable { id: self.spec.id.clone() });
        }
        let monitor = self.monitor.lock().await;
        let monitor = monitor.as_ref().ok_or_else(|| self.gone())?;
        if monitor.status().await?.running {
            return Err(Error::NotPaused { id: self.spec.id.clone() });
        }
        let part = to.with_extension("part");
        let outcome = self.save(monitor, &part).await;
        if outcome.is_err() {
            let _ = std::fs::remove_file(&part);
            // Nothing to cancel is no error of interest: the first one is.
            let _ = monitor.cancel_migration().await;
            return outcome;
        }
        let dir = to.parent().unwrap_or(Path::new("/"));
        std::fs::rename(&part, to)
            .and_then(|()| File::open(dir)?.sync_all())
            .map_err(|e| no_space(&self.spec, to, e, format!("write {}", to.display())))
    }

    async fn kill(&self) -> Result<()> {
        let mut exit = self.exit.clone();
        if let Some(monitor) = self.monitor.lock().await.take() {
            // Asked politely it writes what it holds back to its disks.
            if self.ended().is_none() && tokio::time::timeout(QUIT, monitor.quit()).await.is_ok() {
                let _ = tokio::time::timeout(QUIT, exit.wait_for(Option::is_some)).await;
            }
        }
        if self.ended().is_none() {
            process::kill(&self.process)?;
            let _ = exit.wait_for(Option::is_some).await;
        }
        for socket in ["qmp.sock", "channel.sock", "state.sock"] {
            let _ = std::fs::remove_file(self.spec.dir.join(socket));
        }
        Ok(())
    }

    async fn stats(&self) -> Result<MachineStats> {
        let process = i32::try_from(self.process.pid).ok();
        let process = process.and_then(|pid| procfs::process::Process::new(pid).ok());
        let process = process.filter(|_| self.ended().is_none()).ok_or_else(|| self.gone())?;
        let stat = process.stat().map_err(|_| self.gone())?;
        let ticks = procfs::ticks_per_second().max(1);
        let rollup = process.smaps_rollup().ok();
        let kib = |name: &str| {
            let map = rollup.as_ref().and_then(|all| all.memory_map_rollup.iter().next());
            map.and_then(|map| map.extension.map.get(name)).map_or(0, |bytes| bytes / 1024)
        };
        let paused = match self.monitor.lock().await.as_ref() {
            Some(monitor) => !monitor.status().await?.running,
            None => return Err(self.gone()),
        };
        Ok(MachineStats {
            cpu_time_ms: (stat.utime + stat.stime) * 1000 / ticks,
            resident_kib: kib("Rss"),
            proportional_kib: kib("Pss"),
            paused,
        })
    }

    async fn exited(&self) -> Exit {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
        ended.unwrap_or_else(|| Exit { reason: "nobody watched it end".to_owned(), clean: false })
    }
}

struct RemoveOnDrop<'a>(&'a Path);

impl Drop for RemoveOnDrop<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0);
    }
}
