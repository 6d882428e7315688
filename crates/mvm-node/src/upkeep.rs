//! The work of every pass of the reconcile loop, whatever the pools' desired state.

use crate::accelerator::AcceleratorChoice;
use crate::blocking::{blocking, paths_in};
use crate::idle::IdleTimes;
use crate::instances::{Lingering, LinkKeeper, Recovery};
use crate::leases::Leases;
use crate::state_dir::StateDir;
use std::path::Path;
use std::sync::Arc;

/// Keeps instances, leases, links and logs in order.
pub(crate) struct Upkeep {
    recovery: Arc<Recovery>,
    leases: Arc<Leases>,
    link_keeper: Arc<LinkKeeper>,
    idle: Arc<IdleTimes>,
    lingering: Arc<Lingering>,
    accelerator: Arc<AcceleratorChoice>,
    state_dir: StateDir,
}

impl Upkeep {
    /// Makes the service from these services.
    pub(crate) fn new(
        recovery: Arc<Recovery>,
        leases: Arc<Leases>,
        link_keeper: Arc<LinkKeeper>,
        idle: Arc<IdleTimes>,
        lingering: Arc<Lingering>,
        accelerator: Arc<AcceleratorChoice>,
        state_dir: StateDir,
    ) -> Upkeep {
        Upkeep { recovery, leases, link_keeper, idle, lingering, accelerator, state_dir }
    }

    /// Runs before the pools are looked at. Returns whether memory was freed for the host.
    pub(crate) async fn begin_pass(&self) -> bool {
        self.accelerator.keep().await;
        self.recovery.check_marked().await;
        self.leases.expire().await;
        self.link_keeper.repair().await;
        self.idle.measure().await;
        self.lingering.end_overstayed().await
    }

    /// Keeps each console log below its maximum size, whatever a guest prints.
    pub(crate) async fn trim_consoles(&self) {
        let instances = self.state_dir.instances();
        let trimmed = blocking(move || {
            paths_in(&instances).iter().for_each(|instance| trim_logs(instance));
            Ok(())
        });
        if let Err(error) = trimmed.await {
            tracing::warn!("cannot trim the consoles' logs: {error}");
        }
    }
}

fn trim_logs(instance: &Path) {
    for log in ["vm/console.log", "vm/qemu.log"] {
        let path = instance.join(log);
        let limit = mvm_hypervisor::CONSOLE_MAX_BYTES;
        if std::fs::metadata(&path).is_ok_and(|meta| meta.len() > limit)
            && let Err(error) = mvm_hypervisor::trim_log(&path, limit)
        {
            tracing::warn!("cannot trim {}: {error}", path.display());
        }
    }
}
