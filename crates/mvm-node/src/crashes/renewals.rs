//! A template that cannot be used, or whose clones come up dead, is made anew, and says so.

use super::checks;
use super::host::{Host, own_network};
use super::operations::{claim, damage_template, pool, runners, wish};
use super::runs::settle;
use crate::node::Node;
use mvm_hypervisor::sim::{Call, Effect, FaultPlan};
use mvm_model::lease::Purpose;
use mvm_model::template::Renewal;
use mvm_model::{Mover, Recycle, WayUp};
use std::sync::Arc;

/// How the next instance comes up.
async fn next_way(node: &Arc<Node>) -> Option<WayUp> {
    let (instance, _) = node.leases.claim(&runners(), &wish(Purpose::Run)).await.expect("a claim");
    node.leases.end(instance.id).await;
    instance.way_up
}

async fn renewal(node: &Arc<Node>) -> Option<Renewal> {
    node.records.read(|world| node.templates.renewal_of(&world.pools[&runners()]))
}

/// The pool's template is there again, and everybody is told why.
async fn told(node: &Arc<Node>, why: &str, times: u32) {
    let renewed = renewal(node).await.expect("told");
    assert!(renewed.done && renewed.reason.contains(why), "{renewed:?}");
    let events = node.records.events_after(0).await.expect("events");
    let because = |reason: &Option<String>| reason.as_ref().is_some_and(|r| r.contains(why));
    let made = events.iter().filter(|event| event.cause == "template" && because(&event.reason));
    assert_eq!(made.count(), 1, "{events:?}");
    let metrics = node.metrics(None).await.expect("metrics");
    let line = format!("mvm_templates_given_up_total{{tenant=\"ci\",pool=\"runners\"}} {times}");
    assert!(metrics.contains(&line), "{metrics}");
}

/// In a pool without counts: nobody but a job asks for instances.
#[test]
fn a_template_that_is_of_no_use_is_made_anew_and_says_so() {
    own_network();
    let host = Host::new();
    let done = host.agent(async |node| {
        pool(&node, Recycle::Reset, None).await.expect("a pool");
        node.template_maker.ensure_of(&runners()).await.expect("a template");
        assert_eq!(next_way(&node).await, Some(WayUp::Cloned));
        assert_eq!(renewal(&node).await, None);

        damage_template(&node).await;
        // The first instance is lost with it, the next is booted, and after that all is well.
        assert_eq!(next_way(&node).await, Some(WayUp::Booted));
        settle(&node).await.expect("rest");
        told(&node, "it could not be loaded", 1).await;
        assert_eq!(next_way(&node).await, Some(WayUp::Cloned));

        // Two that die at once, one after the other; one that dies between others is bad luck.
        let dies = |plan: FaultPlan, number| plan.on(Call::Resume, number, Effect::Die);
        host.machines().set_faults(dies(FaultPlan::none(), 1));
        claim(&node).await.expect("the next one answers");
        host.machines().set_faults(dies(FaultPlan::none(), 1));
        claim(&node).await.expect("the next one answers");
        settle(&node).await.expect("rest");
        told(&node, "it could not be loaded", 1).await;
        host.machines().set_faults(dies(dies(FaultPlan::none(), 1), 2));
        assert_eq!(next_way(&node).await, Some(WayUp::Booted));
        settle(&node).await.expect("rest");
        told(&node, "one after the other", 2).await;
        host.arm(None);
        assert_eq!(next_way(&node).await, Some(WayUp::Cloned));
        settle(&node).await.expect("rest");
        checks::faults(&node, &host).await
    });
    assert_eq!(done.expect("an agent"), Vec::<String>::new());
    // What was given up is made anew by the agent that comes next, too.
    let noted = host.agent(async |node| {
        settle(&node).await.expect("rest");
        damage_template(&node).await;
        host.machines().set_faults(FaultPlan::none().always(Call::Snapshot, Effect::Fail));
        let made = node.transitions.create(&runners(), None).await.expect("an instance");
        let to = mvm_model::State::Running;
        node.instances.bring(made.id, to, &Mover::Agent).await.expect_err("damaged");
        node.instances.destroy(made.id, &Mover::Force).await.expect("gone");
        renewal(&node).await.is_some_and(|renewal| !renewal.done)
    });
    assert_eq!(noted, Some(true));
    host.arm(None);
    let renewed = host.agent(async |node| {
        settle(&node).await.expect("rest");
        assert!(renewal(&node).await.expect("told").done);
        next_way(&node).await
    });
    host.disconnect();
    assert_eq!(renewed, Some(Some(WayUp::Cloned)));
}
