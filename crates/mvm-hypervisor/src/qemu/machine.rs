//! One live QEMU process.

use super::footprint::{self, sum_kib};
use super::heard;
use super::probe::without_kvm;
use super::process::{Ending, Process, proc_of};
use super::qmp::Qmp;
use super::reading::read_until;
use super::snapshot::{self, Draft, Hardware};
use super::unshare::copy_memory;
use super::{Accelerator, CONSOLE_LOG, QEMU_LOG, logs, memory, run_dir};
use crate::{
    Condition, Error, Exit, Halt, Machine, MachineStats, OwnMemory, ProcessIdentity, RestoreMemory,
    Result, VmSpec,
};
use async_trait::async_trait;
use mvm_model::accelerator::Processor;
use mvm_model::footprint::Footprint;
use qapi::qmp::RunState;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tracing::Instrument;

/// How long QEMU may take to send the device state; about 5 ms on an idle host.
const SEND: Duration = Duration::from_secs(60);
/// How long `stats` waits for the monitor; after that, only the kernel's numbers are returned.
const LOOK: Duration = Duration::from_secs(1);
/// How long a process may take to quit before it is killed.
const QUIT: Duration = Duration::from_secs(3);

/// How long the follower waits after a failed query before it asks the monitor again.
const AGAIN: Duration = Duration::from_secs(1);

/// One live QEMU process, as its holder sees it. Dropping it stops the follower, not the machine.
pub(super) struct QemuMachine(
    Arc<Inner>,
    #[expect(dead_code, reason = "it is there to be dropped")] Follower,
);

/// The task that follows a machine's condition; aborted when dropped.
struct Follower(JoinHandle<()>);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Inner {
    spec: VmSpec,
    process: Process,
    qmp: Qmp,
    hardware: Hardware,
    memory: RestoreMemory,
    /// Held by every change of whether the vCPUs run, and by a snapshot from its check to its end.
    turn: Mutex<RequestedState>,
    condition: watch::Sender<Condition>,
}

/// What the caller last asked of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestedState {
    /// Unknown: an earlier process of the caller started the machine.
    Unknown,
    /// To run, by a boot or a resume.
    Run,
    /// To pause, by a restore or a pause.
    Pause,
    /// To pause, and a snapshot of it exists: it may be ended.
    Sleep,
}

impl QemuMachine {
    fn just_ended(&self) -> Error {
        Error::Gone { id: self.0.spec.id.clone(), reason: "it just ended".into() }
    }

    pub(super) fn new(
        spec: &VmSpec,
        process: Process,
        qmp: Qmp,
        hardware: Hardware,
        memory: RestoreMemory,
        requested: RequestedState,
    ) -> Self {
        let (spec, turn) = (spec.clone(), Mutex::new(requested));
        let condition = watch::Sender::default();
        let inner = Arc::new(Inner { spec, process, qmp, hardware, memory, turn, condition });
        let follower = Follower(tokio::spawn(follow(Arc::clone(&inner))));
        Self(inner, follower)
    }

    fn last_lines(&self, log: &str, lines: usize) -> String {
        logs::last_lines(&self.0.spec.dir.join(log), lines)
    }
}

