//! The steps that the planner and the policy decide on.

use crate::id::InstanceId;
use crate::state::State;
use serde::{Deserialize, Serialize};

/// One step towards the desired counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "action")]
pub enum Action {
    /// Make a new instance and bring it to the state `to`.
    Create {
        /// `running`, `warm` or `sleeping`.
        to: State,
    },
    /// Bring an instance to another state.
    Move {
        /// The instance to move.
        id: InstanceId,
        /// The state to bring it to.
        to: State,
    },
    /// Destroy a surplus, outdated or used-up instance.
    Destroy {
        /// The instance to destroy.
        id: InstanceId,
    },
}
