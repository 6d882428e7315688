//! Names of variables in an environment.

/// The hint of an error about a name that is not valid.
pub const HINT: &str = "a name has letters of ASCII, digits and _, and begins with no digit";

/// Returns whether a variable of an environment may have this name: `[A-Za-z_][A-Za-z0-9_]*`.
pub fn is_variable(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    name.bytes().all(plain) && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}