/// Keeps a machine's condition up to date, woken by its events, until its process ends.
async fn follow(machine: Arc<Inner>) {
    let heard = Arc::clone(machine.qmp.heard());
    let ended = machine.process.clone();
    let follow = async {
        loop {
            match machine.look().await {
                Ok(now) => {
                    let changed = machine.condition.send_if_modified(|known| {
                        let changed = *known != now;
                        *known = now;
                        changed
                    });
                    if changed {
                        let now = &*machine.condition.borrow();
                        tracing::info!(id = machine.spec.id, ?now, "a machine's condition");
                    }
                    heard.changed.notified().await;
                }
                Err(error) => {
                    tracing::debug!(id = machine.spec.id, "its condition is not known: {error}");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    };
    tokio::select! {
        () = follow => {}
        _ = ended.ended() => {}
    }
}

impl Inner {
    /// Asks the monitor whether the machine does what its caller last asked.
    async fn look(&self) -> Result<Condition> {
        let requested = self.turn.lock().await;
        if matches!(*requested, RequestedState::Pause | RequestedState::Sleep) {
            return Ok(Condition::Fine);
        }
        let halt = match self.qmp.status().await? {
            RunState::io_error => self.qmp.culprit().await?,
            RunState::guest_panicked => Halt::Panicked,
            // An earlier process of the caller may have paused the machine; the present one has not
            // said anything yet.
            RunState::paused if *requested == RequestedState::Unknown => {
                return Ok(Condition::Fine);
            }
            state @ (RunState::paused
            | RunState::internal_error
            | RunState::watchdog
            | RunState::suspended) => Halt::Other(qapi::Enum::name(&state).to_owned()),
            _ => return Ok(Condition::Fine),
        };
        Ok(Condition::Halted(halt))
    }

    /// Replaces a monitor error with `gone` if the process is ending: its connection breaks before
    /// it is reaped.
    async fn explain(&self, error: Error) -> Error {
        if !matches!(error, Error::QmpFailed { .. }) && !self.process.has_ended() {
            return error;
        }
        match tokio::time::timeout(Duration::from_millis(200), self.process.ended()).await {
            Ok(ending) => Error::Gone { id: self.spec.id.clone(), reason: ending.to_string() },
            Err(_) => error,
        }
    }

    fn failed(&self, to: &Path, reason: impl Into<String>) -> Error {
        Error::SnapshotFailed { id: self.spec.id.clone(), to: to.to_owned(), reason: reason.into() }
    }

    /// Tells a full disk apart from other write errors.
    fn not_written(&self, to: &Path, error: &std::io::Error) -> Error {
        if run_dir::is_no_space(error) {
            return Error::NoSpace { id: self.spec.id.clone(), path: to.to_owned() };
        }
        self.failed(to, error.to_string())
    }

    async fn snapshot(&self, to: &Path, unshared: Option<OwnMemory>) -> Result<()> {
        let mut requested = self.turn.lock().await;
        let status = self.qmp.status().await?;
        if status == RunState::running {
            return Err(Error::NotPaused { id: self.spec.id.clone() });
        }
        let unshared = unshared.filter(|_| self.memory == RestoreMemory::Clone);
        if let Some(own) = unshared.filter(|_| status != RunState::postmigrate) {
            match self.leave_memory(to, own).await {
                Err(error @ (Error::SnapshotFailed { .. } | Error::QmpFailed { .. })) => {
                    tracing::warn!(id = self.spec.id, "memory goes into the snapshot: {error}");
                }
                done => return done,
            }
        }
        self.send_state(to, status).await?;
        *requested = RequestedState::Sleep;
        Ok(())
    }

    /// Gives back the blocks of a sleeping machine's memory file that hold nothing.
    async fn trim_memory(&self) {
        let asleep =
            self.turn.try_lock().is_ok_and(|requested| *requested == RequestedState::Sleep);
        if !asleep || self.memory == RestoreMemory::Clone || !self.spec.reserve_memory {
            return;
        }
        let spec = self.spec.clone();
        let trim = tokio::task::spawn_blocking(move || memory::trim(&spec));
        let trimmed = trim.instrument(tracing::info_span!("memory_trim", id = %self.spec.id)).await;
        if let Err(error) = trimmed.map_err(std::io::Error::other).flatten() {
            tracing::warn!(id = self.spec.id, "its memory file stays reserved: {error}");
        }
    }

    /// Writes a clone's snapshot, and its memory to a file of its own: QEMU would send all of the
    /// guest's memory, page by page.
    async fn leave_memory(&self, to: &Path, own: OwnMemory) -> Result<()> {
        let mut draft = Draft::begin(to).map_err(|e| self.not_written(to, &e))?;
        let (mut devices, seen) =
            run_dir::devices_file(&self.spec).map_err(|e| self.not_written(to, &e))?;
        self.qmp.save_devices(&seen).await?;
        let (pid, hardware) = (self.process.identity.pid, self.hardware.clone());
        let memory = self.spec.memory.clone();
        let write = move || {
            let template =
                snapshot::open(&own.template, &hardware).map_err(std::io::Error::other)?;
            let state = template.with_devices(&hardware, &devices.read()?).ok_or_else(|| {
                std::io::Error::other("its template's state is of a form that is not known")
            })?;
            copy_memory(pid, &memory, &own.file)?;
            draft
                .fill(&state[..])
                .and_then(|()| draft.finish(&hardware, Some(&own.file)))
                .inspect_err(|_| drop(run_dir::remove(&own.file)))
        };
        let written = tokio::task::spawn_blocking(write).await;
        let written = written.map_err(|e| self.failed(to, e.to_string()))?;
        written.map_err(|e| self.not_written(to, &e))
    }

    /// Makes QEMU send its state, including the memory of a machine that has no memory file of its
    /// own.
    async fn send_state(&self, to: &Path, status: RunState) -> Result<()> {
        let draft = Draft::begin(to).map_err(|e| self.not_written(to, &e))?;
        if status == RunState::postmigrate {
            self.leave_postmigrate(to).await?;
        }
        // A clone maps its memory privately: what the guest has written exists only in the process.
        let own = self.memory == RestoreMemory::Own;
        if !own {
            self.read_ahead().await;
        }
        self.qmp.ignore_shared(own).await?;
        self.qmp.send_at_full_speed().await?;
        let draft = self.receive_state(to, draft).await?;
        let (hardware, memory) = (self.hardware.clone(), own.then(|| self.spec.memory.clone()));
        let write = move || draft.finish(&hardware, memory.as_deref());
        let written = tokio::task::spawn_blocking(write).await;
        let written = written.map_err(|e| self.failed(to, e.to_string()))?;
        written.map_err(|e| self.not_written(to, &e))
    }

    /// Reads the memory file into the page cache: QEMU looks at every page of it, and would
    /// otherwise fault each hole in on its own.
    async fn read_ahead(&self) {
        let path = self.spec.memory.clone();
        let read = move || {
            let mut file = std::fs::File::open(path)?;
            // The buffer is large because std::io::copy reads in small pieces.
            let mut buffer = vec![0; 4 << 20];
            while std::io::Read::read(&mut file, &mut buffer)? > 0 {}
            Ok::<_, std::io::Error>(())
        };
        match tokio::task::spawn_blocking(read).await {
            Ok(Ok(())) => {}
            other => tracing::debug!(?other, "a memory file was not read ahead"),
        }
    }

    /// Leaves the state `postmigrate`: QEMU sends its state only once each time it is stopped. A
    /// machine that has not run since its last snapshot therefore runs for a moment, and that
    /// snapshot, now void, is removed first.
    async fn leave_postmigrate(&self, to: &Path) -> Result<()> {
        run_dir::remove(to).map_err(|e| self.not_written(to, &e))?;
        self.qmp.cont().await?;
        self.qmp.stop().await
    }

    async fn receive_state(&self, to: &Path, mut draft: Draft) -> Result<Draft> {
        let (socket, seen) =
            run_dir::state_listener(&self.spec).map_err(|e| self.failed(to, e.to_string()))?;
        self.qmp.migrate(&seen).await?;
        let with_memory = self.memory == RestoreMemory::Clone;
        let within = match with_memory {
            false => SEND,
            // Allows for 20 MiB/s, the speed of a slow disk.
            true => SEND + Duration::from_secs(self.spec.mem_mib.0 / 20),
        };
        let ends = tokio::time::Instant::now() + within;
        let receive = async {
            let (stream, _) = tokio::time::timeout_at(ends, socket.listener.accept()).await??;
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            let fill = move |stream: &UnixStream| {
                match with_memory {
                    true => draft.fill_with_memory(stream),
                    false => draft.fill(stream),
                }
                .map(|()| draft)
            };
            read_until(ends, stream, fill).await
        };
        let received = match receive.await {
            Ok(draft) => self.sent(to).await.map(|()| draft),
            Err(e) if e.kind() == std::io::ErrorKind::TimedOut => {
                Err(self.failed(to, format!("not sent within {} s", within.as_secs())))
            }
            Err(e) => Err(self.not_written(to, &e)),
        };
        if received.is_err() {
            // The first error is the one to report; if there is nothing to cancel, that is no
            // error.
            let _ = self.qmp.cancel_migration().await;
        }
        received
    }

    /// Waits until QEMU confirms that everything was sent.
    async fn sent(&self, to: &Path) -> Result<()> {
        let ends = Instant::now() + SEND;
        loop {
            let (status, error) = self.qmp.migration().await?;
            match status.as_str() {
                "completed" => return Ok(()),
                "failed" | "cancelled" => {
                    return Err(self.failed(to, format!("QEMU: {status} {error}")));
                }
                _ if Instant::now() > ends => {
                    return Err(self.failed(to, format!("still {status}")));
                }
                _ => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }
}

/// Checks that a machine with this hardware can be started, as far as that can be found without a
/// guest. Error: `kvm_unavailable`.
pub(super) fn check_kvm(id: &str, hardware: &Hardware) -> Result<()> {
    let against = (hardware.accelerator == Accelerator::Kvm).then(without_kvm).flatten();
    match against {
        Some(reason) => Err(Error::KvmUnavailable { id: id.to_owned(), reason }),
        None => Ok(()),
    }
}

/// Reads CPU time and memory use from /proc (proc(5)); `None` if the process is gone.
fn usage(pid: u32) -> Option<MachineStats> {
    let process = proc_of(pid)?;
    let stat = process.stat().ok()?;
    let rollup = process.smaps_rollup().ok()?.memory_map_rollup.0;
    Some(MachineStats {
        cpu_time_ms: (stat.utime + stat.stime) * 1000 / procfs::ticks_per_second().max(1),
        resident_kib: sum_kib(&rollup, "Rss"),
        proportional_kib: sum_kib(&rollup, "Pss"),
        paused: false,
    })
}

#[async_trait]
impl Machine for QemuMachine {
    fn process(&self) -> ProcessIdentity {
        self.0.process.identity.clone()
    }

    fn channel(&self) -> PathBuf {
        run_dir::channel_socket(&self.0.spec.dir)
    }

    fn window(&self) -> Option<PathBuf> {
        self.0.spec.window.clone()
    }

    fn processor(&self) -> Option<Processor> {
        Some(self.0.hardware.processor())
    }

    fn check_restorable(&self) -> Result<()> {
        check_kvm(&self.0.spec.id, &self.0.hardware)
    }

    fn condition(&self) -> watch::Receiver<Condition> {
        self.0.condition.subscribe()
    }

    async fn pause(&self) -> Result<()> {
        let inner = &self.0;
        let span = tracing::info_span!("pause", id = %inner.spec.id);
        let mut requested = inner.turn.lock().await;
        match inner.qmp.stop().instrument(span).await {
            Ok(()) => {
                if *requested != RequestedState::Sleep {
                    *requested = RequestedState::Pause;
                }
                // A machine that had already halted emits no event when it is paused.
                inner.qmp.heard().changed.notify_one();
                Ok(())
            }
            Err(error) => Err(inner.explain(error).await),
        }
    }

    async fn resume(&self) -> Result<()> {
        let inner = &self.0;
        let span = tracing::info_span!("resume", id = %inner.spec.id);
        let mut requested = inner.turn.lock().await;
        // Recorded before the command: a resume that is cut off may have taken effect.
        *requested = RequestedState::Run;
        match inner.qmp.cont().instrument(span).await {
            Ok(()) => Ok(()),
            Err(error) => Err(inner.explain(error).await),
        }
    }

    async fn retry(&self) -> Result<()> {
        let inner = &self.0;
        let requested = inner.turn.lock().await;
        if matches!(*requested, RequestedState::Pause | RequestedState::Sleep) {
            return Ok(());
        }
        match inner.qmp.cont().await {
            Ok(()) => Ok(()),
            Err(error) => Err(inner.explain(error).await),
        }
    }

    async fn snapshot(&self, to: &Path, own: Option<&OwnMemory>) -> Result<()> {
        let span = tracing::info_span!("snapshot", id = %self.0.spec.id);
        let (inner, path, own) = (Arc::clone(&self.0), to.to_owned(), own.cloned());
        // A task of its own, so that a caller that gives up half-way leaves nothing half done.
        let work = tokio::spawn(async move { inner.snapshot(&path, own).await }.instrument(span));
        match work.await {
            Ok(Err(error)) => Err(self.0.explain(error).await),
            Ok(Ok(())) => Ok(()),
            Err(broken) => Err(self.0.failed(to, broken.to_string())),
        }
    }

    async fn kill(&self) -> Result<()> {
        let inner = &self.0;
        // QEMU completes pending disk writes when it quits by itself, so it is asked before it is
        // killed.
        let politely = async {
            inner.qmp.quit().await?;
            Ok::<_, Error>(inner.process.ended().await)
        };
        let ended = async {
            if !inner.process.has_ended() {
                let _ = tokio::time::timeout(QUIT, async {
                    tokio::select! {
                        quit = politely => drop(quit),
                        _ = inner.process.ended() => {}
                    }
                })
                .await;
            }
            inner.process.kill().await
        };
        ended.instrument(tracing::info_span!("kill", id = %inner.spec.id)).await?;
        run_dir::clear(&inner.spec.dir);
        inner.trim_memory().await;
        Ok(())
    }

    async fn stats(&self) -> Result<MachineStats> {
        let inner = &self.0;
        // What the kernel counts must not depend on a monitor that hangs.
        let status = match tokio::time::timeout(LOOK, inner.qmp.status()).await {
            Ok(Ok(status)) => Some(status),
            Err(_) | Ok(Err(Error::QmpTimeout { .. })) => None,
            Ok(Err(error)) => return Err(inner.explain(error).await),
        };
        let pid = inner.process.identity.pid;
        let used = tokio::task::spawn_blocking(move || usage(pid)).await.ok().flatten();
        match used {
            Some(stats) if !inner.process.has_ended() => {
                let paused = status.is_some_and(|status| status != RunState::running);
                Ok(MachineStats { paused, ..stats })
            }
            _ => Err(self.just_ended()),
        }
    }

    async fn footprint(&self) -> Result<Footprint> {
        let pid = self.0.process.identity.pid;
        let memory = self.0.spec.memory.clone();
        let found = tokio::task::spawn_blocking(move || footprint::of_process(pid, &memory)).await;
        let found = found.ok().flatten().filter(|_| !self.0.process.has_ended());
        found.ok_or_else(|| self.just_ended())
    }

    async fn exited(&self) -> Exit {
        let ending = self.0.process.ended().await;
        let (log, mut console) = (self.last_lines(QEMU_LOG, 3), self.last_lines(CONSOLE_LOG, 40));
        // A guest that panics ends QEMU in the same way as one that is shut down. A panic matters
        // from its first line on; otherwise the last lines matter.
        let panic = console.find("Kernel panic");
        let panicked = panic.is_some();
        let from = panic.or_else(|| console.rmatch_indices('\n').nth(14).map(|(at, _)| at + 1));
        console.drain(..from.unwrap_or(0));
        let cause = self.0.qmp.heard().shutdown();
        let guests = cause.map_or(ending == Ending::Status(0), heard::by_the_guest);
        let orderly = matches!(ending, Ending::Status(0) | Ending::Unknown);
        let clean = guests && orderly && !panicked;
        let mut reason = match cause {
            _ if panicked => format!("the guest's kernel panicked ({ending})"),
            Some(cause) if orderly => heard::words(cause).to_owned(),
            _ => ending.to_string(),
        };
        // After an orderly end, QEMU's log holds nothing worth quoting.
        if !clean && !log.is_empty() {
            reason.push_str(&format!("\n--- {QEMU_LOG}\n{log}"));
        }
        Exit { reason, console, clean }
    }
}
