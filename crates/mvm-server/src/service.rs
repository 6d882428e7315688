//! Notices to the service manager that started this process (sd_notify(3)): ready, alive, stopping.
//! Without a manager that listens, no notice is sent.

use sd_notify::NotifyState;
use std::future::Future;
use std::time::Duration;

/// Reports that the service is ready. `systemctl status` shows `status`.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Reports that the service is about to stop.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Reports forever that the service is alive, as often as the manager's watchdog requires, but only
/// while `alive` answers. The manager restarts a service that is stuck; no VM is affected by that.
pub async fn live<F: Future>(alive: impl Fn() -> F) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    // Three notices within the limit, since one may be late.
    let period = (limit / 3).max(Duration::from_millis(1));
    loop {
        alive().await;
        // A manager that does not read its socket blocks only this task.
        let _ = tokio::task::spawn_blocking(|| tell(&[NotifyState::Watchdog])).await;
        tokio::time::sleep(period).await;
    }
}

fn tell(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("cannot tell the service manager: {error}");
    }
}
