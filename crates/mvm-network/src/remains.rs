//! Finds what agents of all owners have left in this network namespace.

use crate::marks::root_of;
use crate::netlink::{Netlink, alias_of, name_of};
use crate::nftables::Nftables;
use crate::{LinkKind, Network, OwnedLink, Result};
use rtnetlink::packet_route::link::LinkFlags;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// The links and tables of one owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// The state directories that its links name.
    pub roots: BTreeSet<PathBuf>,
    /// The links that carry its mark.
    pub links: Vec<OwnedLink>,
    /// How many of its taps are open in a process.
    pub in_use: usize,
    /// Its nftables tables, each with its family.
    pub tables: Vec<String>,
}

impl Remains {
    /// Returns what each owner has, by the owner's four hexadecimal digits.
    pub async fn all() -> Result<BTreeMap<String, Remains>> {
        let links = Netlink::open()?.links().await?;
        let mut all: BTreeMap<String, Remains> = BTreeMap::new();
        for link in &links {
            let (Some(name), Some(alias)) = (name_of(link), alias_of(link)) else { continue };
            let Some((owner, root)) = root_of(&alias).filter(|(owner, _)| is_owner(owner)) else {
                continue;
            };
            let tap = alias.starts_with(&format!("mvm:{owner}:tap"));
            let kind = if tap { LinkKind::Tap } else { LinkKind::Bridge };
            let of = all.entry(owner).or_default();
            of.roots.extend(root);
            of.in_use += usize::from(tap && link.header.flags.contains(LinkFlags::LowerUp));
            of.links.push(OwnedLink { name, kind });
        }
        for (family, table) in Nftables::open()?.tables("mvm_")? {
            let owner = table.trim_start_matches("mvm_").to_owned();
            if is_owner(&owner) {
                all.entry(owner).or_default().tables.push(format!("{family} {table}"));
            }
        }
        Ok(all)
    }

    /// Removes all links and tables of this owner.
    pub async fn remove(owner: &str) -> Result<()> {
        Network::open(owner)?.clear().await
    }
}

fn is_owner(text: &str) -> bool {
    text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
