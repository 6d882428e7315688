//! Who receives an image from whom.

use mvm_model::fleet::{Capacity, Giver, NodeStatus, PoolStatus, name_images};
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
        newest_event: 0,
    }
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
        let givers: BTreeMap<&Name, Giver<'_>> = (names.iter().zip(&statuses).zip(&addresses))
            .map(|((name, status), address)| (name, Giver { address, status, document: &plain }))
            .collect();
        let mut told = plain.clone();
        name_images(&mut told, Some(&status("me", own)), &givers);
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
    let (giver, plain) = (status("n0", Some((1, Some(1)))), document("me", None));
    let (other, address) = (name("n0"), "10.0.0.1:4433");
    let giver = Giver { address, status: &giver, document: &plain };
    let mut told = plain.clone();
    name_images(&mut told, None, &BTreeMap::from([(&other, giver)]));
    assert_eq!(told, plain);
}

#[test]
fn what_a_node_merely_keeps_is_given_to_nobody() {
    let (old, own) = (status("n0", Some((1, Some(1)))), status("me", None));
    let (plain, kept) = (document("me", None), document("n0", Some(digest(1))));
    let (other, address) = (name("n0"), "10.0.0.1:4433");
    let given = |wanted: &DesiredState| {
        let giver = Giver { address, status: &old, document: &kept };
        let mut told = wanted.clone();
        name_images(&mut told, Some(&own), &BTreeMap::from([(&other, giver)]));
        told.tenants[0].pools[0].revision_from.is_some()
    };
    assert!(!given(&plain));
    assert!(given(&document("me", Some(digest(1)))), "it is asked for by name");
}
