//! The host: what it offers, what it lacks of what pools want (refused where no machine can run, told where
//! they run all the same), and the name of its node.

use crate::Result;
use crate::labels::Labels;
use crate::names::servers;
use crate::records::{RecordSet, Records};
use mvm_hypervisor::Description;
use mvm_model::desired::DesiredState;
use mvm_model::fleet::{self, Capacity};
use mvm_model::host::{Lack, Shortfall, admit_shape, lacks_memory, lacks_of_shape};
use mvm_model::{Name, Pool, Resources};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use std::path::{Path, PathBuf};

/// What a node says of itself, beside what it is found to hold.
#[derive(Clone, Debug, Default)]
pub struct Offer {
    /// Its labels.
    pub labels: fleet::Labels,
    /// What it offers to instances; what the machine has where nothing is said.
    pub capacity: Option<Capacity>,
}

/// The host of the agent.
pub(crate) struct Host {
    /// The name that the node was given, if it was given one.
    node_id: Option<Name>,
    offer: Offer,
    hardware: Hardware,
    driver: Description,
    /// Why the driver uses the accelerator that it uses.
    accelerator_reason: String,
    /// The state directory.
    path: PathBuf,
}

impl Host {
    /// The host as it is found.
    pub(crate) fn new(
        node_id: Option<Name>,
        offer: Offer,
        driver: Description,
        accelerator_reason: String,
        path: &Path,
    ) -> Host {
        let (hardware, path) = (Hardware::found(), path.to_owned());
        Host { node_id, offer, hardware, driver, accelerator_reason, path }
    }

    /// What the host offers to instances.
    pub(crate) fn capacity(&self) -> Capacity {
        self.offer.capacity.unwrap_or_else(|| self.hardware.capacity(&self.path))
    }

    /// Its labels.
    pub(crate) fn labels(&self) -> &fleet::Labels {
        &self.offer.labels
    }

    /// What its processor calls itself.
    pub(crate) fn cpu_model(&self) -> &str {
        &self.hardware.cpu_model
    }

    /// The driver of its machines.
    pub(crate) fn driver(&self) -> &Description {
        &self.driver
    }

    /// Why the driver uses the accelerator that it uses.
    pub(crate) fn accelerator_reason(&self) -> &str {
        &self.accelerator_reason
    }

    /// The name that the node was given, if it was given one.
    pub(crate) fn given_name(&self) -> Option<&Name> {
        self.node_id.as_ref()
    }

    /// The name in documents: the one that was given, else the host's, as far as it is one.
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

    /// Refuses a shape of which not one machine can run here.
    pub(crate) fn admit_shape(&self, shape: &Resources) -> Result<()> {
        Ok(admit_shape(shape, &self.capacity())?)
    }

    /// Refuses a document with such a shape.
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

    /// What every machine of this node lacks: looked for on the host, so before the records are held.
    pub(crate) fn lacks(&self) -> Lacks {
        let driver = &self.driver;
        let mut found = Vec::new();
        if driver.accelerator != "kvm" && !driver.simulated {
            let why = &self.accelerator_reason;
            let detail =
                format!("machines are emulated ({}), which is slow: {why}", driver.accelerator);
            found.push(Shortfall { code: Lack::Kvm, detail });
        }
        if servers().is_empty() {
            let detail = "guests resolve no names: the host names no DNS server; name one in \
                          /etc/resolv.conf";
            found.push(Shortfall { code: Lack::Dns, detail: detail.to_owned() });
        }
        Lacks { found, host: self.capacity() }
    }

    /// Says in the log what is lacking from the start.
    pub(crate) fn tell_shortfalls(&self, records: &Records) {
        let lacks = self.lacks();
        for lack in records.read(|world| lacks.with(world)).found {
            tracing::warn!(lack = lack.code.as_str(), "{}", lack.detail);
        }
    }
}

/// What the machine has.
struct Hardware {
    vcpus: u64,
    mem_mib: u64,
    cpu_model: String,
}

/// What this machine has for an agent whose state directory lies on the file system of `path`, which
/// must be there.
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
        Hardware { vcpus, mem_mib: kib / 1024, cpu_model: field(&cpu, "model name") }
    }
}

/// The size of the file system that a path is on, in GiB.
fn disk_gib(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |stat| (stat.f_blocks * stat.f_frsize) >> 30)
}

/// What the host lacks.
#[derive(Debug)]
pub(crate) struct Lacks {
    found: Vec<Shortfall>,
    host: Capacity,
}

impl Lacks {
    /// The same, and what the pools lack together.
    pub(crate) fn with(mut self, world: &RecordSet) -> Lacks {
        let pools = world.pools.values();
        let kept = pools.filter_map(|pool| Some((&pool.resources, pool.desired.as_ref()?)));
        self.found.extend(lacks_memory(kept, &self.host));
        self
    }

    /// All that was found.
    pub(crate) fn all(self) -> Vec<Shortfall> {
        self.found
    }

    /// All that was found, and what is lacking for this pool alone.
    pub(crate) fn of(&self, pool: &Pool) -> Vec<Shortfall> {
        let mut lacks = self.found.clone();
        lacks.extend(lacks_of_shape(&pool.resources, &self.host));
        lacks
    }

    /// 1 for each kind that is lacking, for the node or for any pool.
    pub(crate) fn gauge(&self, world: &RecordSet) -> Family<Labels, Gauge> {
        let gauge: Family<Labels, Gauge> = Family::default();
        let of_pools = world.pools.values().flat_map(|p| lacks_of_shape(&p.resources, &self.host));
        for lack in self.found.iter().cloned().chain(of_pools) {
            gauge.get_or_create(&vec![("lack", lack.code.as_str().to_owned())]).set(1);
        }
        gauge
    }
}
