//! The guest's binary, which is embedded in this one.

/// The binary that is PID 1 in every guest.
pub static GUEST: &[u8] = include_bytes!(env!("MVM_GUEST"));
