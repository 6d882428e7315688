//! What a simulated host holds: its machines, their channels, and the counts of calls.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Latencies;
use super::fault::{Call, Effect, FaultPlan};
use crate::{Error, ProcessIdentity, RestoreMemory, Result, VmSpec};

/// Pids begin above the highest that Linux gives (2^22): none is ever a real process's.
const FIRST_PID: u32 = 1 << 30;

/// What a simulated guest answers on its channel. Called once a connection, on a task of
/// its own, which ends with the machine.
#[async_trait::async_trait]
pub trait Guest: Send + Sync + std::fmt::Debug {
    /// Serves one connection until it is closed.
    async fn serve(&self, channel: GuestChannel);
}

/// One connection to a machine's channel.
#[derive(Debug)]
pub struct GuestChannel {
    /// The machine's marker.
    pub marker: String,
    /// Whether the vCPUs run: a guest that is true to life answers only while they do.
    pub running: watch::Receiver<bool>,
    /// The guest's end.
    pub stream: UnixStream,
}

/// One machine from its start to its end.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) identity: ProcessIdentity,
    pub(super) spec: VmSpec,
    pub(super) memory: RestoreMemory,
    running: watch::Sender<bool>,
    ended: watch::Sender<Option<String>>,
    clock: Mutex<GuestClock>,
}

#[derive(Debug)]
struct GuestClock {
    before_ms: u64,
    since: Option<Instant>,
}

impl GuestClock {
    fn ms(&self) -> u64 {
        let now = self.since.map_or(0, |since| since.elapsed().as_millis());
        self.before_ms + u64::try_from(now).unwrap_or(u64::MAX)
    }
}

impl Life {
    pub(super) fn set_running(&self, running: bool) {
        let mut clock = locked(&self.clock);
        clock.before_ms = clock.ms();
        clock.since = running.then(Instant::now);
        self.running.send_replace(running);
    }

    pub(super) fn is_running(&self) -> bool {
        *self.running.borrow()
    }

    pub(super) fn guest_ms(&self) -> u64 {
        locked(&self.clock).ms()
    }

    pub(super) fn ended(&self) -> watch::Receiver<Option<String>> {
        self.ended.subscribe()
    }

    pub(super) fn channel(&self) -> PathBuf {
        self.spec.dir.join("channel.sock")
    }

    /// `gone` if it has ended.
    pub(super) fn alive(&self) -> Result<()> {
        match &*self.ended.borrow() {
            None => Ok(()),
            Some(reason) => Err(Error::Gone { id: self.spec.id.clone(), reason: reason.clone() }),
        }
    }
}

/// See [`super`].
#[derive(Debug)]
pub(super) struct World {
    pub(super) latencies: Latencies,
    guest: Option<Arc<dyn Guest>>,
    faults: Mutex<Faults>,
    machines: Mutex<BTreeMap<u32, Arc<Life>>>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Faults {
    plan: FaultPlan,
    all: u64,
    kinds: BTreeMap<Call, u64>,
}

impl World {
    pub(super) fn new(
        latencies: Latencies,
        plan: FaultPlan,
        guest: Option<Arc<dyn Guest>>,
    ) -> Self {
        let faults = Mutex::new(Faults { plan, ..Faults::default() });
        Self { latencies, guest, faults, machines: Mutex::default(), next: AtomicU64::new(0) }
    }

    pub(super) fn set_faults(&self, plan: FaultPlan) {
        *locked(&self.faults) = Faults { plan, ..Faults::default() };
    }

    pub(super) fn calls(&self) -> u64 {
        locked(&self.faults).all
    }

    /// Counts a call and lets its fault happen, but for [`Effect::Die`], which is the
    /// caller's to carry out.
    pub(super) async fn step(&self, call: Call, id: &str) -> Result<Option<Effect>> {
        let effect = {
            let mut faults = locked(&self.faults);
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

    /// Makes a machine, paused, with its memory file and its channel.
    pub(super) fn spawn(
        &self,
        spec: &VmSpec,
        memory: RestoreMemory,
        before_ms: u64,
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
        let life = Arc::new(Life {
            identity,
            spec: spec.clone(),
            memory,
            running: watch::Sender::new(false),
            ended: watch::Sender::new(None),
            clock: Mutex::new(GuestClock { before_ms, since: None }),
        });
        prepare(spec).and_then(|()| self.serve(&life)).map_err(|source| Error::SpawnFailed {
            id: spec.id.clone(),
            what: spec.dir.display().to_string(),
            source,
        })?;
        locked(&self.machines).insert(life.identity.pid, Arc::clone(&life));
        Ok(life)
    }

    fn serve(&self, life: &Arc<Life>) -> std::io::Result<()> {
        let path = life.channel();
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        let (guest, marker) = (self.guest.clone(), life.identity.marker.clone());
        let (running, mut ended) = (life.running.subscribe(), life.ended());
        let accept = async move {
            let mut served = tokio::task::JoinSet::new();
            let mut idle = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (marker, running) = (marker.clone(), running.clone());
                match guest.clone() {
                    Some(guest) => {
                        let channel = GuestChannel { marker, running, stream };
                        served.spawn(async move { guest.serve(channel).await });
                    }
                    None => idle.push(stream),
                }
            }
        };
        tokio::spawn(async move {
            tokio::select! {
                () = accept => {}
                _ = ended.wait_for(Option::is_some) => {}
            }
        });
        Ok(())
    }

    /// Ends a machine; nothing happens if it has ended.
    pub(super) fn end(&self, life: &Life, reason: &str) {
        if locked(&self.machines).remove(&life.identity.pid).is_some() {
            life.set_running(false);
            let _ = std::fs::remove_file(life.channel());
            life.ended.send_replace(Some(reason.to_owned()));
        }
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

fn prepare(spec: &VmSpec) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    options.open(&spec.memory)?.set_len(spec.mem_mib << 20)?;
    writeln!(options.open(spec.dir.join("console.log"))?, "a simulated machine started")
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A simulated snapshot.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Saved {
    simulated: bool,
    vcpus: u32,
    mem_mib: u64,
    pub(super) guest_ms: u64,
}

impl Saved {
    pub(super) fn of(life: &Life) -> Self {
        let VmSpec { vcpus, mem_mib, .. } = life.spec;
        Self { simulated: true, vcpus, mem_mib, guest_ms: life.guest_ms() }
    }

    /// Written beside, then moved into its place.
    pub(super) fn write(&self, to: &Path) -> std::io::Result<()> {
        let part = to.with_extension("part");
        std::fs::write(&part, serde_json::to_vec(self).map_err(std::io::Error::other)?)
            .and_then(|()| std::fs::rename(&part, to))
            .inspect_err(|_| drop(std::fs::remove_file(&part)))
    }

    pub(super) fn read(path: &Path, spec: &VmSpec) -> Result<Self, String> {
        let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
        let saved: Self = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
        if !spec.memory.exists() {
            return Err(format!("its memory file {} is gone", spec.memory.display()));
        }
        match (saved.vcpus, saved.mem_mib) == (spec.vcpus, spec.mem_mib) {
            true => Ok(saved),
            false => Err("it is of a machine with other vCPUs or memory".into()),
        }
    }
}
