//! A fleet of 1,000 nodes and 100,000 instances in one process: `cargo bench -p mvm-coordinator`.
//! Everything is real except the nodes, which are simulated behind the trait that the HTTP client
//! implements: a machine exists as soon as it is requested, and a warm one wakes in 2 ms.
//!
//! `-- etcd` keeps the state in etcd instead of SQLite, `-- NODES` sets the number of nodes.

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use hdrhistogram::Histogram;
use mvm_api::Client;
use mvm_api::fleet::{HeldClaim, Leader, NodeClaim, NodeDocument, RegisterNode, RenewClaims};
use mvm_api::types::Claim;
use mvm_clock::Clock;
use mvm_coordinator::{ClusterState, Connector, Error, NodeClient, NodeReport, Options, Refused};
use mvm_model::fleet::{
    Capacity, FleetPool, FleetState, FleetTenant, Limits, NodeStatus, PoolStatus, Rules, Spread,
};
use mvm_model::lease::Purpose;
use mvm_model::network::TenantNetwork;
use mvm_model::{
    Counts, InstanceId, InstanceRef, Lease, LeaseId, Mib, Name, PoolRef, Quotas, Resources, State,
    Timestamp,
};
use mvm_store::testing::EtcdCluster;
use mvm_store::{EtcdStore, SqliteStore, Store};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;

const TENANTS: u64 = 50;
/// The number of instances in each of a tenant's two pools.
const INSTANCES: u32 = 1000;
/// How long a warm machine takes to wake.
const WAKE: Duration = Duration::from_millis(2);
/// How long the coordinator counts as present after it has died.
const TTL: Duration = Duration::from_secs(10);
/// How long claims are made.
const CLAIMING: Duration = Duration::from_secs(10);
/// The number of clients of each tenant that claim at the same time.
const CLAIMERS: usize = 20;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let etcd = words.iter().any(|word| word == "etcd");
    let nodes = words.iter().find_map(|word| word.parse().ok()).unwrap_or(1000);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("runtime").block_on(measure(etcd, nodes));
}

async fn measure(etcd: bool, count: usize) {
    let dir = tempfile::tempdir().expect("directory");
    let cluster = etcd.then(|| EtcdCluster::start(1));
    let store: Arc<dyn Store> = match &cluster {
        Some(cluster) => Arc::new(EtcdStore::connect(cluster.options("b")).await.expect("etcd")),
        None => Arc::new(SqliteStore::open(&dir.path().join("fleet.db")).expect("store")),
    };
    println!("{count} nodes, state in {}", if etcd { "etcd (1 member)" } else { "SQLite" });
    let nodes = Arc::new(Simulation::new(count));
    let options = Options {
        fleet_id: name("bench"),
        name: name("c1"),
        address: "unix:/nowhere".to_owned(),
        store: if etcd { "etcd" } else { "sqlite" },
        ttl: TTL,
        patience: Duration::from_secs(60),
        pushes: 64,
        limits: Limits { per_node: 16, per_tenant: 1000, total: 20_000 },
    };
    let fleet = ClusterState::new(options, store.clone(), nodes.clone(), Clock::system());
    let before = resident_mib();
    let running = fleet.clone();
    tokio::spawn(async move { mvm_coordinator::run(&running).await });
    until("the coordinator leads", || fleet.leads()).await;
    let began = Instant::now();
    for index in 0..count {
        let node = RegisterNode { node_id: node_name(index), address: index.to_string() };
        fleet.register(&node).await.expect("registered");
    }
    until("all nodes are reached", || fleet.status().nodes_alive == count).await;
    println!("registered one after another: {:.1?}", began.elapsed());
    converge(&fleet).await;
    println!("resident memory: {} MiB, of it the coordinator's about {} MiB", resident_mib(), {
        resident_mib().saturating_sub(before)
    });
    // A new leader reports a node as lost only after this time.
    tokio::time::sleep(TTL + Duration::from_secs(3)).await;
    replace(&fleet, &nodes, count).await;
    let serial = Arc::new(AtomicU64::new(0));
    claim_paced(&fleet, &serial, 2000).await;
    claim_all(&fleet, &serial).await;
}

