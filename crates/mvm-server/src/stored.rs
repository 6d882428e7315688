//! A store's errors as problem documents.

use mvm_api::Problem;

/// The problem that a store's error is.
pub fn stored(error: mvm_store::Error) -> Problem {
    Problem::new(error.code(), error.to_string())
}
