//! A simulated machine.

use super::fault::{Call, Effect, Moment};
use super::guest::GuestHost;
use super::holder::Holder;
use super::life::Life;
use super::saved::{Saved, part_of};
use super::world::{World, make_memory};
use crate::{
    Condition, Error, Exit, Machine, MachineStats, OwnMemory, ProcessIdentity, RestoreMemory,
    Result,
};
use async_trait::async_trait;
use mvm_model::accelerator::Processor;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

pub(super) struct SimMachine {
    holder: Holder,
    life: Arc<Life>,
    /// Makes changes run one at a time, as the trait promises.
    turn: tokio::sync::Mutex<()>,
}

impl SimMachine {
    pub(super) fn new(holder: Holder, life: Arc<Life>) -> Self {
        Self { holder, life, turn: tokio::sync::Mutex::new(()) }
    }

    fn world(&self) -> &World {
        &self.holder.world
    }

    /// Counts the call, injects its fault and lets its time pass.
    async fn pass(&self, call: Call, latency: Duration) -> Result<Option<Effect>> {
        self.life.alive()?;
        let effect = self.holder.begin(call, &self.life.spec.id).await?;
        tokio::time::sleep(latency).await;
        if effect == Some(Effect::Die) {
            self.world().end(&self.life, "a simulated death");
        }
        self.life.alive()?;
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
        self.life.identity.clone()
    }

    fn channel(&self) -> PathBuf {
        self.life.channel()
    }

    fn processor(&self) -> Option<Processor> {
        self.life.processor().cloned()
    }

    fn check_restorable(&self) -> Result<()> {
        self.world().check_kvm(&self.life.spec.id, self.life.processor())
    }

    fn condition(&self) -> watch::Receiver<Condition> {
        self.life.condition()
    }

    async fn pause(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        let effect = self.pass(Call::Pause, self.world().latencies.pause).await?;
        self.world().set_running(&self.life, false);
        self.done(effect).await;
        Ok(())
    }

    async fn resume(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        let effect = self.pass(Call::Resume, self.world().latencies.pause).await?;
        self.world().set_running(&self.life, true);
        self.done(effect).await;
        Ok(())
    }

    async fn retry(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.life.alive()?;
        if *self.life.condition().borrow() != Condition::Fine {
            self.world().set_running(&self.life, true);
        }
        Ok(())
    }

    async fn snapshot(&self, to: &Path, own: Option<&OwnMemory>) -> Result<()> {
        let _turn = self.turn.lock().await;
        let id = || self.life.spec.id.clone();
        if self.life.is_running() {
            return Err(Error::NotPaused { id: id() });
        }
        let effect = self.pass(Call::Snapshot, self.world().latencies.snapshot).await?;
        let failed = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Error::NoSpace { id: id(), path: to.to_owned() }
            }
            _ => Error::SnapshotFailed { id: id(), to: to.to_owned(), reason: e.to_string() },
        };
        let own = own.filter(|_| self.life.memory == RestoreMemory::Clone);
        if let Some(own) = own {
            make_memory(&own.file, &self.life.spec).map_err(failed)?;
        }
        if effect == Some(Effect::Halt(Moment::During)) {
            let _ = std::fs::write(part_of(to), "{");
        }
        self.holder.reach(effect, Moment::During).await;
        Saved::of(&self.life, own.is_some()).write(to).map_err(failed)?;
        self.holder.reach(effect, Moment::After).await;
        Ok(())
    }

    async fn kill(&self) -> Result<()> {
        if self.life.alive().is_err() {
            return Ok(());
        }
        let effect = self.holder.begin(Call::Kill, &self.life.spec.id).await?;
        tokio::time::sleep(self.world().latencies.kill).await;
        self.world().end(&self.life, "exit status 0");
        self.done(effect).await;
        Ok(())
    }

    async fn stats(&self) -> Result<MachineStats> {
        let effect = self.pass(Call::Stats, Duration::ZERO).await?;
        self.done(effect).await;
        let all = self.life.spec.mem_mib * 1024;
        Ok(MachineStats {
            // The numbers are those of an idle guest.
            cpu_time_ms: self.life.guest_ms() / 20,
            resident_kib: all / 4,
            proportional_kib: match self.life.memory {
                RestoreMemory::Own => all / 4,
                RestoreMemory::Clone => all / 10,
            },
            paused: !self.life.is_running(),
        })
    }

    async fn exited(&self) -> Exit {
        let mut ended = self.life.ended();
        let reason = ended.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        let reason = reason.unwrap_or_else(|| "its world ended".into());
        Exit { clean: reason == "exit status 0", console: String::new(), reason }
    }
}
