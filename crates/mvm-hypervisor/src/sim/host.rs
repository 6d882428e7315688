//! What a simulated host holds: its machines, their channels, and the counts of calls.

use super::fault::{Call, Effect, FaultPlan};
use super::guest::{Guest, GuestChannel, GuestHost, GuestMachine};
use super::latencies::Latencies;
use super::machine_state::{MachineState, locked};
use super::saved::{SavedMachine, SavedSnapshot};
use crate::{Error, ProcessIdentity, RestoreMemory, Result, VmSpec};
use mvm_model::accelerator::Processor;
use mvm_model::cpu_model::CpuModelFault;
use mvm_model::{Accelerator, CpuModel};
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
pub(super) struct SimHost {
    pub(super) latencies: Latencies,
    guest: Option<Arc<dyn Guest>>,
    injector: Mutex<FaultInjector>,
    machines: Mutex<BTreeMap<u32, Arc<MachineState>>>,
    next: AtomicU64,
    /// The runtime that serves the guests' channels: a caller may be on another one, which may end
    /// first.
    runtime: Handle,
    /// The directory in which the machines are saved; `None` if they end with this process.
    save_dir: Option<PathBuf>,
    kvm: Mutex<Kvm>,
}

/// What a test says of the accelerator.
#[derive(Debug, Default)]
struct Kvm {
    /// The processor of new machines; `None` where none is simulated.
    processor: Option<Processor>,
    gone: bool,
    /// The CPU models that cannot be had.
    lacking: Vec<CpuModel>,
    /// What the host's CPU shows to new machines.
    cpu: String,
}

#[derive(Debug, Default)]
struct FaultInjector {
    plan: FaultPlan,
    all: u64,
    kinds: BTreeMap<Call, u64>,
    /// The calls, noted only once faults were set: an endless simulation would fill the memory.
    calls: Option<Vec<Call>>,
}

impl SimHost {
    pub(super) fn new(
        latencies: Latencies,
        plan: FaultPlan,
        guest: Option<Arc<dyn Guest>>,
        save_dir: Option<PathBuf>,
    ) -> Self {
        let injector = Mutex::new(FaultInjector { plan, ..FaultInjector::default() });
        // Start times must differ from those before a restart, since a pid with its start time
        // names one process for good.
        #[allow(clippy::disallowed_methods)]
        let began = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let began = began.map_or(0, |since| since.as_millis() as u64);
        let next = AtomicU64::new(if save_dir.is_some() { began } else { 0 });
        let machines = Mutex::default();
        let (runtime, kvm) = (Handle::current(), Mutex::default());
        Self { latencies, guest, injector, machines, next, runtime, save_dir, kvm }
    }