async fn converge(fleet: &Arc<ClusterState>) {
    let began = Instant::now();
    let plan = fleet.apply(document(), false).await.expect("applied");
    assert!(plan.unplaced.is_empty(), "{}", plan.unplaced[0]);
    let planned = began.elapsed();
    until("the fleet has converged", || fleet.status().converged).await;
    let all = 2 * TENANTS * u64::from(INSTANCES);
    println!("{all} instances from nothing: planned in {planned:.1?}, there after {:.1?}", {
        began.elapsed()
    });
}

/// Lets ten nodes die. Other nodes take over their share after the grace period of 1 s.
async fn replace(fleet: &Arc<ClusterState>, nodes: &Simulation, count: usize) {
    let dead: Vec<usize> = (0..count).step_by((count / 10).max(1)).take(10).collect();
    for index in &dead {
        nodes.nodes[*index].dead.store(true, Ordering::Relaxed);
    }
    let began = Instant::now();
    until("the loss is seen", || fleet.status().nodes_lost == dead.len()).await;
    let seen = began.elapsed();
    until("it is made up for", || fleet.status().converged).await;
    println!("{} dead nodes: seen after {seen:.1?}, made up for after {:.1?}", dead.len(), {
        began.elapsed()
    });
    for index in &dead {
        nodes.nodes[*index].dead.store(false, Ordering::Relaxed);
    }
    until("they are back", || fleet.status().nodes_lost == 0 && fleet.status().converged).await;
}

/// Makes one claim and gives it back at once. Returns how long it took from `began`, in µs.
async fn one(fleet: &Arc<ClusterState>, serial: &AtomicU64, tenant: usize, began: Instant) -> u64 {
    let pool: PoolRef = format!("t{tenant}/a").parse().expect("a pool");
    let id = LeaseId::of_claim(serial.fetch_add(1, Ordering::Relaxed));
    let (_, node) = fleet.claim(id, &pool, "operator:bench").await.expect("a claim");
    let took = began.elapsed().as_micros() as u64;
    fleet.end_claim(id, &node).await;
    took
}

/// Makes claims at a steady pace, of one tenant after the other, whether the earlier ones were
/// served or not.
async fn claim_paced(fleet: &Arc<ClusterState>, serial: &Arc<AtomicU64>, pace: u32) {
    let (commits, began) = (fleet.claim_commits(), Instant::now());
    let mut claims = Vec::new();
    for index in 0..(CLAIMING.as_secs() as u32 * pace) {
        let due = began + Duration::from_secs(1) * index / pace;
        tokio::time::sleep_until(due.into()).await;
        let (fleet, serial) = (fleet.clone(), serial.clone());
        let tenant = index as usize % TENANTS as usize;
        claims.push(tokio::spawn(async move { one(&fleet, &serial, tenant, due).await }));
    }
    let mut times = Histogram::<u64>::new(3).expect("histogram");
    for claim in claims {
        times.record(claim.await.expect("claim")).expect("recorded");
    }
    let took = began.elapsed();
    print_result(&format!("{pace} claims a second come"), &times, took, fleet, commits).await;
}

/// Lets all tenants claim as fast as they can.
async fn claim_all(fleet: &Arc<ClusterState>, serial: &Arc<AtomicU64>) {
    let (began, commits) = (Instant::now(), fleet.claim_commits());
    let mut claimers = Vec::new();
    for index in 0..TENANTS as usize * CLAIMERS {
        let (fleet, serial) = (fleet.clone(), serial.clone());
        claimers.push(tokio::spawn(async move {
            let mut times = Histogram::<u64>::new(3).expect("histogram");
            while began.elapsed() < CLAIMING {
                let tenant = index % TENANTS as usize;
                times.record(one(&fleet, &serial, tenant, Instant::now()).await).expect("recorded");
            }
            times
        }));
    }
    let mut times = Histogram::<u64>::new(3).expect("histogram");
    let mut by_tenant = vec![0; TENANTS as usize];
    for (index, claimer) in claimers.into_iter().enumerate() {
        let own = claimer.await.expect("claimer");
        by_tenant[index % TENANTS as usize] += own.len();
        times.add(own).expect("added");
    }
    let took = began.elapsed();
    print_result(&format!("{CLAIMERS} claimers of each tenant"), &times, took, fleet, commits)
        .await;
    let (least, most) = (by_tenant.iter().min(), by_tenant.iter().max());
    println!("  by tenant {} to {}", least.expect("tenants"), most.expect("tenants"));
}

