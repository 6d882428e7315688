//! Types that are written as text, and read back.

use crate::error::Fault;
use mvm_code::Code;

/// Returns the part of a text that a message shows: 80 characters at most.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Makes the fault of a text that is not a value of this kind.
pub(crate) fn invalid(text: &str, what: &str) -> Fault {
    Fault::new(Code::InvalidValue, format!("{:?} is not a valid {what}", shown(text)))
}

/// Implements the string conversions that serde needs, the same for every name-like type.
macro_rules! string_conversions {
    ($($type:ty),*) => {$(
        impl TryFrom<String> for $type {
            type Error = $crate::error::Fault;
            fn try_from(text: String) -> Result<Self, $crate::error::Fault> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }
    )*};
}
pub(crate) use string_conversions;

/// Describes a type in schemas as the plain type that it is written as, with nothing more.
macro_rules! plain_schema {
    ($type:ty as $plain:ty) => {
        impl schemars::JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> std::borrow::Cow<'static, str> {
                <$plain as schemars::JsonSchema>::schema_name()
            }
            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                <$plain as schemars::JsonSchema>::json_schema(generator)
            }
        }
    };
}
pub(crate) use plain_schema;
