//! Every operation, with the situation in which it begins.

use super::host::IMAGES;
use super::runs::{MARK, write};
use crate::Result;
use crate::agent::Agent;
use crate::error::Missing;
use crate::lease_request::LeaseRequest;
use crate::leases::leased;
use futures::future::{FutureExt, LocalBoxFuture};
use mvm_api::fleet::{Leader, NodeClaim};
use mvm_api::types::{CreatePool, CreateTenant, PolicyPatch, ScalePool, UpdatePool};
use mvm_model::cache::Cache;
use mvm_model::desired::{DesiredPool, DesiredState, DesiredTenant, SCHEMA_VERSION};
use mvm_model::lease::{HOLD, Purpose};
use mvm_model::network::TenantNetwork;
use mvm_model::{
    Actor, Code, Counts, Digest, Instance, InstanceId, LeaseId, Mib, Name, PoolRef, Quotas,
    Recycle, Resources, State,
};
use std::sync::Arc;

/// A part of an operation.
pub type Step = Box<dyn Fn(Arc<Agent>) -> LocalBoxFuture<'static, Result<()>>>;

/// One operation.
pub struct Operation {
    /// The operation's name.
    pub name: String,
    /// Prepares the situation in which the operation begins.
    pub prepare: Step,
    /// Runs the operation.
    pub act: Step,
    /// Runs the operation again, after whatever happened the first time.
    pub again: Option<Step>,
    /// Returns whether the operation may destroy this instance.
    pub may_go: fn(&Instance) -> bool,
    /// The number of instances that the operation makes in pools that were never scaled.
    pub makes: usize,
    /// Whether the earlier instances have a mark in memory, which must not be lost.
    pub marked: bool,
}

pub fn step<F: Future<Output = Result<()>> + 'static>(
    work: impl Fn(Arc<Agent>) -> F + 'static,
) -> Step {
    Box::new(move |agent| work(agent).boxed_local())
}

/// Returns all operations.
pub fn all() -> Vec<Operation> {
    let mut all = transitions();
    all.extend(clones());
    all.extend(claims());
    all.extend(super::queue::all());
    all.extend(pools());
    all.extend(documents());
    all
}

/// Returns the transitions of one instance from one state to another.
fn transitions() -> Vec<Operation> {
    use State::{Created, Destroyed, Failed, Running, Sleeping, Stopped, Warm};
    let ways = [
        (Created, Running),
        (Created, Warm),
        (Created, Sleeping),
        (Created, Destroyed),
        (Running, Warm),
        (Running, Sleeping),
        (Running, Stopped),
        (Running, Destroyed),
        (Warm, Running),
        (Warm, Sleeping),
        (Warm, Stopped),
        (Warm, Destroyed),
        (Sleeping, Running),
        (Sleeping, Warm),
        (Sleeping, Stopped),
        (Sleeping, Destroyed),
        (Stopped, Running),
        (Stopped, Destroyed),
        (Failed, Running),
        (Failed, Destroyed),
    ];
    let of = |(from, to): (State, State)| transition(from, to, true);
    let mut all: Vec<Operation> = ways.into_iter().map(of).collect();
    // The same transitions where no process lingers after the sleep.
    let ways = [
        (Running, Sleeping),
        (Warm, Sleeping),
        (Sleeping, Running),
        (Sleeping, Warm),
        (Sleeping, Stopped),
        (Sleeping, Destroyed),
    ];
    all.extend(ways.map(|(from, to)| transition(from, to, false)));
    all.push(Operation {
        name: "the end of lingering".to_owned(),
        prepare: step(move |agent| async move {
            pool(&agent, Recycle::Reset, None).await?;
            instance(&agent, Sleeping).await
        }),
        act: step(|agent| async move { disable_lingering(&agent).await }),
        again: Some(step(|agent| async move { bring_only(&agent, Running).await })),
        ..transition(Sleeping, Sleeping, true)
    });
    all
}

fn transition(from: State, to: State, lingers: bool) -> Operation {
    use State::{Created, Destroyed, Failed, Stopped};
    Operation {
        name: format!("{from} to {to}{}", if lingers { "" } else { ", lingering never" }),
        prepare: step(move |agent| async move {
            pool(&agent, Recycle::Reset, None).await?;
            if !lingers {
                disable_lingering(&agent).await?;
            }
            instance(&agent, from).await
        }),
        act: step(move |agent| async move { bring_only(&agent, to).await }),
        again: Some(step(move |agent| async move { bring_only(&agent, to).await })),
        may_go: if to == Destroyed { |_| true } else { |_| false },
        makes: 0,
        marked: to != Stopped && !matches!(from, Created | Stopped | Failed),
    }
}

