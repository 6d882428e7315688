//! Sleeping instances keep their memory: the machine is killed at every step of every wake, alone
//! and together with the agent. An instance may be lost only if its guest has run, and is then
//! never woken again from its old memory.

use super::WORKERS;
use super::checks;
use super::host::{Course, Host, PointFault, WriteFault, own_network};
use super::operations::{disable_lingering, instance, only, pool, runners};
use super::runs::{MARK, Outcome, read, wait_until_idle};
use crate::Result;
use crate::agent::Agent;
use mvm_hypervisor::sim::{Call, Effect, FaultPlan, Moment};
use mvm_model::{Actor, Code, Recycle, State};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A kind of wake.
#[derive(Clone, Copy, Debug)]
struct WakeKind {
    /// What the instance is woken from.
    from: WakeSource,
    to: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WakeSource {
    /// The lingering process.
    Process,
    /// The snapshot.
    Disk,
    /// The template: the instance has never run.
    Template,
}

/// The fault during a wake.
#[derive(Clone, Copy, Debug)]
struct WakeFault {
    point: PointFault,
    /// Whether the machines die together with the agent, as when the host fails.
    whole_host: bool,
}

fn wake_kinds() -> Vec<WakeKind> {
    let from = [WakeSource::Process, WakeSource::Disk, WakeSource::Template];
    from.into_iter()
        .flat_map(|from| [State::Running, State::Warm].map(|to| WakeKind { from, to }))
        .collect()
}

async fn prepare(agent: &Arc<Agent>, way: WakeKind) -> Result<()> {
    pool(agent, Recycle::Keep, None).await?;
    match way.from {
        WakeSource::Process => {}
        WakeSource::Disk => disable_lingering(agent).await?,
        WakeSource::Template => {
            agent.pools.template_maker.ensure_of(&runners()).await?;
            let made = agent.lifecycle.transitions.create(&runners(), None).await?;
            return agent
                .lifecycle
                .instances
                .transition_to(made.id, State::Sleeping, &Actor::Agent)
                .await
                .map(drop);
        }
    }
    instance(agent, State::Sleeping).await
}

/// Wakes an instance with this fault. Returns the points that were passed.
fn go(way: WakeKind, fault: Option<WakeFault>) -> Outcome<Course> {
    let host = Host::new();
    let outcome = on(&host, way, fault);
    host.disconnect();
    outcome
}

fn on(host: &Host, way: WakeKind, fault: Option<WakeFault>) -> Outcome<Course> {
    host.arm(None);
    let mut course = Course::default();
    let lived = host.agent(async |agent| {
        prepare(&agent, way).await.map_err(|error| format!("prepare: {error}"))?;
        wait_until_idle(&agent).await?;
        let id = only(&agent).map_err(|error| error.to_string())?.id;
        host.arm(fault.map(|fault| fault.point));
        let woken = agent.lifecycle.instances.transition_to(id, way.to, &Actor::Agent).await;
        course = host.course();
        if fault.is_none() {
            woken.map_err(|error| format!("it fails by itself: {error}"))?;
        }
        wait_until_idle(&agent).await
    });
    let ran = fault.is_some_and(|fault| guest_ran(host, fault));
    lived.unwrap_or(Ok(()))?;
    host.arm(None);
    if fault.is_some_and(|fault| fault.whole_host) {
        host.crash_machines();
    }
    let judged = host.agent(async |agent| {
        wait_until_idle(&agent).await?;
        let mut faults = checks::faults(&agent, host).await;
        let found = only(&agent).map_err(|error| error.to_string())?;
        match (found.state, ran) {
            (State::Failed, false) => faults.push(format!("lost: {:?}", found.reason)),
            (State::Sleeping, true) if way.from != WakeSource::Template => {
                faults.push("asleep again, though its guest has run since".to_owned());
            }
            (State::Failed, true) => {}
            _ => faults.extend(wakes(&agent, way).await),
        }
        if faults.is_empty() { Ok(()) } else { Err(faults.join("\n    ")) }
    });
    judged.unwrap_or_else(|| Err("the last agent was killed".to_owned()))?;
    Ok(course)
}

/// Returns whether the guest had run when its process or the agent died.
fn guest_ran(host: &Host, fault: WakeFault) -> bool {
    let calls = host.course().calls;
    let before = match fault.point {
        PointFault::Write(_, WriteFault::Die) => host.calls_before_death().unwrap_or(calls.len()),
        PointFault::Call(number, Effect::Halt(Moment::After)) => number as usize,
        PointFault::Call(number, _) => number as usize - 1,
        PointFault::Write(..) => calls.len(),
    };
    calls.iter().take(before).any(|call| *call == Call::Resume)
}

/// Wakes the instance, and returns what is wrong with its memory.
async fn wakes(agent: &Arc<Agent>, way: WakeKind) -> Option<String> {
    let id = only(agent).ok()?.id;
    if let Err(error) =
        agent.lifecycle.instances.transition_to(id, State::Running, &Actor::Agent).await
    {
        return Some(format!("it does not wake: {error}"));
    }
    match read(agent, id, MARK).await {
        Ok(text) if text == "mine\n" || way.from == WakeSource::Template => None,
        Ok(text) => Some(format!("its memory holds {text:?}")),
        Err(error) => Some(format!("it does not answer: {error}")),
    }
}

/// Returns every fault at every point of a wake.
fn wake_faults(course: &Course) -> Vec<WakeFault> {
    let write_faults =
        [WriteFault::Kill(Moment::Before), WriteFault::Kill(Moment::After), WriteFault::Die];
    let effects =
        [Effect::Die, Effect::Fail, Effect::Halt(Moment::Before), Effect::Halt(Moment::After)];
    let writes = (1..=course.writes)
        .flat_map(|n| write_faults.map(|write_fault| PointFault::Write(n, write_fault)));
    let calls = (1..=course.calls.len() as u64)
        .flat_map(|n| effects.map(|effect| PointFault::Call(n, effect)));
    let with_host = |point: PointFault| {
        let whole_host = [false, true].into_iter().filter(move |host| !host || point.kills());
        whole_host.map(move |whole_host| WakeFault { point, whole_host })
    };
    writes.chain(calls).flat_map(with_host).collect()
}

#[test]
fn what_sleeps_keeps_its_memory_whatever_dies_on_its_way_up() {
    let mut faults = Vec::new();
    let firsts = on_workers(&wake_kinds().iter().map(|way| (*way, None)).collect::<Vec<_>>());
    let mut points = Vec::new();
    for ((way, _), first) in firsts {
        match first {
            Ok(course) => {
                points.extend(wake_faults(&course).into_iter().map(|fault| (way, Some(fault))))
            }
            Err(what) => faults.push(format!("{way:?}: {what}")),
        }
    }
    for ((way, fault), outcome) in on_workers(&points) {
        if let Err(what) = outcome {
            faults.push(format!("{way:?}, {fault:?}:\n    {what}"));
        }
    }
    println!("{} points", points.len());
    assert!(points.len() > 100, "so few points are not all: {}", points.len());
    assert!(faults.is_empty(), "{} went wrong\n{}", faults.len(), faults.join("\n"));
}

type Try = (WakeKind, Option<WakeFault>);

/// Runs these wakes, several at once: each waits more than it computes.
fn on_workers(tries: &[Try]) -> Vec<(Try, Outcome<Course>)> {
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                own_network();
                while let Some((way, fault)) = tries.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = go(*way, *fault);
                    outcomes.lock().expect("lock").push(((*way, *fault), outcome));
                }
            });
        }
    });
    outcomes.into_inner().expect("lock")
}

/// A machine that never resumes remains asleep, however often the wake is tried.
#[test]
fn what_cannot_be_resumed_sleeps_on() {
    own_network();
    let host = Host::new();
    let done = host.agent(async |agent| {
        let way = WakeKind { from: WakeSource::Process, to: State::Running };
        prepare(&agent, way).await.expect("prepared");
        let id = only(&agent).expect("an instance").id;
        for _ in 0..2 {
            host.machines().set_faults(FaultPlan::none().always(Call::Resume, Effect::Fail));
            let error = agent
                .lifecycle
                .instances
                .transition_to(id, State::Running, &Actor::Agent)
                .await
                .expect_err("no");
            assert_eq!(error.code(), Code::Injected);
            host.arm(None);
            wait_until_idle(&agent).await.expect("rest");
            assert_eq!(only(&agent).expect("an instance").state, State::Sleeping);
            assert_eq!(checks::faults(&agent, &host).await, Vec::<String>::new());
        }
        assert_eq!(
            agent.lifecycle.lingering.unresumed.get(),
            1,
            "the second time there was no process left"
        );
        wakes(&agent, way).await
    });
    host.disconnect();
    assert_eq!(done.expect("an agent"), None);
}
