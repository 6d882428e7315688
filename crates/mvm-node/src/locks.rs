//! Locks that are held for a few instructions.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, even if a holder has panicked. The guarded value is consistent all the same, since every
/// critical section is a single insertion or removal.
pub(crate) fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
