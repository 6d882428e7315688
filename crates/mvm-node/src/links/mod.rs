//! Derives links and rules from the records.

mod repair;
mod repairs;

pub(crate) use repairs::Repairs;

use crate::names::Names;
use crate::records::{RecordSet, Records};
use crate::{Error, Result};
use ipnet::Ipv4Net;
use mvm_hypervisor::CONFINED_UIDS;
use mvm_model::egress::Protocol;
use mvm_model::{EgressMode, Instance, Pool, Tenant};
use mvm_network::{
    AllowRule, Applied, Bridge, Counters, Egress, Mode, Network, Proto, Ruleset, Tap, TapRules,
    TenantRules,
};
use std::sync::Arc;
use tokio::sync::Mutex;

/// Returns the user id that the tenant's hypervisor processes run as.
pub fn uid_of(tenant: &Tenant) -> u32 {
    CONFINED_UIDS.start + u32::from(tenant.network.tenant_net_id)
}

/// The bridges, taps and rules of tenants and instances.
pub(crate) struct Links {
    network: Arc<Network>,
    records: Arc<Records>,
    /// The part of the names of links and tables that identifies this state directory.
    short_id: String,
    /// Serialises changes of links and rules.
    turn: Mutex<()>,
    pub(crate) repairs: Repairs,
}

impl Links {
    /// Makes the service for links in this network, for these records.
    pub(crate) fn new(network: Arc<Network>, records: Arc<Records>, short_id: &str) -> Links {
        let (short_id, turn) = (short_id.to_owned(), Mutex::default());
        Links { network, records, short_id, turn, repairs: Repairs::default() }
    }

    /// Returns the network itself.
    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// Returns the largest packet that can leave this host, in bytes.
    pub(crate) async fn mtu(&self) -> Result<u32> {
        self.network.uplink_mtu().await.map_err(Error::from)
    }

    /// Returns the counters of the instance's tap, as the host sees them.
    pub(crate) async fn counters(&self, instance: &Instance) -> Result<Counters> {
        self.network.counters(&self.tap_name(instance)).await.map_err(Error::from)
    }

    /// Returns whether the instance's tap was deleted; false where the network cannot be read.
    pub(crate) async fn has_lost_tap(&self, instance: &Instance) -> bool {
        matches!(self.network.has(&self.tap_name(instance)).await, Ok(false))
    }

    /// Returns the name of the tenant's bridge.
    pub fn bridge_name(&self, tenant: &Tenant) -> String {
        Network::bridge_name(&self.short_id, tenant.network.tenant_net_id)
    }

    /// Returns the name of the instance's tap.
    pub fn tap_name(&self, instance: &Instance) -> String {
        Network::tap_name(&self.short_id, &instance.id.digits())
    }

    /// Makes a new tenant's bridge once `recorded` has made its record, and applies its rules. No
    /// repair comes in between: a bridge that is not there yet would look like one that somebody has
    /// taken away.
    pub async fn set_up_tenant(
        &self,
        tenant: &Tenant,
        recorded: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let _turn = self.turn.lock().await;
        recorded.await?;
        self.connect_tenant(tenant).await?;
        self.apply_rules().await
    }

    /// Applies the rules that follow from the records.
    pub async fn refresh_rules(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.apply_rules().await
    }

    /// Makes the tenant's bridge.
    async fn connect_tenant(&self, tenant: &Tenant) -> Result<()> {
        self.network.ensure_bridge(&self.bridge_of(tenant)).await.map_err(Error::from)
    }

    /// Returns the description of the tenant's bridge.
    pub(crate) fn bridge_of(&self, tenant: &Tenant) -> Bridge {
        let prefix = tenant.network.ipv4_subnet.prefix_len();
        let gateway = Ipv4Net::new_assert(tenant.network.gateway(), prefix);
        Bridge { name: self.bridge_name(tenant), gateway }
    }

    /// Returns the description of the instance's tap.
    pub(crate) fn tap_of(&self, tenant: &Tenant, instance: &Instance) -> Tap {
        Tap {
            name: self.tap_name(instance),
            bridge: self.bridge_name(tenant),
            address: instance.address,
            owner_uid: Some(uid_of(tenant)),
        }
    }

