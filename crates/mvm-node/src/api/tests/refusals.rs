//! A refused request changes nothing. Every route that changes something is refused in every way,
//! and records, machines, links, files, events and guests are compared before and after.

use crate::agent::Agent;
use crate::api::app;
use crate::crashes::checks;
use crate::crashes::host::{Host, IMAGES, own_network};
use crate::crashes::operations::{build, pool, pool_in, runners};
use crate::crashes::runs::{MARK, read, wait_until_idle, write};
use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use http_body_util::BodyExt;
use mvm_api::client::UPGRADE;
use mvm_api::routes::{ROUTES, Route, Scope, Server};
use mvm_api::types::CreateTenant;
use mvm_hypervisor::Hypervisor;
use mvm_model::lease::Purpose;
use mvm_model::network::TenantNetwork;
use mvm_model::{Actor, InstanceId, Lease, LeaseId, Quotas, Recycle, State, Timestamp};
use mvm_server::Peer;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use tower::ServiceExt;

/// The caller.
#[derive(Clone, Copy, Debug)]
enum Caller {
    /// A process on this machine.
    Root,
    /// An operator, through a coordinator.
    Alice,
    /// An operator of tenant `ci`.
    Bob,
}

impl Caller {
    fn peer(self) -> Peer {
        let forwarded = |identity: &str| Peer::Forwarded {
            identity: format!("spiffe://mvm/{identity}").parse().expect("an identity"),
            by: "c1".parse().expect("a name"),
        };
        match self {
            Caller::Root => Peer::Unix { uid: Some(0) },
            Caller::Alice => forwarded("operator/alice"),
            Caller::Bob => forwarded("tenant-operator/ci/bob"),
        }
    }
}

/// A request, and the code of its refusal.
struct Refused {
    operation: &'static str,
    who: Caller,
    /// The values of the path's parameters in their order, and the query.
    at: Vec<String>,
    body: Value,
    code: &'static str,
}

/// The node's instances, one for each case.
struct Stage {
    created: InstanceId,
    warm: InstanceId,
    sleeping: InstanceId,
    stopped: InstanceId,
    /// Running, under a lease of each purpose; `manual` is Alice's, `own` is root's.
    job: InstanceId,
    front: InstanceId,
    template: InstanceId,
    manual: InstanceId,
    own: InstanceId,
    /// Asleep and warm, under Alice's lease.
    sleeping_manual: InstanceId,
    warm_manual: InstanceId,
    ended_job: String,
}

async fn send(app: &Router, refused: &Refused) -> (String, u16, String) {
    let route = route(refused.operation);
    let (mut path, mut query) = (route.path.to_owned(), String::new());
    for value in &refused.at {
        match (path.find('{'), path.find('}')) {
            (Some(from), Some(to)) => path.replace_range(from..=to, value),
            _ => query = format!("?{value}"),
        }
    }
    assert!(!path.contains('{'), "{path} says not what it is about");
    let what = format!("{} {path}{query} by {:?}", route.method, refused.who);
    let request = Request::builder().method(route.method).uri(path + &query);
    let request = request.header("content-type", "application/json").header("upgrade", UPGRADE);
    let mut request = request.body(Body::from(refused.body.to_string())).expect("a request");
    request.extensions_mut().insert(ConnectInfo(refused.who.peer()));
    let response = app.clone().oneshot(request).await.expect("an answer");
    let status = response.status().as_u16();
    // A stream that was opened although it should be refused is not read to its end.
    let upgraded = status == 101;
    let bytes = match upgraded {
        true => Default::default(),
        false => response.into_body().collect().await.expect("a body").to_bytes(),
    };
    (what, status, String::from_utf8_lossy(&bytes).into_owned())
}

fn route(operation: &str) -> &'static Route {
    let found = ROUTES.iter().find(|r| r.operation == operation && r.is_of(Server::Agent));
    found.unwrap_or_else(|| panic!("no route {operation}"))
}

/// The state that a refusal must leave unchanged.
#[derive(Debug, PartialEq)]
struct Everything {
    records: BTreeMap<String, String>,
    /// Processes by marker, and whether their vCPUs run.
    machines: BTreeMap<String, Vec<(u32, Option<bool>)>>,
    links: BTreeSet<String>,
    files: BTreeMap<String, u64>,
    newest_event: u64,
    guests: BTreeMap<InstanceId, Result<String, String>>,
    sessions: BTreeMap<InstanceId, usize>,
}

