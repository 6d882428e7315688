//! Whether the network that is left of a state directory still belongs to anybody.

/// What is known of a state directory, by its links, tables and processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// Something says where the directory was.
    pub named: bool,
    /// There is a directory that may be the one: it has its id, or none that can be read.
    pub directory: bool,
    /// A process holds the directory's lock, or files in it that are not deleted, or sees other
    /// files than we do.
    pub alive: bool,
    /// A process that cannot be seen from here uses one of its taps.
    pub unseen: bool,
}

/// What the signs come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The directory is in use, or may be.
    Lives,
    /// The directory is gone for good: what is left belongs to nobody.
    Orphan,
    /// No use of the directory can be seen, but nothing says where it was either.
    Unknown,
}

/// Judges the signs. A missing path says little by itself: the directory may be there for other
/// processes.
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
