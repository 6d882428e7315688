//! Which node receives an image from which.

use mvm_model::fleet::{
    Capacity, Holder, NodeStatus, Offers, PoolStatus, builders, hold_back, name_images,
};
use mvm_model::{DesiredState, Name, PoolRef};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn pool() -> PoolRef {
    "ci/runners".parse().unwrap()
}

fn document(node: &str, revision: Option<String>) -> DesiredState {
    let mut document =
        DesiredState::parse(include_bytes!("../../../examples/desired-state.json")).unwrap();
    document.node_id = name(node);
    document.tenants[0].pools[0].revision = revision;
    document
}

fn digest(number: u8) -> String {
    format!("{number:064x}")
}

fn status(node: &str, image: Option<(u8, Option<u8>)>) -> NodeStatus {
    let held = PoolStatus {
        revision: image.map(|(revision, _)| digest(revision)),
        content: image.and_then(|(_, content)| content.map(digest)),
        ..PoolStatus::default()
    };
    NodeStatus {
        node_id: name(node),
        version: String::new(),
        capacity: Capacity::default(),
        labels: Default::default(),
        cpu_model: String::new(),
        simulated: true,
        images: Default::default(),
        pools: BTreeMap::from([(pool(), held)]),
        document: None,
        pending: 0,
        failure: None,
        failure_code: None,
        newest_event: 0,
    }
}

/// Returns a node that sends the images of its document to others.
fn giver<'a>(address: &'a str, status: &'a NodeStatus, document: &'a DesiredState) -> Holder<'a> {
    Holder { status, document, told: Some(document), done: true, address: Some(address) }
}

proptest! {
    #[test]
    fn an_image_comes_from_nodes_that_have_it_and_only_where_it_is_missing(
        own in proptest::option::of((0u8..3, proptest::option::of(0u8..2))),
        others in proptest::collection::vec(
            proptest::option::of((0u8..3, proptest::option::of(0u8..2))), 0..6),
        pinned in proptest::option::of(0u8..3),
    ) {
        let names: Vec<Name> = (0..others.len()).map(|i| name(&format!("n{i}"))).collect();
        let statuses: Vec<NodeStatus> =
            names.iter().zip(&others).map(|(n, image)| status(n.as_str(), *image)).collect();
        let addresses: Vec<String> =
            (0..others.len()).map(|i| format!("10.0.0.{i}:4433")).collect();
        let plain = document("me", pinned.map(digest));
        let holders: Vec<Holder<'_>> = (statuses.iter().zip(&addresses))
            .map(|(status, address)| giver(address, status, &plain))
            .collect();
        let mut told = plain.clone();
        name_images(&mut told, Some(&status("me", own)), &Offers::of(&holders));
        told.validate().unwrap();
        let wanted = &told.tenants[0].pools[0];
        let Some(source) = &wanted.revision_from else {
            prop_assert_eq!(&told, &plain);
            let fits = |image: &Option<(u8, Option<u8>)>| {
                image.is_some_and(|(r, c)| c.is_some() && pinned.is_none_or(|p| p == r))
            };
            prop_assert!(own.is_some() || !others.iter().any(fits));
            return Ok(());
        };
        prop_assert!(own.is_none());
        let revision = wanted.revision.clone().unwrap();
        prop_assert!(pinned.is_none_or(|pinned| digest(pinned) == revision));
        prop_assert!(!source.nodes.is_empty());
        for node in &source.nodes {
            let at = addresses.iter().position(|address| address == node).unwrap();
            let held = &statuses[at].pools[&pool()];
            prop_assert_eq!(held.revision.as_ref(), Some(&revision));
            prop_assert_eq!(held.content.as_ref(), Some(&source.content));
        }
    }
}

#[test]
fn a_node_that_was_not_heard_of_is_told_nothing_of_images() {
    let (other, plain) = (status("n0", Some((1, Some(1)))), document("me", None));
    let mut told = plain.clone();
    name_images(&mut told, None, &Offers::of(&[giver("10.0.0.1:4433", &other, &plain)]));
    assert_eq!(told, plain);
}

#[test]
fn what_a_node_merely_keeps_is_given_to_nobody() {
    let (old, own) = (status("n0", Some((1, Some(1)))), status("me", None));
    let (plain, kept) = (document("me", None), document("n0", Some(digest(1))));
    let given = |wanted: &DesiredState| {
        let mut told = wanted.clone();
        name_images(&mut told, Some(&own), &Offers::of(&[giver("10.0.0.1:4433", &old, &kept)]));
        told.tenants[0].pools[0].revision_from.is_some()
    };
    assert!(!given(&plain));
    assert!(given(&document("me", Some(digest(1)))), "it is asked for by name");
}

