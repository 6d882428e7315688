//! Runs one operation once: prepares it, injects the fault, waits for rest and checks.

use super::checks;
use super::host::{Course, Host, PointFault};
use super::operations::Operation;
use super::queue;
use crate::Result;
use crate::agent::Agent;
use crate::records::RecordSet;
use mvm_guest::protocol::ExecRequest;
use mvm_model::lease::Purpose;
use mvm_model::plan::plan;
use mvm_model::{Instance, InstanceId, JobState, State, policy};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The result, or a description of what went wrong.
pub type Outcome<T> = std::result::Result<T, String>;

/// The maximum real time in which an agent must come to rest.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often an agent is asked whether it rests. Each time it makes a pass, which costs more than
/// what it passes over.
const POLL: Duration = Duration::from_millis(5);
/// The file that marked guests have in memory.
pub const MARK: &str = "/mark";

/// Runs the operation with the first fault, and injects the second into the next agent, from its
/// start. Returns the points that both agents passed, or what went wrong.
pub fn run(operation: &Operation, injected: [Option<PointFault>; 2]) -> Outcome<[Course; 2]> {
    let host = Host::new();
    let outcome = on(&host, operation, injected);
    host.disconnect();
    outcome
}

fn on(
    host: &Host,
    operation: &Operation,
    injected: [Option<PointFault>; 2],
) -> Outcome<[Course; 2]> {
    host.arm(None);
    let mut before = None;
    // Kept outside the agents' lifetimes, which may end at any moment.
    let mut outcome: Option<Result<()>> = None;
    let mut courses = [Course::default(), Course::default()];
    let checked = host.agent(async |agent| {
        (operation.prepare)(agent.clone()).await.map_err(|error| format!("prepare: {error}"))?;
        wait_until_idle(&agent).await?;
        before = Some(agent.base.records.read(RecordSet::clone));
        host.arm(injected[0]);
        outcome = Some((operation.act)(agent.clone()).await);
        wait_until_idle(&agent).await?;
        courses[0] = host.course();
        host.arm(None);
        let after = Aftermath { operation, injected, agent: &agent, host };
        after.check(before.as_ref(), outcome.as_ref()).await
    });
    checked.unwrap_or(Ok(()))?;
    // A killed agent has a successor. An agent that was not killed ends at rest, and also has one.
    host.arm(injected[1]);
    let checked = host.agent(async |agent| {
        wait_until_idle(&agent).await?;
        courses[1] = host.course();
        Ok::<_, String>(())
    });
    checked.unwrap_or(Ok(()))?;
    host.arm(None);
    let last = host.agent(async |agent| {
        wait_until_idle(&agent).await?;
        let after = Aftermath { operation, injected, agent: &agent, host };
        after.check(before.as_ref(), outcome.as_ref()).await?;
        after.again().await
    });
    last.unwrap_or_else(|| Err("the last agent was killed".to_owned()))?;
    Ok(courses)
}

/// Waits until no operation is under way and none is due.
pub async fn wait_until_idle(agent: &Arc<Agent>) -> Outcome<()> {
    let began = Instant::now();
    let mut calm = 0;
    while calm < 3 {
        let busy = unfinished_work(agent).await;
        calm = if busy.is_none() { calm + 1 } else { 0 };
        if let Some(why) = busy.filter(|_| began.elapsed() > PATIENCE) {
            return Err(format!("it does not come to rest: {why}"));
        }
        agent.base.wake.notify();
        agent.steering.desired.wake();
        tokio::time::sleep(POLL).await;
    }
    let _ = agent.supplies.templates.collect().await;
    Ok(())
}

/// Returns what is under way or due. Advances the clock over back-off.
async fn unfinished_work(agent: &Arc<Agent>) -> Option<String> {
    let records = agent.base.records.read(RecordSet::clone);
    if let Some(instance) = records.instances.values().find(|i| i.is_busy()) {
        return Some(format!("{instance:?}"));
    }
    if let Some(instance) =
        records.instances.values().find(|instance| checks::has_died(agent, instance))
    {
        return Some(format!("its machine has ended, which is not recorded yet: {instance:?}"));
    }
    if let Some(why) = queue::unfinished_work(agent, &records).await {
        return Some(why);
    }
    let overstayed = agent.lifecycle.lingering.overstayed();
    if !overstayed.is_empty() {
        return Some(format!("their processes are to end: {overstayed:?}"));
    }
    // No client is left that could hold a job's lease.
    let held = |i: &&Instance| i.lease.as_ref().is_some_and(|l| l.purpose != Purpose::Manual);
    if let Some(instance) = records.instances.values().find(held) {
        // A lease whose end has failed ends at a later try.
        agent.advance(std::time::Duration::from_secs(60));
        return Some(format!("{instance:?}"));
    }
    if let Some(in_force) = &records.desired {
        agent.steering.desired.forget_failures();
        return Some(format!(
            "a document: {:?}",
            agent.steering.desired.steps(&in_force.document, in_force.prune)
        ));
    }
    for pool in records.pools.values() {
        let instances: Vec<_> = records.of_pool(&pool.reference).collect();
        let failures = agent.pools.health.of(&pool.reference).failures;
        let clock = agent.base.records.clock();
        agent.advance(failures.retry_at().since(clock.now()));
        let now = clock.now();
        if agent.supplies.templates.renewal_of(pool).is_some_and(|renewal| !renewal.done) {
            return Some(format!("the template of {} is to be made anew", pool.reference));
        }
        let mut actions = plan(pool, &instances, failures, 100, now);
        actions.extend(policy::act(pool, instances, |id| agent.work.idle.since(id), now));
        if !actions.is_empty() {
            return Some(format!("{actions:?}"));
        }
    }
    None
}

