//! A machine keeps the processor that it was started with, whatever new machines get.

use crate::agent::Agent;
use crate::crashes::host::{Host, own_network};
use crate::crashes::operations::{disable_lingering, instance, only, pool, runners};
use crate::crashes::runs::{MARK, read, wait_until_idle};
use mvm_api::types::UpdatePool;
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
            agent.base.records.read(|records| templates.of_pool(&records.pools[&runners()]))
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
        // A pass looks again only when something has changed.
        let templates = &agent.supplies.templates;
        while templates.collect().await {}
        assert!(!templates.collect().await, "nothing has changed");
        std::fs::create_dir(old.with_file_name("of-nobody")).expect("a directory");
        assert!(templates.collect().await);
        assert!(!old.with_file_name("of-nobody").exists());
        while templates.collect().await {}
        let tenant = agent.base.records.read(|records| records.tenants[&runners().tenant].clone());
        let put = agent.base.records.change(|_, changes| {
            changes.put_tenant(tenant);
            Ok(())
        });
        put.await.expect("a commit");
        assert!(templates.collect().await, "a record has changed");
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

/// Gives new instances of the pool this CPU model.
async fn give(agent: &Arc<Agent>, model: &str) -> Result<(), Code> {
    let model = Some(model.parse().expect("a model"));
    let patch = UpdatePool { cpu_model: model, ..UpdatePool::default() };
    let given = agent.pools.catalog.update(&runners(), patch).await;
    given.map_err(|error| error.code().known().expect("a code"))
}

#[test]
fn machines_and_templates_of_a_named_model_are_the_same_on_every_cpu() {
    own_network();
    let host = Host::new();
    let machines = host.machines();
    machines.set_processor(Some(processor(Accelerator::Kvm)));
    machines.set_cpu("the first");
    let done = host.agent(async |agent| {
        pool(&agent, Recycle::Keep, None).await.expect("a pool");
        disable_lingering(&agent).await.expect("a policy");
        let key = || {
            let templates = &agent.supplies.templates;
            agent.base.records.read(|records| templates.key_of_pool(&records.pools[&runners()]))
        };
        let (own, has) = (key(), || only(&agent).expect("it").processor.expect("one").model);
        give(&agent, "EPYC").await.expect("an update");
        let named = key();
        assert_ne!(named, own);
        instance(&agent, State::Running).await.expect("an instance");
        assert_eq!((only(&agent).expect("it").cpu_model.as_str(), has()), ("EPYC", "EPYC".into()));
        give(&agent, "host").await.expect("an update");
        assert_eq!(key(), own, "turned back, nothing has to be made");
        bring(&agent, State::Sleeping).await.expect("asleep");
        machines.set_cpu("the second");
        assert_ne!(key(), own);
        bring(&agent, State::Running).await.expect("awake");
        assert_eq!(has(), "EPYC", "it keeps what it has");
        bring(&agent, State::Sleeping).await.expect("asleep");
        give(&agent, "EPYC").await.expect("an update");
        assert_eq!(key(), named, "it is the same on another CPU");
        give(&agent, "Nehalem").await.expect("an update");
        assert_ne!(key(), named);
        // A CPU that offers neither.
        let lacking = ["EPYC", "EPYC-Milan"].map(|name| name.parse().expect("a model"));
        machines.set_lacking_models(lacking.to_vec());
        let told = bring(&agent, State::Running).await;
        assert_eq!(told, Err(Code::CpuModelUnavailable));
        let sleeper = only(&agent).expect("it");
        assert_eq!((sleeper.state, has()), (State::Sleeping, "EPYC".into()));
        let before = agent.base.records.read(|records| records.pools[&runners()].clone());
        assert_eq!(give(&agent, "EPYC-Milan").await, Err(Code::CpuModelUnavailable));
        let after = agent.base.records.read(|records| records.pools[&runners()].clone());
        assert_eq!(after, before, "nothing is changed");
        machines.set_lacking_models(Vec::new());
        bring(&agent, State::Running).await.expect("awake");
    });
    done.expect("an agent");
    host.disconnect();
}

#[test]
fn a_document_with_a_model_that_cannot_be_had_is_refused_as_a_whole() {
    own_network();
    let host = Host::new();
    let machines = host.machines();
    let done = host.agent(async |agent| {
        pool(&agent, Recycle::Keep, None).await.expect("a pool");
        let mut document = agent.steering.desired.now().expect("a document");
        let model = "EPYC-Milan".parse::<mvm_model::CpuModel>().expect("a model");
        document.tenants[0].pools[0].cpu_model = model.clone();
        machines.set_lacking_models(vec![model.clone()]);
        let refused = agent.steering.desired.apply(document.clone(), false, false).await;
        let refused = refused.expect_err("a refusal");
        assert_eq!(refused.code().known(), Some(Code::CpuModelUnavailable));
        assert_eq!(refused.path(), "$.tenants[0].pools[0].cpu_model");
        assert!(refused.hint().contains("--cpu-model host"), "{refused}");
        machines.set_lacking_models(Vec::new());
        let has = || agent.base.records.read(|records| records.pools[&runners()].cpu_model.clone());
        assert!(has().is_host());
        agent.steering.desired.apply(document.clone(), false, false).await.expect("a document");
        while has() != model {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // The host has lost the model since: what the pool has already is no reason to refuse.
        machines.set_lacking_models(vec![model.clone()]);
        agent.steering.desired.apply(document, false, false).await.expect("a document");
    });
    done.expect("an agent");
    host.disconnect();
}
