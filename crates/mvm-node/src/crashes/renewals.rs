//! A template that cannot be loaded, or whose clones do not come up, is renewed, and the reason is
//! shown.

use super::checks;
use super::host::{Host, own_network};
use super::operations::{claim, damage_template, pool, request, runners};
use super::runs::wait_until_idle;
use crate::agent::Agent;
use crate::templates::Template;
use mvm_hypervisor::sim::{Call, Effect, FaultPlan};
use mvm_model::lease::Purpose;
use mvm_model::template::Renewal;
use mvm_model::{Actor, Recycle, WayUp};
use std::sync::Arc;

/// Claims an instance, and returns how it came up.
async fn next_way_up(agent: &Arc<Agent>) -> Option<WayUp> {
    let (instance, _) =
        agent.work.leases.claim(&runners(), &request(Purpose::Run)).await.expect("a claim");
    agent.work.leases.end(instance.id).await;
    instance.way_up
}

/// Returns how the next instance comes up while no template can be made. Otherwise the reconciler
/// could have renewed the template before the claim's next try.
async fn next_way_without_template(agent: &Arc<Agent>) -> Option<WayUp> {
    let turn = agent.pools.template_maker.lock_of(&runners());
    let _held = turn.lock().await;
    next_way_up(agent).await
}

fn renewal(agent: &Arc<Agent>) -> Option<Renewal> {
    agent
        .base
        .records
        .read(|records| agent.supplies.templates.renewal_of(&records.pools[&runners()]))
}

/// Checks that the pool's template is renewed, and that view, event and metric say why.
async fn check_renewal(agent: &Arc<Agent>, why: &str, times: u32) {
    let renewed = renewal(agent).expect("told");
    assert!(renewed.done && renewed.reason.contains(why), "{renewed:?}");
    let events = agent.base.records.events_after(0).await.expect("events");
    let because = |reason: &Option<String>| reason.as_ref().is_some_and(|r| r.contains(why));
    let made = events.iter().filter(|event| event.cause == "template" && because(&event.reason));
    assert_eq!(made.count(), 1, "{events:?}");
    let metrics = agent.views.metrics.render(None).expect("metrics");
    let line = format!("mvm_templates_given_up_total{{tenant=\"ci\",pool=\"runners\"}} {times}");
    assert!(metrics.contains(&line), "{metrics}");
}

/// The pool has no desired counts, so only jobs ask for instances.
#[test]
fn a_template_that_is_of_no_use_is_made_anew_and_says_so() {
    own_network();
    let host = Host::new();
    let done = host.agent(async |agent| {
        pool(&agent, Recycle::Reset, None).await.expect("a pool");
        agent.pools.template_maker.ensure_of(&runners()).await.expect("a template");
        assert_eq!(next_way_up(&agent).await, Some(WayUp::Cloned));
        assert_eq!(renewal(&agent), None);

        damage_template(&agent);
        // The damaged template costs the first instance, the next one is booted, and then clones
        // work again.
        assert_eq!(next_way_without_template(&agent).await, Some(WayUp::Booted));
        wait_until_idle(&agent).await.expect("rest");
        check_renewal(&agent, "it could not be loaded", 1).await;
        assert_eq!(next_way_up(&agent).await, Some(WayUp::Cloned));

        // Two clones that die in a row condemn the template; a single one between others does not.
        let dies = |plan: FaultPlan, number| plan.on(Call::Resume, number, Effect::Die);
        host.machines().set_faults(dies(FaultPlan::none(), 1));
        claim(&agent).await.expect("the next one answers");
        host.machines().set_faults(dies(FaultPlan::none(), 1));
        claim(&agent).await.expect("the next one answers");
        wait_until_idle(&agent).await.expect("rest");
        check_renewal(&agent, "it could not be loaded", 1).await;
        host.machines().set_faults(dies(dies(FaultPlan::none(), 1), 2));
        assert_eq!(next_way_without_template(&agent).await, Some(WayUp::Booted));
        wait_until_idle(&agent).await.expect("rest");
        check_renewal(&agent, "one after the other", 2).await;
        host.arm(None);
        assert_eq!(next_way_up(&agent).await, Some(WayUp::Cloned));
        wait_until_idle(&agent).await.expect("rest");
        checks::faults(&agent, &host).await
    });
    assert_eq!(done.expect("an agent"), Vec::<String>::new());
    // A template that was given up is also renewed by the next agent.
    let noted = host.agent(async |agent| {
        wait_until_idle(&agent).await.expect("rest");
        damage_template(&agent);
        host.machines().set_faults(FaultPlan::none().always(Call::Snapshot, Effect::Fail));
        let made = agent.lifecycle.transitions.create(&runners(), None).await.expect("an instance");
        let to = mvm_model::State::Running;
        agent
            .lifecycle
            .instances
            .transition_to(made.id, to, &Actor::Agent)
            .await
            .expect_err("damaged");
        agent.lifecycle.instances.destroy(made.id, &Actor::Force).await.expect("gone");
        renewal(&agent).is_some_and(|renewal| !renewal.done)
    });
    assert_eq!(noted, Some(true));
    host.arm(None);
    let renewed = host.agent(async |agent| {
        wait_until_idle(&agent).await.expect("rest");
        assert!(renewal(&agent).expect("told").done);
        next_way_up(&agent).await
    });
    host.disconnect();
    assert_eq!(renewed, Some(Some(WayUp::Cloned)));
}

