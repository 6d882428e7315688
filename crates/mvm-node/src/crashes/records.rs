//! Counts the durable records that it takes to get a machine, since each waits for the disk.

use super::checks;
use super::host::{Host, own_network};
use super::operations::{instance, only, pool, request, runners};
use super::runs::wait_until_idle;
use crate::agent::Agent;
use mvm_model::lease::Purpose;
use mvm_model::{Actor, InstanceId, Recycle, State, WayUp};
use std::sync::Arc;

/// Ends the lease and brings the instance back to warm.
async fn return_to_warm(agent: &Arc<Agent>, id: InstanceId) {
    agent.work.leases.end(id).await;
    agent.lifecycle.instances.transition_to(id, State::Warm, &Actor::Agent).await.expect("warm");
    wait_until_idle(agent).await.expect("rest");
}

#[test]
fn a_warm_instance_is_leased_and_runs_by_one_record() {
    own_network();
    let host = Host::new();
    let faults = host.agent(async |agent| {
        pool(&agent, Recycle::Keep, None).await.expect("a pool");
        instance(&agent, State::Warm).await.expect("an instance");
        let id = only(&agent).expect("an instance").id;
        wait_until_idle(&agent).await.expect("rest");
        let leases = &agent.work.leases;

        host.arm(None);
        let (claimed, from) =
            leases.claim(&runners(), &request(Purpose::Run)).await.expect("a claim");
        assert_eq!((from, host.course().writes), (State::Warm, 1), "a claim");
        assert_eq!((claimed.state, claimed.way_up), (State::Running, Some(WayUp::Warm)));
        let reference = claimed.reference();
        assert!(claimed.lease.is_some_and(|lease| lease.purpose == Purpose::Run));
        return_to_warm(&agent, id).await;

        host.arm(None);
        let from = leases.take(&reference, &request(Purpose::Manual)).await.expect("a wake");
        assert_eq!((from, host.course().writes), (State::Warm, 1), "a wake");
        return_to_warm(&agent, id).await;

        // If the gate is held, the lease is recorded at once, and the machine is resumed once the
        // gate is free.
        let slot = agent.base.slots.of(id);
        let gate = slot.gate.lock().await;
        host.arm(None);
        let claiming = tokio::spawn({
            let leases = leases.clone();
            async move { leases.claim(&runners(), &request(Purpose::Run)).await }
        });
        let leased = || agent.base.records.read(|records| records.instances[&id].lease.is_some());
        while !leased() {
            tokio::task::yield_now().await;
        }
        assert_eq!((only(&agent).expect("it").state, host.course().writes), (State::Warm, 1));
        drop(gate);
        let (claimed, from) = claiming.await.expect("a task").expect("a claim");
        assert_eq!((from, claimed.state, host.course().writes), (State::Warm, State::Running, 2));
        return_to_warm(&agent, id).await;
        checks::faults(&agent, &host).await
    });
    host.disconnect();
    assert_eq!(faults.expect("an agent"), Vec::<String>::new());
}
