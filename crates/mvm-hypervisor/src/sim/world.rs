//! What a simulated host holds: its machines, their channels, and the counts of calls.

use super::fault::{Call, Effect, FaultPlan};
use super::guest::{Guest, GuestChannel, GuestHost, GuestMachine};
use super::latencies::Latencies;
use super::life::{Life, locked};
use super::saved::{Kept, Saved};
use crate::{Error, ProcessIdentity, RestoreMemory, Result, VmSpec};
use mvm_model::Accelerator;
use mvm_model::accelerator::Processor;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use tokio::net::UnixListener;
use tokio::runtime::Handle;

/// Pids begin above the highest that Linux gives (2^22), so that none is ever a real process's.
const FIRST_PID: u32 = 1 << 30;

/// The state that all holders share, see [`super`].
#[derive(Debug)]
pub(super) struct World {
    pub(super) latencies: Latencies,
    guest: Option<Arc<dyn Guest>>,
    faults: Mutex<Faults>,
    machines: Mutex<BTreeMap<u32, Arc<Life>>>,
    next: AtomicU64,
    /// The runtime that serves the guests' channels: a caller may be on another one, which may end
    /// first.
    runtime: Handle,
    /// The directory in which the machines are saved; `None` if they end with this process.
    kept: Option<PathBuf>,
    kvm: Mutex<Kvm>,
}

/// What a test says of the accelerator.
#[derive(Debug, Default)]
struct Kvm {
    /// The processor of new machines; `None` where none is simulated.
    processor: Option<Processor>,
    gone: bool,
}

#[derive(Debug, Default)]
struct Faults {
    plan: FaultPlan,
    all: u64,
    kinds: BTreeMap<Call, u64>,
    /// The calls, noted only once faults were set: an endless simulation would fill the memory.
    calls: Option<Vec<Call>>,
}

impl World {
    pub(super) fn new(
        latencies: Latencies,
        plan: FaultPlan,
        guest: Option<Arc<dyn Guest>>,
        kept: Option<PathBuf>,
    ) -> Self {
        let faults = Mutex::new(Faults { plan, ..Faults::default() });
        // Start times must differ from those before a restart, since a pid with its start time
        // names one process for good.
        #[allow(clippy::disallowed_methods)]
        let began = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let began = began.map_or(0, |since| since.as_millis() as u64);
        let next = AtomicU64::new(if kept.is_some() { began } else { 0 });
        let machines = Mutex::default();
        let (runtime, kvm) = (Handle::current(), Mutex::default());
        Self { latencies, guest, faults, machines, next, runtime, kept, kvm }
    }

