//! Every kind of failure, one after the other, while clients use machines all the time.

use crate::clients::{self, Clients};
use crate::lab::{Engine, Kind, Lab, REAL, SIM, address, pool, text, wait_at_most, wait_for};
use crate::machine_faults::CutDirection;
use crate::upgrade::{Machine, Steady};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

pub const COORDINATORS: [&str; 3] = ["c1", "c2", "c3"];
const SIMS: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];
const REALS: [&str; 2] = ["n6", "n7"];

/// A fault's name, and the function that causes it.
type Failure = (&'static str, fn(&mut Fleet));

#[test]
fn nothing_is_lost_and_nothing_is_given_twice() {
    let mut fleet = Fleet::new();
    let failures: [Failure; 12] = [
        ("leader killed", Fleet::leader_is_killed),
        ("etcd member killed", Fleet::etcd_member_is_killed),
        ("etcd quorum lost", Fleet::etcd_has_no_quorum),
        ("node dies", Fleet::node_dies),
        ("links one way", Fleet::links_are_cut_one_way),
        ("leader hears nobody", Fleet::leader_hears_nobody),
        ("clocks wrong", Fleet::clocks_are_wrong),
        ("disk full", Fleet::disk_is_full),
        ("node drained", Fleet::node_is_drained),
        ("agents upgraded", Fleet::agents_are_upgraded),
        ("coordinators upgraded", Fleet::coordinators_are_upgraded),
        ("real nodes", Fleet::real_nodes_are_cut_and_killed),
    ];
    for (what, cause) in failures {
        let began = Instant::now();
        fleet.fault = began;
        cause(&mut fleet);
        let calls = fleet.clients.since(began);
        eprintln!(
            "== {what}: {:.1} s, {}",
            began.elapsed().as_secs_f64(),
            clients::summary(&calls)
        );
    }
    fleet.account();
}

/// Three coordinators, three members of etcd, five simulated nodes and two real ones.
pub struct Fleet {
    pub lab: Lab,
    pub clients: Clients,
    /// When the present fault began.
    pub fault: Instant,
    /// A long command that survives every fault that does not concern its own machines.
    steady: Option<Steady>,
}

impl Fleet {
    fn new() -> Fleet {
        let began = Instant::now();
        let mut lab = Lab::new("fleet-failures", Engine::Spread(3));
        lab.clocks = true;
        lab.small_images();
        COORDINATORS.iter().for_each(|name| lab.coordinator(name));
        for node in SIMS {
            let (clock, disk) = (node == "n3", (node == "n5").then_some(600));
            lab.node_of(node, Kind { clock, disk, ..SIM });
        }
        REALS.iter().for_each(|node| lab.node_of(node, REAL));
        wait_for("the nodes", || SIMS.iter().chain(&REALS).all(|node| lab.alive(node)));
        let of = |made: &str| json!({ "require": { "made": [made] }, "spread": { "key": "node" } });
        let pools = [
            pool("runners", &json!({ "warm": 10, "sleeping": 5 }), &of("sim")),
            pool("real", &json!({ "warm": 2 }), &of("real")),
        ];
        lab.apply_pools(&pools, true);
        eprintln!("== set up: {:.1} s", began.elapsed().as_secs_f64());
        let pools = ["ci/runners", "ci/runners", "ci/real"];
        let clients = Clients::start(&lab.asker("hub"), &pools, &COORDINATORS);
        Fleet { lab, clients, fault: began, steady: None }
    }

    pub fn tell(&self, what: &str) {
        eprintln!("   {:.1} s: {what}", self.fault.elapsed().as_secs_f64());
    }

    /// Waits until commands that begin from now on succeed.
    pub fn served(&self) {
        let from = Instant::now();
        wait_for("claims to be served", || self.clients.served_since(from) >= 2);
        self.tell("served");
    }

    /// Waits until all calls that began before this moment have ended, with success or error.
    fn ended(&self) {
        let until = Instant::now();
        wait_for("the calls under way to end", || self.clients.ended_before(until));
        self.tell("what was under way has ended");
    }

    /// Returns the leader if it is another coordinator than `old`, which is not asked.
    fn leader_but(&self, old: &str) -> Option<&'static str> {
        COORDINATORS.into_iter().filter(|name| *name != old).find(|name| {
            self.lab.coordinator_status(name).is_some_and(|status| status["leads"] == true)
        })
    }

    pub fn leader(&self) -> &'static str {
        self.leader_but("").expect("a leader")
    }

    /// Waits until another coordinator than `old` is leader. The clients ask it from now on.
    fn another_leads(&mut self, old: &str) {
        let mut found = None;
        wait_for("another leader", || {
            found = self.leader_but(old);
            found.is_some()
        });
        self.tell("another leads");
        self.lab.front = found.expect("a leader").to_owned();
    }

    fn converged(&self) {
        wait_for("all to be as it should", || self.lab.converged());
        self.tell("converged");
    }

    /// Waits until each simulated node has its share of the spread.
    pub fn level(&self) {
        wait_for("the spread", || SIMS.iter().all(|node| self.held(node) == json!([2, 1])));
        self.tell("spread as before");
    }

    /// Returns the numbers of warm and sleeping instances.
    fn held(&self, node: &str) -> Value {
        let held = self.lab.held(node);
        json!([held[0], held[1]])
    }

    fn lost(&self, node: &str) {
        wait_for("the loss to be seen", || !self.lab.alive(node));
        self.tell(&format!("{node} is lost"));
    }

    fn leader_is_killed(&mut self) {
        let leader = self.leader();
        let other = COORDINATORS.into_iter().find(|name| *name != leader).expect("another");
        // Longer than a leader keeps a claim whose client does not come back.
        self.steady = Some(Steady::begin(&self.lab, other, 40));
        self.fault = Instant::now();
        self.lab.kill(leader);
        self.another_leads(leader);
        self.served();
        self.lab.coordinator(leader);
        self.converged();
    }

    fn etcd_member_is_killed(&mut self) {
        self.lab.etcd.as_mut().expect("etcd").kill(0);
        self.served();
        self.converged();
        self.lab.etcd.as_mut().expect("etcd").restart(0);
        self.served();
    }

    fn etcd_has_no_quorum(&mut self) {
        let etcd = self.lab.etcd.as_mut().expect("etcd");
        etcd.kill(1);
        etcd.kill(2);
        // A client without patience gets an error.
        let follows = |name: &&str| {
            self.lab.coordinator_status(name).is_some_and(|status| status["leads"] == false)
        };
        wait_for("nobody to lead", || COORDINATORS.iter().all(follows));
        self.lab.refused(&["run", "ci/runners", "--", "true"], "no_leader");
        self.tell("refused");
        // The nodes continue to work by themselves.
        let local = self.lab.locally("n1", &["run", "ci/runners", "--", "echo", "local"]);
        assert_eq!(local, "local\n");
        let etcd = self.lab.etcd.as_mut().expect("etcd");
        etcd.restart(1);
        etcd.restart(2);
        self.tell("a quorum again");
        self.another_leads("");
        self.served();
        self.converged();
        self.steady.take().expect("a command").ends();
        self.tell("a command went on all the time");
    }

    fn node_dies(&mut self) {
        self.lab.kill("n1");
        self.lab.cut("n1", CutDirection::Both);
        self.lost("n1");
        self.converged();
        self.served();
        self.lab.join("n1");
        self.lab.node("n1");
        self.fault = Instant::now();
        wait_for("it to come back", || self.lab.alive("n1"));
        self.tell("n1 is back");
        self.level();
    }

    fn links_are_cut_one_way(&mut self) {
        self.lab.cut("n2", CutDirection::In);
        self.lab.cut("n4", CutDirection::Out);
        self.lost("n2");
        self.lost("n4");
        self.ended();
        self.converged();
        self.served();
        self.lab.join("n2");
        self.lab.join("n4");
        self.fault = Instant::now();
        wait_for("them to come back", || self.lab.alive("n2") && self.lab.alive("n4"));
        self.level();
    }

    fn leader_hears_nobody(&mut self) {
        let leader = self.leader();
        self.lab.cut(leader, CutDirection::In);
        self.another_leads(leader);
        self.ended();
        self.served();
        self.lab.join(leader);
        let leads =
            |status: Value| status["leader"] == format!("{}:4433", address(&self.lab.front));
        wait_for("it to follow", || self.lab.coordinator_status(leader).is_some_and(leads));
        self.tell("it follows");
        self.level();
    }

    fn clocks_are_wrong(&mut self) {
        let leader = self.leader();
        self.lab.set_clock("n3", "+10m");
        self.lab.set_clock(leader, "+1h");
        self.served();
        self.lab.kill("n1");
        self.lost("n1");
        // The clock of the next leader is an hour behind that of the leader that saw n1 go.
        self.lab.kill(leader);
        self.another_leads(leader);
        self.served();
        self.converged();
        self.lab.set_clock(leader, "+0");
        self.lab.set_clock("n3", "-4m");
        self.lab.coordinator(leader);
        self.lab.node("n1");
        self.level();
        self.lab.set_clock("n3", "+0");
    }

    fn disk_is_full(&mut self) {
        // The job prints more than there is space for.
        let (input, much) = (self.lab.path("much"), " much".repeat(7));
        std::fs::write(&input, vec![b'.'; 3 << 20]).expect("file");
        let script = format!("sleep 5; cat{much}");
        let job = ["job", "submit", "ci/runners", "--in", &input, "--", "sh", "-c", &script];
        let job = self.lab.locally("n5", &job).trim().to_owned();
        wait_for("a job to begin", || self.lab.json(&["job", "info", &job])["state"] == "running");
        self.lab.fill("n5");
        self.tell("full");
        // More commands than the other nodes have spares, so the full node is asked as well; other
        // nodes serve what it refuses.
        let burst = |_| {
            let mut run = self.lab.mvm("hub", &["run", "ci/runners", "--", "sleep", "3"]);
            run.stderr(Stdio::piped()).spawn().expect("mvm")
        };
        let burst: Vec<Child> = (0..14).map(burst).collect();
        for run in burst {
            let output = run.wait_with_output().expect("mvm");
            assert!(output.status.success(), "{}", text(&output.stderr));
        }
        self.tell("a burst was served");
        wait_for("its log to end", || self.lab.lines_with(&job).contains("log ends here"));
        self.lab.empty("n5");
        // The job has done its work, and says that its log is incomplete.
        self.lab.mvm("hub", &["job", "wait", &job]).output().expect("mvm");
        let ended = self.lab.json(&["job", "info", &job]);
        let cut = ended["reason"].as_str().is_some_and(|why| why.contains("its log is cut short"));
        assert!(ended["state"] == "succeeded" && cut, "{ended}");
        self.level();
        self.served();
    }

    fn node_is_drained(&mut self) {
        let job = ["run", "ci/runners", "--", "sh", "-c", "sleep 12; echo done"];
        let mut job = self.lab.mvm("hub", &job);
        let job = job.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("mvm");
        // All other jobs end within a second.
        let mut busy = None;
        wait_for("the job", || {
            let before = self.leases();
            std::thread::sleep(Duration::from_secs(2));
            busy = self.leases().into_iter().find(|lease| before.contains(lease));
            busy.is_some()
        });
        let (_, busy) = busy.expect("a lease");
        self.lab.ok("hub", &["fleet", "drain", &busy, "--wait", "100"]);
        self.tell(&format!("{busy} is empty"));
        assert_eq!(self.lab.held(&busy), json!([0, 0, 0]));
        let output = job.wait_with_output().expect("job");
        assert_eq!(text(&output.stdout), "done\n", "{}", text(&output.stderr));
        self.lab.ok("hub", &["fleet", "uncordon", &busy]);
        self.level();
        let failed = self.clients.since(self.fault);
        let failed: Vec<_> = failed.iter().filter(|call| !call.success).collect();
        assert!(failed.is_empty(), "{failed:?}");
    }

    fn real_nodes_are_cut_and_killed(&mut self) {
        let machines = ["n6", "n7"].map(|node| Machine::take(&self.lab, node));
        self.lab.kill("n6");
        self.lab.cut("n7", CutDirection::Both);
        self.lost("n6");
        self.lost("n7");
        self.lab.node("n6");
        self.lab.join("n7");
        wait_for("them to come back", || self.lab.alive("n6") && self.lab.alive("n7"));
        self.tell("they are back");
        // The machines there have run all the time.
        for machine in machines {
            machine.is_as_it_was(&self.lab);
            machine.give_back(&self.lab);
        }
        self.converged();
        let from = Instant::now();
        wait_for("claims to be served", || self.clients.served_since(from) > 3);
    }

    /// Returns the leases of simulated machines, each with its node.
    fn leases(&self) -> BTreeSet<(String, String)> {
        let all = self.lab.json(&["fleet", "instances"]);
        let leases = all.as_array().expect("list").iter().filter_map(|instance| {
            let (lease, node) = (instance["lease"]["id"].as_str()?, instance["node_id"].as_str()?);
            Some((lease.to_owned(), node.to_owned()))
        });
        leases.filter(|(_, node)| SIMS.contains(&&**node)).collect()
    }

    /// Returns the spares of a node.
    pub fn of_node(&self, node: &str) -> BTreeSet<String> {
        let all = self.lab.json(&["fleet", "instances"]);
        let all = all.as_array().expect("list").iter();
        let here = all.filter(|i| i["node_id"] == node && i["lease"].is_null());
        here.map(|i| i["reference"].as_str().expect("reference").to_owned()).collect()
    }

    /// Checks all calls and jobs at the end.
    fn account(self) {
        let Fleet { lab, clients, .. } = self;
        let (calls, jobs) = clients.finish();
        let mut seen = BTreeSet::new();
        clients::check(&calls, &mut seen);
        check_jobs(&lab, &jobs, &mut seen);
        // Leases have ended with their claims, and no instance is on two nodes.
        wait_for("the leases to end", || {
            lab.json(&["lease", "list"]).as_array().expect("list").is_empty()
        });
        wait_for("all to be as it should", || lab.converged());
        let instances = lab.json(&["fleet", "instances"]);
        let instances = instances.as_array().expect("list");
        let ids: BTreeSet<&str> =
            instances.iter().map(|i| i["reference"].as_str().expect("reference")).collect();
        assert_eq!(ids.len(), instances.len(), "an instance is on two nodes");
        let served = calls.iter().filter(|call| call.success && call.what == "run").count();
        eprintln!("== {served} commands and {} jobs, {}", jobs.len(), clients::summary(&calls));
    }
}

