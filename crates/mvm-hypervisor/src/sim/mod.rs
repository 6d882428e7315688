//! A simulated hypervisor: the trait's contract without processes, for tests of the crates above
//! and for simulations of many nodes. It is never a default, and all that it makes is marked as
//! simulated.
//!
//! Machines live on a [`SimHypervisor`]'s simulated host, which its clones share: keep one clone, drop
//! everything else, and a "restarted agent" finds and adopts what ran before. Time passes by
//! Tokio's clock, so that tests may pause it. Faults come from a [`FaultPlan`].

mod fault;
mod guest;
mod holder;
mod host;
mod latencies;
mod machine;
mod machine_state;
mod saved;

use async_trait::async_trait;
use mvm_model::CpuModel;
use mvm_model::accelerator::Processor;
use std::path::Path;
use std::sync::Arc;

pub use fault::{Call, Effect, FaultPlan, Moment};
pub use guest::{Guest, GuestChannel, GuestMachine};

use crate::{
    Description, Error, Halt, Hypervisor, Machine, OnStarted, ProcessIdentity, RestoreMemory,
    Result, VmSpec,
};
use guest::GuestHost;
use holder::Holder;
use host::SimHost;
pub use latencies::Latencies;
use machine::SimMachine;
use machine_state::MachineState;
use saved::SavedSnapshot;

/// The simulated driver. A clone shares machines, faults and counts with its origin.
#[derive(Debug, Clone)]
pub struct SimHypervisor {
    holder: Holder,
}

impl SimHypervisor {
    /// Makes a host without machines. `guest`, if given, serves every connection to a machine's channel;
    /// without one, connections are accepted and nothing answers. Connections are served by the
    /// Tokio runtime in which this is called.
    pub fn new(latencies: Latencies, faults: FaultPlan, guest: Option<Arc<dyn Guest>>) -> Self {
        Self { holder: Holder::new(Arc::new(SimHost::new(latencies, faults, guest, None))) }
    }

    /// Opens a host that outlives this process, as real machines do: its machines are saved in the
    /// directory `save_dir`, and those found there live on. Error: that of reading the directory.
    pub fn open(
        latencies: Latencies,
        guest: Arc<dyn Guest>,
        save_dir: &Path,
    ) -> std::io::Result<Self> {
        let (faults, save_dir) = (FaultPlan::none(), Some(save_dir.to_owned()));
        let host = Arc::new(SimHost::new(latencies, faults, Some(guest), save_dir));
        host.load_saved()?;
        Ok(Self { holder: Holder::new(host) })
    }

    fn host(&self) -> &Arc<SimHost> {
        &self.holder.host
    }

    /// Makes this holder, its clones and its machines behave as a killed process from now on: no
    /// call returns, and none has an effect. The machines go on.
    pub fn halt(&self) {
        self.holder.halt();
    }

    /// Resolves once this holder is halted, by [`SimHypervisor::halt`] or by [`Effect::Halt`].
    pub async fn halted(&self) {
        self.holder.halted().await;
    }

    /// Returns a new holder of the same host, as a restarted agent would be.
    #[must_use]
    pub fn successor(&self) -> Self {
        Self { holder: Holder::new(Arc::clone(self.host())) }
    }

    /// Replaces the faults, and starts the counts of calls anew.
    pub fn set_faults(&self, faults: FaultPlan) {
        self.host().set_faults(faults);
    }

    /// Returns the calls since the faults were last set, in order: a test that injects a fault at
    /// every single call goes through this list. Empty before faults are first set.
    pub fn calls(&self) -> Vec<Call> {
        self.host().calls()
    }

    /// Gives new machines this processor, as a driver of real ones would; with `None`, they have none.
    pub fn set_processor(&self, processor: Option<Processor>) {
        self.host().set_processor(processor);
    }

    /// Says whether KVM is gone, so that no machine of it can be started.
    pub fn set_kvm_gone(&self, gone: bool) {
        self.host().set_kvm_gone(gone);
    }

    /// Says what the host's CPU shows to new machines that see it; nothing to begin with.
    pub fn set_cpu(&self, cpu: &str) {
        self.host().set_cpu(cpu);
    }

    /// Says which CPU models cannot be had, by new machines or by those that sleep.
    pub fn set_lacking_models(&self, lacking: Vec<CpuModel>) {
        self.host().set_lacking_models(lacking);
    }

    /// Ends a machine's process from outside, as a host's OOM killer would. Does nothing if no
    /// machine has that marker.
    pub fn crash(&self, marker: &str) {
        if let Some(state) = self.host().by_marker(marker) {
            self.host().end(&state, "killed by signal 9");
        }
    }

    /// Sets what halts the machine whenever it runs, as a full disk does; with `None`, nothing does
    /// any more, and a halted machine goes on when it is resumed.
    pub fn set_obstacle(&self, marker: &str, obstacle: Option<Halt>) {
        let Some(state) = self.host().by_marker(marker) else { return };
        let halts = obstacle.is_some() && state.is_running();
        state.set_obstacle(obstacle);
        if halts {
            self.host().set_running(&state, true);
        }
    }

