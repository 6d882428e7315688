//! The host: its resources, and its shortfalls for the pools' settings. A pool of which no machine
//! can run is refused; other shortfalls are reported. Also the node's name.

use crate::Result;
use crate::accelerator::AcceleratorChoice;
use crate::labels::Labels;
use crate::names::servers;
use crate::records::{RecordSet, Records};
use mvm_hypervisor::{Description, Hypervisor};
use mvm_model::accelerator::{Standing, Verdict};
use mvm_model::cpu_model::CpuModelFault;
use mvm_model::desired::DesiredState;
use mvm_model::fleet::{self, Capacity};
use mvm_model::host::{Shortfall, ShortfallKind, admit_shape, lacks_memory, lacks_of_shape};
use mvm_model::{Accelerator, CpuModel, Fault, Mib, Name, Pool, PoolRef, Resources};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a node offers to a fleet.
#[derive(Clone, Debug, Default)]
pub struct Offer {
    /// The node's labels.
    pub labels: fleet::Labels,
    /// The resources for instances; the machine's own where absent.
    pub capacity: Option<Capacity>,
}

/// The host of the agent.
pub(crate) struct Host {
    /// The name that the node was given, if any.
    node_id: Option<Name>,
    offer: Offer,
    hardware: Hardware,
    hypervisor: Arc<dyn Hypervisor>,
    accelerator: Arc<AcceleratorChoice>,
    /// The state directory.
    path: PathBuf,
}

impl Host {
    /// Examines the host.
    pub(crate) fn new(
        node_id: Option<Name>,
        offer: Offer,
        hypervisor: Arc<dyn Hypervisor>,
        accelerator: Arc<AcceleratorChoice>,
        path: &Path,
    ) -> Host {
        let (hardware, path) = (Hardware::found(), path.to_owned());
        Host { node_id, offer, hardware, hypervisor, accelerator, path }
    }

    /// Returns the resources that the host offers to instances.
    pub(crate) fn capacity(&self) -> Capacity {
        self.offer.capacity.unwrap_or_else(|| self.hardware.capacity(&self.path))
    }

    /// Returns the node's labels.
    pub(crate) fn labels(&self) -> &fleet::Labels {
        &self.offer.labels
    }

    /// Returns the model of the host's CPU.
    pub(crate) fn cpu_model(&self) -> &str {
        &self.hardware.cpu_model
    }

    /// Returns the driver's description, with the accelerator of new machines.
    pub(crate) fn driver(&self) -> Description {
        self.hypervisor.description()
    }

    /// Returns the accelerator of new machines; `None` where they are simulated.
    pub(crate) fn accelerator(&self) -> Option<Accelerator> {
        Accelerator::of(&self.driver().accelerator)
    }

    /// Returns the name that the node was given, if any.
    pub(crate) fn given_name(&self) -> Option<&Name> {
        self.node_id.as_ref()
    }

    /// Returns the node's name in documents: the given one, or else the host name if it is valid.
    pub(crate) fn node_id(&self) -> Result<Name> {
        let host = || {
            let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
            name.split('.').next().and_then(|name| name.parse().ok())
        };
        match self.node_id.clone().or_else(host) {
            Some(name) => Ok(name),
            None => Ok("node".parse()?),
        }
    }

    /// Refuses resources with which no machine can run here.
    pub(crate) fn admit_shape(&self, shape: &Resources) -> Result<()> {
        Ok(admit_shape(shape, &self.capacity())?)
    }

    /// Refuses a document that has such resources.
    pub(crate) fn admit_shapes(&self, document: &DesiredState) -> Result<()> {
        let host = self.capacity();
        for (t, tenant) in document.tenants.iter().enumerate() {
            for (p, pool) in tenant.pools.iter().enumerate() {
                admit_shape(&pool.instance_resources, &host).map_err(|fault| {
                    let path =
                        format!("$.tenants[{t}].pools[{p}].instance_resources.{}", fault.path);
                    fault.at(path)
                })?;
            }
        }
        Ok(())
    }

    /// Refuses a CPU model that no machine can have here. While it is open whether machines get KVM,
    /// only the name is judged; the features are when a machine is started.
    pub(crate) async fn admit_cpu_model(&self, model: &CpuModel) -> Result<()> {
        use mvm_hypervisor::Error::CpuModelUnavailable;
        let is_open = self.accelerator.verdict().standing != Standing::Settled;
        match self.hypervisor.check_cpu_model(model).await {
            Err(CpuModelUnavailable { why: CpuModelFault::Lacks(_), .. }) if is_open => Ok(()),
            checked => Ok(checked?),
        }
    }

