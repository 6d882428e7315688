//! Tests that a guest can take nothing from its job but the job's time.

use crate::agent::Agent;
use crate::crashes::host::{Host, PointFault, WriteFault, own_network};
use crate::crashes::operations::{counts, pool_in_with, runners, scale, tenant};
use crate::crashes::queue::inputs;
use crate::simulated::hostile::{ENDLESS, Hostile, Misbehaviour, Phase};
use axum::body::Bytes;
use mvm_api::jobs::SubmitJob;
use mvm_api::types::QuotaPatch;
use mvm_hypervisor::sim::{Call, Effect, FaultPlan};
use mvm_model::cache::Cache;
use mvm_model::intake::Room;
use mvm_model::job::JobSpec;
use mvm_model::{Code, Job, JobId, JobState, Mib, PoolRef, Recycle, Timestamp};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// Each request that a guest gets for a job, and the words of the job's reason if it fails there.
const PHASES: [(Phase, &str); 6] = [
    (Phase::Mount, "while its caches were mounted"),
    (Phase::Put, "while its inputs were unpacked"),
    (Phase::Start, "while its command was started"),
    (Phase::Run, ""),
    (Phase::Get, "while artifact input was fetched"),
    (Phase::Unmount, "while cache build was unmounted"),
];

/// Submits a job that goes through all phases, in a pool that keeps its machines.
async fn submit(agent: &Arc<Agent>, timeout_s: Option<u64>) -> crate::Result<JobId> {
    tenant(agent, "ci", 20).await?;
    let cache = Cache { name: "build".parse()?, path: "/cache".to_owned(), size_mib: Mib(16) };
    pool_in_with(agent, &runners(), Recycle::Keep, None, vec![cache]).await?;
    scale(agent, counts(0, 0, 0)).await?;
    let argv = ["sh", "-c", "echo it ran"].map(str::to_owned).to_vec();
    let spec = JobSpec {
        argv,
        timeout_s,
        artifacts: vec!["input".to_owned()],
        cache_commit: vec!["build".parse()?],
        ..JobSpec::default()
    };
    let wanted = SubmitJob { spec, hold: true };
    let id = agent.work.jobs.create(&runners(), wanted, "uid:0".to_owned()).await?.job_id;
    let body = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from(inputs()))]);
    agent.work.jobs.take_inputs(id, body).await?;
    agent.work.jobs.queue(id, false).await?;
    Ok(id)
}

/// Runs a job on a host with such guests until only the job's record is left.
fn ended(at: Phase, how: Misbehaviour, timeout_s: Option<u64>, cancel: bool) -> Job {
    own_network();
    let asked = watch::Sender::new(false);
    let host = Host::with(Arc::new(Hostile { at, how, asked: asked.clone() }));
    let job = host.agent(async |agent| {
        let id = submit(&agent, timeout_s).await?;
        if cancel {
            let _ = asked.subscribe().wait_for(|asked| *asked).await;
            agent.work.jobs.cancel(id, "canceled").await?;
        }
        let job = agent.work.jobs.ended(id).await?;
        // A machine whose guest was cut off is discarded, whatever the pool's rule.
        let machine = job.attempts[0].instance.id;
        let mut changes = agent.base.records.subscribe();
        while at != Phase::Run && agent.base.records.read(|w| w.instances.contains_key(&machine)) {
            changes.changed().await.expect("a node");
        }
        Ok::<_, crate::Error>(job)
    });
    host.disconnect();
    job.expect("nobody kills this agent").expect("a job")
}

/// Checks each phase with each kind of obstruction, all at once.
fn in_all_phases(check: impl Fn(Phase, Misbehaviour, &str) + Sync) {
    std::thread::scope(|scope| {
        for (at, doing) in PHASES {
            for how in [Misbehaviour::Stalls, Misbehaviour::Trickles] {
                let check = &check;
                scope.spawn(move || check(at, how, doing));
            }
        }
    });
}

