//! Problem documents (RFC 9457) with a stable `code`.

use crate::status;
use mvm_model::{AnyCode, Code, Fault};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The media type of a problem document.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// An error on the wire and in the CLI's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// The error's code: short and stable, so scripts may depend on it.
    pub code: AnyCode,
    /// What was tried, on what, and why it failed.
    pub detail: String,
    /// What to do next, or empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
    /// JSON path of the faulty value in the request's document, or empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// The id of the request, as in the agent's log; empty where there was no request.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub request_id: Box<str>,
}

impl Problem {
    /// Makes a problem of this code, with the code's status and this detail.
    pub fn new(code: impl Into<AnyCode>, detail: impl Into<String>) -> Self {
        let code = code.into();
        Problem {
            status: status::of_any(&code),
            code,
            detail: detail.into(),
            hint: String::new(),
            path: String::new(),
            request_id: Box::default(),
        }
    }

    /// Sets the hint: what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Makes a problem for a fault of mvm itself. The agent's log says more.
    pub fn internal(detail: impl Into<String>) -> Self {
        Problem::new(Code::Internal, detail)
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        let problem = Problem::new(fault.code, fault.message);
        Problem { path: fault.path, ..problem.hint(fault.hint) }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Problem {}
