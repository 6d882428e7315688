//! Events, as the API shows them.

use mvm_model::Name;
use mvm_model::event::Event;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An event as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventView {
    /// What has happened.
    #[serde(flatten)]
    pub event: Event,
    /// The node that it has happened on, where a coordinator shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<Name>,
}

/// Events that are not kept any more, in their place in a stream that is taken up too late.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventGap {
    /// After this one.
    pub after: u64,
    /// Before this one.
    pub before: u64,
    /// The node that counts them, where a coordinator says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<Name>,
}

impl From<Event> for EventView {
    fn from(event: Event) -> Self {
        EventView { event, node_id: None }
    }
}