    /// Refuses a document that asks for such a CPU model. Pools that have theirs already, by what
    /// `has` says, are left alone.
    pub(crate) async fn admit_cpu_models(
        &self,
        document: &DesiredState,
        has: impl Fn(&PoolRef, &CpuModel) -> bool,
    ) -> Result<()> {
        for (t, tenant) in document.tenants.iter().enumerate() {
            for (p, pool) in tenant.pools.iter().enumerate() {
                let reference =
                    PoolRef { tenant: tenant.tenant_id.clone(), pool: pool.pool_id.clone() };
                if has(&reference, &pool.cpu_model) {
                    continue;
                }
                self.admit_cpu_model(&pool.cpu_model).await.map_err(|error| {
                    let Some(code) = error.code().known() else { return error };
                    let fault = Fault::new(code, error.detail()).hint(error.hint());
                    fault.at(format!("$.tenants[{t}].pools[{p}].cpu_model")).into()
                })?;
            }
        }
        Ok(())
    }

    /// Finds the shortfalls that all machines of this node share. Reads files of the host, so call
    /// it before the records are locked.
    pub(crate) fn shortfalls(&self) -> Shortfalls {
        let driver = self.driver();
        let mut found = Vec::new();
        let Verdict { reason: why, standing, .. } = self.accelerator.verdict();
        let emulated = driver.accelerator != "kvm" && !driver.simulated;
        if emulated && standing != Standing::Trying {
            let detail =
                format!("machines are emulated ({}), which is slow: {why}", driver.accelerator);
            found.push(Shortfall { code: ShortfallKind::Kvm, detail });
        }
        if servers().is_empty() {
            let detail = "guests resolve no names: the host names no DNS server; name one in \
                          /etc/resolv.conf";
            found.push(Shortfall { code: ShortfallKind::Dns, detail: detail.to_owned() });
        }
        Shortfalls { found, host: self.capacity() }
    }

    /// Logs the shortfalls at start.
    pub(crate) fn log_shortfalls(&self, records: &Records) {
        let shortfalls = self.shortfalls();
        for shortfall in records.read(|records| shortfalls.with(records)).found {
            tracing::warn!(lack = shortfall.code.as_str(), "{}", shortfall.detail);
        }
    }
}

/// The hardware of the host.
struct Hardware {
    vcpus: u64,
    mem_mib: Mib,
    cpu_model: String,
}

/// Returns this machine's resources for an agent whose state directory is on the file system of
/// `path`, which must exist.
pub fn found_capacity(path: &Path) -> Capacity {
    Hardware::found().capacity(path)
}

impl Hardware {
    fn capacity(&self, path: &Path) -> Capacity {
        Capacity { vcpus: self.vcpus, mem_mib: self.mem_mib, disk_gib: disk_gib(path) }
    }

    fn found() -> Hardware {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let (memory, cpu) = (read("/proc/meminfo"), read("/proc/cpuinfo"));
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
                .unwrap_or_default()
        };
        let kib = field(&memory, "MemTotal");
        let kib: u64 = kib.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        let vcpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        Hardware { vcpus, mem_mib: Mib(kib / 1024), cpu_model: field(&cpu, "model name") }
    }
}

/// Returns the size of the file system of a path, in GiB.
fn disk_gib(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |stat| (stat.f_blocks * stat.f_frsize) >> 30)
}

/// The shortfalls of the host.
#[derive(Debug)]
pub(crate) struct Shortfalls {
    found: Vec<Shortfall>,
    host: Capacity,
}

impl Shortfalls {
    /// Adds the shortfalls that all pools have together.
    pub(crate) fn with(mut self, records: &RecordSet) -> Shortfalls {
        let pools = records.pools.values();
        let kept = pools.filter_map(|pool| Some((&pool.resources, pool.desired.as_ref()?)));
        self.found.extend(lacks_memory(kept, &self.host));
        self
    }

    /// Returns the shortfalls found.
    pub(crate) fn all(self) -> Vec<Shortfall> {
        self.found
    }

    /// Returns the shortfalls found, and those of this pool alone.
    pub(crate) fn of(&self, pool: &Pool) -> Vec<Shortfall> {
        let mut shortfalls = self.found.clone();
        shortfalls.extend(lacks_of_shape(&pool.resources, &self.host));
        shortfalls
    }

    /// Returns a gauge that is 1 for each kind of shortfall of the node or of any pool.
    pub(crate) fn gauge(&self, records: &RecordSet) -> Family<Labels, Gauge> {
        let gauge: Family<Labels, Gauge> = Family::default();
        let of_pools =
            records.pools.values().flat_map(|p| lacks_of_shape(&p.resources, &self.host));
        for shortfall in self.found.iter().cloned().chain(of_pools) {
            gauge.get_or_create(&vec![("lack", shortfall.code.as_str().to_owned())]).set(1);
        }
        gauge
    }
}
