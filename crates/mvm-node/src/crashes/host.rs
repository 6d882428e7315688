//! A host whose agent can be killed. Its disk, records, machines and links survive the agent.

use crate::agent::{Agent, AgentParts, AgentSettings};
use crate::instances::watch_guests;
use crate::simulated::SimulatedGuest;
use crate::stages::Stages;
use crate::state_dir::StateDir;
use crate::{Result, desired, jobs};
use async_trait::async_trait;
use mvm_clock::ManualClock;
use mvm_hypervisor::Hypervisor;
use mvm_hypervisor::sim::{Call, Effect, FaultPlan, Guest, Latencies, Moment, SimHypervisor};
use mvm_image::{GuestBinary, ImageStore, Platform, Revision};
use mvm_model::Digest;
use mvm_network::Network;
use mvm_store::{Error, Listing, Range, Record, SessionId, SqliteStore, Store, Watch, Write};
use std::cell::RefCell;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// A fault at one point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointFault {
    /// A fault at the nth durable write.
    Write(u64, WriteFault),
    /// A fault at the nth call of the driver.
    Call(u64, Effect),
}

/// A fault at a durable write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFault {
    /// The agent is killed before or after the write is durable.
    Kill(Moment),
    /// The write fails, and writes nothing.
    Fail,
    /// The processes of all machines end before the write, as by the kernel's out-of-memory killer.
    Die,
}

impl PointFault {
    /// Returns whether the fault ends the agent.
    pub fn kills(self) -> bool {
        matches!(
            self,
            PointFault::Write(_, WriteFault::Kill(_)) | PointFault::Call(_, Effect::Halt(_))
        )
    }
}

/// The points of a run: its durable writes and its calls of the driver.
#[derive(Clone, Debug, Default)]
pub struct Course {
    pub writes: u64,
    pub calls: Vec<Call>,
}

impl Course {
    /// Returns all faults that can happen at the points.
    pub fn possible_faults(&self) -> Vec<PointFault> {
        let kills =
            [WriteFault::Kill(Moment::Before), WriteFault::Kill(Moment::After), WriteFault::Fail];
        let mut all: Vec<PointFault> = (1..=self.writes)
            .flat_map(|n| kills.map(|write_fault| PointFault::Write(n, write_fault)))
            .collect();
        for (n, call) in (1..).zip(&self.calls) {
            let mut effects = vec![
                Effect::Halt(Moment::Before),
                Effect::Halt(Moment::After),
                Effect::Fail,
                Effect::Die,
                Effect::Delay(Duration::from_millis(20)),
            ];
            if matches!(call, Call::Boot | Call::Restore | Call::Snapshot) {
                effects.push(Effect::Halt(Moment::During));
            }
            all.extend(effects.into_iter().map(|effect| PointFault::Call(n, effect)));
        }
        all
    }
}

/// Runs the simulated guests, and belongs to no agent.
static GUESTS: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().expect("a runtime")
});

/// A host. Its clock runs on from one agent to the next.
pub struct Host {
    pub clock: ManualClock,
    dir: tempfile::TempDir,
    records: Arc<SqliteStore>,
    machines: RefCell<SimHypervisor>,
    trap: Arc<Trap>,
}

/// The images that exist, as pools name them.
pub const IMAGES: [Digest; 2] = [Digest::from_bytes([0xaa; 32]), Digest::from_bytes([0xbb; 32])];

impl Host {
    /// Makes an empty host with two images.
    pub fn new() -> Host {
        Host::with(Arc::new(SimulatedGuest::default()))
    }

    /// Makes a host whose machines have this guest.
    pub fn with(guest: Arc<dyn Guest>) -> Host {
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let ours = Permissions::from_mode(0o700);
        let mut maker = tempfile::Builder::new();
        let dir = maker.prefix("mvm-crash-").permissions(ours).tempdir_in(base).expect("dir");
        for digest in IMAGES {
            image(&dir.path().join("images").join(digest.to_string()), digest);
        }
        // The formatted disks, whose content no test reads.
        for (kind, mib) in [("scratch", 64), ("data", 16)] {
            let disks = dir.path().join("disks").join(format!("{kind}-{mib}"));
            std::fs::create_dir_all(&disks).expect("dir");
            std::fs::write(disks.join("ext4"), format!("a blank {kind} disk")).expect("file");
        }
        let records = Arc::new(SqliteStore::in_memory().expect("store"));
        let machines = {
            let _context = GUESTS.enter();
            SimHypervisor::new(Latencies::NONE, FaultPlan::none(), Some(guest))
        };
        let (clock, trap) = (ManualClock::running(), Arc::default());
        Host { clock, dir, records, machines: RefCell::new(machines), trap }
    }

