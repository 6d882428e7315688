//! What can be written as text, and read back.

/// String conversions that serde and `Display` need, the same for every name-like type.
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
