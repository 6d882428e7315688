//! QEMU's events, and what the driver concludes from them.

use crate::Halt;
use parking_lot::Mutex;
use qapi::qmp::{Event, ShutdownCause};
use serde_json::Value;
use tokio::sync::Notify;

/// What one machine's monitor has reported in events.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Notified when the vCPUs may have stopped or started, or when events may have been missed.
    pub(super) changed: Notify,
    shutdown: Mutex<Option<ShutdownCause>>,
}

impl Heard {
    /// Records an event.
    pub(super) fn note(&self, event: &Event) {
        match event {
            Event::SHUTDOWN { data, .. } => {
                *self.shutdown.lock() = Some(data.reason);
            }
            // An event says what the machine was, so the follower asks what it is now.
            Event::STOP { .. }
            | Event::RESUME { .. }
            | Event::BLOCK_IO_ERROR { .. }
            | Event::GUEST_PANICKED { .. }
            | Event::WATCHDOG { .. }
            | Event::RESET { .. }
            | Event::SUSPEND { .. }
            | Event::WAKEUP { .. } => self.changed.notify_one(),
            _ => {}
        }
    }

    /// Returns who ended the machine; `None` if QEMU did not say before it ended.
    pub(super) fn shutdown(&self) -> Option<ShutdownCause> {
        *self.shutdown.lock()
    }
}

/// Returns whether the guest itself ended its machine.
pub(super) fn by_the_guest(cause: ShutdownCause) -> bool {
    matches!(cause, ShutdownCause::guest_reset | ShutdownCause::guest_shutdown)
}

/// Returns why a machine ended, for people.
pub(super) fn words(cause: ShutdownCause) -> &'static str {
    match cause {
        // Without ACPI a guest shuts down by a reset, so shutdown and reboot look alike.
        ShutdownCause::guest_reset => {
            "the guest shut down or rebooted (a reboot ends its machine: start it again)"
        }
        ShutdownCause::guest_shutdown => "the guest shut down",
        ShutdownCause::guest_panic => "the guest's kernel panicked",
        ShutdownCause::host_signal => "a signal from outside mvm ended its hypervisor",
        ShutdownCause::host_qmp_quit => "its hypervisor was told to quit",
        _ => "its hypervisor ended",
    }
}

/// Returns which disk stopped the machine, from the answer to `query-block`: one that fails takes
/// precedence over one that is full.
pub(super) fn culprit(blocks: &Value) -> Halt {
    let all = blocks.as_array().map(Vec::as_slice).unwrap_or_default();
    let with = |status: &str| all.iter().find(|block| block["io-status"] == status);
    match (with("failed"), with("nospace")) {
        (Some(block), _) => Halt::IoError { disk: disk_of(block) },
        (None, Some(block)) => Halt::NoSpace { disk: disk_of(block) },
        (None, None) => Halt::IoError { disk: None },
    }
}

/// Returns the id of the disk behind a device, which [`super::arguments`] names `blk-DISK`;
/// versions of QEMU differ in how they report its path.
fn disk_of(block: &Value) -> Option<String> {
    let path = block["qdev"].as_str()?;
    path.split('/').find_map(|part| part.strip_prefix("blk-")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn block(disk: &str, status: &str) -> Value {
        let qdev = format!("/machine/peripheral/blk-{disk}/virtio-backend");
        json!({ "device": "", "qdev": qdev, "io-status": status, "locked": false, "type": "unknown" })
    }

    #[test]
    fn the_disk_that_stops_a_machine_is_found() {
        let full = json!([block("root", "ok"), block("scratch", "nospace")]);
        assert_eq!(culprit(&full), Halt::NoSpace { disk: Some("scratch".into()) });
        let bad = json!([block("data", "nospace"), block("scratch", "failed")]);
        assert_eq!(culprit(&bad), Halt::IoError { disk: Some("scratch".into()) });
        let other = json!([{ "device": "", "qdev": "blk-cache0", "io-status": "nospace" }]);
        assert_eq!(culprit(&other), Halt::NoSpace { disk: Some("cache0".into()) });
        assert_eq!(culprit(&json!([block("root", "ok")])), Halt::IoError { disk: None });
    }

    proptest! {
        #[test]
        fn any_answer_is_read_without_panic(text in ".{0,60}", status in "[a-z]{0,8}") {
            culprit(&json!({ "x": text }));
            culprit(&json!([text, { "io-status": status, "qdev": text }, null, [1]]));
        }
    }
}
