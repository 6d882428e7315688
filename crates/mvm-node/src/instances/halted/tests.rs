//! Tests of machines that their hypervisor pauses, on simulated machines.

use super::Room;
use crate::Result;
use crate::agent::Agent;
use crate::crashes::host::{Host, own_network};
use crate::crashes::operations::{counts, pool, runners, scale};
use crate::crashes::runs::{read, write};
use crate::deadlines::haste;
use mvm_api::jobs::SubmitJob;
use mvm_hypervisor::Halt;
use mvm_hypervisor::sim::SimHypervisor;
use mvm_model::actor::Actor;
use mvm_model::event::{Event, GOES_ON};
use mvm_model::halt::Cause;
use mvm_model::job::JobSpec;
use mvm_model::{Code, Instance, InstanceId, JobState, Mib, Recycle, State};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

fn full() -> Option<Halt> {
    Some(Halt::NoSpace { disk: Some("scratch".into()) })
}

/// Returns a disk with `mib` MiB of free space: the number, which a test may change, and the
/// function that the agent reads it by.
fn disk(mib: u64) -> (Arc<AtomicU64>, Room) {
    let free = Arc::new(AtomicU64::new(mib));
    let seen = free.clone();
    (free, Arc::new(move || Some(Mib(seen.load(Ordering::SeqCst)))))
}

/// Runs one agent on the host.
fn agent<T>(host: &Host, work: impl AsyncFnOnce(&Arc<Agent>, &SimHypervisor) -> Result<T>) -> T {
    let done = host.agent(async |agent| work(&agent, &host.machines()).await);
    done.expect("nobody kills this agent").expect("all is well")
}

async fn running(agent: &Arc<Agent>) -> Result<Instance> {
    pool(agent, Recycle::Reset, None).await?;
    let instance = agent.lifecycle.transitions.create(&runners(), None).await?;
    agent.lifecycle.instances.transition_to(instance.id, State::Running, &Actor::Agent).await?;
    Ok(instance)
}

/// Returns the first event of this instance after `since` whose reason contains `words`; waits for
/// it.
async fn await_event(agent: &Agent, id: InstanceId, since: u64, words: &str) -> Event {
    let mut coming = agent.base.records.follow_events();
    let fits = |e: &Event| {
        e.id > since
            && e.instance.id == id
            && e.reason.as_ref().is_some_and(|reason| reason.contains(words))
    };
    let kept = agent.base.records.events_after(since).await.expect("events");
    if let Some(event) = kept.into_iter().find(fits) {
        return event;
    }
    loop {
        let event = coming.recv().await.expect("a node");
        if fits(&event) {
            return event;
        }
    }
}

#[test]
fn a_machine_without_space_says_so_and_goes_on_when_there_is_room_also_under_the_next_agent() {
    own_network();
    let host = Host::new();
    let words = "paused: no space on the host for disk scratch";
    let machine = agent(&host, async |agent, sim| {
        agent.lifecycle.halted.set_terms(HOUR, disk(0).1);
        let machine = running(agent).await?;
        sim.set_obstacle(&agent.base.state_dir.marker(machine.id), full());
        let event = await_event(agent, machine.id, 0, words).await;
        assert_eq!((event.from, event.to), (Some(State::Running), State::Running));
        assert_eq!(event.cause, "hypervisor");
        let view = agent.views.instances.show(&machine.reference())?;
        assert_eq!(view.paused.map(|paused| paused.cause), Some(Cause::NoSpace));
        let metrics = agent.views.metrics.render(None)?;
        let labels = r#"{tenant="ci",pool="runners",cause="no_space"}"#;
        for line in [format!("mvm_paused{labels} 1"), format!("mvm_pauses_total{labels} 1")] {
            assert!(metrics.contains(&line), "{line}: {metrics}");
        }
        Ok(machine)
    });
    agent(&host, async |agent, sim| {
        let (free, room) = disk(0);
        agent.lifecycle.halted.set_terms(HOUR, room);
        let marker = agent.base.state_dir.marker(machine.id);
        assert_eq!(sim.is_running(&marker), Some(false));
        // The new agent has not taken the paused machine for a running one.
        let gone_on = |event: &Event| event.reason.as_deref() == Some(GOES_ON);
        assert!(!agent.base.records.events_after(0).await?.iter().any(gone_on));
        sim.set_obstacle(&marker, None);
        free.store(64, Ordering::SeqCst);
        await_event(agent, machine.id, 0, GOES_ON).await;
        assert_eq!(sim.is_running(&marker), Some(true));
        assert!(agent.views.instances.show(&machine.reference())?.paused.is_none());
        Ok(())
    });
    host.disconnect();
}