    /// Sets the fault that will happen, and restarts the count of points.
    pub fn arm(&self, fault: Option<PointFault>) {
        *self.trap.calls_before_death.lock().expect("lock") = None;
        let (mut plan, mut write_fault) = (FaultPlan::none(), None);
        match fault {
            None => {}
            Some(PointFault::Write(number, what)) => write_fault = Some((number, what)),
            Some(PointFault::Call(number, effect)) => plan = plan.at(number, effect),
        }
        self.machines.borrow().set_faults(plan);
        self.trap.arm(write_fault);
    }

    /// Returns the points since the last [`Host::arm`].
    pub fn course(&self) -> Course {
        let writes = self.trap.writes.load(Ordering::SeqCst);
        Course { writes, calls: self.machines.borrow().calls() }
    }

    /// Returns the machines.
    pub fn machines(&self) -> SimHypervisor {
        self.machines.borrow().clone()
    }

    /// Runs one agent: it starts, recovers, serves, and is killed when `work` is done or the fault
    /// kills it, whichever is first. Returns `None` if the fault was first.
    pub fn agent<T>(&self, work: impl AsyncFnOnce(Arc<Agent>) -> T) -> Option<T> {
        let machines = self.machines.borrow().successor();
        *self.machines.borrow_mut() = machines.clone();
        let alive = watch::Sender::new(true);
        let (disk, trap) = (self.records.clone(), self.trap.clone());
        let records = Ledger { disk, trap, alive, machines: machines.clone() };
        let records = Arc::new(records);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let life = async {
            let agent = self.open(machines.clone(), records.clone()).await.expect("a node");
            agent.steering.startup.run().await.expect("recovery");
            tokio::spawn(agent.steering.reconciler.clone().run());
            tokio::spawn(desired::run(agent.steering.desired.clone(), None));
            tokio::spawn(jobs::dispatch(agent.work.dispatcher.clone()));
            tokio::spawn(watch_guests(agent.lifecycle.guests.clone()));
            work(agent).await
        };
        let outcome = runtime.block_on(async {
            tokio::select! {
                biased;
                () = machines.halted() => None,
                () = records.killed() => None,
                outcome = life => Some(outcome),
            }
        });
        machines.halt();
        records.alive.send_replace(false);
        drop(runtime);
        outcome
    }

    /// Ends the processes of all machines.
    pub fn crash_machines(&self) {
        crash_all(&self.machines.borrow());
    }

    /// Returns how many calls of the driver there had been when all machines died at a durable
    /// write; `None` where they did not.
    pub fn calls_before_death(&self) -> Option<usize> {
        *self.trap.calls_before_death.lock().expect("lock")
    }

    /// Removes the host's links from this thread's network.
    pub fn disconnect(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let cleared = runtime.expect("a runtime").block_on(async {
            let root = StateDir::open(self.dir.path())?;
            let network = Network::open(root.short_id())?;
            network.clear().await.map_err(crate::Error::from)
        });
        cleared.expect("links to be removed");
    }

    async fn open(&self, machines: SimHypervisor, records: Arc<Ledger>) -> Result<Arc<Agent>> {
        let root = StateDir::open(self.dir.path())?;
        let images = ImageStore::open(root.path(), GuestBinary::new(b""))?;
        let network = Network::open(root.short_id())?.of_root(root.path());
        let pressure = self.dir.path().join("pressure");
        let parts = AgentParts {
            state_dir: root,
            store: records,
            hypervisor: Arc::new(machines),
            network: Arc::new(network),
            images,
            credentials: None,
            stages: Stages::default(),
            settings: AgentSettings::of_tests(Some("node".parse()?), pressure),
        };
        Agent::open(parts, self.clock.clock()).await
    }
}