/// Returns the operations on templates and their clones.
fn clones() -> Vec<Operation> {
    use State::{Created, Running, Sleeping, Stopped, Warm};
    let mut all = vec![
        Operation {
            name: "create".to_owned(),
            prepare: step(|agent| async move { pool(&agent, Recycle::Reset, None).await }),
            act: step(|agent| async move {
                agent.lifecycle.transitions.create(&runners(), None).await.map(drop)
            }),
            again: Some(step(|agent| async move {
                agent.lifecycle.transitions.create(&runners(), None).await.map(drop)
            })),
            may_go: |_| false,
            makes: 1,
            marked: false,
        },
        Operation {
            name: "make a template".to_owned(),
            prepare: step(|agent| async move { pool(&agent, Recycle::Reset, Some("true")).await }),
            act: step(
                |agent| async move { agent.pools.template_maker.ensure_of(&runners()).await },
            ),
            again: Some(step(|agent| async move {
                agent.pools.template_maker.ensure_of(&runners()).await
            })),
            may_go: |_| false,
            makes: 0,
            marked: false,
        },
    ];
    // The name, the earlier states of the clone, and the state to which it is brought.
    let ways: [(&'static str, &'static [State], State); 8] = [
        ("clone", &[], Running),
        ("clone to warm", &[], Warm),
        ("lie down", &[], Sleeping),
        ("rise", &[Sleeping], Running),
        ("rise to warm", &[Sleeping], Warm),
        ("a dormant one to stopped", &[Sleeping], Stopped),
        ("a clone's first sleep", &[Running], Sleeping),
        ("a used clone's wake", &[Running, Sleeping], Running),
    ];
    all.extend(ways.into_iter().map(|(name, before, to)| Operation {
        name: name.to_owned(),
        prepare: step(move |agent| async move {
            pool(&agent, Recycle::Reset, None).await?;
            agent.pools.template_maker.ensure_of(&runners()).await?;
            let made = agent.lifecycle.transitions.create(&runners(), None).await?;
            for state in before {
                agent.lifecycle.instances.transition_to(made.id, *state, &Actor::Agent).await?;
                if *state == Running {
                    write(&agent, made.id, MARK, "mine").await?;
                }
            }
            Ok(())
        }),
        act: step(move |agent| async move { bring_only(&agent, to).await }),
        again: Some(step(move |agent| async move { bring_only(&agent, to).await })),
        may_go: |_| false,
        makes: 0,
        marked: before.contains(&Running),
    }));
    all.push(Operation {
        name: "destroy a clone".to_owned(),
        prepare: step(|agent| async move {
            pool(&agent, Recycle::Reset, None).await?;
            agent.pools.template_maker.ensure_of(&runners()).await?;
            instance(&agent, Running).await
        }),
        act: step(|agent| async move { bring_only(&agent, State::Destroyed).await }),
        again: Some(step(|agent| async move { bring_only(&agent, State::Destroyed).await })),
        may_go: |i| i.state != Created,
        makes: 0,
        marked: false,
    });
    all
}

/// Makes a claim for a fleet that is never renewed, and waits until it has ended by itself.
async fn abandoned_claim(agent: &Arc<Agent>) -> Result<()> {
    let id = LeaseId::of_claim(1);
    let leader = Leader { fleet_id: name("f"), epoch: 1 };
    let (pool, holder) = (runners(), "uid:0".to_owned());
    let claim = NodeClaim { leader, pool, holder, lease_s: None };
    agent.steering.fleet.claim(&id.to_string(), claim).await?;
    let mut changes = agent.base.records.subscribe();
    agent.advance(HOLD);
    agent.work.leases.expire().await;
    while agent.base.records.read(|records| leased(records, id).is_ok()) {
        let _ = changes.changed().await;
    }
    Ok(())
}

