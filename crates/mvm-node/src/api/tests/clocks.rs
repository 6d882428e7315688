//! Agents with clocks of their own, in one process and on several threads.

use super::agent;
use crate::agent::Agent;
use std::sync::Arc;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

/// Gives all leases of the agent an hour from now.
async fn lease_for_an_hour(agent: &Agent) {
    let hour = agent.base.records.clock().now() + HOUR;
    let change = agent.base.records.change(|records, changes| {
        for mut instance in records.instances.values().cloned() {
            let lease = instance.lease.as_mut().expect("a lease");
            lease.expires_at = hour;
            changes.put_instance(instance);
        }
        Ok(())
    });
    change.await.expect("written");
}

fn leases(agent: &Agent) -> usize {
    agent
        .base
        .records
        .read(|records| records.instances.values().filter(|i| i.lease.is_some()).count())
}

/// Ends what is due until no lease is left.
async fn run_until_all_have_ended(agent: Arc<Agent>) {
    let mut changed = agent.base.records.subscribe();
    while leases(&agent) > 0 {
        agent.work.leases.expire().await;
        let _ = tokio::time::timeout(std::time::Duration::from_millis(10), changed.changed()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn leases_end_by_the_clock_of_their_own_agent_on_whatever_thread_it_works() {
    let [(_ours, ours), (_theirs, theirs)] = [agent().await, agent().await];
    for agent in [&ours, &theirs] {
        lease_for_an_hour(agent).await;
    }
    let mut ending = tokio::spawn(run_until_all_have_ended(ours.clone()));
    let early = tokio::time::timeout(std::time::Duration::from_millis(50), &mut ending).await;
    assert!(early.is_err() && leases(&ours) == 2, "they last for an hour");
    ours.advance(HOUR);
    ending.await.expect("a task");
    theirs.work.leases.expire().await;
    assert_eq!((leases(&ours), leases(&theirs)), (0, 2));
    let (ours, theirs) = (ours.base.records.clock(), theirs.base.records.clock());
    assert!(ours.now().since(theirs.now()) > HOUR / 2, "an hour lies between the agents");
}