/// The state of a node of a small fleet.
#[derive(Clone, Debug)]
struct Site {
    name: Name,
    plain: DesiredState,
    told: DesiredState,
    status: NodeStatus,
    will_give: bool,
}

impl Site {
    /// Returns a node that is to hold the document's pool; `more` are pools that only some nodes
    /// hold.
    fn new(index: usize, more: &[bool], will_give: bool) -> Site {
        let name = name(&format!("n{index}"));
        let mut plain = document(name.as_str(), None);
        let pool = plain.tenants[0].pools[0].clone();
        for (number, _) in more.iter().enumerate().filter(|(_, here)| **here) {
            let pool_id = format!("p{number}").parse().unwrap();
            plain.tenants[0]
                .pools
                .push(mvm_model::desired::DesiredPool { pool_id, ..pool.clone() });
        }
        let status = NodeStatus { pools: BTreeMap::new(), ..status(name.as_str(), None) };
        let told = DesiredState { tenants: Vec::new(), ..plain.clone() };
        Site { name, plain, told, status, will_give }
    }

    /// Carries out the node's document.
    fn work(&mut self) {
        for pool in self.told.references() {
            let held = self.status.pools.entry(pool).or_default();
            (held.revision, held.content) = (Some(digest(1)), Some(digest(1)));
        }
    }

    fn done(&self) -> bool {
        self.told.references().all(|pool| self.status.pools.contains_key(&pool))
    }

    fn holds(&self) -> Holder<'_> {
        Holder {
            status: &self.status,
            document: &self.plain,
            told: Some(&self.told),
            done: self.done(),
            address: self.will_give.then_some("10.0.0.1:4433"),
        }
    }
}

/// Sends every node its new document. Returns how many pools are built anew.
fn tell(sites: &mut [Site]) -> usize {
    let before = sites.to_vec();
    let holders: Vec<Holder<'_>> = before.iter().map(Site::holds).collect();
    let builders = builders(&holders);
    let mut built = 0;
    for site in sites {
        let known: Vec<PoolRef> = site.told.references().collect();
        site.told = site.plain.clone();
        hold_back(&mut site.told, &site.status, &builders);
        name_images(&mut site.told, Some(&site.status), &Offers::of(&holders));
        let new = site.told.references().filter(|pool| !known.contains(pool));
        built += new.filter(|pool| site.told.pool(pool).unwrap().revision.is_none()).count();
    }
    built
}

proptest! {
    #[test]
    fn an_image_is_built_once_where_it_can_be_received_and_all_nodes_come_to_it(
        more in proptest::collection::vec(proptest::collection::vec(any::<bool>(), 3), 1..6),
        works in proptest::collection::vec(0usize..6, 0..20),
        deaf in any::<bool>(),
    ) {
        let mut sites: Vec<Site> =
            more.iter().enumerate().map(|(i, more)| Site::new(i, more, !deaf)).collect();
        let pools: std::collections::BTreeSet<PoolRef> =
            sites.iter().flat_map(|site| site.plain.references().collect::<Vec<_>>()).collect();
        let mut built = tell(&mut sites);
        // The nodes work in any order, and then each as often as may be necessary.
        let every = (0..sites.len()).cycle().take(sites.len() * 4);
        for at in works.into_iter().map(|at| at % more.len()).chain(every) {
            sites[at].work();
            built += tell(&mut sites);
        }
        for site in &sites {
            prop_assert_eq!(&site.told, &site.plain, "{} is told all", site.name);
            prop_assert!(site.done());
        }
        if !deaf {
            prop_assert_eq!(built, pools.len());
        }
    }
}

#[test]
fn where_the_builder_fails_all_build() {
    let mut sites = vec![Site::new(0, &[], true), Site::new(1, &[], true)];
    assert_eq!(tell(&mut sites), 1);
    let at = sites.iter().position(|site| !site.told.tenants.is_empty()).unwrap();
    let held = PoolStatus { failure: Some("no nix here".into()), ..PoolStatus::default() };
    sites[at].status.pools.insert(pool(), held);
    assert_eq!(tell(&mut sites), 1);
    assert!(sites.iter().all(|site| site.told == site.plain));
}
