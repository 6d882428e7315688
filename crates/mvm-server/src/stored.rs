//! A store's errors as problem documents.

use mvm_api::Problem;

/// Makes a problem of a store's error.
pub fn stored(error: mvm_store::Error) -> Problem {
    Problem::new(error.code(), error.to_string())
}
