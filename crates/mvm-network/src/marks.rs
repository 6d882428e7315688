//! Names and marks of links, by which an owner recognises its own.

use crate::netlink::{alias_of, name_of};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use std::path::{Path, PathBuf};

/// The longest alias of a link in bytes (IFALIASZ of linux/if.h, without the zero).
const LONGEST_ALIAS: usize = 255;

/// The kind of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A tenant's bridge.
    Bridge,
    /// An instance's tap.
    Tap,
}

impl LinkKind {
    fn word(self) -> &'static str {
        match self {
            LinkKind::Bridge => "bridge",
            LinkKind::Tap => "tap",
        }
    }
}

/// How the links of one owner are named and marked.
pub(crate) struct Marks {
    /// The owner's id: four hexadecimal digits.
    pub(crate) owner: String,
    /// The state directory to name in the marks; `None` leaves it out.
    root: Option<PathBuf>,
}

impl Marks {
    /// Makes the marks of this owner, without a state directory.
    pub(crate) fn new(owner: &str) -> Marks {
        Marks { owner: owner.to_owned(), root: None }
    }

    /// Adds the state directory to the marks.
    pub(crate) fn of_root(self, root: &Path) -> Marks {
        Marks { root: Some(root.to_owned()), ..self }
    }

    /// Returns the prefix of the name of every link of this owner.
    pub(crate) fn prefix(&self) -> String {
        format!("mv{}-", self.owner)
    }

    /// Returns the mark, followed by the state directory if both fit into an alias.
    pub(crate) fn full(&self, kind: LinkKind) -> String {
        let mark = self.bare(kind);
        let full = self.root.as_ref().map(|root| format!("{mark}:{}", root.display()));
        full.filter(|full| full.len() <= LONGEST_ALIAS).unwrap_or(mark)
    }

    fn bare(&self, kind: LinkKind) -> String {
        format!("mvm:{}:{}", self.owner, kind.word())
    }

    /// Returns whether an alias is this owner's mark, with or without a state directory.
    fn is(&self, alias: &str, kind: LinkKind) -> bool {
        let rest = alias.strip_prefix(&self.bare(kind));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
    }

    /// Returns the kind of the link that has this alias; `None` if the alias is not this owner's
    /// mark.
    pub(crate) fn kind(&self, alias: &str) -> Option<LinkKind> {
        [LinkKind::Bridge, LinkKind::Tap].into_iter().find(|kind| self.is(alias, *kind))
    }

    /// Returns whether a link is this owner's: it carries the mark, or it has no alias but a name
    /// of this owner's, since an agent may have been killed between making and marking it.
    pub(crate) fn is_ours(&self, link: &LinkMessage, kind: LinkKind) -> bool {
        let named = name_of(link).is_some_and(|name| name.starts_with(&self.prefix()));
        match alias_of(link) {
            Some(alias) => self.is(&alias, kind),
            None => named && is_kind(link, kind),
        }
    }
}

/// Returns the owner and the state directory that a mark names; `None` if the alias is not a mark
/// of mvm.
pub(crate) fn root_of(alias: &str) -> Option<(String, Option<PathBuf>)> {
    let mut parts = alias.strip_prefix("mvm:")?.splitn(3, ':');
    let (owner, _kind) = (parts.next()?, parts.next()?);
    Some((owner.to_owned(), parts.next().map(PathBuf::from)))
}

fn is_kind(link: &LinkMessage, kind: LinkKind) -> bool {
    let wanted = match kind {
        LinkKind::Bridge => InfoKind::Bridge,
        LinkKind::Tap => InfoKind::Tun,
    };
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(wanted.clone())),
        _ => false,
    })
}
