//! From records to links and rules.

mod repair;
mod repairs;

pub(crate) use repairs::Repairs;

use crate::Result;
use crate::names::Names;
use crate::problem::OrProblem;
use crate::records::{RecordSet, Records};
use ipnet::Ipv4Net;
use mvm_model::egress::Protocol;
use mvm_model::{EgressMode, Instance, Pool, Tenant};
use mvm_network::{
    AllowRule, Applied, Bridge, Counters, Egress, Mode, Network, Proto, Ruleset, Tap, TapRules,
    TenantRules,
};
use std::sync::Arc;
use tokio::sync::Mutex;

/// The first of 4096 user ids, one a tenant (its net id is added), that confined hypervisors run
/// as. Far above what distributions hand out, and below the ranges of user namespaces.
const FIRST_UID: u32 = 412_000;

/// The user id that the tenant's hypervisor processes run as.
pub fn uid_of(tenant: &Tenant) -> u32 {
    FIRST_UID + u32::from(tenant.network.tenant_net_id)
}

/// The bridges, taps and rules of tenants and instances.
pub(crate) struct Links {
    network: Arc<Network>,
    records: Arc<Records>,
    /// What tells our links and tables from those of others.
    short_id: String,
    /// Serialises changes of links and rules.
    turn: Mutex<()>,
    pub(crate) repairs: Repairs,
}

impl Links {
    /// Links in this network, for these records.
    pub(crate) fn new(network: Arc<Network>, records: Arc<Records>, short_id: &str) -> Links {
        let (short_id, turn) = (short_id.to_owned(), Mutex::default());
        Links { network, records, short_id, turn, repairs: Repairs::default() }
    }

    /// The network itself.
    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// The largest packet that gets out of this host.
    pub(crate) async fn mtu(&self) -> Result<u32> {
        self.network.uplink_mtu().await.or_problem()
    }

    /// What the instance's tap has counted, from the host's side.
    pub(crate) async fn counters(&self, instance: &Instance) -> Result<Counters> {
        self.network.counters(&self.tap_name(instance)).await.or_problem()
    }

    /// Whether the instance's tap was deleted; where nobody can say, it was not.
    pub(crate) async fn has_lost_tap(&self, instance: &Instance) -> bool {
        matches!(self.network.has(&self.tap_name(instance)).await, Ok(false))
    }

    /// The name of the tenant's bridge.
    pub fn bridge_name(&self, tenant: &Tenant) -> String {
        Network::bridge_name(&self.short_id, tenant.network.tenant_net_id)
    }

    /// The name of the instance's tap.
    pub fn tap_name(&self, instance: &Instance) -> String {
        Network::tap_name(&self.short_id, &instance.id.digits())
    }

