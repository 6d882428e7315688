//! An error code from another process, which may run a later version.

use mvm_code::Code;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;

/// A code as somebody else said it: one of [`Code`], or one that only a later version knows, which is
/// passed on as it came.
#[derive(Clone, PartialEq, Eq)]
pub struct AnyCode(Spelling);

#[derive(Clone, PartialEq, Eq)]
enum Spelling {
    Known(Code),
    /// None that [`Code::of`] knows.
    Other(Box<str>),
}

impl AnyCode {
    /// Returns the code with this spelling.
    pub fn of(text: &str) -> AnyCode {
        AnyCode(Code::of(text).map_or_else(|| Spelling::Other(text.into()), Spelling::Known))
    }

    /// Returns the code; `None` if this version does not know it.
    pub fn known(&self) -> Option<Code> {
        match self.0 {
            Spelling::Known(code) => Some(code),
            Spelling::Other(_) => None,
        }
    }

    /// Returns whether the code is one of these.
    pub fn is_one_of(&self, codes: &[Code]) -> bool {
        self.known().is_some_and(|code| codes.contains(&code))
    }

    /// Returns the code as it appears in problem documents and JSON output.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Spelling::Known(code) => code.as_str(),
            Spelling::Other(text) => text,
        }
    }
}

impl From<Code> for AnyCode {
    fn from(code: Code) -> Self {
        AnyCode(Spelling::Known(code))
    }
}

impl PartialEq<Code> for AnyCode {
    fn eq(&self, code: &Code) -> bool {
        self.known() == Some(*code)
    }
}

impl fmt::Debug for AnyCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for AnyCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for AnyCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for AnyCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(AnyCode::of(&Cow::<str>::deserialize(deserializer)?))
    }
}

/// A string, as before and after every version.
impl JsonSchema for AnyCode {
    fn schema_name() -> Cow<'static, str> {
        String::schema_name()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        String::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_of_a_later_version_is_passed_on_as_it_came() {
        let later: AnyCode = serde_json::from_str("\"cannot_levitate\"").expect("a code");
        assert_eq!(later.known(), None);
        assert_eq!(serde_json::to_string(&later).expect("text"), "\"cannot_levitate\"");
        let ours: AnyCode = serde_json::from_str("\"not_found\"").expect("a code");
        assert_eq!((ours.known(), ours == Code::NotFound), (Some(Code::NotFound), true));
        assert!(ours.is_one_of(&[Code::InUse, Code::NotFound]) && !later.is_one_of(&[Code::InUse]));
    }
}
