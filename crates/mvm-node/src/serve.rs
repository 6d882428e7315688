//! The agent's process: from a state directory to a served socket.

use crate::accelerator::{AcceleratorChoice, QemuHost};
use crate::agent::{Agent, AgentParts, AgentSettings};
use crate::desired::{self, DesiredFile};
use crate::error::{NodeError, io};
use crate::host::Offer;
use crate::instances::watch_guests;
use crate::pressure::HOST_PRESSURE;
use crate::simulated::SimulatedGuest;
use crate::stages::Stages;
use crate::state_dir::StateDir;
use crate::{Result, announce, api, dns, jobs, socket};
use mvm_clock::Clock;
use mvm_hypervisor::Hypervisor;
use mvm_hypervisor::qemu::QemuDriver;
use mvm_hypervisor::sim::{Latencies, SimHypervisor};
use mvm_identity::IdentityDir;
use mvm_identity::tls::Credentials;
use mvm_image::{GuestBinary, ImageStore, Sandbox};
use mvm_model::accelerator::{Verdict, Wanted};
use mvm_model::{Accelerator, Mib, Name};
use mvm_network::Network;
use mvm_server::{TlsListener, private, renewal, service};
use mvm_store::SqliteStore;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

/// The file of the state directory that keeps the verdict on KVM.
const VERDICT: &str = "accelerator.json";

/// Returns the verdict on KVM that the last agent of this state directory has left for the next one
/// in this boot of the host.
pub fn kept_verdict(root: &Path) -> Option<Verdict> {
    mvm_hypervisor::qemu::kept_verdict(&root.join(VERDICT))
}

/// The driver that makes the machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// Real machines, by QEMU.
    #[default]
    Qemu,
    /// No machines: everything is simulated, and is marked so.
    Sim,
}

/// The options of `mvm agent serve`.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The state directory.
    pub root: PathBuf,
    /// The driver that makes the machines.
    pub driver: Driver,
    /// The static guest binary.
    pub guest: &'static [u8],
    /// The restrictions on flakes' builders.
    pub sandbox: Sandbox,
    /// The addresses at which the API is served.
    pub api: ApiOptions,
    /// The document of desired state to keep in force.
    pub desired: Option<DesiredFile>,
    /// The durations of operations' stages, as the process's tracing subscriber observes them.
    pub stages: Stages,
    /// The node's name, and its use of the host.
    pub node: NodeOptions,
}

/// The addresses at which the API is served, besides the Unix socket.
#[derive(Clone, Debug, Default)]
pub struct ApiOptions {
    /// The addresses to serve the API at over TLS.
    pub listen: Vec<SocketAddr>,
    /// The directory of the identity that the agent shows there, if not in the state directory.
    pub identity: Option<PathBuf>,
    /// The address at which a fleet's coordinators reach the agent. Where absent, the first address
    /// that the agent listens on, unless that is a wildcard.
    pub advertise: Option<String>,
}

/// The node's name, and its use of the host.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// The network namespace (ip-netns(8)) to put everything into, VMs included.
    pub netns: Option<String>,
    /// The name of this node in desired-state documents; where absent, that of its identity, if it
    /// has one.
    pub node_id: Option<Name>,
    /// What executes the instructions of new machines.
    pub accelerator: Wanted,
    /// What the node offers to a fleet.
    pub offer: Offer,
    /// The file that reports memory pressure, instead of the host's own.
    pub pressure: Option<PathBuf>,
    /// The rate at which images leave for other nodes, in MiB per second; unlimited where absent.
    pub image_rate: Option<NonZeroU32>,
    /// How long a job waits whose machine is paused because the host's disk is full.
    pub no_space_timeout: Duration,
    /// The part of the disk that artifacts and inputs may not take, in MiB; a fraction of the disk
    /// where absent.
    pub disk_reserve: Option<Mib>,
}

