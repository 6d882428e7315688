//! Leases that end, and idle instances.

use crate::lab::{Lab, wait_for};
use serde_json::json;

#[test]
fn an_idle_instance_cools_down_and_a_lease_holds_it() {
    let lab = Lab::new("policy");
    lab.tenant_and_pool("ci", "70");
    lab.ok(&[
        "pool",
        "update",
        "ci/small",
        "--warm-after",
        "3",
        "--sleep-after",
        "2",
        "--min-running",
        "1",
        "--min-warm",
        "1",
    ]);
    let vm = lab.ok(&["instance", "create", "ci/small", "--start"]).trim().to_owned();
    let info = || lab.json(&["instance", "info", &vm]);
    let lease = info()["lease"]["id"].as_str().expect("a lease").to_owned();
    assert!(info()["next"].is_null(), "leased ones are left alone");
    let list = lab.ok(&["lease", "list", "ci"]);
    assert!(list.contains(&lease) && list.contains(&vm), "{list}");
    lab.ok(&["lease", "extend", &lease, "--lease", "7200"]);
    let left = info()["lease"]["expires_at"].as_u64().zip(info()["lease"]["since"].as_u64());
    assert!(left.is_some_and(|(end, since)| end - since > 7_100_000));
    for words in [
        ["instance", "exec", &vm, "--lease", "90000", "--", "true"],
        ["instance", "ssh", &vm, "--lease", "95000", "--", "true"],
    ] {
        lab.ok(&words);
        let seconds: u64 = words[4].parse().expect("seconds");
        let lease = info()["lease"].clone();
        let ends = lease["expires_at"].as_u64().expect("end");
        assert!(ends - lease["since"].as_u64().expect("begin") >= seconds * 1000, "{words:?}");
    }
    lab.refused(&["lease", "extend", "l-00000000"], "not_found");
    lab.refused(&["lease", "extend", &lease, "--lease", "0"], "invalid_value");
    std::thread::sleep(std::time::Duration::from_secs(6));
    assert_eq!(lab.state(&vm), "running", "a lease holds it");
    lab.ok(&["lease", "release", &vm]);
    wait_for("the policy to say what comes", || info()["next"]["to"] == "warm");
    assert!(info()["next"]["why"].as_str().is_some_and(|why| why.contains("idle for 3 s")));
    wait_for("it to be warm", || lab.state(&vm) == "warm");
    wait_for("it to sleep", || lab.state(&vm) == "sleeping");
    assert_eq!(lab.machines(), 0);
}

#[test]
fn a_lease_that_ends_recycles_by_the_pools_rule() {
    let lab = Lab::new("expire");
    lab.tenant_and_pool("ci", "71");
    let counts = |warm: u64| json!({ "running": 0, "warm": warm, "sleeping": 0 });
    let ready = || lab.ready("ci/small");
    lab.ok(&["pool", "scale", "ci/small", "--warm", "1", "--wait"]);
    let taken = || {
        let vm = lab.ids("ci/small", "warm").remove(0);
        lab.ok(&["instance", "wake", &vm, "--lease", "2"]);
        vm
    };
    let there =
        |vm: &str| lab.mvm(&["instance", "info", vm]).output().expect("mvm").status.success();
    let vm = taken();
    wait_for("reset to destroy it", || !there(&vm));
    wait_for("the spare", || ready() == counts(1));
    // An open session keeps its lease alive.
    lab.ok(&["pool", "update", "ci/small", "--recycle", "sleep"]);
    lab.ok(&["pool", "scale", "ci/small", "--warm", "1", "--sleeping", "1", "--wait"]);
    let vm = taken();
    lab.exec(&vm, "echo kept > /run/kept; sleep 5");
    wait_for("the lease to end", || lab.json(&["lease", "list"]) == json!([]));
    let both = json!({ "running": 0, "warm": 1, "sleeping": 1 });
    wait_for("the spares", || ready() == both);
    assert_eq!(lab.state(&vm), "sleeping", "for its caches it is kept rather than another");
    assert_eq!(lab.exec(&vm, "cat /run/kept").trim(), "kept");
    // An instance that has served its number of jobs is replaced.
    lab.ok(&["pool", "update", "ci/small", "--max-jobs", "1"]);
    lab.ok(&["lease", "release", &vm]);
    wait_for("the old one to go", || !there(&vm));
    wait_for("the spares", || ready() == both);
}

#[test]
fn under_memory_pressure_the_longest_warm_sleep_first_and_nothing_is_built() {
    let lab = Lab::new("psi");
    lab.tenant_and_pool("ci", "75");
    let older = lab.start("ci/small");
    let newer = lab.start("ci/small");
    for vm in [&older, &newer] {
        lab.exec(vm, "echo kept > /dev/shm/note");
        lab.ok(&["instance", "warm", vm]);
    }
    let held = lab.start("ci/small");
    let metric = |name: &str| -> u64 {
        let metrics = lab.ok(&["metrics"]);
        let line = metrics.lines().find(|line| line.starts_with(&format!("{name} ")));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect(name)
    };
    let passes = |more: u64| {
        let before = metric("mvm_reconcile_passes_total");
        wait_for("the reconciler", || metric("mvm_reconcile_passes_total") >= before + more);
    };
    let last = lab.json(&["events"]).as_array().and_then(|all| all.last()?["id"].as_u64());
    passes(2);
    assert_eq!((lab.state(&older), metric("mvm_memory_pressed")), ("warm".to_owned(), 0));
    lab.press(40);
    wait_for("both to sleep", || [&older, &newer].iter().all(|vm| lab.state(vm) == "sleeping"));
    assert_eq!((lab.state(&held).as_str(), lab.machines()), ("running", 1), "a lease is kept");
    let since = last.expect("events").to_string();
    let events = lab.json(&["events", "--since", &since]);
    let slept = events.as_array().expect("list").iter().filter(|e| e["to"] == "sleeping");
    let order: Vec<&str> = slept.map(|e| e["instance"].as_str().expect("instance")).collect();
    assert_eq!(order, [older.as_str(), newer.as_str()], "the longest idle first");
    assert_eq!(metric("mvm_memory_pressed"), 1);
    // Requests made now wait until the pressure is over.
    lab.ok(&["pool", "scale", "ci/small", "--warm", "2"]);
    passes(3);
    assert_eq!((lab.ids("ci/small", "warm").len(), lab.machines()), (0, 1));
    lab.press(0);
    wait_for("two warm ones", || lab.ids("ci/small", "warm").len() == 2);
    for vm in [&older, &newer] {
        assert_eq!(lab.exec(vm, "cat /dev/shm/note").trim(), "kept", "nothing was lost");
    }
}
