//! That the firewall's rules stay in force, whoever clears nftables: the restart of a distribution's
//! firewall does.

use crate::Result;
use crate::clock::wall;
use crate::node::Node;
use crate::problem::OrProblem;
use crate::world::World;
use mvm_api::types::{DifferenceKind, NetworkDifference, NetworkReport};
use mvm_model::State;
use mvm_model::event::of_walls;
use mvm_network::{Differs, Wanted};
use std::sync::Arc;
use std::time::Duration;

/// How long it is waited before nftables is listened to again.
const AGAIN: Duration = Duration::from_secs(1);

/// Puts the rules back as soon as somebody has changed them; until the task is ended. Beside it every pass
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
        tracing::warn!("changes of nftables are seen late: {failed}");
        tokio::time::sleep(AGAIN).await;
    }
}

impl Node {
    /// Brings the rules in line with records, host and kernel.
    pub(crate) async fn keep_walls(&self) {
        let _wires = self.wires.lock().await;
        if self.read(|world| world.tenants.is_empty()).await {
            return;
        }
        if let Err(problem) = self.apply_rules().await {
            tracing::error!(code = problem.code, "the firewall rules are not in force: {problem}");
        }
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
        let wanted = self.read(|world| self.wanted(world)).await;
        let found = self.parts.network.differences(&wanted).await.or_problem()?;
        let differences = found.into_iter().map(|difference| NetworkDifference {
            kind: match difference.kind {
                Differs::Link => DifferenceKind::Link,
                Differs::Address => DifferenceKind::Address,
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

    fn wanted(&self, world: &World) -> Wanted {
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
        self.change(|world, changes| {
            let live = world.instances.values();
            let live = live.filter(|i| matches!(i.heading(), State::Running | State::Warm));
            live.for_each(|instance| changes.tell(of_walls(instance, &lost, wall())));
            Ok(())
        })
        .await
    }
}
