//! Keeps the firewall's rules in force, even if nftables is cleared (as at the restart of a
//! distribution's firewall), and keeps bridges, their addresses, taps and forwarding in order.

use super::Links;
use crate::Result;
use crate::records::RecordSet;
use mvm_api::types::{DifferenceKind, NetworkDifference, NetworkReport};
use mvm_model::event::{of_links, of_walls};
use mvm_model::{InstanceId, State};
use mvm_network::{Difference, Differs, Wanted};

impl Links {
    /// Brings rules and links in line with records, host and kernel. Returns the instances whose
    /// machines have lost their tap.
    pub(crate) async fn repair_all(&self) -> Vec<InstanceId> {
        let _turn = self.turn.lock().await;
        if self.records.read(|records| records.tenants.is_empty()) {
            return Vec::new();
        }
        // Rules come first, so that no packet passes a restored link without rules.
        if let Err(error) = self.apply_rules().await {
            tracing::error!(code = %error.code(), "the firewall rules are not in force: {error}");
        }
        self.repair_links().await.unwrap_or_else(|error| {
            tracing::error!(code = %error.code(), "links are not as they should be: {error}");
            Vec::new()
        })
    }

    /// Repairs links, addresses and forwarding. The caller holds the turn. Returns the instances
    /// whose machines have lost their tap.
    pub(crate) async fn repair_links(&self) -> Result<Vec<InstanceId>> {
        let wanted = self.records.read(|records| self.wanted(records));
        let done = self.network.mend(&wanted).await?;
        if !done.mended.is_empty() {
            self.links_were_gone(&done.mended).await?;
        }
        if done.lost.is_empty() {
            return Ok(Vec::new());
        }
        let lost = |records: &RecordSet| {
            let live = records.instances.values();
            live.filter(|i| done.lost.contains(&self.tap_name(i))).map(|i| i.id).collect()
        };
        Ok(self.records.read(lost))
    }

    /// Writes an event for each instance whose packets may have been lost for a while.
    async fn links_were_gone(&self, mended: &[Difference]) -> Result<()> {
        for Difference { kind, what, detail } in mended {
            tracing::error!(link = what, "{detail}; it is put right");
            let kind = match kind {
                Differs::Link => "link",
                Differs::Address => "address",
                Differs::Forwarding => "forwarding",
                Differs::Rules => "rules",
            };
            self.repairs.links.get_or_create(&vec![("kind", kind.to_owned())]).inc();
        }
        self.records
            .change(|records, changes| {
                let (live, wall) = (records.instances.values(), self.records.clock().wall());
                for instance in live.filter(|i| matches!(i.heading(), State::Running | State::Warm))
                {
                    let Ok(tenant) = records.tenant(&instance.pool.tenant) else { continue };
                    let (bridge, tap) = (self.bridge_name(tenant), self.tap_name(instance));
                    let touches = |d: &&Difference| {
                        d.kind == Differs::Forwarding || d.what == bridge || d.what == tap
                    };
                    let told = mended.iter().filter(touches);
                    let told: Vec<String> =
                        told.map(|d| format!("{}: {}", d.what, d.detail)).collect();
                    if !told.is_empty() {
                        changes.add_event(of_links(instance, &told.join(", "), wall));
                    }
                }
                Ok(())
            })
            .await
    }

    /// Checks, before a guest runs or is leased, that its rules are in force, and restores them if
    /// not. A machine whose rules cannot be applied is not leased.
    pub(crate) async fn ensure_rules(&self) -> Result<()> {
        if self.network.stands()? {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        self.apply_rules().await
    }

    /// Compares links, addresses and rules with their desired state. Changes nothing.
    pub(crate) async fn verify(&self) -> Result<NetworkReport> {
        let _turn = self.turn.lock().await;
        let wanted = self.records.read(|records| self.wanted(records));
        let found = self.network.differences(&wanted).await?;
        let differences = found.into_iter().map(|difference| NetworkDifference {
            kind: match difference.kind {
                Differs::Link => DifferenceKind::Link,
                Differs::Address => DifferenceKind::Address,
                Differs::Forwarding => DifferenceKind::Forwarding,
                Differs::Rules => DifferenceKind::Rules,
            },
            what: difference.what,
            detail: difference.detail,
        });
        Ok(NetworkReport {
            bridges: wanted.bridges.len() as u32,
            taps: wanted.taps.len() as u32,
            differences: differences.collect(),
        })
    }

    pub(crate) fn wanted(&self, records: &RecordSet) -> Wanted {
        let mut wanted = Wanted { rules: self.rules(records), ..Wanted::default() };
        for tenant in records.tenants.values() {
            wanted.bridges.push(self.bridge_of(tenant));
            for instance in records.of_tenant(&tenant.name) {
                let tap = self.tap_of(tenant, instance);
                match instance.state.has_process() && !instance.is_busy() {
                    true => wanted.taps.push(tap),
                    false => wanted.spare.push(tap.name),
                }
            }
        }
        wanted
    }

    /// Writes an event for each instance whose guest was not confined by the rules for a while.
    pub(crate) async fn walls_were_gone(&self, lost: &[String]) -> Result<()> {
        let lost = lost.join(", ");
        tracing::error!(lost, "somebody has removed firewall rules; they are in force again");
        self.repairs.rules.inc();
        self.records
            .change(|records, changes| {
                let (live, wall) = (records.instances.values(), self.records.clock().wall());
                let live = live.filter(|i| matches!(i.heading(), State::Running | State::Warm));
                live.for_each(|instance| changes.add_event(of_walls(instance, &lost, wall)));
                Ok(())
            })
            .await
    }
}
