//! Names of variables in an environment.

/// What a variable may be called, for whoever called one otherwise.
pub const HINT: &str = "a name has letters of ASCII, digits and _, and begins with no digit";

/// Whether a variable of an environment may be called so: `[A-Za-z_][A-Za-z0-9_]*`.
pub fn is_variable(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    name.bytes().all(plain) && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}
