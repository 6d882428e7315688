//! From a node's present state to a document: the steps lead exactly there.

mod support;

use mvm_model::desired::{DesiredPool, DesiredState, DesiredTenant, Step, diff};
use mvm_model::network::TenantNetwork;
use mvm_model::{
    Cache, Code, Counts, Digest, Mib, Name, Pool, PoolRef, Recycle, Resources, Tenant, Timestamp,
};
use proptest::prelude::*;
use std::collections::BTreeMap;

type Held = (BTreeMap<Name, Tenant>, BTreeMap<PoolRef, Pool>);

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Each name has its own network, so that all documents agree about it.
fn network(index: usize) -> TenantNetwork {
    let subnet = format!("10.{index}.0.0/24").parse().unwrap();
    TenantNetwork {
        tenant_net_id: index as u16 + 1,
        ipv4_subnet: subnet,
        allow_public_subnet: false,
    }
}

fn pools() -> impl Strategy<Value = Vec<DesiredPool>> {
    let pool = (0usize..3, 0u32..3, 0u32..3, 0u32..2, any::<bool>(), any::<bool>());
    proptest::collection::vec(pool, 0..3).prop_map(|pools| {
        let mut by_name = BTreeMap::new();
        for (index, warm, sleeping, flake, large, sleep) in pools {
            let pool_id = name(["a", "b", "c"][index]);
            let pool = DesiredPool {
                pool_id: pool_id.clone(),
                flake_ref: format!("/flake-{flake}"),
                profile: "p".into(),
                override_inputs: BTreeMap::new(),
                revision: (flake == 1).then(|| format!("{warm:064x}")),
                revision_from: None,
                instance_resources: Resources {
                    mem_mib: Mib(if large { 512 } else { 256 }),
                    ..Resources::default()
                },
                caches: (0..usize::from(large))
                    .map(|_| Cache {
                        name: name("c"),
                        path: format!("/c{flake}"),
                        size_mib: Mib(64),
                    })
                    .collect(),
                egress: mvm_model::Egress { allow_lan: sleep && large, ..Default::default() },
                recycle: if sleep { Recycle::Sleep } else { Recycle::Reset },
                cpu_model: if sleep { "EPYC" } else { "host" }.parse().expect("a model"),
                prewarm: sleep.then(|| "true".into()),
                runtime_policy: mvm_model::runtime_policy::RuntimePolicy {
                    max_jobs: warm,
                    ..Default::default()
                },
                desired_counts: Counts { running: 0, warm, sleeping },
            };
            by_name.insert(pool_id, pool);
        }
        by_name.into_values().collect()
    })
}

fn documents() -> impl Strategy<Value = DesiredState> {
    proptest::collection::vec((0usize..4, pools(), 2u64..5), 0..4).prop_map(|tenants| {
        let mut by_name = BTreeMap::new();
        for (index, pools, warm) in tenants {
            let tenant_id = name(["k", "l", "m", "n"][index]);
            let mut quotas = mvm_model::Quotas { max_pools: 3, ..Default::default() };
            quotas.max_warm =
                warm.max(pools.iter().map(|p| u64::from(p.desired_counts.warm)).sum());
            let tenant = DesiredTenant {
                tenant_id: tenant_id.clone(),
                network: network(index),
                quotas,
                pools,
            };
            by_name.insert(tenant_id, tenant);
        }
        let tenants = by_name.into_values().collect();
        let document = DesiredState { schema_version: 1, node_id: name("node"), tenants };
        document.validate().unwrap();
        document
    })
}

