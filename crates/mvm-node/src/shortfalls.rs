//! What the host lacks of what pools want: refused where no machine can run, told where they run all
//! the same.

use crate::Result;
use crate::boot::resolvers;
use crate::events::Labels;
use crate::node::Node;
use crate::world::World;
use mvm_model::desired::DesiredState;
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

    /// What every machine of this node lacks.
    fn lacks_of_node(&self) -> Vec<Shortfall> {
        let driver = self.parts.hypervisor.description();
        let mut lacks = Vec::new();
        if driver.accelerator != "kvm" && !driver.simulated {
            let why = &self.parts.accelerator_reason;
            let detail =
                format!("machines are emulated ({}), which is slow: {why}", driver.accelerator);
            lacks.push(Shortfall { code: Lack::Kvm, detail });
        }
        if resolvers().is_empty() {
            let detail = "guests resolve no names: the host names no DNS server, or only such as are \
                          on its loopback or have an IPv6 address; name one in /etc/resolv.conf";
            lacks.push(Shortfall { code: Lack::Dns, detail: detail.to_owned() });
        }
        lacks
    }

    fn lacks_memory(&self, world: &World) -> Option<Shortfall> {
        let pools = world.pools.values();
        let kept = pools.filter_map(|pool| Some((&pool.resources, pool.desired.as_ref()?)));
        lacks_memory(kept, &self.capacity())
    }

    /// What the node lacks, and what its pools lack together.
    pub(crate) fn shortfalls(&self, world: &World) -> Vec<Shortfall> {
        let mut lacks = self.lacks_of_node();
        lacks.extend(self.lacks_memory(world));
        lacks
    }

    /// The same, and what is lacking for this pool alone.
    pub(crate) fn shortfalls_of(&self, world: &World, pool: &Pool) -> Vec<Shortfall> {
        let mut lacks = self.shortfalls(world);
        lacks.extend(lacks_of_shape(&pool.resources, &self.capacity()));
        lacks
    }

    /// Says in the log what is lacking from the start.
    pub(crate) async fn tell_shortfalls(&self) {
        for lack in self.read(|world| self.shortfalls(world)).await {
            tracing::warn!(lack = lack.code.as_str(), "{}", lack.detail);
        }
    }

    /// 1 for each kind that is lacking.
    pub(crate) fn shortfall_gauge(&self, world: &World) -> Family<Labels, Gauge> {
        let gauge: Family<Labels, Gauge> = Family::default();
        let of_pools =
            world.pools.values().flat_map(|p| lacks_of_shape(&p.resources, &self.capacity()));
        for lack in self.shortfalls(world).into_iter().chain(of_pools) {
            gauge.get_or_create(&vec![("lack", lack.code.as_str().to_owned())]).set(1);
        }
        gauge
    }
}
