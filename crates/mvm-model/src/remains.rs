//! Whether what is left of a state directory's network is nobody's any more.

/// What is known of a state directory, by its links, tables and processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// Something says where it was.
    pub named: bool,
    /// There is a directory that may be it: with its id, or with none that can be read.
    pub directory: bool,
    /// A process has its lock, or files in it that are not deleted, or sees other files than we do.
    pub alive: bool,
    /// Somebody who is not to be seen from here uses one of its taps.
    pub unseen: bool,
}

/// What that comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It lives, or may.
    Lives,
    /// It is gone for good: what is left is nobody's.
    Orphan,
    /// Nothing lives that is to be seen, but nothing says where it was either.
    Unknown,
}

/// A path that is missing says little by itself: it may be there for others.
pub fn verdict(signs: Signs) -> Verdict {
    match signs {
        Signs { directory, alive, unseen, .. } if directory || alive || unseen => Verdict::Lives,
        Signs { named: true, .. } => Verdict::Orphan,
        Signs { named: false, .. } => Verdict::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_sign_of_life_counts_for_more_than_a_missing_path() {
        let named = Signs { named: true, ..Signs::default() };
        assert_eq!(verdict(named), Verdict::Orphan);
        assert_eq!(verdict(Signs::default()), Verdict::Unknown);
        for signs in [
            Signs { directory: true, ..named },
            Signs { alive: true, ..named },
            Signs { unseen: true, ..named },
            Signs { alive: true, ..Signs::default() },
        ] {
            assert_eq!(verdict(signs), Verdict::Lives, "{signs:?}");
        }
    }
}
