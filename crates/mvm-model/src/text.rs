//! Types that are written as text, and read back.

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
