//! A simulated hypervisor: the trait's contract without processes, for tests of the crates above
//! and for simulations of many nodes. It is never a default, and all that it makes is marked as
//! simulated.
//!
//! Machines live in a [`SimHypervisor`]'s world, which its clones share: keep one clone, drop
//! everything else, and a "restarted agent" finds and adopts what ran before. Time passes by
//! Tokio's clock, so that tests may pause it. Faults come from a [`FaultPlan`].

mod fault;
mod guest;
mod holder;
mod latencies;
mod life;
mod machine;
mod saved;
mod world;

use async_trait::async_trait;
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
pub use latencies::Latencies;
use life::Life;
use machine::SimMachine;
use saved::Saved;
use world::World;

/// The simulated driver. A clone shares machines, faults and counts with its origin.
#[derive(Debug, Clone)]
pub struct SimHypervisor {
    holder: Holder,
}

impl SimHypervisor {
    /// Makes an empty world. `guest`, if given, serves every connection to a machine's channel;
    /// without one, connections are accepted and nothing answers. Connections are served by the
    /// Tokio runtime in which this is called.
    pub fn new(latencies: Latencies, faults: FaultPlan, guest: Option<Arc<dyn Guest>>) -> Self {
        Self { holder: Holder::new(Arc::new(World::new(latencies, faults, guest, None))) }
    }

    /// Opens a world that outlives this process, as real machines do: its machines are saved in the
    /// directory `kept`, and those found there live on. Error: that of reading the directory.
    pub fn open(latencies: Latencies, guest: Arc<dyn Guest>, kept: &Path) -> std::io::Result<Self> {
        let (faults, kept) = (FaultPlan::none(), Some(kept.to_owned()));
        let world = Arc::new(World::new(latencies, faults, Some(guest), kept));
        world.resume()?;
        Ok(Self { holder: Holder::new(world) })
    }

    fn world(&self) -> &Arc<World> {
        &self.holder.world
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

    /// Returns a new holder of the same world, as a restarted agent would be.
    #[must_use]
    pub fn successor(&self) -> Self {
        Self { holder: Holder::new(Arc::clone(self.world())) }
    }

    /// Replaces the faults, and starts the counts of calls anew.
    pub fn set_faults(&self, faults: FaultPlan) {
        self.world().set_faults(faults);
    }

    /// Returns the calls since the faults were last set, in order: a test that injects a fault at
    /// every single call goes through this list. Empty before faults are first set.
    pub fn calls(&self) -> Vec<Call> {
        self.world().calls()
    }

    /// Gives new machines this processor, as a driver of real ones would; with `None`, they have none.
    pub fn set_processor(&self, processor: Option<Processor>) {
        self.world().set_processor(processor);
    }

    /// Says whether KVM is gone, so that no machine of it can be started.
    pub fn set_kvm_gone(&self, gone: bool) {
        self.world().set_kvm_gone(gone);
    }

    /// Ends a machine's process from outside, as a host's OOM killer would. Does nothing if no
    /// machine has that marker.
    pub fn crash(&self, marker: &str) {
        if let Some(life) = self.world().by_marker(marker) {
            self.world().end(&life, "killed by signal 9");
        }
    }

    /// Sets what halts the machine whenever it runs, as a full disk does; with `None`, nothing does
    /// any more, and a halted machine goes on when it is resumed.
    pub fn set_obstacle(&self, marker: &str, obstacle: Option<Halt>) {
        let Some(life) = self.world().by_marker(marker) else { return };
        let halts = obstacle.is_some() && life.is_running();
        life.set_obstacle(obstacle);
        if halts {
            self.world().set_running(&life, true);
        }
    }

    /// Returns whether the machine's vCPUs run; `None` if no machine has that marker.
    pub fn is_running(&self, marker: &str) -> Option<bool> {
        self.world().by_marker(marker).map(|life| life.is_running())
    }

    /// Returns for how long the machine's vCPUs have run, over all its sleeps, in ms: what a
    /// program that counts in the guest would have counted. `None` if no machine has that marker.
    pub fn guest_ms(&self, marker: &str) -> Option<u64> {
        self.world().by_marker(marker).map(|life| life.guest_ms())
    }

    async fn start(
        &self,
        spec: &VmSpec,
        saved: Option<Saved>,
        memory: RestoreMemory,
        started: OnStarted<'_>,
    ) -> Result<Arc<dyn Machine>> {
        let (call, latency) = match saved {
            None => (Call::Boot, self.world().latencies.boot),
            Some(_) => (Call::Restore, self.world().latencies.restore),
        };
        let running = saved.is_none();
        let effect = self.holder.begin(call, &spec.id).await?;
        let life = self.world().spawn(spec, memory, saved)?;
        let newborn = Newborn { holder: &self.holder, life: Some(Arc::clone(&life)) };
        started(&life.identity);
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
        self.world().set_running(&life, running);
        self.holder.reach(effect, Moment::After).await;
        newborn.grown();
        Ok(Arc::new(SimMachine::new(self.holder.clone(), life)))
    }
}

/// Ends the machine when dropped, unless its caller got to hold it.
struct Newborn<'a> {
    holder: &'a Holder,
    life: Option<Arc<Life>>,
}

impl Newborn<'_> {
    fn grown(mut self) {
        self.life = None;
    }
}

impl Drop for Newborn<'_> {
    fn drop(&mut self) {
        // A killed process can no longer end anything.
        if let Some(life) = self.life.as_ref().filter(|_| !self.holder.is_halted()) {
            self.holder.world.end(life, "killed by signal 9");
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
                .world()
                .processor()
                .map_or("none".into(), |processor| processor.accelerator.to_string()),
            cpu: String::new(),
            simulated: true,
        }
    }

    async fn boot(&self, spec: &VmSpec, started: OnStarted<'_>) -> Result<Arc<dyn Machine>> {
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
        let saved = Saved::read(snapshot, spec).map_err(failed)?;
        self.world().check_kvm(&spec.id, saved.processor.as_ref())?;
        self.start(spec, Some(saved), memory, started).await
    }

    async fn adopt(
        &self,
        spec: &VmSpec,
        process: &ProcessIdentity,
    ) -> Result<Option<Arc<dyn Machine>>> {
        let effect = self.holder.begin(Call::Adopt, &spec.id).await?;
        tokio::time::sleep(self.world().latencies.adopt).await;
        let life = self.world().by_pid(process.pid);
        let ours = |life: &Arc<Life>| life.identity == *process && process.marker == spec.marker;
        let Some(life) = life.filter(ours) else { return Ok(None) };
        if effect == Some(Effect::Die) {
            self.world().end(&life, "a simulated death");
            return Ok(None);
        }
        self.holder.reach(effect, Moment::During).await;
        self.holder.reach(effect, Moment::After).await;
        Ok(Some(Arc::new(SimMachine::new(self.holder.clone(), life))))
    }

    async fn kill_stray(&self, process: &ProcessIdentity) -> Result<()> {
        let effect = self.holder.begin(Call::KillStray, &process.marker).await?;
        if let Some(life) = self.world().by_pid(process.pid) {
            if life.identity != *process {
                let (pid, marker) = (process.pid, process.marker.clone());
                return Err(Error::NotOurs { pid, marker });
            }
            self.world().end(&life, "killed by signal 9");
        }
        self.holder.reach(effect, Moment::During).await;
        self.holder.reach(effect, Moment::After).await;
        Ok(())
    }

    fn find(&self, marker_prefix: &str) -> Result<Vec<ProcessIdentity>> {
        Ok(self.world().find(marker_prefix))
    }
}
