//! A guest falls silent at a round trip, for each round trip of every operation.
//!
//! A first run of an operation counts the round trips. Then the operation is run twice for each:
//! once with short deadlines, where it must end by itself, and once with the real deadlines, where
//! the machine is destroyed as soon as its guest is silent, which must succeed at once. Afterwards
//! the agent comes to rest, the records must match reality, and every instance can be destroyed.

use super::host::Host;
use super::operations::{self, Operation};
use super::runs::{Outcome, wait_until_idle};
use super::{WORKERS, checks, host};
use crate::agent::Agent;
use crate::deadlines::haste;
use crate::simulated::{Silence, SimulatedGuest};
use futures::FutureExt;
use mvm_model::{Actor, InstanceId};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The factor by which deadlines are shortened: fifteen seconds become 150 ms.
const HASTE: u32 = 100;
/// The factor where only the liveness probe ends the wait.
const HASTE_OF_JOBS: u32 = 20;
/// After how much real time an operation counts as hanging.
const HANGS: Duration = Duration::from_secs(30);

/// The cause that ends the wait for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Deadline,
    Destroy,
}

/// The index of an operation, the round trip at which its guest falls silent, and what ends the
/// wait.
type Point = (usize, Option<(u64, Ending)>);

#[test]
fn a_guest_that_falls_silent_at_any_round_trip_holds_nobody_up() {
    let only = std::env::var("MVM_CRASH").unwrap_or_default();
    let names: Vec<String> = operations::all().into_iter().map(|it| it.name).collect();
    let chosen: Vec<Point> =
        (0..names.len()).filter(|n| names[*n].contains(&only)).map(|n| (n, None)).collect();
    let mut faults = Vec::new();
    let mut sound = |points: &[Point]| {
        let mut counted = Vec::new();
        for ((n, point), outcome) in run_all(points) {
            match outcome {
                Ok(trips) => counted.push((n, trips)),
                Err(what) => faults.push(format!("{} {point:?}: {what}", names[n])),
            }
        }
        counted
    };
    let counted = sound(&chosen);
    let of = |(n, trips): &(usize, u64)| {
        let n = *n;
        let by = [Ending::Deadline, Ending::Destroy];
        (1..=*trips).flat_map(move |trip| by.map(|by| (n, Some((trip, by)))))
    };
    let points: Vec<Point> = counted.iter().flat_map(of).collect();
    sound(&points);
    println!("{} points", points.len());
    faults.iter().take(40).for_each(|fault| println!("{fault}"));
    assert!(faults.is_empty(), "{} of {} points went wrong", faults.len(), points.len());
    assert!(!only.is_empty() || points.len() > 120, "only {} points", points.len());
}

fn run_all(points: &[Point]) -> Vec<(Point, Outcome<u64>)> {
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                host::own_network();
                let operations = operations::all();
                while let Some((n, point)) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let silence = Silence::default();
                    let guest = SimulatedGuest { silence: silence.clone() };
                    let host = Host::with(Arc::new(guest));
                    let outcome = run(&host, &silence, &operations[*n], *point);
                    haste::make(1);
                    host.disconnect();
                    outcomes.lock().expect("lock").push(((*n, *point), outcome));
                }
            });
        }
    });
    outcomes.into_inner().expect("lock")
}

/// Runs the operation. Returns the number of its round trips.
fn run(
    host: &Host,
    silence: &Silence,
    operation: &Operation,
    point: Option<(u64, Ending)>,
) -> Outcome<u64> {
    let lived = host.agent(async |agent| {
        (operation.prepare)(agent.clone()).await.map_err(|error| format!("prepare: {error}"))?;
        wait_until_idle(&agent).await?;
        silence.arm(point.map(|(trip, _)| trip));
        if point.is_some_and(|(_, by)| by == Ending::Deadline) {
            // A job waits for a silent guest as long as its pool says, so the liveness probe must
            // have time to act.
            haste::make(if operation.name.contains("job") { HASTE_OF_JOBS } else { HASTE });
        }
        let act = (operation.act)(agent.clone());
        // The operation may fail, but it must end.
        let act = async { tokio::time::timeout(HANGS, act).await.map(drop) };
        match point {
            Some((_, Ending::Destroy)) => {
                let ended = tokio::sync::Notify::new();
                let act = async { act.await.inspect(|()| ended.notify_one()) };
                let destroy = async {
                    tokio::select! {
                        () = silence.struck() => destroy_all(&agent).await,
                        () = ended.notified() => Ok(()),
                    }
                };
                let (act, destroyed) = tokio::join!(act, destroy);
                destroyed?;
                act
            }
            _ => act.await,
        }
        .map_err(|_| "it hangs".to_owned())?;
        let trips = silence.trips();
        haste::make(1);
        silence.arm(None);
        let destroys = point.is_some_and(|(_, by)| by == Ending::Destroy);
        if destroys && silence.struck().now_or_never().is_some() {
            // The silent machine was made when the operation was already over.
            destroy_all(&agent).await?;
        }
        wait_until_idle(&agent).await?;
        check_whole(&agent, host).await?;
        destroy_all(&agent).await?;
        wait_until_idle(&agent).await?;
        check_whole(&agent, host).await?;
        Ok(trips)
    });
    lived.unwrap_or_else(|| Err("the agent was killed".to_owned()))
}

/// Destroys every instance, each within [`HANGS`].
async fn destroy_all(agent: &Arc<Agent>) -> Outcome<()> {
    let ids: Vec<InstanceId> =
        agent.base.records.read(|records| records.instances.keys().copied().collect());
    for id in ids {
        match tokio::time::timeout(HANGS, agent.lifecycle.instances.destroy(id, &Actor::Force))
            .await
        {
            Err(_) => return Err(format!("the end of {id} hangs")),
            Ok(Err(error)) => return Err(format!("cannot destroy {id}: {error}")),
            Ok(Ok(())) => {}
        }
    }
    Ok(())
}

async fn check_whole(agent: &Arc<Agent>, host: &Host) -> Outcome<()> {
    let faults = checks::faults(agent, host).await;
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n    ")) }
}