    /// Loads the saved machines, and removes files that are incomplete or whose machine's directory
    /// is gone.
    pub(super) fn resume(self: &Arc<Self>) -> std::io::Result<()> {
        let Some(dir) = &self.kept else { return Ok(()) };
        std::fs::create_dir_all(dir)?;
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let found = match Kept::read(&path) {
                Ok(found) if found.0.spec.dir.is_dir() => found,
                // The file is half written, or its machine's directory is gone.
                _ => {
                    std::fs::remove_file(&path)?;
                    continue;
                }
            };
            let (kept, bytes) = found;
            let life = Arc::new(Life::new(
                kept.identity,
                &kept.spec,
                kept.memory,
                kept.processor,
                kept.guest_ms,
            ));
            *life.memory_bytes() = bytes;
            life.set_running(kept.running);
            self.serve(&life)?;
            locked(&self.machines).insert(life.identity.pid, life);
        }
        Ok(())
    }

    /// Returns the processor of new machines.
    pub(super) fn processor(&self) -> Option<Processor> {
        locked(&self.kvm).processor.clone()
    }

    pub(super) fn set_processor(&self, processor: Option<Processor>) {
        locked(&self.kvm).processor = processor;
    }

    pub(super) fn set_kvm_gone(&self, gone: bool) {
        locked(&self.kvm).gone = gone;
    }

    /// Returns `kvm_unavailable` if a machine with this processor cannot be started.
    pub(super) fn check_kvm(&self, id: &str, processor: Option<&Processor>) -> Result<()> {
        let needed = processor.is_some_and(|p| p.accelerator == Accelerator::Kvm);
        match needed && locked(&self.kvm).gone {
            true => Err(Error::KvmUnavailable { id: id.to_owned(), reason: "simulated".into() }),
            false => Ok(()),
        }
    }

    pub(super) fn set_running(&self, life: &Life, running: bool) {
        life.tell(running);
        if life.is_running() && life.memory == RestoreMemory::Own {
            touch(&life.spec.memory);
        }
        self.keep(life);
    }

    pub(super) fn set_faults(&self, plan: FaultPlan) {
        *locked(&self.faults) = Faults { plan, calls: Some(Vec::new()), ..Faults::default() };
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        locked(&self.faults).calls.clone().unwrap_or_default()
    }

    /// Counts a call; lets it fail or take longer. Every other fault is left to the caller.
    pub(super) async fn step(&self, call: Call, id: &str) -> Result<Option<Effect>> {
        let effect = {
            let mut faults = locked(&self.faults);
            faults.calls.iter_mut().for_each(|calls| calls.push(call));
            faults.all += 1;
            let of_kind = faults.kinds.entry(call).or_default();
            *of_kind += 1;
            let of_kind = *of_kind;
            faults.plan.effect(call, faults.all, of_kind)
        };
        match effect {
            Some(Effect::Fail) => {
                Err(Error::Injected { id: id.to_owned(), call: call.name().to_owned() })
            }
            Some(Effect::Delay(longer)) => {
                tokio::time::sleep(longer).await;
                Ok(effect)
            }
            other => Ok(other),
        }
    }

    /// Makes a paused machine with its memory file and its channel.
    pub(super) fn spawn(
        self: &Arc<Self>,
        spec: &VmSpec,
        memory: RestoreMemory,
        saved: Option<Saved>,
    ) -> Result<Arc<Life>> {
        let busy = |life: &Arc<Life>| life.spec.dir == spec.dir;
        if locked(&self.machines).values().any(busy) {
            return Err(Error::AlreadyRunning { id: spec.id.clone(), dir: spec.dir.clone() });
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let identity = ProcessIdentity {
            pid: FIRST_PID + u32::try_from(number % u64::from(FIRST_PID)).unwrap_or(0),
            start_time: number,
            marker: spec.marker.clone(),
        };
        // What was saved goes on with the processor that it had.
        let (before_ms, bytes, processor) = match saved {
            Some(saved) => (saved.guest_ms, saved.memory, saved.processor),
            None => (0, Vec::new(), self.processor()),
        };
        let life = Arc::new(Life::new(identity, spec, memory, processor, before_ms));
        *life.memory_bytes() = bytes;
        prepare(spec, memory).and_then(|()| self.serve(&life)).map_err(|source| {
            Error::SpawnFailed { id: spec.id.clone(), what: spec.dir.display().to_string(), source }
        })?;
        locked(&self.machines).insert(life.identity.pid, Arc::clone(&life));
        self.keep(&life);
        Ok(life)
    }

    fn serve(self: &Arc<Self>, life: &Arc<Life>) -> std::io::Result<()> {
        let path = life.channel();
        let _ = std::fs::remove_file(&path);
        let _context = self.runtime.enter();
        let listener = UnixListener::bind(&path)?;
        let (guest, mut ended) = (self.guest.clone(), life.ended());
        let host: Weak<dyn GuestHost> = Arc::downgrade(&(Arc::clone(self) as Arc<dyn GuestHost>));
        let machine = GuestMachine { host, life: Arc::clone(life) };
        let accept = async move {
            let mut served = tokio::task::JoinSet::new();
            let mut idle = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                while served.try_join_next().is_some() {}
                let Some(guest) = guest.clone() else {
                    idle.push(stream);
                    continue;
                };
                let marker = machine.life.identity.marker.clone();
                let running = machine.life.running();
                let channel = GuestChannel { marker, running, stream, machine: machine.clone() };
                served.spawn(async move { guest.serve(channel).await });
            }
        };
        self.runtime.spawn(async move {
            tokio::select! {
                () = accept => {}
                _ = ended.wait_for(Option::is_some) => {}
            }
        });
        Ok(())
    }

    pub(super) fn by_pid(&self, pid: u32) -> Option<Arc<Life>> {
        locked(&self.machines).get(&pid).cloned()
    }

    pub(super) fn by_marker(&self, marker: &str) -> Option<Arc<Life>> {
        locked(&self.machines).values().find(|life| life.identity.marker == marker).cloned()
    }

    pub(super) fn find(&self, prefix: &str) -> Vec<ProcessIdentity> {
        let machines = locked(&self.machines);
        let all = machines.values().map(|life| &life.identity);
        all.filter(|identity| identity.marker.starts_with(prefix)).cloned().collect()
    }
}

impl GuestHost for World {
    /// Saves the machine's present state.
    fn keep(&self, life: &Life) {
        let Some(dir) = &self.kept else { return };
        let machines = locked(&self.machines);
        if machines.contains_key(&life.identity.pid)
            && let Err(error) = Kept::write(life, &dir.join(life.identity.pid.to_string()))
        {
            tracing::warn!(machine = life.spec.id, "cannot keep a simulated machine: {error}");
        }
    }

    /// Ends a machine; does nothing if it has ended.
    fn end(&self, life: &Life, reason: &str) {
        let mut machines = locked(&self.machines);
        if machines.remove(&life.identity.pid).is_none() {
            return;
        }
        life.set_running(false);
        let _ = std::fs::remove_file(life.channel());
        if let Some(dir) = &self.kept {
            let _ = std::fs::remove_file(dir.join(life.identity.pid.to_string()));
        }
        life.end(reason);
    }
}

/// Makes a machine's files as a hypervisor would. A clone maps its template's memory and has no
/// file.
fn prepare(spec: &VmSpec, memory: RestoreMemory) -> std::io::Result<()> {
    match memory {
        RestoreMemory::Own => make_memory(&spec.memory, spec)?,
        RestoreMemory::Clone => drop(std::fs::File::open(&spec.memory)?),
    }
    writeln!(own_file(&spec.dir.join("console.log"))?, "a simulated machine started")
}

/// Creates the memory file of a machine if it is missing or has another size.
pub(super) fn make_memory(path: &Path, spec: &VmSpec) -> std::io::Result<()> {
    let (file, bytes) = (own_file(path)?, spec.mem_mib << 20);
    // An existing file keeps its time, which says when the guest last ran.
    if file.metadata()?.len() == bytes { Ok(()) } else { file.set_len(bytes) }
}

/// Sets the memory file's time to now, by the file system's clock, as a running guest's writes
/// would.
fn touch(memory: &Path) {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    if let Err(error) = utimensat(CWD, memory, &times, AtFlags::empty()) {
        tracing::debug!(memory = %memory.display(), %error, "a simulated guest's memory");
    }
}

fn own_file(path: &Path) -> std::io::Result<std::fs::File> {
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}
