//! The desired-state document, `schema_version` 1: what a node should hold.
//!
//! A document is accepted whole or not at all: [`DesiredState::parse`] refuses it at its first
//! fault and returns the fault's JSON path. The JSON Schema with which users check their documents
//! is generated from these types, in `schema/desired-state.v1.json`.

pub(crate) mod check;
mod diff;
mod document;
mod source;

pub use check::source;
pub use diff::{Step, diff};
pub use document::{DesiredPool, DesiredState, DesiredTenant, ImageSource, SCHEMA_VERSION};
pub(crate) use source::settled_all;
pub use source::{is_path, needs_a_person, rebase, settled};

use crate::error::Fault;
use mvm_code::Code;

impl DesiredState {
    /// Reads and checks a document. A fault names its JSON path.
    pub fn parse(text: &[u8]) -> Result<Self, Fault> {
        let state: DesiredState = read(text)?;
        state.validate()?;
        Ok(state)
    }

    /// Checks what types cannot express: ranges, duplicate names, overlapping networks, counts
    /// above quotas or above what the subnet holds.
    pub fn validate(&self) -> Result<(), Fault> {
        check::version(self.schema_version)?;
        check::tenants(&self.tenants, check::Scope::Node)
    }

    /// Refuses pools of which the quotas admit not a single machine. This is not part of
    /// [`Self::validate`]: the document that a fleet gives a node has the node's part of the
    /// quotas, which may be less than a machine needs.
    pub fn admit_machines(&self) -> Result<(), Fault> {
        check::admit_machines(&self.tenants)
    }

    /// Returns the JSON Schema of the document.
    pub fn json_schema() -> serde_json::Value {
        let mut schema = schemars::schema_for!(DesiredState);
        schema.insert("title".into(), "The desired state of an mvm node".into());
        schema.to_value()
    }
}

/// Reads a document of this version from text; a fault names its JSON path.
pub(crate) fn read<T: serde::de::DeserializeOwned>(text: &[u8]) -> Result<T, Fault> {
    let value: serde_json::Value = serde_json::from_slice(text)
        .map_err(|e| Fault::new(Code::InvalidDocument, format!("this is not JSON: {e}")))?;
    let version = value.get("schema_version");
    if let Some(version) = version.filter(|v| **v != SCHEMA_VERSION) {
        let message = format!("schema_version is {version}");
        return Err(Fault::new(Code::UnsupportedVersion, message)
            .at("$.schema_version")
            .hint(format!("this mvm reads version {SCHEMA_VERSION}")));
    }
    // Read from the text again: only there can duplicate fields be noticed.
    let mut reader = serde_json::Deserializer::from_slice(text);
    serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = path_of(error.path());
        let mut message = error.into_inner().to_string();
        if let Some(place) = message.rfind(" at line ") {
            message.truncate(place);
        }
        Fault::new(Code::InvalidDocument, message).at(path)
    })
}

/// Formats `tenants[0].quotas` as `$.tenants[0].quotas`.
fn path_of(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    path.iter().fold("$".to_owned(), |whole, segment| match segment {
        Segment::Seq { index } => format!("{whole}[{index}]"),
        Segment::Map { key } => format!("{whole}.{key}"),
        Segment::Enum { variant } => format!("{whole}.{variant}"),
        Segment::Unknown => whole,
    })
}
