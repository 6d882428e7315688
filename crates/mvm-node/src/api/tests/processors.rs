//! A machine keeps the processor that it was started with, whatever new machines get.

use crate::agent::Agent;
use crate::crashes::host::{Host, own_network};
use crate::crashes::operations::{disable_lingering, instance, only, pool, runners};
use crate::crashes::runs::{MARK, read, wait_until_idle};
use mvm_model::accelerator::Processor;
use mvm_model::{Accelerator, Actor, Code, Recycle, State};
use std::sync::Arc;
use std::time::Duration;

fn processor(accelerator: Accelerator) -> Processor {
    let model = match accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "qemu64",
    };
    Processor { accelerator, model: model.to_owned() }
}

/// Checks state, processor and memory of the only instance.
async fn is(agent: &Arc<Agent>, state: State, accelerator: Option<Accelerator>) {
    let found = only(agent).expect("an instance");
    assert_eq!((found.state, &found.processor), (state, &accelerator.map(processor)));
    let view = agent.views.instances.show(&found.reference()).expect("a view");
    assert_eq!(view.accelerator, accelerator);
    assert_eq!(view.cpu_model, accelerator.map(|accelerator| processor(accelerator).model));
    if state == State::Running {
        let kept = read(agent, found.id, MARK).await.expect("its memory");
        assert_eq!(kept.trim(), "mine");
    }
}

async fn bring(agent: &Arc<Agent>, to: State) -> Result<(), Code> {
    let id = only(agent).expect("an instance").id;
    let brought = agent.lifecycle.instances.transition_to(id, to, &Actor::Agent).await;
    brought.map(drop).map_err(|error| error.code().known().expect("a code"))
}

/// Starts a machine on `own`; the next agent would start machines on `other`.
fn keeps(own: Accelerator, other: Accelerator) {
    let host = Host::new();
    host.machines().set_processor(Some(processor(own)));
    let begun = host.agent(async |agent| {
        pool(&agent, Recycle::Keep, None).await.expect("a pool");
        disable_lingering(&agent).await.expect("a policy");
        instance(&agent, State::Running).await.expect("an instance");
        is(&agent, State::Running, Some(own)).await;
    });
    begun.expect("an agent");
    host.machines().set_processor(Some(processor(other)));
    let gone_on = host.agent(async |agent| {
        is(&agent, State::Running, Some(own)).await;
        for _ in 0..2 {
            bring(&agent, State::Sleeping).await.expect("asleep");
            is(&agent, State::Sleeping, Some(own)).await;
            bring(&agent, State::Running).await.expect("awake");
            is(&agent, State::Running, Some(own)).await;
        }
        bring(&agent, State::Stopped).await.expect("stopped");
        is(&agent, State::Stopped, None).await;
        bring(&agent, State::Running).await.expect("booted");
        assert_eq!(only(&agent).expect("it").processor, Some(processor(other)));
    });
    gone_on.expect("an agent");
    host.disconnect();
}

#[test]
fn a_machine_keeps_its_processor_under_an_agent_that_would_choose_another() {
    own_network();
    keeps(Accelerator::Tcg, Accelerator::Kvm);
    keeps(Accelerator::Kvm, Accelerator::Tcg);
}

#[test]
fn a_machine_that_could_not_wake_is_not_put_to_sleep_and_one_that_sleeps_stays_asleep() {
    own_network();
    let host = Host::new();
    host.machines().set_processor(Some(processor(Accelerator::Kvm)));
    let machines = host.machines();
    let done = host.agent(async |agent| {
        let kvm = Some(Accelerator::Kvm);
        pool(&agent, Recycle::Keep, None).await.expect("a pool");
        disable_lingering(&agent).await.expect("a policy");
        instance(&agent, State::Running).await.expect("an instance");
        machines.set_kvm_gone(true);
        assert_eq!(bring(&agent, State::Sleeping).await, Err(Code::KvmUnavailable));
        is(&agent, State::Running, kvm).await;
        machines.set_kvm_gone(false);
        bring(&agent, State::Sleeping).await.expect("asleep");
        machines.set_kvm_gone(true);
        for _ in 0..2 {
            assert_eq!(bring(&agent, State::Running).await, Err(Code::KvmUnavailable));
            is(&agent, State::Sleeping, kvm).await;
        }
        machines.set_kvm_gone(false);
        bring(&agent, State::Running).await.expect("awake");
        is(&agent, State::Running, kvm).await;
    });
    done.expect("an agent");
    host.disconnect();
}

#[test]
fn a_template_of_another_accelerator_stays_until_the_new_one_is_made() {
    own_network();
    let host = Host::new();
    let machines = host.machines();
    let use_for_new = |accelerator| machines.set_processor(Some(processor(accelerator)));
    use_for_new(Accelerator::Tcg);
    let done = host.agent(async |agent| {
        pool(&agent, Recycle::Reset, None).await.expect("a pool");
        agent.pools.template_maker.ensure_of(&runners()).await.expect("a template");
        let present = || {
            let templates = &agent.supplies.templates;
            agent.base.records.read(|world| templates.of_pool(&world.pools[&runners()]))
        };
        let old = present().expect("a template").files.dir;
        let turn = agent.pools.template_maker.lock_of(&runners());
        // Nothing is made meanwhile.
        let held = turn.lock().await;
        use_for_new(Accelerator::Kvm);
        agent.supplies.templates.collect().await;
        assert!(present().is_none() && old.is_dir());
        use_for_new(Accelerator::Tcg);
        assert!(present().is_some(), "turned back, nothing has to be made");
        use_for_new(Accelerator::Kvm);
        drop(held);
        // Nobody asks for an instance: the change alone is reason enough.
        while present().is_none() {
            agent.base.wake.notify();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        wait_until_idle(&agent).await.expect("rest");
        assert!(!old.exists(), "nothing needs it any more");
        let events = agent.base.records.events_after(0).await.expect("events");
        let why =
            |reason: &Option<String>| reason.as_ref().is_some_and(|r| r.contains("has changed"));
        let told = events.iter().filter(|event| event.cause == "template" && why(&event.reason));
        assert_eq!(told.count(), 1, "{events:?}");
        instance(&agent, State::Running).await.expect("a clone");
        is(&agent, State::Running, Some(Accelerator::Kvm)).await;
    });
    done.expect("an agent");
    host.disconnect();
}
