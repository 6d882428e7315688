//! Names and marks of links: by them an owner knows its own.

use crate::netlink::{alias_of, name_of};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use std::path::{Path, PathBuf};

/// The longest alias of a link (IFALIASZ of linux/if.h, without the zero).
const LONGEST_ALIAS: usize = 255;

/// What a link of ours is.
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
    /// The state directory that the links are for, as they say.
    root: Option<PathBuf>,
}

impl Marks {
    /// Those of this owner.
    pub(crate) fn new(owner: &str) -> Marks {
        Marks { owner: owner.to_owned(), root: None }
    }

    /// The same, with the state directory.
    pub(crate) fn of_root(self, root: &Path) -> Marks {
        Marks { root: Some(root.to_owned()), ..self }
    }

    /// How the name of each link of this owner begins.
    pub(crate) fn prefix(&self) -> String {
        format!("mv{}-", self.owner)
    }

    /// The mark, with the state directory behind it as far as there is room for it.
    pub(crate) fn full(&self, kind: LinkKind) -> String {
        let mark = self.bare(kind);
        let full = self.root.as_ref().map(|root| format!("{mark}:{}", root.display()));
        full.filter(|full| full.len() <= LONGEST_ALIAS).unwrap_or(mark)
    }

    fn bare(&self, kind: LinkKind) -> String {
        format!("mvm:{}:{}", self.owner, kind.word())
    }

    /// Whether an alias is our mark, with a state directory behind it or without.
    fn is(&self, alias: &str, kind: LinkKind) -> bool {
        let rest = alias.strip_prefix(&self.bare(kind));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
    }

    /// What a link is whose alias is our mark.
    pub(crate) fn kind(&self, alias: &str) -> Option<LinkKind> {
        [LinkKind::Bridge, LinkKind::Tap].into_iter().find(|kind| self.is(alias, *kind))
    }

    /// Whether a link carries our mark; one without any mark is ours too when only we can have made
    /// it: an agent was killed between making and marking.
    pub(crate) fn is_ours(&self, link: &LinkMessage, kind: LinkKind) -> bool {
        let named = name_of(link).is_some_and(|name| name.starts_with(&self.prefix()));
        match alias_of(link) {
            Some(alias) => self.is(&alias, kind),
            None => named && is_kind(link, kind),
        }
    }
}

/// The owner and the state directory that a mark names; nothing where it is no mark of this make.
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