#[test]
fn a_job_ends_at_its_deadline_whatever_its_guest_does() {
    in_all_phases(|at, how, doing| {
        let job = ended(at, how, Some(1), false);
        let reason = job.reason.clone().unwrap_or_default();
        assert_eq!(job.state, JobState::TimedOut, "{at:?} {how:?}: {job:?}");
        // A command whose start is never confirmed differs from a command that never ends.
        let doing = if (at, how) == (Phase::Run, Misbehaviour::Stalls) {
            "command was started"
        } else {
            doing
        };
        assert!(reason.contains("ended after 1 s") && reason.contains(doing), "{at:?}: {reason}");
        assert_eq!(job.shell_status(), 124);
    });
}

#[test]
fn a_job_that_is_canceled_ends_whatever_its_guest_does() {
    in_all_phases(|at, how, doing| {
        let job = ended(at, how, None, true);
        let reason = job.reason.clone().unwrap_or_default();
        assert_eq!(job.state, JobState::Canceled, "{at:?} {how:?}: {job:?}");
        let doing = if (at, how) == (Phase::Run, Misbehaviour::Stalls) {
            "command was started"
        } else {
            doing
        };
        assert!(reason.contains("canceled") && reason.contains(doing), "{at:?}: {reason}");
    });
}

/// A command that has run is not lost, whichever write of its record finds the disk full.
#[test]
fn the_end_of_a_job_is_recorded_as_soon_as_there_is_room() {
    own_network();
    let mut struck = 0;
    for number in 1.. {
        let host = Host::new();
        let job = host.agent(async |agent| {
            let id = submit(&agent, Some(60)).await?;
            host.arm(Some(PointFault::Write(number, WriteFault::Fail)));
            agent.work.jobs.ended(id).await
        });
        let writes = host.course().writes;
        host.disconnect();
        let job = job.expect("nobody kills this agent").expect("a job");
        let began = job.attempts.last().is_some_and(|attempt| attempt.began_at.is_some());
        let state = if began { JobState::Succeeded } else { JobState::Failed };
        assert_eq!(job.state, state, "write {number}: {job:?}");
        struck += usize::from(began);
        if writes < number {
            break;
        }
    }
    assert!(struck > 2, "records of its end were among those that failed");
}

#[test]
fn a_job_whose_machine_does_not_come_up_is_canceled_at_once() {
    own_network();
    let host = Host::new();
    let job = host.agent(async |agent| {
        let never = Effect::Delay(Duration::from_secs(24 * 3600));
        let plan = FaultPlan::none().always(Call::Boot, never).always(Call::Restore, never);
        host.machines().set_faults(plan);
        let id = submit(&agent, None).await?;
        let is_coming_up = |call: &Call| matches!(call, Call::Boot | Call::Restore);
        let started = async || agent.base.records.read(|w| w.jobs[&id].state == JobState::Starting);
        while !(host.machines().calls().iter().any(is_coming_up) && started().await) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        agent.work.jobs.cancel(id, "canceled").await?;
        agent.work.jobs.ended(id).await
    });
    host.disconnect();
    let job = job.expect("nobody kills this agent").expect("a job");
    assert_eq!((job.state, job.shell_status()), (JobState::Canceled, 130));
}

/// Returns a job as an earlier version has recorded it, with the value of its variable. It was made
/// `now`, since the dispatcher cancels a job that has waited too long for its inputs.
fn old_job(number: u32, state: JobState, now: Timestamp) -> Job {
    let argv = vec!["true".to_owned()];
    let env = [("TOKEN".to_owned(), "an old secret".to_owned())].into();
    let spec = JobSpec { argv, env, ..JobSpec::default() };
    let (id, by) = (JobId::from_number(number), "uid:0".to_owned());
    let mut job = Job::new(id, runners(), spec, by, now);
    job.state = state;
    job
}

