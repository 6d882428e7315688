//! Decides which node builds a pool's image, and which nodes receive it from which others: what one
//! has built, the others receive.

use super::node::NodeStatus;
use crate::desired::{DesiredState, ImageSource};
use crate::name::{Name, PoolRef};
use std::collections::BTreeMap;

/// How many nodes a document names as sources of one image.
const SOURCES: usize = 3;

/// A node in reach that shall hold pools.
#[derive(Clone, Copy, Debug)]
pub struct Holder<'a> {
    /// The status that it last reported.
    pub status: &'a NodeStatus,
    /// The document that it shall hold.
    pub document: &'a DesiredState,
    /// The document that it was last sent; `None` if it was sent none.
    pub told: Option<&'a DesiredState>,
    /// Whether it has done everything in that document.
    pub done: bool,
    /// Address for other nodes to receive images from, as `HOST:PORT`; `None` if it serves none.
    pub address: Option<&'a str>,
}

impl<'a> Holder<'a> {
    /// Returns the node as a giver of its image of the pool, if that image is current and not
    /// merely kept.
    fn gives(&self, pool: &PoolRef) -> Option<Giver<'a>> {
        let own = self.document.pool(pool);
        let told = self.told.filter(|_| self.done)?;
        let address = self.address.filter(|_| told.pool(pool) == own)?;
        let named = own.and_then(|pool| pool.revision.as_deref());
        Some(Giver { node: &self.status.node_id, address, named })
    }
}

/// Returns who builds the images that no node gives yet: one node for each pool, while the others
/// wait for it. If that node fails, or does not serve images, all nodes build it, and the pool is
/// not listed.
pub fn builders<'a>(holders: &[Holder<'a>]) -> BTreeMap<PoolRef, &'a Name> {
    let mut of_pools: BTreeMap<PoolRef, Vec<&Holder<'a>>> = BTreeMap::new();
    for holder in holders {
        // An image that is named by its digest, or merely kept, is not built.
        let built =
            |pool: &PoolRef| holder.document.pool(pool).is_some_and(|p| p.revision.is_none());
        for pool in holder.document.references().filter(built) {
            of_pools.entry(pool).or_default().push(holder);
        }
    }
    let (mut builders, mut loads) = (BTreeMap::new(), BTreeMap::<&Name, usize>::new());
    for (pool, holders) in of_pools {
        let has = |holder: &Holder<'_>| {
            holder.status.pools.get(&pool).is_some_and(|held| held.revision.is_some())
        };
        let waits_for_none = |holder: &Holder<'_>| {
            let held = holder.status.pools.get(&pool);
            let failed = held.is_some_and(|held| held.failure.is_some());
            let given = holder.address.is_none() || holder.gives(&pool).is_some();
            failed || holder.status.failure.is_some() || has(holder) && given
        };
        if holders.iter().any(|holder| waits_for_none(holder)) {
            continue;
        }
        let first = holders.iter().min_by_key(|holder| {
            let (name, pools) = (&holder.status.node_id, &holder.status.pools);
            let load = loads.get(name).copied().unwrap_or(0);
            // A node that was chosen before stays chosen.
            let told = holder.told.is_some_and(|told| told.pool(&pool).is_some());
            (!has(holder), !pools.contains_key(&pool), !told, load, name)
        });
        if let Some(holder) = first {
            *loads.entry(&holder.status.node_id).or_default() += 1;
            builders.insert(pool, &holder.status.node_id);
        }
    }
    builders
}

/// Removes the pools from a node's document whose images another node builds, unless the node has
/// begun with them itself; returns whether there were any.
pub fn hold_back(
    document: &mut DesiredState,
    status: &NodeStatus,
    builders: &BTreeMap<PoolRef, &Name>,
) -> bool {
    if builders.is_empty() {
        return false;
    }
    let mut any = false;
    for tenant in &mut document.tenants {
        tenant.pools.retain(|pool| {
            let pool = pool.reference(&tenant.tenant_id);
            let builder = builders.get(&pool);
            let waits = builder.is_some_and(|builder| **builder != document.node_id)
                && !status.pools.contains_key(&pool);
            any |= waits;
            !waits
        });
    }
    document.tenants.retain(|tenant| !tenant.pools.is_empty());
    any
}

/// Makes a node receive what others have built: for every pool of which it has no image, its
/// document names that of the others, if they give one. Once the node has an image the document
/// names none any more, so that a changed flake is built again.
pub fn name_images(document: &mut DesiredState, status: Option<&NodeStatus>, offers: &Offers<'_>) {
    let node = document.node_id.clone();
    for tenant in &mut document.tenants {
        for pool in &mut tenant.pools {
            let reference = pool.reference(&tenant.tenant_id);
            let has = |status: &NodeStatus| {
                status.pools.get(&reference).is_some_and(|pool| pool.revision.is_some())
            };
            if status.is_none_or(has) {
                continue;
            }
            let wanted = pool.revision.as_deref();
            let Some((digest, source)) = offers.best(&reference, wanted, &node) else {
                continue;
            };
            pool.revision = Some(digest);
            pool.revision_from = Some(source);
        }
    }
}

/// The images that nodes give, by pool; gathered once for the documents of all nodes.
#[derive(Debug, Default)]
pub struct Offers<'a>(BTreeMap<&'a PoolRef, BTreeMap<Image<'a>, Vec<Giver<'a>>>>);

/// The digest of an image, and that of its content.
type Image<'a> = (&'a str, &'a str);

#[derive(Debug)]
struct Giver<'a> {
    node: &'a Name,
    address: &'a str,
    /// The revision that the giver's document names.
    named: Option<&'a str>,
}

impl<'a> Offers<'a> {
    /// Gathers what these nodes give.
    pub fn of(holders: &[Holder<'a>]) -> Offers<'a> {
        let mut offers = Offers::default();
        for holder in holders {
            for (pool, held) in &holder.status.pools {
                let (Some(digest), Some(content)) = (&held.revision, &held.content) else {
                    continue;
                };
                let Some(giver) = holder.gives(pool) else { continue };
                let images = offers.0.entry(pool).or_default();
                images.entry((digest, content)).or_default().push(giver);
            }
        }
        offers
    }

    /// Returns the image of a pool that most other nodes give, and these nodes; `wanted` is the
    /// revision that this node's document names.
    fn best(
        &self,
        pool: &PoolRef,
        wanted: Option<&str>,
        node: &Name,
    ) -> Option<(String, ImageSource)> {
        let is_for_it = |giver: &&Giver<'_>| {
            giver.node != node && (giver.named.is_none() || giver.named == wanted)
        };
        let images = self.0.get(pool)?.iter();
        let offers = images
            .filter(|((digest, _), _)| wanted.is_none_or(|wanted| wanted == *digest))
            .map(|(image, givers)| {
                let addresses = givers.iter().filter(is_for_it).map(|giver| giver.address);
                (image, addresses.collect::<Vec<_>>())
            })
            .filter(|(_, addresses)| !addresses.is_empty());
        let ((digest, content), mut sources) = offers.max_by_key(|(_, sources)| sources.len())?;
        // Each node begins with another source, so that not a whole fleet uses the same one.
        let start = node.as_str().bytes().map(usize::from).sum::<usize>() % sources.len();
        sources.rotate_left(start);
        sources.truncate(SOURCES);
        let nodes = sources.into_iter().map(str::to_owned).collect();
        Some(((*digest).to_owned(), ImageSource { content: (*content).to_owned(), nodes }))
    }
}