async fn everything(agent: &Arc<Agent>, host: &Host) -> Everything {
    let records = agent.base.records.store().list("").await.expect("records").into_iter();
    let records = records.map(|r| (r.key, String::from_utf8_lossy(&r.value).into_owned()));
    let (sim, root) = (host.machines(), &agent.base.state_dir);
    let mut machines: BTreeMap<String, Vec<(u32, Option<bool>)>> = BTreeMap::new();
    for process in sim.find(&root.marker_prefix()).expect("machines") {
        let runs = sim.is_running(&process.marker);
        machines.entry(process.marker).or_default().push((process.pid, runs));
    }
    let links = agent.supplies.links.network().list().await.expect("links");
    let mut files = BTreeMap::new();
    walk(root.path(), &mut files);
    let running: Vec<InstanceId> = agent.base.records.read(|records| {
        let running = records.instances.values().filter(|i| i.state == State::Running);
        running.map(|i| i.id).collect()
    });
    let (mut guests, mut sessions) = (BTreeMap::new(), BTreeMap::new());
    for id in running {
        let said = read(agent, id, MARK).await.map_err(|problem| problem.to_string());
        guests.insert(id, said);
        sessions.insert(id, agent.base.slots.of(id).sessions());
    }
    Everything {
        records: records.collect(),
        machines,
        links: links.into_iter().map(|link| link.name).collect(),
        files,
        newest_event: agent.base.records.newest_event(),
        guests,
        sessions,
    }
}

/// Collects all files below `dir` with their sizes, except the audit logs and the guests' consoles.
fn walk(dir: &Path, files: &mut BTreeMap<String, u64>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && name != "audit" => {
                files.insert(path.display().to_string(), 0);
                walk(&path, files);
            }
            Ok(kind) if kind.is_file() && !name.ends_with(".log") => {
                let bytes = entry.metadata().map_or(0, |meta| meta.len());
                files.insert(path.display().to_string(), bytes);
            }
            _ => {}
        }
    }
}

/// Returns a lease of an hour from `since` on.
fn lease(since: Timestamp, number: u32, holder: &str, purpose: Purpose) -> Lease {
    let (id, holder) = (LeaseId::from_number(number), holder.to_owned());
    let expires_at = since + std::time::Duration::from_secs(3600);
    Lease { id, holder, purpose, since, expires_at, longest_until: None }
}

/// Makes an instance of `ci/runners` in this state, under this lease.
async fn instance(
    agent: &Arc<Agent>,
    state: State,
    lease: Option<Lease>,
) -> crate::Result<InstanceId> {
    let made = agent.lifecycle.transitions.create(&runners(), None).await?;
    if state != State::Created {
        agent.lifecycle.instances.transition_to(made.id, State::Running, &Actor::Agent).await?;
        write(agent, made.id, MARK, "mine").await?;
        agent.lifecycle.instances.transition_to(made.id, state, &Actor::Agent).await?;
    }
    agent.base.records.update(made.id, |instance| instance.lease = lease).await?;
    Ok(made.id)
}

