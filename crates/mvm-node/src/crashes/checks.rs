//! The invariants that hold whenever an agent is at rest: the records match machines, links and
//! files.

use super::host::Host;
use super::queue;
use crate::agent::Agent;
use crate::records::RecordSet;
use futures::FutureExt;
use mvm_hypervisor::Hypervisor;
use mvm_model::event::Event;
use mvm_model::{Instance, Mib, State};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The maximum real time for which the checks are repeated.
const PATIENCE: Duration = Duration::from_secs(30);

/// Returns all violations of the invariants, in words.
///
/// A machine may end while this function looks, because of a background task's call. So the checks
/// are repeated after a change, and while a gate is held: its holder's outcome may be on disk and
/// not in memory yet.
pub async fn faults(agent: &Arc<Agent>, host: &Host) -> Vec<String> {
    let began = Instant::now();
    loop {
        let records = agent.base.records.read(RecordSet::clone);
        let faults = faults_of(agent, records.clone(), host).await;
        let moves = agent
            .base
            .records
            .read(|now| (&now.instances, &now.pools) != (&records.instances, &records.pools));
        let moves =
            moves || records.instances.values().any(|i| has_died(agent, i) || is_held(agent, i));
        if faults.is_empty() || !moves || began.elapsed() > PATIENCE {
            return faults;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Returns whether the process of an instance's machine has ended and nothing has begun to record
/// that.
pub fn has_died(agent: &Agent, instance: &Instance) -> bool {
    let slot = agent.base.slots.of(instance.id);
    let up = matches!(instance.state, State::Running | State::Warm);
    up && slot.gate.try_lock().is_ok_and(|live| {
        live.machine.as_ref().is_none_or(|machine| machine.exited().now_or_never().is_some())
    })
}

/// Returns whether the instance's gate is held.
fn is_held(agent: &Agent, instance: &Instance) -> bool {
    agent.base.slots.of(instance.id).gate.try_lock().is_err()
}

async fn faults_of(agent: &Arc<Agent>, records: RecordSet, host: &Host) -> Vec<String> {
    let mut faults = Vec::new();
    consistency(agent, &records, &mut faults).await;
    machines(agent, &records, host, &mut faults).await;
    links(agent, &records, &mut faults).await;
    files(agent, &records, &mut faults);
    events(agent, &records, &mut faults).await;
    faults.extend(queue::faults(agent, &records));
    faults
}

/// Checks that the records in memory equal those on disk, are consistent, and respect the quotas.
async fn consistency(agent: &Agent, records: &RecordSet, faults: &mut Vec<String>) {
    let kept = RecordSet::load(agent.base.records.store().as_ref()).await.expect("records");
    if kept.instances != records.instances || kept.pools != records.pools {
        faults.push("the records in memory are not those on disk".to_owned());
    }
    for (name, tenant) in &records.tenants {
        let (usage, quotas) = (records.usage(name), tenant.quotas);
        let within = usage.vcpus <= quotas.max_vcpus
            && usage.mem_mib <= quotas.max_mem_mib
            && usage.running <= quotas.max_running
            && usage.warm <= quotas.max_warm
            && usage.pools <= quotas.max_pools
            && usage.disk_mib <= Mib::from_gib(quotas.max_disk_gib);
        if !within {
            faults.push(format!("tenant {name} uses {usage:?}"));
        }
        if records.addresses(name).len() != records.of_tenant(name).count() {
            faults.push(format!("two instances of {name} have one address"));
        }
    }
    for instance in records.instances.values() {
        if !records.pools.contains_key(&instance.pool) {
            faults.push(format!("{} has no pool", instance.id));
        }
        if (instance.state == State::Failed) != instance.reason.is_some() {
            faults.push(format!("{} is {}: {:?}", instance.id, instance.state, instance.reason));
        }
        if instance.is_busy() {
            faults.push(format!("{} is busy: {instance:?}", instance.id));
        }
    }
    for pool in records.pools.keys().filter(|pool| !records.tenants.contains_key(&pool.tenant)) {
        faults.push(format!("pool {pool} has no tenant"));
    }
}

/// Checks that every instance that needs a machine has one, in the right state and in its slot, and
/// that there is no other machine.
async fn machines(agent: &Agent, records: &RecordSet, host: &Host, faults: &mut Vec<String>) {
    let root = &agent.base.state_dir;
    let sim = host.machines();
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for process in sim.find(&root.marker_prefix()).expect("machines") {
        *found.entry(process.marker).or_default() += 1;
    }
    for instance in records.instances.values() {
        let marker = root.marker(instance.id);
        let slot = agent.base.slots.of(instance.id);
        let live = slot.gate.lock().await;
        if live.lingers() && !agent.lifecycle.lingering.watches(instance.id) {
            faults.push(format!("{}: its process lingers for ever", instance.id));
        }
        let lingers = live.lingers() && instance.state == State::Sleeping;
        let wanted = usize::from(instance.state.has_process() || lingers);
        let have = found.remove(&marker).unwrap_or(0);
        if have != wanted {
            faults.push(format!("{} is {} with {have} machines", instance.id, instance.state));
        }
        let runs = (have == 1).then(|| sim.is_running(&marker)).flatten();
        if runs.is_some_and(|runs| runs != (instance.state == State::Running)) {
            faults.push(format!("{} is {}, running: {runs:?}", instance.id, instance.state));
        }
        if live.machine.is_some() != instance.state.has_process() {
            faults.push(format!("{} is {}, its slot says no", instance.id, instance.state));
        }
    }
    for marker in found.keys() {
        faults.push(format!("{marker} runs without a record"));
    }
}

/// Checks that every tenant has a bridge and every live machine a tap, and that no other links
/// exist.
async fn links(agent: &Agent, records: &RecordSet, faults: &mut Vec<String>) {
    let links = agent.supplies.links.network().list().await.expect("links");
    let mut names: BTreeSet<String> = links.into_iter().map(|link| link.name).collect();
    for tenant in records.tenants.values() {
        if !names.remove(&agent.supplies.links.bridge_name(tenant)) {
            faults.push(format!("tenant {} has no bridge", tenant.name));
        }
    }
    for instance in records.instances.values() {
        let has = names.remove(&agent.supplies.links.tap_name(instance));
        if !has && instance.state.has_process() {
            faults.push(format!("{} is {} without a tap", instance.id, instance.state));
        }
    }
    faults.extend(names.iter().map(|name| format!("link {name} is nobody's")));
}

/// Returns the names in a directory; empty where it does not exist.
pub fn names(dir: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Checks that directories, disks, memory, snapshots and templates are those of the records.
fn files(agent: &Agent, records: &RecordSet, faults: &mut Vec<String>) {
    let root = &agent.base.state_dir;
    let mut dirs = names(&root.instances());
    for instance in records.instances.values() {
        let known = dirs.remove(&instance.id.to_string());
        let have = names(&root.files(instance.id).dir);
        if let Some(fault) = files_of(instance, known, &have) {
            faults.push(format!("{} is {}: {fault}: {have:?}", instance.id, instance.state));
        }
    }
    faults.extend(dirs.iter().map(|name| format!("directory {name} is nobody's")));
    let tenants: BTreeSet<String> = records.tenants.keys().map(ToString::to_string).collect();
    let kept = names(&root.tenants());
    if kept != tenants {
        faults.push(format!("directories of tenants {kept:?}, tenants {tenants:?}"));
    }
    for tenant in records.tenants.keys() {
        let have = names(&root.tenant(tenant));
        if have != BTreeSet::from(["ssh_key".to_owned()]) {
            faults.push(format!("tenant {tenant} has {have:?}"));
        }
    }
    templates(agent, records, faults);
}

fn files_of(instance: &Instance, known: bool, have: &BTreeSet<String>) -> Option<&'static str> {
    let has = |name: &str| have.contains(name);
    let own_memory = instance.template.is_none();
    let disks = has("scratch.raw") && has("data.raw");
    if have.iter().any(|name| name.starts_with(".tmp") || name.ends_with(".part")) {
        return Some("half a file");
    }
    if has("snapshot.resuming") {
        return Some("resumed for ever");
    }
    match instance.state {
        State::Running | State::Warm => match () {
            () if has("snapshot") => Some("a snapshot that is not it any more"),
            () if has("memory") != own_memory => Some("memory that is not its own, or none"),
            () if !disks => Some("no disks"),
            () => None,
        },
        State::Sleeping if instance.dormant => {
            (has("snapshot") || has("memory")).then_some("memory of one that never ran")
        }
        State::Sleeping if has("snapshot") && has("memory") && disks => None,
        State::Sleeping => Some("nothing to wake from"),
        State::Stopped if has("snapshot") || has("memory") => Some("memory of one that is off"),
        State::Stopped if known && !disks => Some("no disks"),
        _ => None,
    }
}

/// Checks that templates are complete, and are those that pools and clones need.
fn templates(agent: &Agent, records: &RecordSet, faults: &mut Vec<String>) {
    let dir = agent.base.state_dir.templates();
    let have = names(&dir);
    for name in &have {
        let mut files = names(&dir.join(name));
        files.remove(crate::templates::RENEWED);
        let whole = ["memory", "snapshot", "scratch.raw", "data.raw", "template.json"];
        if files != whole.map(str::to_owned).into() {
            faults.push(format!("template {name} has {files:?}"));
        }
    }
    let needed: BTreeSet<String> =
        records.instances.values().filter_map(|i| i.template.clone()).collect();
    if !needed.is_subset(&have) {
        faults.push(format!("templates {have:?}, needed {needed:?}"));
    }
    let of_pools = records.pools.values().filter_map(|pool| agent.supplies.templates.of_pool(pool));
    let known: BTreeSet<String> = of_pools.map(|template| template.key).chain(needed).collect();
    let dormant = records.instances.values().any(|i| i.dormant);
    if !dormant && !have.is_subset(&known) {
        faults.push(format!("templates {have:?}, known {known:?}"));
    }
}

/// Checks that the events are numbered without a gap, and that those of each instance are a
/// sequence of transitions that ends in the recorded state.
async fn events(agent: &Agent, records: &RecordSet, faults: &mut Vec<String>) {
    let events: Vec<Event> = agent.base.records.events_after(0).await.expect("events");
    let mut states: BTreeMap<String, State> = BTreeMap::new();
    for (event, id) in events.iter().zip(1..) {
        let instance = event.instance.to_string();
        let before = states.insert(instance.clone(), event.to);
        if event.id != id || event.from != before {
            faults.push(format!("event {id} of {instance} from {before:?}: {event:?}"));
        }
    }
    states.retain(|_, state| *state != State::Destroyed);
    let recorded = records.instances.values().map(|i| (i.reference().to_string(), i.state));
    if states != recorded.collect() {
        faults.push(format!("events tell of {states:?}"));
    }
}
