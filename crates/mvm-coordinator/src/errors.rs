//! What goes wrong in more than one part of the coordinator.

use mvm_api::Problem;
use mvm_model::Code;

/// Returns the problem of a request that came to a former leader: nothing was done.
pub(crate) fn succeeded() -> Problem {
    Problem::new(Code::LeaderChanged, "this coordinator does not lead any more").hint("try again")
}

/// Returns the store's error as a problem. A leader's write that its fence has refused means that
/// another coordinator leads; nothing was written.
pub(crate) fn stored(error: mvm_store::Error) -> Problem {
    if let mvm_store::Error::Conflict { key, .. } = &error
        && key.starts_with("elections/")
    {
        return succeeded();
    }
    mvm_server::stored(error)
}

#[cfg(test)]
mod tests {
    use super::stored;
    use mvm_model::Code;
    use mvm_store::{Error, Expect};

    #[test]
    fn a_lost_election_is_not_told_in_the_words_of_the_store() {
        let lost = |key: &str| Error::Conflict {
            key: key.to_owned(),
            expected: Expect::Revision(321),
            found: 0,
        };
        assert_eq!(stored(lost("elections/leader")).code, Code::LeaderChanged);
        assert_eq!(stored(lost("nodes/n1")).code, Code::StoreConflict);
    }
}
