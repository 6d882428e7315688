//! What has happened to instances: one event a transition.

use crate::Millis;
use crate::instance::Instance;
use crate::lease::Purpose;
use crate::name::InstanceRef;
use crate::state::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many events a node keeps.
pub const KEPT: u64 = 10_000;

/// An instance came to be in another state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// One more than that of the event before it on this node.
    pub id: u64,
    /// When.
    pub at: Millis,
    /// What.
    pub instance: InstanceRef,
    /// The state that it left; absent when it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<State>,
    /// The state that it came to be in.
    pub to: State,
    /// On whose behalf: `reconciler`, `template`, `job of uid:0`, `lease of uid:0`, `request`.
    pub cause: String,
    /// How long it took in ms, from its intent; absent where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The event of a record's change, if it is one.
pub fn of_change(
    before: Option<&Instance>,
    after: Option<&Instance>,
    id: u64,
    now: Millis,
) -> Option<Event> {
    let known = after.or(before)?;
    let (from, to) = (before.map(|b| b.state), after.map_or(State::Destroyed, |a| a.state));
    if from == Some(to) {
        return None;
    }
    let intent = before.and_then(|b| b.intent);
    Some(Event {
        id,
        at: now,
        instance: known.reference(),
        from,
        to,
        // What was wanted when it began: the end of a transition forgets its goal.
        cause: cause(before.unwrap_or(known)),
        took_ms: intent.map(|intent| now.saturating_sub(intent.since)),
        reason: after.and_then(|a| a.reason.clone()),
    })
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
