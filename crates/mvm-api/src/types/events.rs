//! Events, as the API shows them.

use mvm_model::Name;
use mvm_model::event::Event;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An event as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventView {
    /// The event itself.
    #[serde(flatten)]
    pub event: Event,
    /// The node where the event happened, where a coordinator shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<Name>,
}

/// A gap in a stream of events: the reader asked for events that are no longer kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventGap {
    /// The number of the last event before the gap.
    pub after: u64,
    /// The number of the first event after the gap.
    pub before: u64,
    /// The node whose events these are, where a coordinator sends the gap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<Name>,
}

impl From<Event> for EventView {
    fn from(event: Event) -> Self {
        EventView { event, node_id: None }
    }
}
