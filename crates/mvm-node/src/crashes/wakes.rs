//! Sleeping instances keep their memory: the machine is killed at every step of every wake, alone
//! and together with the agent. An instance may be lost only if its guest has run, and is then
//! never woken again from its old memory.

use super::WORKERS;
use super::checks;
use super::host::{Blow, Course, Host, Strike, own_network};
use super::operations::{instance, linger_no_more, only, pool, runners};
use super::runs::{MARK, Outcome, read, settle};
use crate::Result;
use crate::agent::Agent;
use mvm_hypervisor::sim::{Call, Effect, FaultPlan, Moment};
use mvm_model::{Actor, Code, Recycle, State};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A kind of wake.
#[derive(Clone, Copy, Debug)]
struct Way {
    /// What the instance is woken from.
    from: From,
    to: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// The lingering process.
    Process,
    /// The snapshot.
    Disk,
    /// The template: the instance has never run.
    Template,
}

/// The fault during a wake.
#[derive(Clone, Copy, Debug)]
struct Harm {
    strike: Strike,
    /// Whether the machines die together with the agent, as when the host fails.
    whole_host: bool,
}

fn ways() -> Vec<Way> {
    let from = [From::Process, From::Disk, From::Template];
    from.into_iter()
        .flat_map(|from| [State::Running, State::Warm].map(|to| Way { from, to }))
        .collect()
}

async fn prepare(agent: &Arc<Agent>, way: Way) -> Result<()> {
    pool(agent, Recycle::Keep, None).await?;
    match way.from {
        From::Process => {}
        From::Disk => linger_no_more(agent).await?,
        From::Template => {
            agent.pools.template_maker.ensure_of(&runners()).await?;
            let made = agent.lifecycle.transitions.create(&runners(), None).await?;
            return agent
                .lifecycle
                .instances
                .bring(made.id, State::Sleeping, &Actor::Agent)
                .await
                .map(drop);
        }
    }
    instance(agent, State::Sleeping).await
}

/// Wakes an instance with this fault. Returns the points that were passed.
fn go(way: Way, harm: Option<Harm>) -> Outcome<Course> {
    let host = Host::new();
    let outcome = on(&host, way, harm);
    host.disconnect();
    outcome
}

fn on(host: &Host, way: Way, harm: Option<Harm>) -> Outcome<Course> {
    host.arm(None);
    let mut course = Course::default();
    let lived = host.agent(async |agent| {
        prepare(&agent, way).await.map_err(|error| format!("prepare: {error}"))?;
        settle(&agent).await?;
        let id = only(&agent).await.map_err(|error| error.to_string())?.id;
        host.arm(harm.map(|harm| harm.strike));
        let woken = agent.lifecycle.instances.bring(id, way.to, &Actor::Agent).await;
        course = host.course();
        if harm.is_none() {
            woken.map_err(|error| format!("it fails by itself: {error}"))?;
        }
        settle(&agent).await
    });
    let ran = harm.is_some_and(|harm| guest_ran(host, harm));
    lived.unwrap_or(Ok(()))?;
    host.arm(None);
    if harm.is_some_and(|harm| harm.whole_host) {
        host.crash_machines();
    }
    let judged = host.agent(async |agent| {
        settle(&agent).await?;
        let mut faults = checks::faults(&agent, host).await;
        let found = only(&agent).await.map_err(|error| error.to_string())?;
        match (found.state, ran) {
            (State::Failed, false) => faults.push(format!("lost: {:?}", found.reason)),
            (State::Sleeping, true) if way.from != From::Template => {
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
fn guest_ran(host: &Host, harm: Harm) -> bool {
    let calls = host.course().calls;
    let before = match harm.strike {
        Strike::Write(_, Blow::Die) => host.calls_before_death().unwrap_or(calls.len()),
        Strike::Call(number, Effect::Halt(Moment::After)) => number as usize,
        Strike::Call(number, _) => number as usize - 1,
        Strike::Write(..) => calls.len(),
    };
    calls.iter().take(before).any(|call| *call == Call::Resume)
}

/// Wakes the instance, and returns what is wrong with its memory.
async fn wakes(agent: &Arc<Agent>, way: Way) -> Option<String> {
    let id = only(agent).await.ok()?.id;
    if let Err(error) = agent.lifecycle.instances.bring(id, State::Running, &Actor::Agent).await {
        return Some(format!("it does not wake: {error}"));
    }
    match read(agent, id, MARK).await {
        Ok(text) if text == "mine\n" || way.from == From::Template => None,
        Ok(text) => Some(format!("its memory holds {text:?}")),
        Err(error) => Some(format!("it does not answer: {error}")),
    }
}

/// Returns every fault at every point of a wake.
fn harms(course: &Course) -> Vec<Harm> {
    let blows = [Blow::Kill(Moment::Before), Blow::Kill(Moment::After), Blow::Die];
    let effects =
        [Effect::Die, Effect::Fail, Effect::Halt(Moment::Before), Effect::Halt(Moment::After)];
    let writes = (1..=course.writes).flat_map(|n| blows.map(|blow| Strike::Write(n, blow)));
    let calls =
        (1..=course.calls.len() as u64).flat_map(|n| effects.map(|effect| Strike::Call(n, effect)));
    let with_host = |strike: Strike| {
        let whole_host = [false, true].into_iter().filter(move |host| !host || strike.kills());
        whole_host.map(move |whole_host| Harm { strike, whole_host })
    };
    writes.chain(calls).flat_map(with_host).collect()
}

#[test]
fn what_sleeps_keeps_its_memory_whatever_dies_on_its_way_up() {
    let mut faults = Vec::new();
    let firsts = on_workers(&ways().iter().map(|way| (*way, None)).collect::<Vec<_>>());
    let mut points = Vec::new();
    for ((way, _), first) in firsts {
        match first {
            Ok(course) => points.extend(harms(&course).into_iter().map(|harm| (way, Some(harm)))),
            Err(what) => faults.push(format!("{way:?}: {what}")),
        }
    }
    for ((way, harm), outcome) in on_workers(&points) {
        if let Err(what) = outcome {
            faults.push(format!("{way:?}, {harm:?}:\n    {what}"));
        }
    }
    println!("{} points", points.len());
    assert!(points.len() > 100, "so few points are not all: {}", points.len());
    assert!(faults.is_empty(), "{} went wrong\n{}", faults.len(), faults.join("\n"));
}

type Try = (Way, Option<Harm>);

/// Runs these wakes, several at once: each waits more than it computes.
fn on_workers(tries: &[Try]) -> Vec<(Try, Outcome<Course>)> {
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                own_network();
                while let Some((way, harm)) = tries.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = go(*way, *harm);
                    outcomes.lock().expect("lock").push(((*way, *harm), outcome));
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
        let way = Way { from: From::Process, to: State::Running };
        prepare(&agent, way).await.expect("prepared");
        let id = only(&agent).await.expect("an instance").id;
        for _ in 0..2 {
            host.machines().set_faults(FaultPlan::none().always(Call::Resume, Effect::Fail));
            let error = agent
                .lifecycle
                .instances
                .bring(id, State::Running, &Actor::Agent)
                .await
                .expect_err("no");
            assert_eq!(error.code(), Code::Injected);
            host.arm(None);
            settle(&agent).await.expect("rest");
            assert_eq!(only(&agent).await.expect("an instance").state, State::Sleeping);
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
