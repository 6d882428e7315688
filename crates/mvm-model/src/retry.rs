//! What a client of a fleet does with a failure: it asks again for a while, or gives up.
//!
//! A fleet is without a leader for some seconds when its leader dies, and a request is cut off when
//! the coordinator that it goes through dies. Neither is an error of the request. What decides is
//! whether the request can have been carried out, and whether carrying it out twice does harm.

use mvm_code::Code;
use std::time::Duration;

/// What an error says about the request that it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The request was not carried out, and the same request may go well in some seconds.
    NotDone,
    /// The request may have been carried out; what became of it is not known.
    Unknown,
    /// The request was judged: asked again, it gets the same answer.
    Final,
}

/// What a client does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It asks again.
    Wait,
    /// It passes the error on.
    Fail,
}

/// The errors after which the request was not carried out: nobody leads, nobody answers, or the node
/// that is meant is out of reach.
const NOT_DONE: [Code; 7] = [
    Code::NoLeader,
    Code::LeaderChanged,
    Code::AgentUnreachable,
    Code::CoordinatorUnreachable,
    Code::NodeUnreachable,
    Code::NotReady,
    Code::StoreUnreachable,
];

/// The errors that leave open what became of the request. The last two are about an earlier try of
/// the same request, which is known by its key.
const UNKNOWN: [Code; 6] = [
    Code::ConnectionBroken,
    Code::AgentSilent,
    Code::StoreUnknown,
    Code::SessionLost,
    Code::ClaimUnderWay,
    Code::IdempotencyKeyInUse,
];

/// Returns what the error with this code says about the request.
pub fn fate(code: Code) -> Fate {
    if NOT_DONE.contains(&code) {
        Fate::NotDone
    } else if UNKNOWN.contains(&code) {
        Fate::Unknown
    } else {
        Fate::Final
    }
}

/// Returns whether a request that failed with this code is asked again: not with one that this
/// version does not know (`None`). `repeatable` says that the request does no harm when it is carried
/// out twice: it reads, it has an idempotency key, or it sets what is set already. `elapsed` is the
/// time since its first failure.
pub fn retry(code: Option<Code>, repeatable: bool, elapsed: Duration, patience: Duration) -> Next {
    let may = match code.map_or(Fate::Final, fate) {
        Fate::NotDone => true,
        Fate::Unknown => repeatable,
        Fate::Final => false,
    };
    if may && elapsed < patience { Next::Wait } else { Next::Fail }
}

/// Returns how long a client rests before it asks for the `count`-th time, the first being 1: at
/// first briefly, since most requests find another coordinator at once, then once a second.
pub fn pause(count: u32) -> Duration {
    let millis = 100_u64.saturating_mul(1 << count.saturating_sub(1).min(4));
    Duration::from_millis(millis.min(1000))
}