    /// Makes a new tenant's bridge, and puts its rules in force.
    pub async fn set_up_tenant(&self, tenant: &Tenant) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.connect_tenant(tenant).await?;
        self.apply_rules().await
    }

    /// Puts the rules in force that follow from the records.
    pub async fn refresh_rules(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.apply_rules().await
    }

    /// Makes the tenant's bridge.
    async fn connect_tenant(&self, tenant: &Tenant) -> Result<()> {
        self.network.ensure_bridge(&self.bridge_of(tenant)).await.or_problem()
    }

    /// The tenant's bridge.
    pub(crate) fn bridge_of(&self, tenant: &Tenant) -> Bridge {
        let prefix = tenant.network.ipv4_subnet.prefix_len();
        let gateway = Ipv4Net::new_assert(tenant.network.gateway(), prefix);
        Bridge { name: self.bridge_name(tenant), gateway }
    }

    /// The instance's tap.
    pub(crate) fn tap_of(&self, tenant: &Tenant, instance: &Instance) -> Tap {
        Tap {
            name: self.tap_name(instance),
            bridge: self.bridge_name(tenant),
            mac: instance.mac.clone(),
            address: instance.address,
            owner_uid: Some(uid_of(tenant)),
        }
    }

    /// Makes the instance's tap and lets its packets, and no others, through.
    pub async fn connect_instance(&self, tenant: &Tenant, instance: &Instance) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.connect_tenant(tenant).await?;
        self.apply_rules().await?;
        let tap = self.tap_of(tenant, instance);
        let network = &self.network;
        network.ensure_tap(&tap).await.or_problem()?;
        let mtu = network.uplink_mtu().await.or_problem()?;
        network.set_mtu(&tap.name, mtu).await.or_problem()
    }

    /// Removes the tap of an instance that is going.
    pub async fn disconnect_instance(&self, instance: &Instance) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.network.remove_tap(&self.tap_name(instance)).await.or_problem()
    }

    /// Removes the bridge of a tenant that is gone, and its rules.
    pub async fn disconnect_tenant(&self, tenant: &Tenant) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.network.remove_bridge(&self.bridge_name(tenant)).await.or_problem()?;
        if self.records.read(|world| world.tenants.is_empty()) {
            return self.network.clear().await.or_problem();
        }
        self.apply_rules().await
    }

    /// Brings rules in line with the records, and puts them back where they are gone; the caller holds
    /// the turn.
    async fn apply_rules(&self) -> Result<()> {
        let rules = self.records.read(|world| self.rules(world));
        match self.network.apply(&rules).await.or_problem()? {
            Applied::Already | Applied::Changed => Ok(()),
            Applied::Restored(lost) => self.walls_were_gone(&lost).await,
        }
    }

    pub(crate) fn rules(&self, world: &RecordSet) -> Ruleset {
        let tenants = world
            .tenants
            .values()
            .map(|tenant| TenantRules {
                bridge: self.bridge_name(tenant),
                subnet: tenant.network.ipv4_subnet,
                gateway: tenant.network.gateway(),
                host_ports: Vec::new(),
                taps: world
                    .of_tenant(&tenant.name)
                    .map(|instance| TapRules {
                        tap: self.tap_name(instance),
                        mac: instance.mac.clone(),
                        address: instance.address,
                        egress: world.pools.get(&instance.pool).map_or_else(closed, egress_of),
                    })
                    .collect(),
            })
            .collect();
        let names = Names::of_host();
        Ruleset { tenants, resolvers: names.reachable(), forwarder: names.needs_forwarder() }
    }

    /// At start: every tenant has its bridge and the rules are in force; links of ours that
    /// belong to nobody are removed. Where machines have run without an agent (`machines`), it is told what of
    /// their links was taken away meanwhile; after a start of the host there is nobody to tell it of.
    pub async fn restore(&self, machines: bool) -> Result<()> {
        let _turn = self.turn.lock().await;
        let (tenants, expected) = self.records.read(|world| {
            let tenants: Vec<Tenant> = world.tenants.values().cloned().collect();
            let mut expected: Vec<String> =
                tenants.iter().map(|tenant| self.bridge_name(tenant)).collect();
            expected.extend(world.instances.values().map(|i| self.tap_name(i)));
            (tenants, expected)
        });
        for link in self.network.list().await.or_problem()? {
            if expected.contains(&link.name) {
                continue;
            }
            tracing::info!(link = link.name, "removing a link that belongs to nobody");
            match link.kind {
                mvm_network::LinkKind::Bridge => self.network.remove_bridge(&link.name).await,
                mvm_network::LinkKind::Tap => self.network.remove_tap(&link.name).await,
            }
            .or_problem()?;
        }
        if tenants.is_empty() {
            return Ok(());
        }
        // First, so that no packet passes a link that is back without them.
        self.apply_rules().await?;
        if machines {
            // Those whose taps are gone are for the first pass, when they are known.
            self.keep_links().await?;
        }
        for tenant in &tenants {
            self.connect_tenant(tenant).await?;
        }
        self.apply_rules().await
    }
}

/// What the pool's guests may reach.
fn egress_of(pool: &Pool) -> Egress {
    let mvm_model::Egress { mode, allow, allow_lan } = &pool.egress;
    let mode = match mode {
        EgressMode::Open => Mode::Open,
        EgressMode::None => Mode::None,
        EgressMode::Allow => Mode::Allow,
    };
    let allow = allow.iter().map(|destination| AllowRule {
        cidr: destination.cidr,
        port: destination.port,
        proto: destination.protocol.map(|protocol| match protocol {
            Protocol::Tcp => Proto::Tcp,
            Protocol::Udp => Proto::Udp,
        }),
    });
    Egress { mode, allow: allow.collect(), lan: *allow_lan }
}

/// Of a guest whose pool is going.
fn closed() -> Egress {
    Egress { mode: Mode::None, ..Egress::default() }
}
