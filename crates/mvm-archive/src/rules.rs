//! What a host accepts from a guest that it does not trust, as pure decisions.

use crate::notes::shown;
use mvm_code::Code;
use std::fmt;
use std::io;

/// How far the packer of an archive is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// For a guest, which accepts what its host sends.
    Full,
    /// For a host, which accepts files from a guest but no rights: no setuid, setgid or sticky
    /// bits, no write permission for the group and others, no capabilities or access lists, and no
    /// more than these rules allow.
    Stranger(Rules),
}

impl Trust {
    /// Returns the rules that the archive must keep to; `None` if it is trusted.
    pub(crate) fn rules(&self) -> Option<&Rules> {
        match self {
            Trust::Full => None,
            Trust::Stranger(rules) => Some(rules),
        }
    }
}

/// What a stranger's archive may contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// What happens to its links.
    pub links: Links,
    /// The largest number of files, folders and links.
    pub most_entries: u64,
    /// The largest total of names, attributes and contents, in bytes; holes do not count.
    pub most_bytes: u64,
}

impl Default for Rules {
    /// Allows a million entries and 64 GiB, and leaves out links that lead out.
    fn default() -> Self {
        Rules { links: Links::Skip, most_entries: 1_000_000, most_bytes: 64 << 30 }
    }
}

/// What happens to links that lead out of the target folder of a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Links {
    /// Symbolic links are made unchanged, wherever they lead. Hard links that lead out are left
    /// out.
    Keep,
    /// Such links are left out and listed in the notes.
    #[default]
    Skip,
    /// The first such link ends the copy with [`Refusal::Link`].
    Refuse,
}

/// Why the rest of a stranger's archive was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It has more entries than [`Rules::most_entries`], which is this number.
    TooMany(u64),
    /// It has more bytes than [`Rules::most_bytes`], which is this number.
    TooLarge(u64),
    /// A link leads out, and the rule is [`Links::Refuse`]; holds a description of the link.
    Link(String),
}

impl Refusal {
    /// Returns the refusal behind an error of [`crate::unpack()`]; `None` for any other error.
    pub fn of(error: &io::Error) -> Option<&Refusal> {
        error.get_ref()?.downcast_ref()
    }

    /// Returns the stable code of the refusal.
    pub fn code(&self) -> Code {
        match self {
            Refusal::TooMany(_) | Refusal::TooLarge(_) => Code::CopyTooLarge,
            Refusal::Link(_) => Code::LinkRefused,
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

/// What was accepted so far.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    entries: u64,
    bytes: u64,
}

impl Taken {
    /// Counts one entry of `bytes` bytes, before it is made.
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

/// Returns whether a symbolic link that lies `depth` folders below the target of a copy may lead
/// out of it.
///
/// The folders that it lies in are not links, so each `..` at the beginning of its target leads one
/// level up. A `..` after a name may lead anywhere, since that name may be, or become, a link
/// itself.
pub(crate) fn leads_out(target: &[u8], depth: usize) -> bool {
    if target.starts_with(b"/") {
        return true;
    }
    let parts = target.split(|byte| *byte == b'/');
    let parts: Vec<&[u8]> = parts.filter(|part| !part.is_empty() && *part != b".").collect();
    let up = parts.iter().take_while(|part| **part == b"..").count();
    up > depth || parts[up..].contains(&&b".."[..])
}

/// Returns a message: the link `name` leads out, to `target`.
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
        assert_eq!(Refusal::of(&error).map(Refusal::code), Some(Code::CopyTooLarge));
    }
}