#[test]
fn values_in_records_of_earlier_versions_are_taken_out_of_them() {
    own_network();
    let host = Host::new();
    let now = host.clock.clock().now();
    let (waits, over) = (old_job(1, JobState::Preparing, now), old_job(2, JobState::Failed, now));
    let old = [waits.clone(), over.clone()];
    let made = host.agent(async |agent| {
        tenant(&agent, "ci", 20).await?;
        pool_in_with(&agent, &runners(), Recycle::Keep, None, Vec::new()).await?;
        for job in &old {
            std::fs::create_dir_all(agent.work.jobs.files.dir(job.id)).expect("directory");
        }
        agent
            .base
            .records
            .change(|_, changes| {
                old.iter().for_each(|job| changes.put_job(job.clone()));
                Ok(())
            })
            .await
    });
    made.expect("nobody kills this agent").expect("records");
    host.agent(async |agent| {
        for id in [waits.id, over.id] {
            let job = agent.base.records.read(|records| records.job(id).cloned()).expect("a job");
            assert_eq!(job.spec.env, [("TOKEN".to_owned(), String::new())].into());
        }
        let job = agent.base.records.read(|records| records.job(waits.id).cloned()).expect("a job");
        assert_eq!(agent.work.jobs.files.values_of(&job).await.expect("values"), waits.spec.env);
        let file = |id| agent.work.jobs.files.dir(id).join("values.json");
        assert!(file(waits.id).exists() && !file(over.id).exists());
        agent.work.jobs.cancel(waits.id, "a test says so").await.expect("canceled");
        assert!(!file(waits.id).exists());
        // Values that cannot be read are not guessed.
        assert_eq!(
            agent.work.jobs.files.values_of(&job).await.unwrap_err().code(),
            Code::RecordDamaged
        );
    })
    .expect("nobody kills this agent");
    host.disconnect();
}

#[test]
fn a_guest_that_does_what_it_is_to_is_not_cut_off() {
    own_network();
    let host = Host::new();
    let job = host.agent(async |agent| {
        let id = submit(&agent, Some(60)).await?;
        agent.work.jobs.ended(id).await
    });
    host.disconnect();
    let job = job.expect("nobody kills this agent").expect("a job");
    assert_eq!((job.state, job.reason), (JobState::Succeeded, None));
    assert!(job.artifacts[0].bytes.is_some());
}

/// Replaces the agent's reading of its disk: only jobs' files take space, and `free` bytes are free
/// before them. Returns the lowest free space that was ever read.
fn small_disk(agent: &Agent, free: u64) -> Arc<AtomicU64> {
    let (jobs, least) = (agent.base.state_dir.jobs(), Arc::new(AtomicU64::new(free)));
    let seen = least.clone();
    agent.work.jobs.intake.measure_by(move |_| {
        let free = free.saturating_sub(crate::instances::disk_use_kib(&jobs) << 10);
        seen.fetch_min(free, Ordering::SeqCst);
        Ok(Room { total: 1 << 30, free })
    });
    least
}

/// Submits a job of `pool` with inputs and this artifact, and does not queue it.
async fn submitted(agent: &Arc<Agent>, pool: &PoolRef, artifact: &str) -> crate::Result<JobId> {
    let argv = ["sh", "-c", "echo it ran"].map(str::to_owned).to_vec();
    let artifacts = vec![artifact.to_owned()];
    let spec = JobSpec { argv, artifacts, ..JobSpec::default() };
    let wanted = SubmitJob { spec, hold: true };
    let id = agent.work.jobs.create(pool, wanted, "uid:0".to_owned()).await?.job_id;
    let body = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from(inputs()))]);
    agent.work.jobs.take_inputs(id, body).await?;
    Ok(id)
}

/// Submits and queues a job of `pool` with inputs and this artifact.
async fn queued(agent: &Arc<Agent>, pool: &PoolRef, artifact: &str) -> crate::Result<JobId> {
    let id = submitted(agent, pool, artifact).await?;
    agent.work.jobs.queue(id, false).await?;
    Ok(id)
}