/// Returns claims and the ends of their leases, by every recycling rule and from every readiness.
fn claims() -> Vec<Operation> {
    let spares: [(&str, Counts); 3] =
        [("warm", counts(0, 1, 0)), ("sleeping", counts(0, 0, 1)), ("nothing", counts(0, 0, 0))];
    let rules = [Recycle::Reset, Recycle::Sleep, Recycle::Keep];
    let of = |rule: Recycle, (from, counts): (&'static str, Counts)| Operation {
        name: format!("claim from {from}, {rule:?}"),
        prepare: step(move |agent| async move {
            pool(&agent, rule, None).await?;
            scale(&agent, counts).await
        }),
        act: step(|agent| async move { claim(&agent).await }),
        again: Some(step(|agent| async move { claim(&agent).await })),
        may_go: |_| true,
        makes: 0,
        marked: false,
    };
    let mut all: Vec<Operation> =
        rules.into_iter().flat_map(|rule| spares.map(|spare| of(rule, spare))).collect();
    all.push(Operation {
        name: "claim from a damaged template".to_owned(),
        prepare: step(|agent| async move {
            pool(&agent, Recycle::Reset, None).await?;
            agent.pools.template_maker.ensure_of(&runners()).await?;
            damage_template(&agent);
            Ok(())
        }),
        act: step(|agent| async move { claim(&agent).await }),
        again: Some(step(|agent| async move { claim(&agent).await })),
        may_go: |_| true,
        makes: 0,
        marked: false,
    });
    all.push(Operation {
        name: "a fleet's claim whose holder goes".to_owned(),
        prepare: step(|agent| async move {
            pool(&agent, Recycle::Reset, None).await?;
            scale(&agent, counts(0, 1, 0)).await
        }),
        act: step(|agent| async move { abandoned_claim(&agent).await }),
        again: Some(step(|agent| async move { abandoned_claim(&agent).await })),
        may_go: |_| true,
        makes: 0,
        marked: false,
    });
    all.push(Operation {
        name: "wake and put aside".to_owned(),
        prepare: step(|agent| async move {
            pool(&agent, Recycle::Sleep, None).await?;
            instance(&agent, State::Sleeping).await
        }),
        act: step(|agent| async move {
            let instance = only(&agent)?;
            let reference = instance.reference();
            agent.work.leases.take(&reference, &request(Purpose::Manual)).await?;
            let by = Actor::Holder("uid:0".to_owned());
            agent.lifecycle.instances.transition_to(instance.id, State::Sleeping, &by).await?;
            assert!(only(&agent)?.lease.is_none());
            Ok(())
        }),
        again: Some(step(|agent| async move { bring_only(&agent, State::Running).await })),
        may_go: |_| false,
        makes: 0,
        marked: true,
    });
    all
}

/// Returns the operations on whole pools.
fn pools() -> Vec<Operation> {
    let ways: [(&str, Counts, Counts); 4] = [
        ("scale up", counts(0, 0, 0), counts(1, 1, 1)),
        ("scale down", counts(1, 1, 1), counts(0, 0, 0)),
        ("warm up", counts(0, 0, 2), counts(1, 1, 0)),
        ("cool down", counts(1, 1, 0), counts(0, 0, 2)),
    ];
    let of = |(name, from, to): (&str, Counts, Counts)| Operation {
        name: name.to_owned(),
        prepare: step(move |agent| async move {
            pool(&agent, Recycle::Reset, None).await?;
            agent.pools.template_maker.ensure_of(&runners()).await?;
            scale(&agent, from).await
        }),
        act: step(move |agent| async move { scale(&agent, to).await }),
        again: Some(step(move |agent| async move { scale(&agent, to).await })),
        may_go: |_| true,
        makes: 0,
        marked: false,
    };
    let mut all: Vec<Operation> = ways.into_iter().map(of).collect();
    all.push(Operation {
        name: "a new revision".to_owned(),
        prepare: step(|agent| async move {
            pool(&agent, Recycle::Reset, None).await?;
            scale(&agent, counts(0, 1, 1)).await
        }),
        act: step(|agent| async move { build(&agent, &runners(), IMAGES[1]).await }),
        again: Some(step(|agent| async move {
            agent.pools.catalog.rollback(&runners(), Some(1)).await.map(drop)
        })),
        may_go: |_| true,
        makes: 0,
        marked: false,
    });
    all.push(Operation {
        name: "destroy a pool".to_owned(),
        prepare: step(|agent| async move {
            pool(&agent, Recycle::Reset, None).await?;
            scale(&agent, counts(1, 1, 1)).await
        }),
        act: step(|agent| async move { agent.pools.removal.destroy_pool(&runners()).await }),
        again: Some(step(|agent| async move {
            gone(agent.pools.removal.destroy_pool(&runners()).await)
        })),
        may_go: |_| true,
        makes: 0,
        marked: false,
    });
    all
}

