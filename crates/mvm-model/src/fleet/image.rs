//! Which node gets a pool's image from which: what one has built, the others receive.

use super::node::NodeStatus;
use crate::desired::{DesiredState, ImageSource};
use crate::name::{Name, PoolRef};
use std::collections::BTreeMap;

/// How many nodes are named as sources of one image.
const SOURCES: usize = 3;

/// A node that may give images away: it holds what its newest document says.
#[derive(Clone, Copy, Debug)]
pub struct Giver<'a> {
    /// Where it serves other nodes: `HOST:PORT`.
    pub address: &'a str,
    /// What it said last.
    pub status: &'a NodeStatus,
    /// What it holds.
    pub document: &'a DesiredState,
}

impl Giver<'_> {
    /// Whether its image of the pool is that of now, and not one that it merely keeps.
    fn is_current(&self, pool: &PoolRef, wanted: Option<&str>) -> bool {
        let own = self.document.pool(pool).and_then(|pool| pool.revision.as_deref());
        own.is_none() || own == wanted
    }
}

/// Has a node receive what others have built: for every pool that it has no image of, its document
/// names that of the givers, if they have one. Once it has it the document names none any more, so
/// that a flake that changes is built anew.
pub fn name_images(
    document: &mut DesiredState,
    status: Option<&NodeStatus>,
    givers: &BTreeMap<&Name, Giver<'_>>,
) {
    let node = document.node_id.clone();
    for tenant in &mut document.tenants {
        for pool in &mut tenant.pools {
            let reference =
                PoolRef { tenant: tenant.tenant_id.clone(), pool: pool.pool_id.clone() };
            let has = |status: &NodeStatus| {
                status.pools.get(&reference).is_some_and(|pool| pool.revision.is_some())
            };
            if status.is_none_or(has) {
                continue;
            }
            let wanted = pool.revision.as_deref();
            let Some((digest, source)) = offered(&reference, wanted, &node, givers) else {
                continue;
            };
            pool.revision = Some(digest);
            pool.revision_from = Some(source);
        }
    }
}

/// The image of a pool that most givers have, and who they are.
fn offered(
    pool: &PoolRef,
    wanted: Option<&str>,
    node: &Name,
    givers: &BTreeMap<&Name, Giver<'_>>,
) -> Option<(String, ImageSource)> {
    let mut offers: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for giver in givers.iter().filter(|(name, _)| **name != node).map(|(_, giver)| giver) {
        let held = giver.status.pools.get(pool).filter(|_| giver.is_current(pool, wanted));
        let Some(held) = held else { continue };
        let (Some(digest), Some(content)) = (&held.revision, &held.content) else { continue };
        if wanted.is_none_or(|wanted| wanted == digest) {
            offers.entry((digest, content)).or_default().push(giver.address);
        }
    }
    let ((digest, content), mut sources) =
        offers.into_iter().max_by_key(|(_, sources)| sources.len())?;
    // Not all of a fleet from one: each node begins elsewhere.
    let start = node.as_str().bytes().map(usize::from).sum::<usize>() % sources.len();
    sources.rotate_left(start);
    sources.truncate(SOURCES);
    let sources = sources.into_iter().map(str::to_owned).collect();
    Some((digest.to_owned(), ImageSource { content: content.to_owned(), nodes: sources }))
}