async fn prepare(agent: &Arc<Agent>, app: &Router) -> crate::Result<Stage> {
    use Purpose::{Expose, Manual, Run, Template};
    pool(agent, Recycle::Reset, None).await?;
    let bare = "ci/bare".parse()?;
    pool_in(agent, &bare, Recycle::Reset, None).await?;
    agent
        .base
        .records
        .change(|records, changes| {
            let mut pool = records.pool(&bare)?.clone();
            (pool.revisions, pool.current) = (Vec::new(), None);
            changes.put_pool(pool);
            Ok(())
        })
        .await?;
    build(agent, &runners(), IMAGES[0]).await?;
    let (alice, now) = ("operator:alice", agent.base.records.clock().now());
    let mut stage = Stage {
        created: instance(agent, State::Created, None).await?,
        warm: instance(agent, State::Warm, None).await?,
        sleeping: instance(agent, State::Sleeping, None).await?,
        stopped: instance(agent, State::Stopped, None).await?,
        job: instance(agent, State::Running, Some(lease(now, 1, "uid:0 j-00000001", Run))).await?,
        front: instance(agent, State::Running, Some(lease(now, 2, "expose:127.0.0.1:1", Expose)))
            .await?,
        template: instance(agent, State::Running, Some(lease(now, 3, "template", Template)))
            .await?,
        manual: instance(agent, State::Running, Some(lease(now, 4, alice, Manual))).await?,
        own: instance(agent, State::Running, Some(lease(now, 5, "uid:0", Manual))).await?,
        sleeping_manual: instance(agent, State::Sleeping, Some(lease(now, 6, alice, Manual)))
            .await?,
        warm_manual: instance(agent, State::Warm, Some(lease(now, 7, alice, Manual))).await?,
        ended_job: String::new(),
    };
    // A job that was created and then cancelled before it began.
    let (spec, hold) = (json!({ "argv": ["true"] }), true);
    let wanted = serde_json::from_value(json!({ "spec": spec, "hold": hold })).expect("a job");
    let job = agent.work.jobs.create(&runners(), wanted, "uid:0".to_owned()).await?;
    agent.work.jobs.cancel(job.job_id, "canceled").await?;
    stage.ended_job = job.job_id.to_string();
    let leader = json!({ "fleet_id": "main", "epoch": 7 });
    let obeyed =
        Refused { operation: "node.leader", who: Caller::Root, at: vec![], body: leader, code: "" };
    assert_eq!(send(app, &obeyed).await.1, 200);
    // The quota allows no more instances, jobs, or running or warm machines.
    let usage = agent.base.records.read(|records| records.usage(&runners().tenant));
    let quotas = Quotas {
        max_running: usage.running,
        max_instances_per_pool: usage.instances,
        max_queued_jobs: 0,
        ..Quotas::default()
    };
    agent.pools.tenants.update(&runners().tenant, quotas.into()).await?;
    let lab = CreateTenant {
        name: "lab".parse()?,
        network: TenantNetwork {
            tenant_net_id: 22,
            ipv4_subnet: "10.240.22.0/24".parse().expect("one"),
            allow_public_subnet: false,
        },
        quotas: Quotas::default(),
    };
    agent.pools.tenants.create(lab).await?;
    Ok(stage)
}

/// Returns the refusals of all subjects.
fn refusals(stage: &Stage) -> Vec<Refused> {
    let mut all = of_instances(stage);
    all.extend(of_leases_and_jobs(stage));
    all.extend(of_tenants_and_pools());
    all.extend(of_the_node());
    all.extend(of_strangers());
    all
}

fn refused(
    operation: &'static str,
    who: Caller,
    at: &[&str],
    body: Value,
    code: &'static str,
) -> Refused {
    Refused { operation, who, at: at.iter().map(ToString::to_string).collect(), body, code }
}

fn of_instances(stage: &Stage) -> Vec<Refused> {
    use Caller::{Alice, Bob, Root};
    let mut all = Vec::new();
    let mut on = |operation, who, id: InstanceId, query: &str, code| {
        let id = id.to_string();
        let at = ["ci", "runners", &id, query];
        let at = &at[..if query.is_empty() { 3 } else { 4 }];
        all.push(refused(operation, who, at, json!({}), code));
    };
    for held in [stage.job, stage.front, stage.template, stage.manual] {
        for who in [Root, Bob] {
            for operation in ["instance.warm", "instance.sleep", "instance.stop"] {
                on(operation, who, held, "", "leased");
            }
            on("instance.sleep", who, held, "linger=false", "leased");
            on("instance.wake", who, held, "", "leased");
            on("instance.start", who, held, "", "leased");
            // A stream without a lease is allowed here; one that asks for a lease is refused.
            on("instance.stream", who, held, "lease_s=60", "leased");
        }
    }
    for held in [stage.sleeping_manual, stage.warm_manual] {
        for operation in ["instance.sleep", "instance.stop", "instance.wake", "instance.stream"] {
            on(operation, Root, held, "", "leased");
        }
    }
    on("instance.sleep", Alice, stage.own, "", "leased");
    on("instance.warm", Root, stage.warm_manual, "", "leased");
    on("instance.warm", Root, stage.created, "", "wrong_state");
    on("instance.warm", Root, stage.stopped, "", "wrong_state");
    on("instance.sleep", Root, stage.stopped, "", "wrong_state");
    on("instance.stop", Root, stage.created, "", "wrong_state");
    on("instance.start", Root, stage.sleeping, "", "wrong_state");
    on("instance.wake", Root, stage.stopped, "", "wrong_state");
    on("instance.stream", Root, stage.stopped, "", "wrong_state");
    on("instance.start", Root, stage.created, "", "quota_exceeded");
    on("instance.start", Bob, stage.stopped, "", "quota_exceeded");
    on("instance.wake", Root, stage.sleeping, "", "quota_exceeded");
    on("instance.wake", Root, stage.warm, "", "quota_exceeded");
    on("instance.stream", Root, stage.sleeping, "", "quota_exceeded");
    on("instance.stream", Alice, stage.warm_manual, "", "quota_exceeded");
    on("instance.destroy", Root, InstanceId::from_number(1), "", "not_found");
    let runners = ["ci", "runners"];
    for start in [true, false] {
        let body = json!({ "start": start });
        all.push(refused("instance.create", Root, &runners, body, "quota_exceeded"));
    }
    let long = json!({ "lease_s": 1_000_000 });
    let started = ["ci", "runners", &stage.own.to_string()];
    all.push(refused("instance.start", Root, &started, long, "invalid_value"));
    all.push(refused("claim.create", Root, &runners, json!({}), "quota_exceeded"));
    all.push(refused("claim.create", Root, &["ci", "bare"], json!({}), "not_built"));
    all
}

