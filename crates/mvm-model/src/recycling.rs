//! What becomes of an instance whose lease ends.

use crate::instance::Instance;
use crate::lease::Purpose;
use crate::pool::{Pool, Recycle};
use crate::state::State;

/// What becomes of an instance whose lease ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The instance is destroyed, and the pool refills itself.
    Destroy,
    /// The instance goes to sleep with all that is in its memory; it is destroyed if it cannot.
    Sleep,
    /// The instance only loses its lease.
    Free,
}

/// Returns what becomes of a leased instance of `pool` when its lease ends; `None` without a lease.
///
/// The pool's recycling rule is for jobs. A person's instance in a pool that was never scaled only loses its lease,
/// because nobody but that person looks after such a pool. An expose's instance sleeps for the next connection. An
/// instance that has failed or was never brought up is worth nothing to the next holder.
pub fn ending(instance: &Instance, pool: Option<&Pool>) -> Option<Ending> {
    let purpose = instance.lease.as_ref()?.purpose;
    let rule = match (purpose, pool) {
        (Purpose::Template, _) | (_, None) => Recycle::Reset,
        (Purpose::Manual, Some(pool)) if pool.desired.is_none() => return Some(Ending::Free),
        (Purpose::Expose, _) => Recycle::Sleep,
        (_, Some(pool)) => pool.recycle,
    };
    Some(match (rule, instance.state) {
        (Recycle::Reset, _) | (_, State::Failed | State::Created) => Ending::Destroy,
        (Recycle::Sleep, _) => Ending::Sleep,
        (Recycle::Keep, _) => Ending::Free,
    })
}
