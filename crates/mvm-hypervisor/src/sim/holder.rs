//! The caller of the driver (an agent), and its sudden end.

use super::fault::{Call, Effect, Moment};
use super::host::SimHost;
use crate::Result;
use std::sync::Arc;
use tokio::sync::watch;

/// One holder of a simulated host. Once halted, it behaves as a killed process: none of its calls returns,
/// and none has an effect.
#[derive(Debug, Clone)]
pub(super) struct Holder {
    pub(super) host: Arc<SimHost>,
    halted: Arc<watch::Sender<bool>>,
}

impl Holder {
    pub(super) fn new(host: Arc<SimHost>) -> Self {
        Self { host, halted: Arc::new(watch::Sender::new(false)) }
    }

    pub(super) fn halt(&self) {
        self.halted.send_replace(true);
    }

    pub(super) fn is_halted(&self) -> bool {
        *self.halted.borrow()
    }

    pub(super) async fn halted(&self) {
        // The sender lives as long as this holder, so waiting cannot fail.
        let _ = self.halted.subscribe().wait_for(|halted| *halted).await;
    }

    /// Begins a call: counts it and injects its fault. [`Effect::Die`] and later halts are left to
    /// the caller.
    pub(super) async fn begin(&self, call: Call, id: &str) -> Result<Option<Effect>> {
        if self.is_halted() {
            std::future::pending::<()>().await;
        }
        let effect = self.host.step(call, id).await?;
        self.reach(effect, Moment::Before).await;
        Ok(effect)
    }

    /// Halts here if the call's fault asks for it.
    pub(super) async fn reach(&self, effect: Option<Effect>, moment: Moment) {
        if effect == Some(Effect::Halt(moment)) {
            self.halt();
        }
        if self.is_halted() {
            std::future::pending::<()>().await;
        }
    }
}
