//! The guest's own binary, which this one carries.

/// The binary that is PID 1 in every guest.
pub static GUEST: &[u8] = include_bytes!(env!("MVM_GUEST"));
