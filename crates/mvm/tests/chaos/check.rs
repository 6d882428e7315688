//! The checks at the end.

use crate::blame::FaultTimeline;
use crate::clients::{Call, Job, given_twice, status_of, wrong};
use crate::lab::{Lab, text};
use crate::plan::{COORDINATORS, NODES};
use crate::{SLEEPING, WARM};
use mvm_store::Store;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// The violations, one per line.
pub type Findings = Vec<String>;

/// Errors that a client may get if its machine or its node went away during a job. Clients must ride
/// out a moment without a leader, or with an unreachable node, without an error.
const ALLOWED: [&str; 4] =
    ["session_lost", "job_lost", "guest_channel_broken", "guest_unreachable"];

/// Checks that every call ended in time with its true result, or with a justified error that has a
/// code.
pub fn calls(calls: &[Call], blame: &FaultTimeline<'_>, seen: &mut BTreeSet<String>) -> Findings {
    calls.iter().filter_map(|call| of_call(call, blame, seen)).collect()
}

fn of_call(call: &Call, blame: &FaultTimeline<'_>, seen: &mut BTreeSet<String>) -> Option<String> {
    let told = |what: String| Some(format!("{} {}: {what}: {}", call.what, call.id, call.stderr));
    if let Some(why) = blame.too_long(call) {
        return told(why);
    }
    if call.what == "run" && given_twice(seen, &call.stdout) {
        return told(format!("its machine was given twice: {}", call.stdout));
    }
    if let Some(code) = call.code() {
        return match ALLOWED.contains(&code) {
            true => blame.unfounded(call.began(), call.ended, &call.said()).and_then(told),
            false => told("nobody has to see this error".to_owned()),
        };
    }
    match call.what {
        "run" => wrong(&call.id, call.status, &call.stdout).and_then(told),
        // The job's result is checked at the end.
        "wait" => {
            let known = [Some(status_of(&call.id)), Some(125)].contains(&call.status);
            if known { None } else { told(format!("status {:?}", call.status)) }
        }
        _ if call.status != Some(0) => told(format!("status {:?} without an error", call.status)),
        _ => None,
    }
}

/// Checks that every submitted job is on one node, has ended, and has printed exactly the right
/// output.
pub fn jobs(
    lab: &Lab,
    jobs: &[Job],
    blame: &FaultTimeline<'_>,
    seen: &mut BTreeSet<String>,
) -> Findings {
    let mut faults = Findings::new();
    for Job { job, id, submitted, followed } in jobs {
        let info = lab.mvm("hub", &["job", "info", job, "-o", "json"]).output().expect("mvm");
        let Ok(info) = serde_json::from_slice::<Value>(&info.stdout) else {
            faults.push(format!("job {job} ({id}): {}", text(&info.stderr)));
            continue;
        };
        let state = info["state"].as_str().unwrap_or_default();
        let status = info["exit_status"].as_i64();
        match state {
            "succeeded" | "failed" if status == Some(status_of(id).into()) => {
                let printed = lab.ok("hub", &["job", "logs", job]);
                let what = wrong(id, Some(status_of(id)), &printed);
                faults.extend(what.map(|what| format!("job {job} ({id}): {what}: {info}")));
                if given_twice(seen, &printed) {
                    faults
                        .push(format!("job {job} ({id}): its machine was given twice: {printed}"));
                }
            }
            "lost" | "failed" if info["reason"].is_string() => {
                let unfounded = blame.unfounded(*submitted, *followed, &info.to_string());
                faults.extend(unfounded.map(|why| format!("job {job} ({id}): {why}: {info}")));
            }
            _ => faults.push(format!("job {job} ({id}) has not ended as it should: {info}")),
        }
    }
    faults
}

/// Waits until everything is in its desired state. Returns the violations that remain when the time
/// is up.
pub fn comes_to_rest(lab: &Lab, since: Instant, most: Duration) -> Findings {
    loop {
        let faults = at_rest(lab);
        let elapsed = since.elapsed();
        if faults.is_empty() {
            eprintln!("chaos: all is right {:.1} s after the last trouble", elapsed.as_secs_f64());
            return faults;
        }
        if elapsed > most {
            let late = |fault| format!("after {} s of quiet: {fault}", elapsed.as_secs());
            return faults.into_iter().map(late).collect();
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Returns the present violations.
fn at_rest(lab: &Lab) -> Findings {
    let mut faults = Findings::new();
    let mut on_nodes = BTreeSet::new();
    for node in NODES {
        let list = |words: &[&str]| parsed(lab.local(node, words).output().expect("mvm").stdout);
        let leases = list(&["lease", "list", "-o", "json"]);
        if leases.as_array().is_none_or(|leases| !leases.is_empty()) {
            faults.push(format!("node {node} has leases: {leases}"));
        }
        on_nodes.extend(listed(&list(&["instance", "list", "-o", "json"])));
    }
    for name in COORDINATORS {
        let mut list = lab.asker("hub").mvm(name, &["instance", "list", "-o", "json"]);
        let list = list.env("MVM_PATIENCE", "0").output().expect("mvm");
        let (seen, said) = (listed(&parsed(list.stdout)), text(&list.stderr));
        if seen != on_nodes {
            faults.push(format!("{name} lists {seen:?}, the nodes {on_nodes:?} {said}"));
        }
    }
    let ready = |state: &str| on_nodes.iter().filter(|line| line.ends_with(state)).count() as u64;
    if (ready(" warm"), ready(" sleeping")) != (WARM, SLEEPING)
        || on_nodes.len() as u64 != WARM + SLEEPING
    {
        faults.push(format!("the counts are wrong: {on_nodes:?}"));
    }
    let claims = claims(lab);
    if !claims.is_empty() {
        faults.push(format!("claims without a holder: {claims:?}"));
    }
    let mut status = lab.mvm("hub", &["fleet", "status", "-o", "json"]);
    let status = parsed(status.env("MVM_PATIENCE", "0").output().expect("mvm").stdout);
    if status["converged"] != true || status["claims_waiting"] != 0 {
        faults.push(format!("not all is there: {status}"));
    }
    faults
}

fn parsed(json: Vec<u8>) -> Value {
    serde_json::from_slice(&json).unwrap_or_default()
}

/// Returns each instance with its state.
fn listed(list: &Value) -> BTreeSet<String> {
    let line = |i: &Value| {
        let [tenant, pool, id, state] =
            ["tenant_id", "pool_id", "instance_id", "state"].map(|f| i[f].as_str().unwrap_or("?"));
        format!("{tenant}/{pool}/{id} {state}")
    };
    list.as_array().into_iter().flatten().map(line).collect()
}

/// Returns the recorded claims.
fn claims(lab: &Lab) -> Vec<String> {
    let netns = std::fs::File::open(format!("/run/netns/{}", lab.netns("hub"))).expect("namespace");
    let etcd = lab.etcd.as_ref().expect("etcd");
    std::thread::scope(|scope| {
        let asking = scope.spawn(move || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(netns.as_fd(), kind).expect("namespace");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("runtime").block_on(async {
                let claims = etcd.store("mvm/lab").await.list("claims/").await.expect("claims");
                claims.into_iter().map(|record| record.key).collect()
            })
        });
        asking.join().expect("a list")
    })
}
