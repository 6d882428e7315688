//! That the firewall's rules stay in force, whoever clears nftables: the restart of a distribution's
//! firewall does.

use crate::Result;
use crate::clock::wall;
use crate::node::Node;
use crate::problem::OrProblem;
use mvm_model::State;
use mvm_model::event::of_walls;
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
