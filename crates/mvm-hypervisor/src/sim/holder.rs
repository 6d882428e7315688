//! Whoever calls the driver, an agent, and its sudden end.

use std::sync::Arc;

use tokio::sync::watch;

use super::fault::{Call, Effect, Moment};
use super::world::World;
use crate::Result;

/// One holder of the world. Once it is halted it is as a process that was killed: none of its
/// calls returns any more, and none has an effect.
#[derive(Debug, Clone)]
pub(super) struct Holder {
    pub(super) world: Arc<World>,
    halted: Arc<watch::Sender<bool>>,
}

impl Holder {
    pub(super) fn new(world: Arc<World>) -> Self {
        Self { world, halted: Arc::new(watch::Sender::new(false)) }
    }

    pub(super) fn halt(&self) {
        self.halted.send_replace(true);
    }

    pub(super) fn is_halted(&self) -> bool {
        *self.halted.borrow()
    }

    pub(super) async fn halted(&self) {
        // The sender lives as long as this holder.
        let _ = self.halted.subscribe().wait_for(|halted| *halted).await;
    }

    /// Begins a call: counts it, and lets its fault happen, but for [`Effect::Die`] and halts
    /// later than its beginning, which are the caller's to carry out.
    pub(super) async fn begin(&self, call: Call, id: &str) -> Result<Option<Effect>> {
        if self.is_halted() {
            std::future::pending::<()>().await;
        }
        let effect = self.world.step(call, id).await?;
        self.reach(effect, Moment::Before).await;
        Ok(effect)
    }

    /// Halts here if the call's fault says so.
    pub(super) async fn reach(&self, effect: Option<Effect>, moment: Moment) {
        if effect == Some(Effect::Halt(moment)) {
            self.halt();
        }
        if self.is_halted() {
            std::future::pending::<()>().await;
        }
    }
}