#[test]
fn an_artifact_without_end_takes_no_room_from_another_tenants_job() {
    const MIB: u64 = 1 << 20;
    own_network();
    let asked = watch::Sender::new(false);
    let hostile = Hostile { at: Phase::Get, how: Misbehaviour::Floods, asked: asked.clone() };
    let host = Host::with(Arc::new(hostile));
    let ended = host.agent(async |agent| {
        let lab: PoolRef = "lab/runners".parse()?;
        for (pool, net) in [(&runners(), 20), (&lab, 21)] {
            tenant(&agent, pool.tenant.as_str(), net).await?;
            pool_in_with(&agent, pool, Recycle::Keep, None, Vec::new()).await?;
        }
        scale(&agent, counts(0, 0, 0)).await?;
        let reserve = mvm_model::intake::reserve(1 << 30);
        let least = small_disk(&agent, reserve + 40 * MIB);
        let greedy = queued(&agent, &runners(), ENDLESS).await?;
        let _ = asked.subscribe().wait_for(|asked| *asked).await;
        let modest = queued(&agent, &lab, "input").await?;
        let jobs = (agent.work.jobs.ended(greedy).await?, agent.work.jobs.ended(modest).await?);
        // The refused bytes are removed, so the tenant can submit further jobs.
        let again = queued(&agent, &runners(), "input").await?;
        let again = agent.work.jobs.ended(again).await?;
        Ok::<_, crate::Error>((jobs, again, least.load(Ordering::SeqCst), reserve))
    });
    host.disconnect();
    let ((greedy, modest), again, least, reserve) =
        ended.expect("nobody kills this agent").expect("the jobs");
    let reason = greedy.reason.unwrap_or_default();
    assert_eq!(greedy.state, JobState::Failed, "{reason}");
    assert!(
        reason.contains("no artifact endless") && reason.contains("leave to others"),
        "{reason}"
    );
    assert_eq!((modest.state, modest.reason), (JobState::Succeeded, None));
    assert_eq!((again.state, again.reason), (JobState::Succeeded, None));
    assert!(
        least >= reserve + 18 * MIB,
        "{} MiB over the reserve",
        least.saturating_sub(reserve) / MIB
    );
}

#[test]
fn artifacts_count_against_the_disk_quota_of_their_tenant() {
    own_network();
    let asked = watch::Sender::new(false);
    let host = Host::with(Arc::new(Hostile { at: Phase::Get, how: Misbehaviour::Floods, asked }));
    let ended = host.agent(async |agent| {
        tenant(&agent, "ci", 20).await?;
        pool_in_with(&agent, &runners(), Recycle::Keep, None, Vec::new()).await?;
        // One instance always runs: there is no room for a new machine, so the second job must find
        // this one.
        scale(&agent, counts(1, 0, 0)).await?;
        let before = agent.base.records.read(|records| records.usage(&runners().tenant).disk_mib);
        let kept = queued(&agent, &runners(), "input").await?;
        let kept = agent.work.jobs.ended(kept).await?;
        let after = agent.base.records.read(|records| records.usage(&runners().tenant).disk_mib);
        let endless = submitted(&agent, &runners(), ENDLESS).await?;
        let none = QuotaPatch { max_disk_gib: Some(0), ..QuotaPatch::default() };
        agent.pools.tenants.update(&runners().tenant, none).await?;
        agent.work.jobs.queue(endless, false).await?;
        Ok::<_, crate::Error>((before, kept, after, agent.work.jobs.ended(endless).await?))
    });
    host.disconnect();
    let (before, kept, after, endless) = ended.expect("nobody kills this agent").expect("jobs");
    assert!(kept.artifacts[0].bytes.is_some_and(|bytes| bytes > 0));
    assert!(after > before, "{before}, then {after}");
    let reason = endless.reason.unwrap_or_default();
    assert_eq!(endless.state, JobState::Failed, "{reason}");
    assert!(reason.contains("quota max_disk_gib of tenant ci"), "{reason}");
}
