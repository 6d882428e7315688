//! A simulated machine.

use super::fault::{Call, Effect, Moment};
use super::guest::GuestHost;
use super::holder::Holder;
use super::host::{SimHost, make_memory};
use super::machine_state::MachineState;
use super::saved::{SavedSnapshot, part_of};
use crate::{
    Condition, Error, Exit, Machine, MachineStats, OwnMemory, ProcessIdentity, RestoreMemory,
    Result,
};
use async_trait::async_trait;
use mvm_model::accelerator::Processor;
use mvm_model::footprint::Footprint;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

pub(super) struct SimMachine {
    holder: Holder,
    state: Arc<MachineState>,
    /// Makes changes run one at a time, as the trait promises.
    turn: tokio::sync::Mutex<()>,
}

impl SimMachine {
    pub(super) fn new(holder: Holder, state: Arc<MachineState>) -> Self {
        Self { holder, state, turn: tokio::sync::Mutex::new(()) }
    }

    fn host(&self) -> &SimHost {
        &self.holder.host
    }

    /// Returns the memory of its own in KiB, as an idle guest has it.
    fn own_kib(&self) -> u64 {
        let all = self.state.spec.mem_mib.kib();
        match self.state.memory {
            RestoreMemory::Own => all / 4,
            RestoreMemory::Clone => all / 10,
        }
    }

    /// Counts the call, injects its fault and lets its time pass.
    async fn pass(&self, call: Call, latency: Duration) -> Result<Option<Effect>> {
        self.state.alive()?;
        let effect = self.holder.begin(call, &self.state.spec.id).await?;
        tokio::time::sleep(latency).await;
        if effect == Some(Effect::Die) {
            self.host().end(&self.state, "a simulated death");
        }
        self.state.alive()?;
        Ok(effect)
    }

    /// Ends a call that has no half.
    async fn done(&self, effect: Option<Effect>) {
        self.holder.reach(effect, Moment::During).await;
        self.holder.reach(effect, Moment::After).await;
    }
}

#[async_trait]
impl Machine for SimMachine {
    fn process(&self) -> ProcessIdentity {
        self.state.identity.clone()
    }

    fn channel(&self) -> PathBuf {
        self.state.channel()
    }

    fn processor(&self) -> Option<Processor> {
        self.state.processor().cloned()
    }

    fn check_restorable(&self) -> Result<()> {
        self.host().check_kvm(&self.state.spec.id, self.state.processor())
    }

    fn condition(&self) -> watch::Receiver<Condition> {
        self.state.condition()
    }

    async fn pause(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        let effect = self.pass(Call::Pause, self.host().latencies.pause).await?;
        self.host().set_running(&self.state, false);
        self.done(effect).await;
        Ok(())
    }

    async fn resume(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        let effect = self.pass(Call::Resume, self.host().latencies.pause).await?;
        self.host().set_running(&self.state, true);
        self.done(effect).await;
        Ok(())
    }

    async fn retry(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.state.alive()?;
        if *self.state.condition().borrow() != Condition::Fine {
            self.host().set_running(&self.state, true);
        }
        Ok(())
    }

    async fn snapshot(&self, to: &Path, own: Option<&OwnMemory>) -> Result<()> {
        let _turn = self.turn.lock().await;
        let id = || self.state.spec.id.clone();
        if self.state.is_running() {
            return Err(Error::NotPaused { id: id() });
        }
        let effect = self.pass(Call::Snapshot, self.host().latencies.snapshot).await?;
        let failed = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Error::NoSpace { id: id(), path: to.to_owned() }
            }
            _ => Error::SnapshotFailed { id: id(), to: to.to_owned(), reason: e.to_string() },
        };
        let own = own.filter(|_| self.state.memory == RestoreMemory::Clone);
        if let Some(own) = own {
            make_memory(&own.file, &self.state.spec).map_err(failed)?;
        }
        if effect == Some(Effect::Halt(Moment::During)) {
            let _ = std::fs::write(part_of(to), "{");
        }
        self.holder.reach(effect, Moment::During).await;
        SavedSnapshot::of(&self.state, own.is_some()).write(to).map_err(failed)?;
        self.holder.reach(effect, Moment::After).await;
        Ok(())
    }

    async fn kill(&self) -> Result<()> {
        if self.state.alive().is_err() {
            return Ok(());
        }
        let effect = self.holder.begin(Call::Kill, &self.state.spec.id).await?;
        tokio::time::sleep(self.host().latencies.kill).await;
        self.host().end(&self.state, "exit status 0");
        self.done(effect).await;
        Ok(())
    }

    async fn stats(&self) -> Result<MachineStats> {
        let effect = self.pass(Call::Stats, Duration::ZERO).await?;
        self.done(effect).await;
        let all = self.state.spec.mem_mib.kib();
        Ok(MachineStats {
            // The numbers are those of an idle guest.
            cpu_time_ms: self.state.guest_ms() / 20,
            resident_kib: all / 4,
            proportional_kib: self.own_kib(),
            paused: !self.state.is_running(),
        })
    }

    async fn footprint(&self) -> Result<Footprint> {
        let guest_kib = self.own_kib();
        let shared_kib = self.state.spec.mem_mib.kib() / 4 - guest_kib;
        Ok(Footprint { guest_kib, shared_kib, ..Footprint::default() })
    }

    async fn exited(&self) -> Exit {
        let mut ended = self.state.ended();
        let reason = ended.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        let reason = reason.unwrap_or_else(|| "its host ended".into());
        Exit { clean: reason == "exit status 0", console: String::new(), reason }
    }
}
