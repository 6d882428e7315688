//! What a service tells the manager that started it (sd_notify(3)): that it is ready, that it
//! lives, that it ends. Where no manager wants to know, nothing is told.

use sd_notify::NotifyState;
use std::future::Future;
use std::time::Duration;

/// It serves from now on; `status` is what `systemctl status` shows.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// It is about to end.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Tells for ever that the service lives, as often as the manager's watchdog wants to hear it, and
/// only as long as `alive` answers: a service that is stuck is started anew. No VM is touched by that.
pub async fn live<F: Future>(alive: impl Fn() -> F) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    // Three times within the limit, as one may come late.
    let period = (limit / 3).max(Duration::from_millis(1));
    loop {
        alive().await;
        // A manager that does not listen holds up nobody but this.
        let _ = tokio::task::spawn_blocking(|| tell(&[NotifyState::Watchdog])).await;
        tokio::time::sleep(period).await;
    }
}

fn tell(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("cannot tell the service manager: {error}");
    }
}