/// Returns the operations on tenants and documents.
fn documents() -> Vec<Operation> {
    vec![
        Operation {
            name: "create a tenant".to_owned(),
            prepare: step(|_| async { Ok(()) }),
            act: step(|agent| async move { tenant(&agent, "ci", 20).await }),
            again: Some(step(|agent| async move { tenant(&agent, "ci", 20).await })),
            may_go: |_| false,
            makes: 0,
            marked: false,
        },
        Operation {
            name: "destroy a tenant".to_owned(),
            prepare: step(|agent| async move {
                tenant(&agent, "ci", 20).await?;
                tenant(&agent, "other", 21).await
            }),
            act: step(|agent| async move { agent.pools.tenants.destroy(&name("ci")).await }),
            again: Some(step(|agent| async move {
                gone(agent.pools.tenants.destroy(&name("ci")).await)
            })),
            may_go: |_| false,
            makes: 0,
            marked: false,
        },
        Operation {
            name: "reconcile to a document, with prune".to_owned(),
            prepare: step(|agent| async move {
                pool(&agent, Recycle::Reset, None).await?;
                scale(&agent, counts(0, 1, 0)).await?;
                tenant(&agent, "old", 21).await?;
                let old: PoolRef = "old/pool".parse()?;
                pool_in(&agent, &old, Recycle::Reset, None).await?;
                let counts = ScalePool { warm: Some(1), ..ScalePool::default() };
                agent.pools.catalog.scale(&old, counts).await
            }),
            act: step(|agent| async move { apply(&agent).await }),
            again: Some(step(|agent| async move { apply(&agent).await })),
            may_go: |_| true,
            makes: 0,
            marked: false,
        },
    ]
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

/// Returns the pool that most operations use.
pub fn runners() -> PoolRef {
    "ci/runners".parse().expect("a pool")
}

pub fn counts(running: u32, warm: u32, sleeping: u32) -> Counts {
    Counts { running, warm, sleeping }
}

fn shape() -> Resources {
    Resources { vcpus: 1, mem_mib: Mib(128), data_disk_mib: Mib(16), scratch_disk_mib: Mib(64) }
}

fn network(net: u16) -> TenantNetwork {
    let subnet = format!("10.240.{net}.0/24").parse().expect("a subnet");
    TenantNetwork { tenant_net_id: net, ipv4_subnet: subnet, allow_public_subnet: false }
}

pub async fn tenant(agent: &Arc<Agent>, tenant: &str, net: u16) -> Result<()> {
    let (name, quotas) = (name(tenant), Quotas::default());
    agent.pools.tenants.create(CreateTenant { name, network: network(net), quotas }).await
}

/// Makes the tenant `ci` with the pool `runners`, built.
pub async fn pool(agent: &Arc<Agent>, recycle: Recycle, prewarm: Option<&str>) -> Result<()> {
    tenant(agent, "ci", 20).await?;
    pool_in(agent, &runners(), recycle, prewarm).await
}

pub async fn pool_in(
    agent: &Arc<Agent>,
    reference: &PoolRef,
    recycle: Recycle,
    prewarm: Option<&str>,
) -> Result<()> {
    pool_in_with(agent, reference, recycle, prewarm, Vec::new()).await
}

pub async fn pool_in_with(
    agent: &Arc<Agent>,
    reference: &PoolRef,
    recycle: Recycle,
    prewarm: Option<&str>,
    caches: Vec<Cache>,
) -> Result<()> {
    let wanted = CreatePool {
        caches,
        name: reference.pool.clone(),
        flake_ref: "/flake".to_owned(),
        profile: "small".to_owned(),
        resources: shape(),
        recycle,
        cpu_model: Default::default(),
        prewarm: prewarm.map(str::to_owned),
        runtime_policy: Default::default(),
        egress: Default::default(),
        override_inputs: Default::default(),
        kernel: None,
    };
    agent.pools.catalog.create(&reference.tenant, wanted).await?;
    build(agent, reference, IMAGES[0]).await
}

/// Ends a process from now on when its machine goes to sleep.
pub async fn disable_lingering(agent: &Arc<Agent>) -> Result<()> {
    let runtime_policy = PolicyPatch { linger_s: Some(0), ..PolicyPatch::default() };
    let patch = UpdatePool { runtime_policy, ..UpdatePool::default() };
    agent.pools.catalog.update(&runners(), patch).await
}

/// Records what `pool build` records once the image is built.
pub async fn build(agent: &Arc<Agent>, reference: &PoolRef, digest: Digest) -> Result<()> {
    let now = agent.base.records.clock().now();
    agent
        .base
        .records
        .change(|records, changes| {
            let mut pool = records.pool(reference)?.clone();
            pool.record_build(digest, now);
            changes.put_pool(pool);
            Ok(())
        })
        .await
}

pub async fn scale(agent: &Arc<Agent>, counts: Counts) -> Result<()> {
    agent.pools.catalog.scale(&runners(), counts.into()).await
}

/// Makes an instance in this state, with a mark in its memory if it has one.
pub async fn instance(agent: &Arc<Agent>, state: State) -> Result<()> {
    let made = agent.lifecycle.transitions.create(&runners(), None).await?;
    if state == State::Created {
        return Ok(());
    }
    agent.lifecycle.instances.transition_to(made.id, State::Running, &Actor::Agent).await?;
    write(agent, made.id, MARK, "mine").await?;
    if state == State::Failed {
        let slot = agent.base.slots.of(made.id);
        slot.gate.lock().await.kill().await?;
        return agent.lifecycle.transitions.set_failed(made.id, "a test says so").await;
    }
    agent.lifecycle.instances.transition_to(made.id, state, &Actor::Agent).await.map(drop)
}

pub fn only(agent: &Arc<Agent>) -> Result<Instance> {
    let found = agent.base.records.read(|records| records.instances.values().next().cloned());
    found.ok_or_else(|| Missing::InstanceId(InstanceId::from_number(0)).into())
}

/// Brings the only instance to a state. Does nothing if it was destroyed.
async fn bring_only(agent: &Arc<Agent>, to: State) -> Result<()> {
    let Ok(instance) = only(agent) else { return Ok(()) };
    if instance.state == State::Failed && !matches!(to, State::Destroyed | State::Running) {
        agent.lifecycle.instances.transition_to(instance.id, State::Running, &Actor::Force).await?;
    }
    agent.lifecycle.instances.transition_to(instance.id, to, &Actor::Force).await?;
    let now =
        agent.base.records.read(|records| records.instances.get(&instance.id).map(|i| i.state));
    assert_eq!(now.unwrap_or(State::Destroyed), to);
    Ok(())
}

fn gone(outcome: Result<()>) -> Result<()> {
    outcome.or_else(|error| if error.code() == Code::NotFound { Ok(()) } else { Err(error) })
}

pub fn request(purpose: Purpose) -> LeaseRequest {
    LeaseRequest { holder: "uid:0".to_owned(), purpose, lease_s: None }
}

/// Claims an instance, works in it, and ends its lease.
pub async fn claim(agent: &Arc<Agent>) -> Result<()> {
    let (instance, _) = agent.work.leases.claim(&runners(), &request(Purpose::Run)).await?;
    let id: InstanceId = instance.id;
    write(agent, id, "/work/result", "done").await?;
    agent.work.leases.end(id).await;
    Ok(())
}

/// Truncates the snapshot of the pool's template.
pub fn damage_template(agent: &Arc<Agent>) {
    let pool = agent.base.records.read(|records| records.pools[&runners()].clone());
    let template = agent.supplies.templates.of_pool(&pool).expect("a template");
    std::fs::write(template.files.snapshot(), "").expect("written");
}

/// Applies a document that changes a pool, adds a tenant and omits another.
async fn apply(agent: &Arc<Agent>) -> Result<()> {
    let pools = vec![DesiredPool {
        caches: Vec::new(),
        pool_id: name("runners"),
        flake_ref: "/flake".to_owned(),
        profile: "small".to_owned(),
        override_inputs: Default::default(),
        revision: None,
        revision_from: None,
        instance_resources: shape(),
        recycle: Recycle::Sleep,
        cpu_model: Default::default(),
        prewarm: None,
        runtime_policy: Default::default(),
        egress: Default::default(),
        desired_counts: counts(0, 2, 1),
    }];
    let tenant = |id: &str, net, pools| DesiredTenant {
        tenant_id: name(id),
        network: network(net),
        quotas: Quotas { max_pools: 1, ..Quotas::default() },
        pools,
    };
    let tenants = vec![tenant("ci", 20, pools), tenant("new", 22, Vec::new())];
    let document = DesiredState { schema_version: SCHEMA_VERSION, node_id: name("node"), tenants };
    agent.steering.desired.apply(document, true, false).await.map(drop)
}