/// Checks that every job is on one node and has ended, and that the successful ones were alone on
/// their machine.
fn check_jobs(lab: &Lab, jobs: &[(String, String)], seen: &mut BTreeSet<String>) {
    let mut all = Vec::new();
    let on = |all: &[Value], job: &str| all.iter().filter(|j| j["job_id"] == job).count();
    // A list omits a node that does not answer at once.
    let listed = wait_at_most(Duration::from_secs(30), || {
        all = lab.json(&["job", "list"]).as_array().expect("list").clone();
        jobs.iter().all(|(job, _)| on(&all, job) == 1)
    });
    for (job, id) in jobs {
        let found = on(&all, job);
        let told = || lab.lines_with(job);
        assert!(listed || found == 1, "job {job} ({id}) is on {found} nodes: {}", told());
        lab.mvm("hub", &["job", "wait", job]).output().expect("mvm");
        let ended = lab.json(&["job", "info", job]);
        match ended["state"].as_str().expect("state") {
            // On a full disk there was no space for the whole log.
            "succeeded" if ended["reason"].is_string() => {
                let why = ended["reason"].as_str().expect("words");
                assert!(why.contains("its log is cut short"), "{ended}");
            }
            "succeeded" => {
                let printed = lab.ok("hub", &["job", "logs", job]);
                assert_eq!(printed.lines().count(), 3, "{printed:?} of {ended}: {}", told());
                clients::check_output(id, &printed, seen);
            }
            "lost" | "failed" => assert!(ended["reason"].is_string(), "{ended}"),
            _ => panic!("job {job} has not ended: {ended}"),
        }
    }
}