fn image(dir: &Path, digest: Digest) {
    let revision = Revision {
        digest,
        dir: Default::default(),
        root: Default::default(),
        kernel: Default::default(),
        initrd: Default::default(),
        platform: Platform::Pci,
        kernel_digest: IMAGES[0],
        kernel_version: String::new(),
        built_at: mvm_model::Timestamp::EPOCH,
        size_bytes: 0,
        flake: String::new(),
        profile: String::new(),
        guest_sha256: String::new(),
        out_path: String::new(),
        closure: Vec::new(),
        parts: Vec::new(),
    };
    std::fs::create_dir_all(dir).expect("dir");
    let manifest = serde_json::to_vec(&revision).expect("JSON");
    std::fs::write(dir.join("manifest.json"), manifest).expect("manifest");
}

/// Counts durable writes, and injects the fault at one of them.
#[derive(Default)]
struct Trap {
    writes: AtomicU64,
    write_fault: Mutex<Option<(u64, WriteFault)>>,
    calls_before_death: Mutex<Option<usize>>,
}

impl Trap {
    fn arm(&self, write_fault: Option<(u64, WriteFault)>) {
        *self.write_fault.lock().expect("lock") = write_fault;
        self.writes.store(0, Ordering::SeqCst);
    }

    fn next(&self) -> Option<WriteFault> {
        let number = self.writes.fetch_add(1, Ordering::SeqCst) + 1;
        let write_fault = *self.write_fault.lock().expect("lock");
        write_fault.filter(|(at, _)| *at == number).map(|(_, write_fault)| write_fault)
    }
}

/// The store as one agent has it open.
struct Ledger {
    disk: Arc<SqliteStore>,
    trap: Arc<Trap>,
    alive: watch::Sender<bool>,
    machines: SimHypervisor,
}

fn crash_all(machines: &SimHypervisor) {
    for process in machines.find("").expect("machines") {
        machines.crash(&process.marker);
    }
}

impl Ledger {
    async fn killed(&self) {
        let _ = self.alive.subscribe().wait_for(|alive| !alive).await;
    }

    async fn reach(&self, write_fault: Option<WriteFault>, moment: Moment) {
        if write_fault == Some(WriteFault::Kill(moment)) {
            self.alive.send_replace(false);
        }
        if !*self.alive.borrow() {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl Store for Ledger {
    async fn get(&self, key: &str) -> mvm_store::Result<Option<Record>> {
        self.disk.get(key).await
    }

    async fn range(&self, range: Range) -> mvm_store::Result<Listing> {
        self.disk.range(range).await
    }

    async fn last(&self, prefix: &str) -> mvm_store::Result<Option<Record>> {
        self.disk.last(prefix).await
    }

    async fn commit(&self, writes: Vec<Write>) -> mvm_store::Result<u64> {
        let write_fault = self.trap.next();
        self.reach(write_fault, Moment::Before).await;
        if write_fault == Some(WriteFault::Die) {
            let before = self.machines.calls().len();
            *self.trap.calls_before_death.lock().expect("lock") = Some(before);
            crash_all(&self.machines);
        }
        if write_fault == Some(WriteFault::Fail) {
            return Err(Error::NoSpace { path: "a disk that is full just now".to_owned() });
        }
        let outcome = self.disk.commit(writes).await;
        self.reach(write_fault, Moment::After).await;
        outcome
    }

    async fn revision(&self) -> mvm_store::Result<u64> {
        self.disk.revision().await
    }

    async fn watch(&self, prefix: &str, after: u64) -> mvm_store::Result<Watch> {
        self.disk.watch(prefix, after).await
    }

    async fn open_session(&self, ttl: Duration) -> mvm_store::Result<SessionId> {
        self.disk.open_session(ttl).await
    }

    async fn keep_session(&self, session: SessionId) -> mvm_store::Result<()> {
        self.disk.keep_session(session).await
    }

    async fn end_session(&self, session: SessionId) -> mvm_store::Result<()> {
        self.disk.end_session(session).await
    }

    async fn scrub(&self) -> mvm_store::Result<()> {
        self.disk.scrub().await
    }
}

/// Gives this thread a network namespace of its own, which ends with the thread.
pub fn own_network() {
    // SAFETY: this changes only the namespace of sockets that this thread will open.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
        .expect("a network namespace: run the tests as root");
}
