//! That the firewall's rules stay in force, whoever clears nftables (the restart of a distribution's
//! firewall does), and that bridges, their addresses, taps and forwarding stay as they are to be.

use crate::Result;
use crate::clock::wall;
use crate::node::Node;
use crate::problem::OrProblem;
use crate::records::World;
use mvm_api::Problem;
use mvm_api::types::{DifferenceKind, NetworkDifference, NetworkReport};
use mvm_model::event::{of_links, of_walls};
use mvm_model::{InstanceId, State};
use mvm_network::{Difference, Differs, Wanted};
use std::sync::Arc;
use std::time::Duration;

/// How long it is waited before the kernel is listened to again.
const AGAIN: Duration = Duration::from_secs(1);

/// Puts rules and links back as soon as somebody has changed them; until the task is ended. Beside it every pass
/// of the reconcile loop looks.
pub async fn watch(node: Arc<Node>) {
    loop {
        let failed = match node.parts.network.watch() {
            Ok(mut watch) => loop {
                // At first for what happened before somebody listened.
                node.keep_walls().await;
                if let Err(error) = watch.changed().await {
                    break error;
                }
            },
            Err(error) => error,
        };
        tracing::warn!("changes of rules and links are seen late: {failed}");
        tokio::time::sleep(AGAIN).await;
    }
}

impl Node {
    /// Brings rules and links in line with records, host and kernel.
    pub(crate) async fn keep_walls(self: &Arc<Self>) {
        let wires = self.wires.lock().await;
        if self.records.read(|world| world.tenants.is_empty()) {
            return;
        }
        // First, so that no packet passes a link that is back without them.
        if let Err(problem) = self.apply_rules().await {
            tracing::error!(code = problem.code, "the firewall rules are not in force: {problem}");
        }
        let unplugged = self.keep_links().await.unwrap_or_else(|problem| {
            tracing::error!(code = problem.code, "links are not as they should be: {problem}");
            Vec::new()
        });
        drop(wires);
        for id in unplugged {
            let node = self.clone();
            tokio::spawn(async move { node.unplugged(id).await });
        }
    }

    /// Puts back what is not as it should be; the caller holds `wires`. Gives the instances whose machines
    /// have lost their tap.
    async fn keep_links(&self) -> Result<Vec<InstanceId>> {
        let wanted = self.records.read(|world| self.wanted(world));
        let done = self.parts.network.mend(&wanted).await.or_problem()?;
        if !done.mended.is_empty() {
            self.links_were_gone(&done.mended).await?;
        }
        if done.lost.is_empty() {
            return Ok(Vec::new());
        }
        let lost = |world: &World| {
            let live = world.instances.values();
            live.filter(|i| done.lost.contains(&self.tap_name(i))).map(|i| i.id).collect()
        };
        Ok(self.records.read(lost))
    }

    /// Tells whose packets may have gone nowhere for a while.
    async fn links_were_gone(&self, mended: &[Difference]) -> Result<()> {
        for Difference { kind, what, detail } in mended {
            tracing::error!(link = what, "{detail}; it is put right");
            let kind = match kind {
                Differs::Link => "link",
                Differs::Address => "address",
                Differs::Forwarding => "forwarding",
                Differs::Rules => "rules",
            };
            self.passes.links_restored.get_or_create(&vec![("kind", kind.to_owned())]).inc();
        }
        self.records
            .change(|world, changes| {
                let live = world.instances.values();
                for instance in live.filter(|i| matches!(i.heading(), State::Running | State::Warm))
                {
                    let Ok(tenant) = world.tenant(&instance.pool.tenant) else { continue };
                    let (bridge, tap) = (self.bridge_name(tenant), self.tap_name(instance));
                    let touches = |d: &&Difference| {
                        d.kind == Differs::Forwarding || d.what == bridge || d.what == tap
                    };
                    let told = mended.iter().filter(touches);
                    let told: Vec<String> =
                        told.map(|d| format!("{}: {}", d.what, d.detail)).collect();
                    if !told.is_empty() {
                        changes.tell(of_links(instance, &told.join(", "), wall()));
                    }
                }
                Ok(())
            })
            .await
    }

    /// A machine whose tap is gone has no network for as long as its process lives: it fails with that
    /// reason. The reconciler replaces a spare; any other can be started again.
    async fn unplugged(self: &Arc<Self>, id: InstanceId) {
        let slot = self.slot(id);
        // Whoever is at it makes the tap, or takes the machine away; if not, the next pass comes.
        let Ok(mut live) = slot.gate.try_lock() else { return };
        let Ok(instance) = self.records.read(|world| world.by_id(id).cloned()) else { return };
        let lives = instance.state.has_process() && !instance.is_busy() && live.machine.is_some();
        let has_tap = self.parts.network.has(&self.tap_name(&instance)).await;
        if !lives || !matches!(has_tap, Ok(false)) {
            return;
        }
        let what = format!(
            "its network link {} was deleted under it: the machine cannot get it back",
            self.tap_name(&instance)
        );
        let hint = format!("start it again: mvm instance start {}", instance.reference());
        let why = Problem::new(500, "network_lost", what).hint(hint);
        self.passes.taps_lost.inc();
        slot.note_end(why.clone());
        // What comes back is the reason itself.
        let _ = self.give_up(&mut live, id, why).await;
        self.wake.notify();
    }

    /// Before a guest runs, or is handed to somebody: its rules are in force, or are put back. A machine
    /// whose rules cannot be put in force is not handed out.
    pub(crate) async fn behind_walls(&self) -> Result<()> {
        if self.parts.network.stands().or_problem()? {
            return Ok(());
        }
        let _wires = self.wires.lock().await;
        self.apply_rules().await
    }

    /// Compares links, addresses and rules with what they should be. Changes nothing.
    pub(crate) async fn verify_network(&self) -> Result<NetworkReport> {
        let _wires = self.wires.lock().await;
        let wanted = self.records.read(|world| self.wanted(world));
        let found = self.parts.network.differences(&wanted).await.or_problem()?;
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

    pub(crate) fn wanted(&self, world: &World) -> Wanted {
        let mut wanted = Wanted { rules: self.rules(world), ..Wanted::default() };
        for tenant in world.tenants.values() {
            wanted.bridges.push(self.bridge_of(tenant));
            for instance in world.of_tenant(&tenant.name) {
                let tap = self.tap_of(tenant, instance);
                match instance.state.has_process() && !instance.is_busy() {
                    true => wanted.taps.push(tap),
                    false => wanted.spare.push(tap.name),
                }
            }
        }
        wanted
    }

    /// Tells whose guests could reach, and be reached by, what they should not.
    pub(crate) async fn walls_were_gone(&self, lost: &[String]) -> Result<()> {
        let lost = lost.join(", ");
        tracing::error!(lost, "somebody has removed firewall rules; they are in force again");
        self.passes.walls_restored.inc();
        self.records
            .change(|world, changes| {
                let live = world.instances.values();
                let live = live.filter(|i| matches!(i.heading(), State::Running | State::Warm));
                live.for_each(|instance| changes.tell(of_walls(instance, &lost, wall())));
                Ok(())
            })
            .await
    }
}
