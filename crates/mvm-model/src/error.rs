//! Faults: what is wrong, where, and what to do about it.

use mvm_code::Code;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Something that the model refuses: a stable code, the place of the fault, and a message for
/// people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The kind of fault.
    pub code: Code,
    /// The place of the fault: a JSON path such as `$.tenants[0].quotas.max_warm`, or empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// What is wrong, with the offending value.
    pub message: String,
    /// What to do next, or empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
}

impl Fault {
    /// Makes a fault without a place and without a hint.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Fault { code, path: String::new(), message: message.into(), hint: String::new() }
    }

    /// Returns the fault at the JSON path `path`.
    pub fn at(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// Returns the fault with the next step to take.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}
