//! What the host lacks of what pools want: refused where no machine can run, told where they run all
//! the same.

use crate::Result;
use crate::labels::Labels;
use crate::names::servers;
use crate::node::Node;
use crate::records::World;
use mvm_model::desired::DesiredState;
use mvm_model::fleet::Capacity;
use mvm_model::host::{Lack, Shortfall, admit_shape, lacks_memory, lacks_of_shape};
use mvm_model::{Pool, Resources};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

impl Node {
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
        let driver = self.parts.hypervisor.description();
        let mut found = Vec::new();
        if driver.accelerator != "kvm" && !driver.simulated {
            let why = &self.parts.accelerator_reason;
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
    pub(crate) async fn tell_shortfalls(&self) {
        let lacks = self.lacks();
        for lack in self.records.read(|world| lacks.with(world)).found {
            tracing::warn!(lack = lack.code.as_str(), "{}", lack.detail);
        }
    }
}

/// What the host lacks.
#[derive(Debug)]
pub(crate) struct Lacks {
    found: Vec<Shortfall>,
    host: Capacity,
}

impl Lacks {
    /// The same, and what the pools lack together.
    pub(crate) fn with(mut self, world: &World) -> Lacks {
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
    pub(crate) fn gauge(&self, world: &World) -> Family<Labels, Gauge> {
        let gauge: Family<Labels, Gauge> = Family::default();
        let of_pools = world.pools.values().flat_map(|p| lacks_of_shape(&p.resources, &self.host));
        for lack in self.found.iter().cloned().chain(of_pools) {
            gauge.get_or_create(&vec![("lack", lack.code.as_str().to_owned())]).set(1);
        }
        gauge
    }
}