struct Aftermath<'a> {
    operation: &'a Operation,
    injected: [Option<PointFault>; 2],
    agent: &'a Arc<Agent>,
    host: &'a Host,
}

impl Aftermath<'_> {
    async fn check(&self, before: Option<&RecordSet>, outcome: Option<&Result<()>>) -> Outcome<()> {
        let mut faults = checks::faults(self.agent, self.host).await;
        let after = self.agent.base.records.read(RecordSet::clone);
        if let (None, Some(Err(error))) = (self.injected[0], outcome) {
            faults.push(format!("it failed by itself: {error}"));
        }
        self.kept(before.ok_or("it was never prepared")?, &after, &mut faults);
        faults.extend(self.guests(&after).await);
        // A command that its guest keeps is resumed.
        let gentle = self.injected.iter().flatten().all(|fault| fault.kills());
        let lost = after.jobs.values().filter(|job| gentle && job.state == JobState::Lost);
        faults.extend(lost.map(|job| format!("lost: {job:?}")));
        match faults.is_empty() {
            true => Ok(()),
            false => Err(faults.join("\n    ")),
        }
    }

    /// Checks that objects which the operation does not concern are as before, and that no kill has
    /// lost the objects that it does concern.
    fn kept(&self, before: &RecordSet, after: &RecordSet, faults: &mut Vec<String>) {
        let gentle = self.injected.iter().flatten().all(|fault| fault.kills());
        for instance in before.instances.values() {
            let may_go = (self.operation.may_go)(instance);
            let now = after.instances.get(&instance.id);
            if now.is_none() && !may_go && gentle {
                faults.push(format!("{} ({}) is lost", instance.id, instance.state));
            }
            let failed = now.is_some_and(|now| now.state == State::Failed)
                && instance.state != State::Failed;
            if failed && gentle {
                faults.push(format!("{} has failed: {now:?}", instance.id));
            }
        }
        for pool in after.pools.values() {
            let Some(desired) = pool.desired else { continue };
            let ready = mvm_model::plan::ready(pool, after.of_pool(&pool.reference));
            if ready != desired {
                faults.push(format!("pool {} has {ready:?} of {desired:?}", pool.reference));
            }
        }
        let known: BTreeSet<InstanceId> = before.instances.keys().copied().collect();
        let fresh = after.instances.values().filter(|i| !known.contains(&i.id));
        let unscaled = fresh.filter(|i| after.pools[&i.pool].desired.is_none()).count();
        if unscaled > self.operation.makes {
            faults.push(format!("{unscaled} new instances"));
        }
    }

    /// Checks that every running guest answers and has its memory.
    async fn guests(&self, records: &RecordSet) -> Vec<String> {
        let mut faults = Vec::new();
        for instance in records.instances.values().filter(|i| i.state == State::Running) {
            match read(self.agent, instance.id, MARK).await {
                Err(error) => faults.push(format!("{} does not answer: {error}", instance.id)),
                Ok(text) if self.operation.marked && text != "mine\n" => {
                    let stopped = self.operation.name.contains("stop") || instance.reason.is_some();
                    if !stopped {
                        faults.push(format!("{} has lost its memory", instance.id));
                    }
                }
                Ok(_) => {}
            }
        }
        faults
    }

    /// Runs the operation again, as a user would.
    async fn again(&self) -> Outcome<()> {
        let Some(again) = &self.operation.again else { return Ok(()) };
        again(self.agent.clone()).await.map_err(|error| format!("again: {error}"))?;
        wait_until_idle(self.agent).await?;
        let faults = checks::faults(self.agent, self.host).await;
        match faults.is_empty() {
            true => Ok(()),
            false => Err(format!("again: {}", faults.join("\n    "))),
        }
    }
}

/// Writes a file into a guest.
pub async fn write(agent: &Arc<Agent>, id: InstanceId, path: &str, text: &str) -> Result<()> {
    shell(agent, id, &format!("echo {text} > {path}")).await.map(drop)
}

/// Reads a file of a guest; empty where it does not exist.
pub async fn read(agent: &Arc<Agent>, id: InstanceId, path: &str) -> Result<String> {
    shell(agent, id, &format!("cat {path}")).await
}

async fn shell(agent: &Arc<Agent>, id: InstanceId, script: &str) -> Result<String> {
    let slot = agent.base.slots.of(id);
    let channel = slot.gate.lock().await.channel().await?;
    let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
    let request = ExecRequest { argv, ..ExecRequest::default() };
    let run = async { channel.exec(request).await?.finish().await };
    let (out, _, _) = slot.waits.guest(crate::deadlines::MOUNT, run).await?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}
