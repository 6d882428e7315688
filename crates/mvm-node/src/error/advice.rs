//! Hints that several errors have.

/// The hint of every error that a full disk causes.
pub(super) const FREE_SPACE: &str =
    "free some space: mvm image gc, or destroy instances that are not needed";