fn of_leases_and_jobs(stage: &Stage) -> Vec<Refused> {
    use Caller::Root;
    let (none, ended) = (["l-0badbeef"], [&*stage.ended_job]);
    let minute = json!({ "lease_s": 60 });
    let spec = json!({ "spec": { "argv": ["true"] } });
    let runners = ["ci", "runners"];
    vec![
        refused("lease.release", Root, &none, json!({}), "not_found"),
        refused("lease.extend", Root, &none, minute, "not_found"),
        refused("lease.extend", Root, &["l-00000005"], json!({ "lease_s": 0 }), "invalid_value"),
        refused("job.create", Root, &runners, spec.clone(), "queue_full"),
        refused("job.create", Root, &["ci", "bare"], spec, "not_built"),
        refused("job.create", Root, &runners, json!({ "spec": { "argv": [] } }), "invalid_value"),
        refused("job.inputs", Root, &ended, json!({}), "wrong_state"),
        refused("job.submit", Root, &ended, json!({}), "wrong_state"),
        refused("job.attach", Root, &ended, json!({}), "wrong_state"),
        refused("job.cancel", Root, &["j-0badbeef"], json!({}), "not_found"),
    ]
}

fn of_tenants_and_pools() -> Vec<Refused> {
    use Caller::Root;
    let (runners, bare) = (["ci", "runners"], ["ci", "bare"]);
    let network = |net: u32, subnet: &str| json!({ "tenant_net_id": net, "ipv4_subnet": subnet });
    let tenant = |name: &str, network| json!({ "name": name, "network": network });
    let shape = |mem_mib: u64| json!({ "vcpus": 1, "mem_mib": mem_mib, "data_disk_mib": 16 });
    let a_pool = |name: &str, resources| json!({ "name": name, "flake_ref": "/flake", "profile": "p", "resources": resources });
    // More disk than any tenant's quota here.
    let vast = json!({ "vcpus": 1, "mem_mib": 128, "data_disk_mib": 1 << 23 });
    let expose = |to: u16| json!({ "listen": "127.0.0.1:0", "to": to });
    let new = tenant("new", network(20, "10.240.20.0/24"));
    let other = tenant("ci", network(21, "10.240.21.0/24"));
    vec![
        refused("tenant.create", Root, &[], new, "conflict"),
        refused("tenant.create", Root, &[], other, "exists"),
        refused("tenant.update", Root, &["none"], json!({ "max_warm": 1 }), "not_found"),
        refused("tenant.destroy", Root, &["ci"], json!({}), "in_use"),
        refused("pool.create", Root, &["ci"], a_pool("more", shape(128)), "quota_exceeded"),
        refused("pool.create", Root, &["ci"], a_pool("runners", shape(256)), "exists"),
        refused("pool.create", Root, &["lab"], a_pool("odd", shape(1)), "invalid_value"),
        refused("pool.create", Root, &["lab"], a_pool("huge", shape(1 << 20)), "exceeds_host"),
        refused("pool.create", Root, &["lab"], a_pool("never", vast), "quota_exceeded"),
        refused("pool.update", Root, &runners, json!({ "mem_mib": 1 }), "invalid_value"),
        refused("pool.update", Root, &runners, json!({ "mem_mib": 1 << 20 }), "exceeds_host"),
        refused(
            "pool.update",
            Root,
            &runners,
            json!({ "egress": { "mode": "none", "allow_lan": true } }),
            "invalid_value",
        ),
        refused("pool.destroy", Root, &["ci", "none"], json!({}), "not_found"),
        refused("pool.cancel_build", Root, &runners, Value::Null, "not_found"),
        refused("pool.build", Root, &["ci", "none"], json!({}), "not_found"),
        refused("pool.scale", Root, &bare, json!({ "warm": 1 }), "not_built"),
        refused("pool.scale", Root, &runners, json!({ "warm": 1000 }), "quota_exceeded"),
        refused("pool.rollback", Root, &runners, json!({ "to": 99 }), "not_found"),
        refused("pool.expose", Root, &runners, expose(0), "invalid_value"),
        refused("pool.expose", Root, &["ci", "none"], expose(80), "not_found"),
        refused("pool.unexpose", Root, &runners, json!({ "listen": "127.0.0.1:9" }), "not_found"),
    ]
}