async fn print_result(
    what: &str,
    times: &Histogram<u64>,
    took: Duration,
    fleet: &Arc<ClusterState>,
    commits: u64,
) {
    // Ended claims are still being swept.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ms = |quantile: f64| times.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "{what}, {TENANTS} tenants: {:.0} served a second, p50 {:.1} ms, p99 {:.1} ms, \
         worst {:.1} ms; {:.3} transactions a claim",
        times.len() as f64 / took.as_secs_f64(),
        ms(0.5),
        ms(0.99),
        ms(1.0),
        (fleet.claim_commits() - commits) as f64 / times.len() as f64,
    );
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(300);
    while !done() {
        assert!(Instant::now() < deadline, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) / 1024
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn node_name(index: usize) -> Name {
    name(&format!("n{index:04}"))
}

fn document() -> FleetState {
    let pool = |pool: &str, placement: Rules| FleetPool {
        pool_id: name(pool),
        flake_ref: "/flake".to_owned(),
        profile: "small".to_owned(),
        override_inputs: BTreeMap::new(),
        caches: Default::default(),
        revision: None,
        instance_resources: Resources { vcpus: 1, mem_mib: Mib(512), ..Resources::default() },
        recycle: Default::default(),
        egress: Default::default(),
        cpu_model: Default::default(),
        prewarm: None,
        runtime_policy: Default::default(),
        desired_counts: Counts {
            running: 0,
            warm: INSTANCES * 3 / 10,
            sleeping: INSTANCES * 7 / 10,
        },
        placement,
    };
    let spread = |key: &str| Rules {
        spread: Some(Spread { key: key.to_owned(), max_skew: 8 }),
        ..Rules::default()
    };
    let tenant = |index: u64| FleetTenant {
        tenant_id: name(&format!("t{index}")),
        network: TenantNetwork {
            tenant_net_id: index as u16,
            ipv4_subnet: format!("10.{index}.0.0/16").parse().expect("a subnet"),
            allow_public_subnet: false,
        },
        quotas: Quotas {
            max_vcpus: 10_000,
            max_mem_mib: Mib(10_000_000),
            max_running: 2000,
            max_warm: 1000,
            max_pools: 2,
            max_instances_per_pool: 4000,
            max_disk_gib: 100_000,
            ..Quotas::default()
        },
        weight: 1,
        pools: vec![pool("a", spread("node")), pool("b", spread("zone"))],
    };
    let tenants = (0..TENANTS).map(tenant).collect();
    FleetState { schema_version: 1, fleet_id: name("bench"), node_grace_s: 1, tenants }
}

/// All nodes. An address is a node's number.
struct Simulation {
    nodes: Vec<Arc<Simulated>>,
}

impl Simulation {
    fn new(count: usize) -> Simulation {
        Simulation { nodes: (0..count).map(|index| Arc::new(Simulated::new(index))).collect() }
    }
}

impl Connector for Simulation {
    fn node(&self, _: &Name, address: &str) -> Result<Arc<dyn NodeClient>, Error> {
        let index: usize = address.parse().expect("a number");
        Ok(Arc::new(Port(self.nodes[index].clone())))
    }

    fn coordinator(&self, address: &str) -> Result<Client, Error> {
        Err(Error::ReachWithoutIdentity { address: address.to_owned() })
    }
}

/// A node that carries out its whole document at once.
struct Simulated {
    status: watch::Sender<NodeStatus>,
    claims: Mutex<BTreeMap<LeaseId, InstanceRef>>,
    made: AtomicU32,
    dead: AtomicBool,
}

impl Simulated {
    fn new(index: usize) -> Simulated {
        let status = NodeStatus {
            node_id: node_name(index),
            version: "simulated".to_owned(),
            capacity: Capacity { vcpus: 128, mem_mib: Mib(131_072), disk_gib: 8000 },
            labels: [("zone".to_owned(), format!("z{}", index % 8))].into(),
            cpu_model: String::new(),
            simulated: true,
            images: Default::default(),
            pools: BTreeMap::new(),
            document: None,
            pending: 0,
            failure: None,
            failure_code: None,
            newest_event: 0,
        };
        let (claims, dead) = (Mutex::default(), AtomicBool::new(false));
        Simulated { status: watch::channel(status).0, claims, made: AtomicU32::new(0), dead }
    }

    fn leased(&self, pool: &PoolRef, change: i64) {
        self.status.send_modify(|status| {
            if let Some(pool) = status.pools.get_mut(pool) {
                pool.leased = u32::try_from(i64::from(pool.leased) + change).unwrap_or(0);
            }
        });
    }
}

struct Port(Arc<Simulated>);

fn unreached<T>() -> Result<T, Refused> {
    Err(Refused::Unreached(Error::OutOfReach(name("n"))))
}

#[async_trait]
impl NodeClient for Port {
    fn watch(&self) -> BoxStream<'static, NodeReport> {
        let (node, mut changes) = (self.0.clone(), self.0.status.subscribe());
        changes.mark_changed();
        let reports = futures::stream::unfold((node, changes), |(node, mut changes)| async move {
            let changed = tokio::time::timeout(Duration::from_secs(2), changes.changed()).await;
            if node.dead.load(Ordering::Relaxed) {
                return None;
            }
            // A real node collects changes for this long, too.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let report = match changed {
                Ok(_) => NodeReport::Status(Box::new(changes.borrow_and_update().clone())),
                Err(_) => NodeReport::Beat,
            };
            Some((report, (node, changes)))
        });
        reports.boxed()
    }

    async fn document(&self, document: &NodeDocument) -> Result<(), Refused> {
        if self.0.dead.load(Ordering::Relaxed) {
            return unreached();
        }
        self.0.status.send_modify(|status| {
            status.document = Some(document.digest.clone());
            let mut pools = BTreeMap::new();
            for tenant in &document.document.tenants {
                for pool in &tenant.pools {
                    let reference = pool.reference(&tenant.tenant_id);
                    let leased = status.pools.get(&reference).map_or(0, |pool| pool.leased);
                    let held = PoolStatus {
                        ready: pool.desired_counts,
                        leased,
                        template: true,
                        revision: Some("r1".to_owned()),
                        instances: pool.desired_counts.total() as u32 + leased,
                        ..PoolStatus::default()
                    };
                    pools.insert(reference, held);
                }
            }
            status.pools = pools;
        });
        Ok(())
    }

    async fn leader(&self, _: &Leader) -> Result<Vec<HeldClaim>, Refused> {
        if self.0.dead.load(Ordering::Relaxed) { unreached() } else { Ok(Vec::new()) }
    }

    async fn claim(&self, id: LeaseId, claim: &NodeClaim) -> Result<Claim, Refused> {
        if self.0.dead.load(Ordering::Relaxed) {
            return unreached();
        }
        tokio::time::sleep(WAKE).await;
        let number = self.0.made.fetch_add(1, Ordering::Relaxed);
        let reference =
            InstanceRef { pool: claim.pool.clone(), id: InstanceId::from_number(number) };
        self.0.claims.lock().expect("claims").insert(id, reference.clone());
        self.0.leased(&claim.pool, 1);
        let lease = Lease {
            id,
            holder: claim.holder.clone(),
            purpose: Purpose::Run,
            since: Timestamp::EPOCH,
            expires_at: Timestamp::MAX,
            longest_until: None,
        };
        Ok(Claim { reference, from: State::Warm, way_up: None, took_ms: 2.0, lease })
    }

    async fn renew(&self, _: &RenewClaims) -> Result<Vec<LeaseId>, Refused> {
        Ok(Vec::new())
    }

    async fn end(&self, id: LeaseId, _: &Leader) -> Result<(), Refused> {
        let ended = self.0.claims.lock().expect("claims").remove(&id);
        if let Some(reference) = ended {
            self.0.leased(&reference.pool, -1);
        }
        Ok(())
    }

    fn http(&self) -> Option<Client> {
        None
    }
}