    /// Returns whether the machine's vCPUs run; `None` if no machine has that marker.
    pub fn is_running(&self, marker: &str) -> Option<bool> {
        self.host().by_marker(marker).map(|state| state.is_running())
    }

    /// Returns for how long the machine's vCPUs have run, over all its sleeps, in ms: what a
    /// program that counts in the guest would have counted. `None` if no machine has that marker.
    pub fn guest_ms(&self, marker: &str) -> Option<u64> {
        self.host().by_marker(marker).map(|state| state.guest_ms())
    }

    async fn start(
        &self,
        spec: &VmSpec,
        saved: Option<SavedSnapshot>,
        memory: RestoreMemory,
        started: OnStarted<'_>,
    ) -> Result<Arc<dyn Machine>> {
        let (call, latency) = match saved {
            None => (Call::Boot, self.host().latencies.boot),
            Some(_) => (Call::Restore, self.host().latencies.restore),
        };
        let running = saved.is_none();
        let effect = self.holder.begin(call, &spec.id).await?;
        let state = self.host().spawn(spec, memory, saved)?;
        let guard = KillOnDrop { holder: &self.holder, state: Some(Arc::clone(&state)) };
        started(&state.identity);
        self.holder.reach(effect, Moment::During).await;
        tokio::time::sleep(latency).await;
        if effect == Some(Effect::Die) {
            return Err(Error::DiedAtBoot {
                id: spec.id.clone(),
                status: "a simulated death".into(),
                log: String::new(),
                console: String::new(),
            });
        }
        self.host().set_running(&state, running);
        self.holder.reach(effect, Moment::After).await;
        guard.disarm();
        Ok(Arc::new(SimMachine::new(self.holder.clone(), state)))
    }
}

/// Ends the machine when dropped, unless its caller got to hold it.
struct KillOnDrop<'a> {
    holder: &'a Holder,
    state: Option<Arc<MachineState>>,
}

impl KillOnDrop<'_> {
    fn disarm(mut self) {
        self.state = None;
    }
}

impl Drop for KillOnDrop<'_> {
    fn drop(&mut self) {
        // A killed process can no longer end anything.
        if let Some(state) = self.state.as_ref().filter(|_| !self.holder.is_halted()) {
            self.holder.host.end(state, "killed by signal 9");
        }
    }
}

#[async_trait]
impl Hypervisor for SimHypervisor {
    fn description(&self) -> Description {
        Description {
            name: "sim".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            accelerator: self
                .host()
                .processor()
                .map_or("none".into(), |processor| processor.accelerator.to_string()),
            cpu: self.host().cpu(),
            simulated: true,
        }
    }

    async fn check_cpu_model(&self, model: &CpuModel) -> Result<()> {
        self.host().check_cpu_model(model.as_str())
    }

    async fn boot(&self, spec: &VmSpec, started: OnStarted<'_>) -> Result<Arc<dyn Machine>> {
        self.host().check_cpu_model(spec.cpu_model.as_str())?;
        self.start(spec, None, RestoreMemory::Own, started).await
    }

    async fn restore(
        &self,
        spec: &VmSpec,
        snapshot: &Path,
        memory: RestoreMemory,
        started: OnStarted<'_>,
    ) -> Result<Arc<dyn Machine>> {
        let failed = |reason| Error::RestoreFailed {
            id: spec.id.clone(),
            snapshot: snapshot.to_owned(),
            reason,
        };
        let saved = SavedSnapshot::read(snapshot, spec).map_err(failed)?;
        self.host().check_kvm(&spec.id, saved.processor.as_ref())?;
        if let Some(own) = &saved.processor {
            self.host().check_cpu_model(&own.model)?;
        }
        self.start(spec, Some(saved), memory, started).await
    }

    async fn adopt(
        &self,
        spec: &VmSpec,
        process: &ProcessIdentity,
    ) -> Result<Option<Arc<dyn Machine>>> {
        let effect = self.holder.begin(Call::Adopt, &spec.id).await?;
        tokio::time::sleep(self.host().latencies.adopt).await;
        let state = self.host().by_pid(process.pid);
        let ours =
            |state: &Arc<MachineState>| state.identity == *process && process.marker == spec.marker;
        let Some(state) = state.filter(ours) else { return Ok(None) };
        if effect == Some(Effect::Die) {
            self.host().end(&state, "a simulated death");
            return Ok(None);
        }
        self.holder.reach(effect, Moment::During).await;
        self.holder.reach(effect, Moment::After).await;
        Ok(Some(Arc::new(SimMachine::new(self.holder.clone(), state))))
    }

    async fn kill_stray(&self, process: &ProcessIdentity) -> Result<()> {
        let effect = self.holder.begin(Call::KillStray, &process.marker).await?;
        if let Some(state) = self.host().by_pid(process.pid) {
            if state.identity != *process {
                let (pid, marker) = (process.pid, process.marker.clone());
                return Err(Error::NotOurs { pid, marker });
            }
            self.host().end(&state, "killed by signal 9");
        }
        self.holder.reach(effect, Moment::During).await;
        self.holder.reach(effect, Moment::After).await;
        Ok(())
    }

    fn find(&self, marker_prefix: &str) -> Result<Vec<ProcessIdentity>> {
        Ok(self.host().find(marker_prefix))
    }
}
