//! The coordinator: one front door for many nodes.
//!
//! Lives here: the registry of nodes (`registry`) and the link to each (`link`), the leader's work
//! (`leader`, `planner`: placement, documents, what was lost), claims (`desk`), what is revoked
//! (`revocations`) and the handlers of the
//! API (`api`). Several coordinators share one store; one of them leads, all of them serve.
//!
//! Never here: hypervisors, taps, decisions (mvm-model).

mod alive;
mod api;
mod asking;
mod calls;
mod desk;
mod ending;
mod fleet;
mod leader;
mod link;
mod planner;
mod port;
mod ready;
mod records;
mod registry;
mod renewal;
mod revocations;
mod serve;
mod turns;
mod writer;

pub use fleet::{Fleet, Options};
pub use port::{Connector, Network, NodePort, Refused, Told};
pub use serve::{ServeOptions, StoreOptions, serve};

/// What the coordinator's own functions give: the error is what the API will answer.
pub type Result<T> = std::result::Result<T, mvm_api::Problem>;

/// The time on this coordinator's own timeline, in ms: only differences mean something, and nothing to
/// other coordinators.
pub(crate) use mvm_clock::now;
/// The wall clock, for what people read.
pub(crate) use mvm_clock::wall;

/// The store's error as a problem. A leader's write that its fence has refused means that another
/// coordinator leads; nothing was written.
pub(crate) fn stored(error: mvm_store::Error) -> mvm_api::Problem {
    if let mvm_store::Error::Conflict { key, .. } = &error
        && key.starts_with("elections/")
    {
        return desk::succeeded();
    }
    let status = if error.code() == "store_conflict" { 409 } else { 503 };
    mvm_api::Problem::new(status, error.code(), error.to_string())
}

#[cfg(test)]
mod tests {
    use super::stored;
    use mvm_store::{Error, Expect};

    #[test]
    fn a_lost_election_is_not_told_in_the_words_of_the_store() {
        let lost = |key: &str| Error::Conflict {
            key: key.to_owned(),
            expected: Expect::Revision(321),
            found: 0,
        };
        assert_eq!(stored(lost("elections/leader")).code, "leader_changed");
        assert_eq!(stored(lost("nodes/n1")).code, "store_conflict");
    }
}