    /// Loads the saved machines, and removes files that are incomplete or whose machine's directory
    /// is gone.
    pub(super) fn load_saved(self: &Arc<Self>) -> std::io::Result<()> {
        let Some(dir) = &self.save_dir else { return Ok(()) };
        std::fs::create_dir_all(dir)?;
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let found = match SavedMachine::read(&path) {
                Ok(found) if found.0.spec.dir.is_dir() => found,
                // The file is half written, or its machine's directory is gone.
                _ => {
                    std::fs::remove_file(&path)?;
                    continue;
                }
            };
            let (saved, bytes) = found;
            let state = Arc::new(MachineState::new(
                saved.identity,
                &saved.spec,
                saved.memory,
                saved.processor,
                saved.guest_ms,
            ));
            *state.memory_bytes() = bytes;
            state.set_running(saved.running);
            self.serve(&state)?;
            locked(&self.machines).insert(state.identity.pid, state);
        }
        Ok(())
    }

    /// Returns the processor of new machines with the host's own CPU.
    pub(super) fn processor(&self) -> Option<Processor> {
        locked(&self.kvm).processor.clone()
    }

    fn processor_with(&self, model: &CpuModel) -> Option<Processor> {
        let own = self.processor()?;
        let model = model.named().map_or(own.model, str::to_owned);
        Some(Processor { model, ..own })
    }

    /// Returns what the host's CPU shows to new machines that see it.
    pub(super) fn cpu(&self) -> String {
        locked(&self.kvm).cpu.clone()
    }

    pub(super) fn set_cpu(&self, cpu: &str) {
        locked(&self.kvm).cpu = cpu.to_owned();
    }

    pub(super) fn set_lacking_models(&self, lacking: Vec<CpuModel>) {
        locked(&self.kvm).lacking = lacking;
    }

    /// Returns `cpu_model_unavailable` if no machine can have this CPU model.
    pub(super) fn check_cpu_model(&self, model: &str) -> Result<()> {
        match locked(&self.kvm).lacking.iter().find(|one| one.as_str() == model) {
            None => Ok(()),
            Some(model) => Err(Error::CpuModelUnavailable {
                model: model.clone(),
                on: "a simulated CPU".to_owned(),
                why: CpuModelFault::Lacks(vec!["simulated".to_owned()]),
                choices: String::new(),
            }),
        }
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

    pub(super) fn set_running(&self, state: &MachineState, running: bool) {
        state.request_running(running);
        if state.is_running() && state.memory == RestoreMemory::Own {
            touch(&state.spec.memory);
        }
        self.save(state);
    }

    pub(super) fn set_faults(&self, plan: FaultPlan) {
        *locked(&self.injector) =
            FaultInjector { plan, calls: Some(Vec::new()), ..FaultInjector::default() };
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        locked(&self.injector).calls.clone().unwrap_or_default()
    }

    /// Counts a call; lets it fail or take longer. Every other fault is left to the caller.
    pub(super) async fn step(&self, call: Call, id: &str) -> Result<Option<Effect>> {
        let effect = {
            let mut injector = locked(&self.injector);
            injector.calls.iter_mut().for_each(|calls| calls.push(call));
            injector.all += 1;
            let of_kind = injector.kinds.entry(call).or_default();
            *of_kind += 1;
            let of_kind = *of_kind;
            injector.plan.effect(call, injector.all, of_kind)
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
        saved: Option<SavedSnapshot>,
    ) -> Result<Arc<MachineState>> {
        let busy = |state: &Arc<MachineState>| state.spec.dir == spec.dir;
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
            None => (0, Vec::new(), self.processor_with(&spec.cpu_model)),
        };
        let state = Arc::new(MachineState::new(identity, spec, memory, processor, before_ms));
        *state.memory_bytes() = bytes;
        prepare(spec, memory).and_then(|()| self.serve(&state)).map_err(|source| {
            Error::SpawnFailed { id: spec.id.clone(), what: spec.dir.display().to_string(), source }
        })?;
        locked(&self.machines).insert(state.identity.pid, Arc::clone(&state));
        self.save(&state);
        Ok(state)
    }

    fn serve(self: &Arc<Self>, state: &Arc<MachineState>) -> std::io::Result<()> {
        let path = state.channel();
        let _ = std::fs::remove_file(&path);
        let _context = self.runtime.enter();
        let listener = UnixListener::bind(&path)?;
        let (guest, mut ended) = (self.guest.clone(), state.ended());
        let host: Weak<dyn GuestHost> = Arc::downgrade(&(Arc::clone(self) as Arc<dyn GuestHost>));
        let machine = GuestMachine { host, state: Arc::clone(state) };
        let accept = async move {
            let mut served = tokio::task::JoinSet::new();
            let mut idle = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                while served.try_join_next().is_some() {}
                let Some(guest) = guest.clone() else {
                    idle.push(stream);
                    continue;
                };
                let marker = machine.state.identity.marker.clone();
                let running = machine.state.running();
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

    pub(super) fn by_pid(&self, pid: u32) -> Option<Arc<MachineState>> {
        locked(&self.machines).get(&pid).cloned()
    }

    pub(super) fn by_marker(&self, marker: &str) -> Option<Arc<MachineState>> {
        locked(&self.machines).values().find(|state| state.identity.marker == marker).cloned()
    }

    pub(super) fn find(&self, prefix: &str) -> Vec<ProcessIdentity> {
        let machines = locked(&self.machines);
        let all = machines.values().map(|state| &state.identity);
        all.filter(|identity| identity.marker.starts_with(prefix)).cloned().collect()
    }
}

impl GuestHost for SimHost {
    /// Saves the machine's present state.
    fn save(&self, state: &MachineState) {
        let Some(dir) = &self.save_dir else { return };
        let machines = locked(&self.machines);
        if machines.contains_key(&state.identity.pid)
            && let Err(error) =
                SavedMachine::write(state, &dir.join(state.identity.pid.to_string()))
        {
            tracing::warn!(machine = state.spec.id, "cannot save a simulated machine: {error}");
        }
    }

    /// Ends a machine; does nothing if it has ended.
    fn end(&self, state: &MachineState, reason: &str) {
        let mut machines = locked(&self.machines);
        if machines.remove(&state.identity.pid).is_none() {
            return;
        }
        state.set_running(false);
        let _ = std::fs::remove_file(state.channel());
        if let Some(dir) = &self.save_dir {
            let _ = std::fs::remove_file(dir.join(state.identity.pid.to_string()));
        }
        state.end(reason);
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
    let (file, bytes) = (own_file(path)?, spec.mem_mib.bytes());
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
