//! Events of instances: one for each transition, one each time a hypervisor pauses a machine by
//! itself or resumes it, and one when a machine's firewall rules or links had vanished.

use crate::halt::Paused;
use crate::instance::Instance;
use crate::lease::Purpose;
use crate::name::InstanceRef;
use crate::state::State;
use crate::timestamp::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many events a node keeps.
pub const KEPT: u64 = 10_000;

/// An event: an instance reached another state. Where both states are the same, its hypervisor has
/// paused it, it goes on, or its firewall rules or links were missing and have been restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// The event's number: one more than that of the event before it on this node.
    pub id: u64,
    /// When the event happened; ms since the Unix epoch.
    pub at: Timestamp,
    /// The instance that the event is about.
    pub instance: InstanceRef,
    /// The state before; absent when the instance was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<State>,
    /// The state after.
    pub to: State,
    /// The cause: `reconciler`, `template`, `job of uid:0`, `lease of uid:0`, `request`,
    /// `hypervisor`, `firewall`, `network`.
    pub cause: String,
    /// How long the transition took in ms, from its intent; absent where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
    /// Why the instance failed, ended by itself or was paused, or that it goes on. For an instance
    /// that becomes a template: why the template before was discarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The reason in the event of a machine that is no longer paused.
pub const GOES_ON: &str = "goes on";

/// Returns the event of a record's change; `None` if the change is none.
pub fn of_change(
    before: Option<&Instance>,
    after: Option<&Instance>,
    id: u64,
    now: Timestamp,
) -> Option<Event> {
    let known = after.or(before)?;
    let (from, to) = (before.map(|b| b.state), after.map_or(State::Destroyed, |a| a.state));
    if from == Some(to) {
        return of_pause(before?, after?, id, now);
    }
    let intent = before.and_then(|b| b.intent);
    Some(Event {
        id,
        at: now,
        instance: known.reference(),
        from,
        to,
        // The cause is read from the record before: the end of a transition clears the goal.
        cause: cause(before.unwrap_or(known)),
        took_ms: intent.map(|intent| now.since(intent.since).as_millis() as u64),
        reason: after.and_then(|a| a.reason.clone()),
    })
}

/// Returns the event of a hypervisor's own pause, or of its end; `None` if nothing changed.
fn of_pause(before: &Instance, after: &Instance, id: u64, now: Timestamp) -> Option<Event> {
    let cause = |paused: &Option<Paused>| paused.as_ref().map(|paused| paused.cause);
    if cause(&before.paused) == cause(&after.paused) {
        return None;
    }
    let reason = after.paused.as_ref().map(|paused| format!("paused: {}", paused.reason));
    Some(Event {
        id,
        at: now,
        instance: after.reference(),
        from: Some(before.state),
        to: after.state,
        cause: "hypervisor".to_owned(),
        took_ms: None,
        reason: Some(reason.unwrap_or_else(|| GOES_ON.to_owned())),
    })
}

/// Returns the event of a live machine whose firewall rules were not in force; `lost` says which.
pub fn of_walls(instance: &Instance, lost: &str, now: Timestamp) -> Event {
    Event {
        // The event gets its number when it is written.
        id: 0,
        at: now,
        instance: instance.reference(),
        from: Some(instance.state),
        to: instance.state,
        cause: "firewall".to_owned(),
        took_ms: None,
        reason: Some(format!("its firewall rules were not in force ({lost}), and are again")),
    }
}

/// Returns the event of a live machine whose links were not as they should be; `what` says which
/// and how.
pub fn of_links(instance: &Instance, what: &str, now: Timestamp) -> Event {
    let reason = format!("its network was not as it should be ({what}), and is again");
    Event { cause: "network".to_owned(), reason: Some(reason), ..of_walls(instance, "", now) }
}

fn cause(instance: &Instance) -> String {
    match &instance.lease {
        Some(lease) => match lease.purpose {
            Purpose::Template => "template".to_owned(),
            Purpose::Run => format!("job of {}", lease.holder),
            Purpose::Expose => {
                format!("connection to {}", lease.holder.trim_start_matches("expose:"))
            }
            Purpose::Manual => format!("lease of {}", lease.holder),
        },
        None if instance.goal.is_some() => "reconciler".to_owned(),
        None => "request".to_owned(),
    }
}