/// Does what a node does for a step. The step must be possible in the present state.
fn carry_out(held: &mut Held, document: &DesiredState, step: &Step) {
    let (tenants, pools) = held;
    match step {
        Step::DestroyPool { pool } => assert!(pools.remove(pool).is_some()),
        Step::DestroyTenant { tenant } => {
            assert!(!pools.keys().any(|pool| pool.tenant == *tenant));
            assert!(tenants.remove(tenant).is_some());
        }
        Step::CreateTenant { tenant } => {
            let wanted = document.tenant(tenant).unwrap();
            let (network, quotas) = (wanted.network.clone(), wanted.quotas);
            let record =
                Tenant { name: tenant.clone(), network, quotas, created_at: Timestamp::EPOCH };
            assert!(tenants.insert(tenant.clone(), record).is_none());
        }
        Step::UpdateTenant { tenant, quotas } => tenants.get_mut(tenant).unwrap().quotas = *quotas,
        Step::CreatePool { pool } => {
            let most = tenants[&pool.tenant].quotas.max_pools as usize;
            assert!(pools.keys().filter(|other| other.tenant == pool.tenant).count() < most);
            let record = update(Pool { reference: pool.clone(), ..support::pool() }, document);
            assert!(pools.insert(pool.clone(), record).is_none());
        }
        Step::UpdatePool { pool, .. } => {
            let known = pools.remove(pool).unwrap();
            pools.insert(pool.clone(), update(known, document));
        }
        Step::Build { pool } => {
            let pinned = document.pool(pool).unwrap().revision.clone();
            let built = || Digest::of("digest");
            let digest = pinned.map_or_else(built, |pinned| pinned.parse().expect("a digest"));
            pools.get_mut(pool).unwrap().record_build(digest, Timestamp::EPOCH);
        }
        Step::Scale { pool, counts } => {
            let record = pools.get_mut(pool).unwrap();
            assert!(record.current_revision().is_some(), "nothing is scaled before it is built");
            record.desired = Some(*counts);
        }
    }
}

fn update(mut pool: Pool, document: &DesiredState) -> Pool {
    let wanted = document.pool(&pool.reference).unwrap();
    pool.stale = pool.current.is_some() && pool.flake_ref != wanted.flake_ref;
    pool.flake_ref = wanted.flake_ref.clone();
    pool.profile = wanted.profile.clone();
    pool.resources = wanted.instance_resources;
    pool.caches = mvm_model::cache::change(&pool.caches, wanted.caches.clone()).unwrap();
    pool.recycle = wanted.recycle;
    pool.prewarm = wanted.prewarm.clone();
    pool.cpu_model = wanted.cpu_model.clone();
    pool.runtime_policy = wanted.runtime_policy;
    pool.egress = wanted.egress.clone();
    pool
}

/// Returns a node after it was brought to a document.
fn brought_to(mut held: Held, document: &DesiredState, prune: bool) -> Held {
    let steps = diff(document, &held.0, &held.1, prune).unwrap();
    for step in &steps {
        carry_out(&mut held, document, step);
    }
    held
}

proptest! {
    #[test]
    fn the_steps_lead_to_the_document_and_then_there_are_none(
        first in documents(), second in documents(), cut in any::<proptest::sample::Index>(),
    ) {
        let mut held = brought_to(Held::default(), &first, true);
        // The agent may be killed after any step.
        let steps = diff(&second, &held.0, &held.1, true).unwrap();
        for step in &steps[..cut.index(steps.len() + 1)] {
            carry_out(&mut held, &second, step);
        }
        let held = brought_to(held, &second, true);
        prop_assert_eq!(diff(&second, &held.0, &held.1, true).unwrap(), vec![]);
        // The node's own state, as a document, equals the document.
        let told = DesiredState::of(second.node_id.clone(), held.0.values(), &held.1);
        // Images are the exception: a document of the node's state names none.
        let mut unpinned = second.clone();
        for pool in unpinned.tenants.iter_mut().flat_map(|tenant| &mut tenant.pools) {
            pool.revision = None;
        }
        for (reference, pool) in &held.1 {
            let pinned = &second.pool(reference).unwrap().revision;
            let current = pool.current_revision().unwrap().digest.to_string();
            prop_assert!(pinned.as_ref().is_none_or(|pinned| *pinned == current));
        }
        prop_assert_eq!(&told, &unpinned);
        prop_assert_eq!(diff(&told, &held.0, &held.1, true).unwrap(), vec![]);
    }

    #[test]
    fn without_prune_nothing_is_removed(first in documents(), second in documents()) {
        let before = brought_to(Held::default(), &first, true);
        match diff(&second, &before.0, &before.1, false) {
            Err(fault) => prop_assert_eq!(fault.code, Code::QuotaExceeded),
            Ok(_) => {
                let after = brought_to(before.clone(), &second, false);
                prop_assert!(before.0.keys().all(|tenant| after.0.contains_key(tenant)));
                prop_assert!(before.1.keys().all(|pool| after.1.contains_key(pool)));
                prop_assert_eq!(diff(&second, &after.0, &after.1, false).unwrap(), vec![]);
            }
        }
    }
}