#[test]
fn a_machine_that_was_put_aside_is_not_one_that_is_paused() {
    own_network();
    let host = Host::new();
    agent(&host, async |agent, sim| {
        let (free, room) = disk(0);
        agent.lifecycle.halted.set_terms(HOUR, room);
        let machine = running(agent).await?;
        let marker = agent.base.state_dir.marker(machine.id);
        agent.lifecycle.instances.transition_to(machine.id, State::Warm, &Actor::Agent).await?;
        sim.set_obstacle(&marker, full());
        free.store(64, Ordering::SeqCst);
        assert!(agent.views.instances.show(&machine.reference())?.paused.is_none());
        assert_eq!(sim.is_running(&marker), Some(false));
        sim.set_obstacle(&marker, None);
        agent.lifecycle.instances.transition_to(machine.id, State::Running, &Actor::Agent).await?;
        assert_eq!(sim.is_running(&marker), Some(true));
        Ok(())
    });
    host.disconnect();
}

#[test]
fn a_job_whose_machine_finds_no_space_for_too_long_ends_with_that() {
    own_network();
    let host = Host::new();
    agent(&host, async |agent, sim| {
        agent.lifecycle.halted.set_terms(Duration::ZERO, disk(0).1);
        pool(agent, Recycle::Reset, None).await?;
        scale(agent, counts(0, 0, 0)).await?;
        let argv = ["sleep", "3600"].map(str::to_owned).to_vec();
        let wanted = SubmitJob { spec: JobSpec { argv, ..JobSpec::default() }, hold: false };
        let job = agent.work.jobs.create(&runners(), wanted, "uid:0".to_owned()).await?.job_id;
        let mut changes = agent.base.records.subscribe();
        let machine = loop {
            let job = agent.base.records.read(|records| records.job(job).cloned())?;
            if job.state == JobState::Running {
                break job.attempts[0].instance.id;
            }
            changes.changed().await.expect("a node");
        };
        sim.set_obstacle(&agent.base.state_dir.marker(machine), full());
        let ended = agent.work.jobs.ended(job).await?;
        let reason = ended.reason.unwrap_or_default();
        assert_eq!(ended.state, JobState::Lost, "{reason}");
        assert!(reason.contains("no_space: it was paused for 0 s: no space on"), "{reason}");
        while agent.base.records.read(|records| records.instances.contains_key(&machine)) {
            changes.changed().await.expect("a node");
        }
        Ok(())
    });
    host.disconnect();
}

#[test]
fn a_broken_disk_and_a_crashed_guest_fail_their_machine_with_the_reason() {
    own_network();
    let host = Host::new();
    agent(&host, async |agent, sim| {
        for (halt, words) in [
            (
                Halt::IoError { disk: Some("data".into()) },
                "cannot read or write disk data, time and",
            ),
            (Halt::Panicked, "the guest's kernel panicked; last lines of its console:\n"),
            (
                Halt::Other("internal-error".into()),
                "the hypervisor stopped it: internal-error; last",
            ),
        ] {
            let machine = running(agent).await?;
            let marker = agent.base.state_dir.marker(machine.id);
            sim.set_obstacle(&marker, Some(halt));
            while await_event(agent, machine.id, 0, words).await.to != State::Failed {}
            agent.lifecycle.instances.destroy(machine.id, &Actor::Agent).await?;
            assert_eq!(sim.is_running(&marker), None);
        }
        Ok(())
    });
    host.disconnect();
}

#[test]
fn a_machine_that_finds_no_space_on_its_way_up_keeps_its_memory() {
    own_network();
    let host = Host::new();
    agent(&host, async |agent, sim| {
        let (free, room) = disk(0);
        agent.lifecycle.halted.set_terms(HOUR, room);
        let machine = running(agent).await?;
        let marker = agent.base.state_dir.marker(machine.id);
        write(agent, machine.id, "/run/note", "mine").await?;
        // The lingering process of the sleeping machine is the one that finds no space.
        for from in [State::Warm, State::Sleeping] {
            agent.lifecycle.instances.transition_to(machine.id, from, &Actor::Agent).await?;
            sim.set_obstacle(&marker, full());
            free.store(0, Ordering::SeqCst);
            let since = agent.base.records.newest_event();
            haste::make(50);
            let refused = agent
                .lifecycle
                .instances
                .transition_to(machine.id, State::Running, &Actor::Agent)
                .await;
            haste::make(1);
            assert_eq!(refused.expect_err("it does not answer").code(), Code::NoSpace);
            let view = agent.views.instances.show(&machine.reference())?;
            assert_eq!((view.state, view.paused.is_some()), (State::Running, true));
            sim.set_obstacle(&marker, None);
            free.store(64, Ordering::SeqCst);
            await_event(agent, machine.id, since, GOES_ON).await;
            assert_eq!(read(agent, machine.id, "/run/note").await?.trim(), "mine");
        }
        Ok(())
    });
    host.disconnect();
}