/// Returns how many names in the directory of templates are not a template's.
fn parts(templates: &std::path::Path) -> usize {
    let names = crate::blocking::paths_in(templates);
    names.iter().filter(|path| path.to_string_lossy().contains('.')).count()
}

/// Returns the error of a clone whose template cannot be loaded.
fn unusable(template: &Template) -> mvm_hypervisor::Error {
    mvm_hypervisor::Error::RestoreFailed {
        id: "i-00000000".to_owned(),
        snapshot: template.files.snapshot(),
        reason: "it is damaged".to_owned(),
    }
}

/// The template is large, so that its removal takes a while, and its maker is at work meanwhile.
/// It once took the half removed template for the renewed one.
#[test]
fn a_template_is_given_up_in_one_step() {
    own_network();
    let host = Host::new();
    let done = host.agent(async |agent| {
        pool(&agent, Recycle::Reset, None).await.expect("a pool");
        let (maker, runners) = (&agent.pools.template_maker, runners());
        for _ in 0..5 {
            maker.ensure_of(&runners).await.expect("a template");
            let pool = agent.base.records.read(|records| records.pools[&runners].clone());
            let template = agent.supplies.templates.of_pool(&pool).expect("a template");
            let dir = &template.files.dir;
            let made = dir.join("template.json");
            let text = std::fs::read(&made).expect("its time");
            for number in 0..2000 {
                std::fs::write(dir.join(format!("{number}")), "").expect("written");
            }
            // The newest file of a memory file system is the first to be removed.
            std::fs::remove_file(&made).and_then(|()| std::fs::write(&made, text)).expect("newest");
            let unusable = Err(unusable(&template).into());
            let given_up = agent.supplies.templates.note_clone_end(&runners, &template, &unusable);
            let renewed = async {
                while made.exists() {
                    tokio::task::yield_now().await;
                }
                maker.ensure_of(&runners).await
            };
            let ((), renewed) = tokio::join!(given_up, renewed);
            renewed.expect("a template");
            assert!(renewal(&agent).expect("told").done);
            wait_until_idle(&agent).await.expect("rest");
        }
        let templates = agent.base.state_dir.templates();
        assert_eq!(parts(&templates), 0);
        let faults = checks::faults(&agent, &host).await;
        // As a killed agent leaves them.
        let left = templates.join("0123.4567.gone");
        std::fs::create_dir(&left).expect("left");
        std::fs::write(left.join("memory"), "").expect("left");
        std::fs::write(templates.join(".tmp0123"), "").expect("left");
        (faults, templates)
    });
    let (faults, templates) = done.expect("an agent");
    assert_eq!((faults, parts(&templates)), (Vec::<String>::new(), 2));
    host.agent(async |_| ()).expect("an agent");
    assert_eq!(parts(&templates), 0);
    host.disconnect();
}