#[test]
fn a_network_is_not_changed_under_a_tenant() {
    let document = |index: usize, tenant: &str| DesiredState {
        schema_version: 1,
        node_id: name("node"),
        tenants: vec![DesiredTenant {
            tenant_id: name(tenant),
            network: network(index),
            quotas: Default::default(),
            pools: Vec::new(),
        }],
    };
    let held = brought_to(Held::default(), &document(1, "k"), false);
    for (wanted, part) in [(document(2, "k"), "not changed"), (document(1, "l"), "tenant k")] {
        let fault = diff(&wanted, &held.0, &held.1, true).unwrap_err();
        assert_eq!(fault.path, "$.tenants[0].network");
        assert!(fault.message.contains(part), "{fault}");
    }
}

#[test]
fn a_cache_is_not_resized_under_its_content() {
    let mut document =
        DesiredState::parse(include_bytes!("../../../examples/desired-state.json")).unwrap();
    let cache = |size_mib| Cache { name: name("c"), path: "/c".to_owned(), size_mib };
    document.tenants[0].pools[0].caches = vec![cache(Mib(64))];
    let held = brought_to(Held::default(), &document, false);
    document.tenants[0].pools[0].caches = vec![cache(Mib(128))];
    let fault = diff(&document, &held.0, &held.1, false).unwrap_err();
    assert_eq!((fault.code, fault.path.as_str()), (Code::Conflict, "$.tenants[0].pools[0].caches"));
    document.tenants[0].pools[0].caches.clear();
    assert!(diff(&document, &held.0, &held.1, false).is_ok());
}

#[test]
fn flakes_are_found_from_the_document() {
    let mut document =
        DesiredState::parse(include_bytes!("../../../examples/desired-state.json")).unwrap();
    let pool = &mut document.tenants[0].pools[0];
    let inputs = [("a", "path:../pkgs"), ("b", "github:o/r"), ("c", "/abs")];
    pool.override_inputs = inputs.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    document.rebase("/etc/mvm/");
    let pool = &document.tenants[0].pools[0];
    assert_eq!(pool.flake_ref, "/etc/mvm/ci-flake");
    let inputs: Vec<&String> = pool.override_inputs.values().collect();
    assert_eq!(inputs, ["path:/etc/mvm/../pkgs", "github:o/r", "/abs"]);
}

/// A bare name is a path as well: `ci-flake` is not looked up in a registry.
#[test]
fn only_a_url_or_an_absolute_path_starts_by_itself() {
    use mvm_model::desired::{rebase, settled};
    let cases = [
        ("./ci-flake", "/etc/mvm/ci-flake"),
        ("ci-flake", "/etc/mvm/ci-flake"),
        ("flakes/ci", "/etc/mvm/flakes/ci"),
        ("path:ci-flake", "path:/etc/mvm/ci-flake"),
        ("path:./ci?dir=x", "path:/etc/mvm/ci?dir=x"),
        ("../ci-flake", "/etc/mvm/../ci-flake"),
        (".", "/etc/mvm/."),
        ("/abs", "/abs"),
        ("path:/abs", "path:/abs"),
        ("github:o/r", "github:o/r"),
        ("git+ssh://h/r", "git+ssh://h/r"),
        ("flake:nixpkgs", "flake:nixpkgs"),
    ];
    for (written, wanted) in cases {
        let mut reference = written.to_owned();
        assert_eq!(settled(written, "$").is_ok(), written == wanted, "{written}");
        rebase(&mut reference, "/etc/mvm");
        assert_eq!(reference, wanted);
        settled(&reference, "$").unwrap();
    }
}

#[test]
fn a_document_whose_flake_starts_nowhere_is_refused_where_it_is_put_in_force() {
    let text = include_bytes!("../../../examples/desired-state.json");
    let document = DesiredState::parse(text).unwrap();
    let fault = document.settled().unwrap_err();
    assert_eq!(fault.path, "$.tenants[0].pools[0].flake_ref");
    DesiredState::parse_in(text, "/etc/mvm", &Default::default()).unwrap().settled().unwrap();
}