fn of_the_node() -> Vec<Refused> {
    use Caller::Root;
    let leader = |fleet: &str, epoch: u64| json!({ "fleet_id": fleet, "epoch": epoch });
    let document = |agent: &str| json!({ "schema_version": 1, "node_id": agent, "tenants": [] });
    let told = |leader| json!({ "leader": leader, "digest": "d", "document": document("node") });
    let claim = |leader, pool: &str| json!({ "leader": leader, "pool": pool, "holder": "uid:0" });
    // More memory than any host has that runs this test.
    let huge = || {
        let pool = json!({
            "pool_id": "huge", "flake_ref": "/flake", "profile": "p",
            "instance_resources": { "vcpus": 1, "mem_mib": 1 << 20 },
            "desired_counts": { "running": 0, "warm": 0, "sleeping": 0 },
        });
        let network = json!({ "tenant_net_id": 30, "ipv4_subnet": "10.240.30.0/24" });
        let quotas = json!({ "max_mem_mib": 1 << 30 });
        let tenant =
            json!({ "tenant_id": "huge", "network": network, "quotas": quotas, "pools": [pool] });
        json!({ "schema_version": 1, "node_id": "node", "tenants": [tenant] })
    };
    let huge_told = json!({ "leader": leader("main", 7), "digest": "d", "document": huge() });
    let tried = json!({ "document": huge(), "prune": false, "dry_run": true });
    // A machine that exceeds the tenant's quota by itself.
    let mut never = json!({ "document": huge(), "prune": false, "dry_run": true });
    let pool = &mut never["document"]["tenants"][0]["pools"][0];
    pool["instance_resources"]["mem_mib"] = 256.into();
    never["document"]["tenants"][0]["quotas"]["max_mem_mib"] = 128.into();
    let id = ["l-0123456789abcdef"];
    let renewed = json!({ "leader": leader("main", 6), "claims": id });
    let theirs = || json!({ "document": document("other"), "prune": true });
    vec![
        refused("desired.apply", Root, &[], theirs(), "conflict"),
        refused(
            "desired.apply",
            Root,
            &[],
            json!({ "document": huge(), "prune": false }),
            "exceeds_host",
        ),
        refused("desired.apply", Root, &[], tried, "exceeds_host"),
        refused("node.document", Root, &[], huge_told, "exceeds_host"),
        refused("node.document", Root, &[], told(leader("main", 6)), "stale_leader"),
        refused("node.document", Root, &[], told(leader("other", 9)), "other_fleet"),
        refused("node.leader", Root, &[], leader("main", 6), "stale_leader"),
        refused("claim.apply", Root, &id, claim(leader("main", 6), "ci/runners"), "stale_leader"),
        refused("claim.apply", Root, &id, claim(leader("main", 7), "ci/runners"), "quota_exceeded"),
        refused("claim.apply", Root, &id, claim(leader("main", 7), "ci/bare"), "not_built"),
        refused("claim.end", Root, &id, leader("main", 6), "stale_leader"),
        refused("claim.renew", Root, &[], renewed, "stale_leader"),
        refused("audit.prune", Root, &[], json!({ "before": 0, "log": "nobody" }), "not_found"),
        refused("desired.apply", Root, &[], never, "quota_exceeded"),
        refused("kernel.remove", Root, &["none"], Value::Null, "kernel_missing"),
        refused("kernel.import", Root, &[], json!({ "file": "/none" }), "invalid_value"),
    ]
}