/// Serves until SIGTERM, SIGINT or `POST /v1/agent/stop`. The agent's end touches no VM.
pub fn serve(options: ServeOptions) -> Result<()> {
    private::narrow_umask();
    let root = StateDir::open(&options.root)?;
    // Must come before any thread exists: setns(2) moves only the calling thread.
    if let Some(netns) = &options.node.netns {
        mvm_network::enter_netns(netns)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| io("start the runtime", e))?;
    let outcome = runtime.block_on(run(root, options));
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn run(root: StateDir, options: ServeOptions) -> Result<()> {
    let path = root.socket();
    let (api, desired) = (options.api.clone(), options.desired.clone());
    let agent = open(root, options).await?;
    agent.steering.startup.run().await?;
    agent.supplies.host.log_shortfalls(&agent.base.records);
    agent.work.exposes.open_all().await?;
    begin(&agent, desired);
    let listener = socket::listen(&path)?;
    tracing::info!(socket = %path.display(), "serving");
    serve_tls(&agent, api).await?;
    service::ready(&format!("serving {}", path.display()));
    let records = agent.base.records.clone();
    tokio::spawn(service::live(move || {
        let records = records.clone();
        async move { records.alone(|_| ()).await }
    }));
    let outcome = until_end(&agent, &path, listener).await;
    agent.work.jobs.stop();
    service::stopping();
    tracing::info!("ending; machines go on");
    agent.lifecycle.lingering.end_all().await;
    let _ = std::fs::remove_file(&path);
    // The answer to the call that has ended the agent is written, but perhaps not sent yet.
    tokio::time::sleep(Duration::from_millis(50)).await;
    outcome
}

/// Opens the parts of the agent.
async fn open(root: StateDir, options: ServeOptions) -> Result<Arc<Agent>> {
    let store = SqliteStore::open(&root.path().join("node.db"))?;
    // The store's lock guarantees that no other agent uses this directory.
    let file = root.path().join("clock.json");
    let clock = Clock::open(&file).map_err(|e| io(format!("open {}", file.display()), e))?;
    let images = ImageStore::open(root.path(), GuestBinary::new(options.guest))?;
    let images = images.with_sandbox(options.sandbox);
    // No build of an earlier agent is under way in this directory any more.
    private::close(root.path())?;
    let (driver, accelerator) = match options.driver {
        Driver::Qemu => qemu(&root, &images, options.node.accelerator).await?,
        Driver::Sim => simulation(&root)?,
    };
    let credentials = match options.api.listen.is_empty() {
        true => None,
        false => Some(Credentials::open(match &options.api.identity {
            Some(dir) => IdentityDir::new(dir.clone()),
            None => root.identity(),
        })?),
    };
    let own = credentials
        .as_ref()
        .map(|credentials| credentials.credential().facts.identity.name().clone());
    let network = Network::open(root.short_id())?.of_root(root.path());
    let node = options.node;
    let parts = AgentParts {
        state_dir: root,
        store: Arc::new(store),
        hypervisor: driver,
        network: Arc::new(network),
        images,
        credentials,
        stages: options.stages,
        settings: AgentSettings {
            node_id: node.node_id.or(own),
            netns: node.netns,
            accelerator,
            offer: node.offer,
            pressure: node.pressure.unwrap_or_else(|| PathBuf::from(HOST_PRESSURE)),
            image_rate: node.image_rate,
            no_space_timeout: node.no_space_timeout,
            disk_reserve: node.disk_reserve,
        },
    };
    Agent::open(parts, clock).await
}

/// Starts the agent's own tasks.
fn begin(agent: &Agent, document: Option<DesiredFile>) {
    tokio::spawn(agent.steering.reconciler.clone().run());
    tokio::spawn(agent.lifecycle.link_keeper.clone().run());
    let accelerator = agent.supplies.accelerator.clone();
    tokio::spawn(accelerator.follow(agent.base.auditor.clone(), agent.base.wake.clone()));
    tokio::spawn(dns::run(agent.base.records.clone()));
    tokio::spawn(jobs::dispatch(agent.work.dispatcher.clone()));
    tokio::spawn(watch_guests(agent.lifecycle.guests.clone()));
    tokio::spawn(desired::run(agent.steering.desired.clone(), document));
}

/// Serves other machines, if the agent has an identity to show them.
async fn serve_tls(agent: &Arc<Agent>, options: ApiOptions) -> Result<()> {
    let Some(credentials) = agent.process.credentials.clone() else { return Ok(()) };
    let listener = TlsListener::bind(&options.listen, credentials.clone()).await?;
    let addresses = listener.addresses().to_vec();
    tracing::info!(?addresses, "serving over TLS");
    tokio::spawn(api::serve_tls(listener, api::app(agent.clone())));
    if let Some(address) = options.advertise.or_else(|| listener_address(&addresses)) {
        tokio::spawn(announce::run(credentials.clone(), address));
    }
    let clock = agent.base.records.clock().clone();
    tokio::spawn(renewal::keep(credentials, renewal::Source::Remote, clock));
    Ok(())
}

/// Serves the socket until the agent is to end.
async fn until_end(agent: &Arc<Agent>, path: &Path, listener: UnixListener) -> Result<()> {
    let restored = &agent.process.passes.sockets_restored;
    let served = socket::serve(path, listener, api::app(agent.clone()), restored);
    let mut term = signal(SignalKind::terminate()).map_err(|e| io("watch signals", e))?;
    let mut int = signal(SignalKind::interrupt()).map_err(|e| io("watch signals", e))?;
    tokio::select! {
        outcome = served => outcome.map_err(|e| io(format!("serve {}", path.display()), e)),
        _ = term.recv() => Ok(()),
        _ = int.recv() => Ok(()),
        () = agent.process.stop.notified() => Ok(()),
    }
}

/// Returns the first address that other machines can reach.
fn listener_address(addresses: &[SocketAddr]) -> Option<String> {
    addresses.iter().find(|address| !address.ip().is_unspecified()).map(ToString::to_string)
}

/// A driver, and the choice of its accelerator.
type Driven = (Arc<dyn Hypervisor>, Arc<AcceleratorChoice>);

/// Opens the driver of simulated machines, which are recorded below the root and outlive the agent
/// as real ones do.
fn simulation(root: &StateDir) -> Result<Driven> {
    let kept = root.path().join("sim");
    let driver =
        SimHypervisor::open(Latencies::default(), Arc::new(SimulatedGuest::default()), &kept)
            .map_err(|e| io(format!("read the simulated machines in {}", kept.display()), e))?;
    tracing::warn!("no machine is real: this agent simulates its hypervisor");
    let choice = AcceleratorChoice::simulated("no machine is real: the agent was started so");
    Ok((Arc::new(driver), choice))
}

/// Opens the driver of real machines. Whether KVM works is found out later, where it has to be tried.
async fn qemu(root: &StateDir, images: &ImageStore, wanted: Wanted) -> Result<Driven> {
    let driver = QemuDriver::new(QemuDriver::find_binary()?, Accelerator::Tcg).await?;
    let probe = driver.kvm_probe(root.path().join(VERDICT));
    let host = QemuHost { driver: driver.clone(), probe, images: images.clone() };
    let choice = AcceleratorChoice::of(wanted, host).await;
    let choice = choice.map_err(|reason| NodeError::KvmUnavailable { reason })?;
    Ok((Arc::new(driver), choice))
}