    /// Makes the instance's tap, and lets through its packets and no others.
    pub async fn connect_instance(&self, tenant: &Tenant, instance: &Instance) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.connect_tenant(tenant).await?;
        self.apply_rules().await?;
        let tap = self.tap_of(tenant, instance);
        let network = &self.network;
        network.ensure_tap(&tap).await?;
        let mtu = network.uplink_mtu().await?;
        network.set_mtu(&tap.name, mtu).await.map_err(Error::from)
    }

    /// Removes the tap of an instance that is being destroyed.
    pub async fn disconnect_instance(&self, instance: &Instance) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.network.remove_tap(&self.tap_name(instance)).await.map_err(Error::from)
    }

    /// Removes the bridge and the rules of a destroyed tenant.
    pub async fn disconnect_tenant(&self, tenant: &Tenant) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.network.remove_bridge(&self.bridge_name(tenant)).await?;
        if self.records.read(|records| records.tenants.is_empty()) {
            return self.network.clear().await.map_err(Error::from);
        }
        self.apply_rules().await
    }

    /// Brings the rules in line with the records, and restores them where they are gone. The caller
    /// holds the turn.
    async fn apply_rules(&self) -> Result<()> {
        let rules = self.records.read(|records| self.rules(records));
        match self.network.apply(&rules).await? {
            Applied::Already | Applied::Changed => Ok(()),
            Applied::Restored(lost) => self.walls_were_gone(&lost).await,
        }
    }

    pub(crate) fn rules(&self, records: &RecordSet) -> Ruleset {
        let tenants = records
            .tenants
            .values()
            .map(|tenant| TenantRules {
                bridge: self.bridge_name(tenant),
                subnet: tenant.network.ipv4_subnet,
                gateway: tenant.network.gateway(),
                host_ports: Vec::new(),
                taps: records
                    .of_tenant(&tenant.name)
                    .map(|instance| TapRules {
                        tap: self.tap_name(instance),
                        mac: instance.mac,
                        address: instance.address,
                        egress: records.pools.get(&instance.pool).map_or_else(closed, egress_of),
                    })
                    .collect(),
            })
            .collect();
        let names = Names::of_host();
        Ruleset { tenants, resolvers: names.reachable(), forwarder: names.needs_forwarder() }
    }

    /// Restores links and rules at start: every tenant gets its bridge, the rules are applied, and
    /// links of this state directory without a record are removed. Where `machines` have run
    /// without an agent, they get events about links that were taken away meanwhile; after a start
    /// of the host no machine runs.
    pub async fn restore(&self, machines: bool) -> Result<()> {
        let _turn = self.turn.lock().await;
        let (tenants, expected) = self.records.read(|records| {
            let tenants: Vec<Tenant> = records.tenants.values().cloned().collect();
            let mut expected: Vec<String> =
                tenants.iter().map(|tenant| self.bridge_name(tenant)).collect();
            expected.extend(records.instances.values().map(|i| self.tap_name(i)));
            (tenants, expected)
        });
        for link in self.network.list().await? {
            if expected.contains(&link.name) {
                continue;
            }
            tracing::info!(link = link.name, "removing a link that belongs to nobody");
            match link.kind {
                mvm_network::LinkKind::Bridge => self.network.remove_bridge(&link.name).await,
                mvm_network::LinkKind::Tap => self.network.remove_tap(&link.name).await,
            }?;
        }
        if tenants.is_empty() {
            return Ok(());
        }
        // Rules come first, so that no packet passes a restored link without rules.
        self.apply_rules().await?;
        if machines {
            // Machines that have lost their taps are left to the first pass, when the machines are
            // known.
            self.repair_links().await?;
        }
        for tenant in &tenants {
            self.connect_tenant(tenant).await?;
        }
        self.apply_rules().await
    }
}

/// Returns the destinations that the pool's guests may reach.
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

/// Returns the rule for a guest whose pool is being destroyed.
fn closed() -> Egress {
    Egress { mode: Mode::None, ..Egress::default() }
}