/// Returns every route again, with a caller whose role or tenant is not allowed.
fn of_strangers() -> Vec<Refused> {
    let agents = ROUTES.iter().filter(|r| changes(r) && r.access.scope != Scope::Narrowed);
    agents
        .map(|route| {
            let at = route.path.matches('{').map(|_| "lab").collect::<Vec<_>>();
            refused(route.operation, Caller::Bob, &at, json!({}), "forbidden")
        })
        .collect()
}

fn changes(route: &Route) -> bool {
    route.method != "GET" && route.is_of(Server::Agent)
}

/// Routes that are refused only to callers without access.
const NEVER: [&str; 7] = [
    "agent.probe",
    "agent.stop",
    "agent.crl",
    "kernel.fetch",
    "image.fetch",
    "image.gc",
    "node.leave",
];

#[test]
fn what_is_refused_changes_nothing() {
    own_network();
    let host = Host::new();
    let walked = host.agent(async |agent| {
        let app = app(agent.clone());
        let stage = prepare(&agent, &app).await.expect("prepared");
        let (mut faults, mut covered) = (Vec::new(), BTreeSet::new());
        let mut before = everything(&agent, &host).await;
        for case in refusals(&stage) {
            let (what, status, body) = send(&app, &case).await;
            let problem: Value = serde_json::from_str(&body).unwrap_or_default();
            if !(400..500).contains(&status) && status != 500 || problem["code"] != case.code {
                faults.push(format!("{what}: {status}, not {}: {body}", case.code));
            }
            if case.code == "leased" && !problem["detail"].to_string().contains("l-0000000") {
                faults.push(format!("{what} says not which lease: {body}"));
            }
            agent.base.wake.notify();
            let after = everything(&agent, &host).await;
            if after != before {
                faults
                    .push(format!("{what} was refused, and changed\n{before:#?}\nto\n{after:#?}"));
                before = after;
            }
            if case.code != "forbidden" {
                covered.insert(case.operation);
            }
        }
        let of_strangers = |route: &&Route| !NEVER.contains(&route.operation);
        let missing = ROUTES.iter().filter(|r| changes(r)).filter(of_strangers);
        let missing: Vec<_> =
            missing.map(|r| r.operation).filter(|o| !covered.contains(o)).collect();
        assert!(missing.is_empty(), "no refusal is tested of {missing:?}: add one above");
        faults
    });
    host.disconnect();
    let faults = walked.expect("an agent");
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// The holder of an instance puts it into a colder state, loses its lease thereby, and takes it
/// again.
#[test]
fn a_holder_puts_its_own_machine_aside_and_its_lease_with_it() {
    own_network();
    let host = Host::new();
    let done = host.agent(async |agent| {
        let app = app(agent.clone());
        pool(&agent, Recycle::Keep, None).await.expect("a pool");
        let now = agent.base.records.clock().now();
        let own = lease(now, 1, "operator:alice", Purpose::Manual);
        let id = instance(&agent, State::Running, Some(own)).await.expect("an instance");
        let lease_of = async || {
            let of =
                |w: &crate::records::RecordSet| w.instances[&id].lease.clone().map(|l| l.holder);
            agent.base.records.read(of)
        };
        let ids = id.to_string();
        let at = ["ci", "runners", &*ids];
        for operation in ["instance.warm", "instance.sleep", "instance.stop"] {
            let put = refused(operation, Caller::Alice, &at, json!({}), "");
            let (what, status, body) = send(&app, &put).await;
            assert_eq!(status, 200, "{what}: {body}");
            assert_eq!(lease_of().await, None, "{what}");
            let wake =
                if operation == "instance.stop" { "instance.start" } else { "instance.wake" };
            let (what, status, body) =
                send(&app, &refused(wake, Caller::Alice, &at, json!({}), "")).await;
            assert_eq!(status, 200, "{what}: {body}");
            assert_eq!(lease_of().await.as_deref(), Some("operator:alice"), "{what}");
        }
        // An instance under another's lease can be destroyed nonetheless.
        let (what, status, body) =
            send(&app, &refused("instance.destroy", Caller::Root, &at, json!({}), "")).await;
        assert_eq!(status, 200, "{what}: {body}");
        wait_until_idle(&agent).await.expect("rest");
        checks::faults(&agent, &host).await
    });
    host.disconnect();
    assert_eq!(done.expect("an agent"), Vec::<String>::new());
}
