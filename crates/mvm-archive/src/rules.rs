//! What a host takes from a guest that it does not trust, as decisions alone.

use crate::notes::shown;
use std::fmt;
use std::io;

/// How far whoever packed the archive is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// A guest takes from its host what it sends.
    Full,
    /// A host takes from a guest files and no rights: no setuid, setgid and sticky bits, no right to
    /// write for the group and others, no capabilities and access lists, and no more than these rules
    /// allow.
    Stranger(Rules),
}

impl Trust {
    /// The rules that the archive has to keep to.
    pub(crate) fn rules(&self) -> Option<&Rules> {
        match self {
            Trust::Full => None,
            Trust::Stranger(rules) => Some(rules),
        }
    }
}

/// What a stranger's archive may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// What becomes of its links.
    pub links: Links,
    /// The most files, folders and links.
    pub most_entries: u64,
    /// The most that names, attributes and contents take together, in bytes; holes are not counted.
    pub most_bytes: u64,
}

impl Default for Rules {
    /// A million entries and 64 GiB; links that lead out are left out.
    fn default() -> Self {
        Rules { links: Links::Skip, most_entries: 1_000_000, most_bytes: 64 << 30 }
    }
}

/// What becomes of links that lead out of the folder that is copied to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Links {
    /// Symbolic links are made as they are, wherever they lead. Hard links that lead out are left out.
    Keep,
    /// They are left out, and named in the notes.
    #[default]
    Skip,
    /// The first ends the copy with [`Refusal::Link`].
    Refuse,
}

/// Why a stranger's archive was not taken further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// More than [`Rules::most_entries`], which were so many.
    TooMany(u64),
    /// More than [`Rules::most_bytes`], which were so many.
    TooLarge(u64),
    /// This link leads out, and [`Links::Refuse`] was asked for.
    Link(String),
}

impl Refusal {
    /// The refusal that an error of [`crate::unpack`] stands for.
    pub fn of(error: &io::Error) -> Option<&Refusal> {
        error.get_ref()?.downcast_ref()
    }

    /// Its stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::TooMany(_) | Refusal::TooLarge(_) => "copy_too_large",
            Refusal::Link(_) => "link_refused",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::TooMany(most) => write!(f, "it has more than {most} files, folders and links"),
            Refusal::TooLarge(most) => write!(f, "it has more than {most} bytes"),
            Refusal::Link(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        io::Error::new(io::ErrorKind::PermissionDenied, refusal)
    }
}

/// What was taken so far.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    entries: u64,
    bytes: u64,
}

impl Taken {
    /// Counts one entry with so many bytes, before it is made.
    pub(crate) fn count(&mut self, rules: &Rules, bytes: u64) -> Result<(), Refusal> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.entries > rules.most_entries {
            return Err(Refusal::TooMany(rules.most_entries));
        }
        if self.bytes > rules.most_bytes {
            return Err(Refusal::TooLarge(rules.most_bytes));
        }
        Ok(())
    }
}

/// Whether a symbolic link that lies `depth` folders below the target of a copy may lead out of it.
///
/// The folders that it lies in are no links, so that each `..` at its target's beginning leads one up.
/// One that follows a name may lead anywhere, since that name may be, or become, a link itself.
pub(crate) fn leads_out(target: &[u8], depth: usize) -> bool {
    if target.starts_with(b"/") {
        return true;
    }
    let parts = target.split(|byte| *byte == b'/');
    let parts: Vec<&[u8]> = parts.filter(|part| !part.is_empty() && *part != b".").collect();
    let up = parts.iter().take_while(|part| **part == b"..").count();
    up > depth || parts[up..].contains(&&b".."[..])
}

/// In words: the link `name` leads out, to `target`.
pub(crate) fn out_of_the_folder(kind: &str, name: &[u8], target: &[u8]) -> String {
    let (name, target) = (shown(name), shown(target));
    format!("the {kind} {name} leads out of the folder that is copied to: to {target}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_surely_stays_inside_is_inside() {
        for (target, depth) in [("a", 0), ("./a/b", 0), ("../a", 1), (".././..//a", 2), (".", 0)] {
            assert!(!leads_out(target.as_bytes(), depth), "{target}");
        }
        let out = [("/", 9), ("/a", 9), ("..", 0), ("../a", 0), ("../../a", 1), ("a/..", 5)];
        for (target, depth) in out.into_iter().chain([("a/../../..", 1), ("../a/../b", 4)]) {
            assert!(leads_out(target.as_bytes(), depth), "{target}");
        }
    }

    #[test]
    fn what_is_too_much_is_told_apart() {
        let rules = Rules { most_entries: 2, most_bytes: 10, ..Rules::default() };
        let mut taken = Taken::default();
        assert_eq!(taken.count(&rules, 5), Ok(()));
        assert_eq!(taken.count(&rules, 5), Ok(()));
        assert_eq!(taken.count(&rules, 0), Err(Refusal::TooMany(2)));
        assert_eq!(Taken::default().count(&rules, u64::MAX), Err(Refusal::TooLarge(10)));
        let error = io::Error::from(Refusal::TooMany(2));
        assert_eq!(Refusal::of(&error).map(Refusal::code), Some("copy_too_large"));
    }
}
