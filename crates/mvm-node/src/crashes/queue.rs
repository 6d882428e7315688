//! Jobs through the queue: the operations on them, and the invariants at rest.

use super::operations::{Operation, counts, pool, pool_in_with, runners, scale, step, tenant};
use crate::Result;
use crate::agent::Agent;
use crate::records::RecordSet;
use axum::body::Bytes;
use mvm_api::jobs::SubmitJob;
use mvm_archive::{Entry, Kind, Time, Writer};
use mvm_model::cache::Cache;
use mvm_model::job::{JobSpec, JobState, PREPARING};
use mvm_model::{Counts, Job, JobId, Mib, Recycle};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// The output of every command.
const RAN: &str = "it ran";

/// The value of every job's variable, which must be nowhere once the job has ended.
const SECRET: &str = "a secret of the job's";

/// Returns operations with all kinds of jobs.
pub fn all() -> Vec<Operation> {
    let (warm, none) = (counts(0, 1, 0), counts(0, 0, 0));
    vec![
        of("queued job, from warm", Recycle::Keep, warm, |agent| submit(agent, plain(), 1)),
        of("queued job, from nothing", Recycle::Reset, none, |agent| submit(agent, plain(), 1)),
        of("two queued jobs", Recycle::Sleep, warm, |agent| submit(agent, plain(), 2)),
        of("a job that is tried again", Recycle::Reset, warm, |agent| {
            submit(agent, JobSpec { retries: 1, ..spec(&format!("echo {RAN}; exit 3")) }, 1)
        }),
        of("a job with inputs and an artifact", Recycle::Reset, warm, with_files),
        of("a job that is canceled", Recycle::Reset, warm, canceled),
        of("a job that is never submitted", Recycle::Reset, warm, |agent| async move {
            let made = agent.work.jobs.create(&runners(), wanted(plain(), true), holder()).await?;
            agent.work.jobs.cancel(made.job_id, "a test says so").await.map(drop)
        }),
        commit(),
    ]
}

fn of<F: Future<Output = Result<()>> + 'static>(
    name: &str,
    rule: Recycle,
    spares: Counts,
    work: impl Fn(Arc<Agent>) -> F + Copy + 'static,
) -> Operation {
    Operation {
        name: name.to_owned(),
        prepare: step(move |agent| async move {
            pool(&agent, rule, None).await?;
            scale(&agent, spares).await
        }),
        act: step(work),
        again: Some(step(work)),
        may_go: |_| true,
        makes: 0,
        marked: false,
    }
}

/// Returns an operation whose job commits its cache to the pool.
fn commit() -> Operation {
    let work = |agent| {
        let cache_commit = vec!["build".parse().expect("a name")];
        submit(agent, JobSpec { cache_commit, ..plain() }, 1)
    };
    let prepare = |agent: Arc<Agent>| async move {
        tenant(&agent, "ci", 20).await?;
        let cache = Cache { name: "build".parse()?, path: "/cache".to_owned(), size_mib: Mib(16) };
        pool_in_with(&agent, &runners(), Recycle::Reset, None, vec![cache]).await?;
        scale(&agent, counts(0, 1, 0)).await
    };
    let like = of("a job that commits a cache", Recycle::Reset, counts(0, 0, 0), work);
    Operation { prepare: step(prepare), ..like }
}

/// Submits `count` jobs and waits for their ends.
async fn submit(agent: Arc<Agent>, spec: JobSpec, count: usize) -> Result<()> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let wanted = wanted(spec.clone(), false);
        ids.push(agent.work.jobs.create(&runners(), wanted, holder()).await?.job_id);
    }
    for id in ids {
        agent.work.jobs.ended(id).await?;
    }
    Ok(())
}

async fn with_files(agent: Arc<Agent>) -> Result<()> {
    let spec = spec(&format!("cat input; echo {RAN}"));
    let spec = JobSpec { artifacts: vec!["input".to_owned()], ..spec };
    let id = agent.work.jobs.create(&runners(), wanted(spec, true), holder()).await?.job_id;
    let body = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from(inputs()))]);
    agent.work.jobs.take_inputs(id, body).await?;
    agent.work.jobs.queue(id, false).await?;
    agent.work.jobs.ended(id).await.map(drop)
}

async fn canceled(agent: Arc<Agent>) -> Result<()> {
    let spec = spec(&format!("echo {RAN}; sleep 1"));
    let id = agent.work.jobs.create(&runners(), wanted(spec, false), holder()).await?.job_id;
    while agent.base.records.read(|records| records.job(id).map(|job| job.state))?
        < JobState::Running
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    agent.work.jobs.cancel(id, "a test says so").await?;
    agent.work.jobs.ended(id).await.map(drop)
}

fn plain() -> JobSpec {
    spec(&format!("echo {RAN}"))
}

fn spec(script: &str) -> JobSpec {
    let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
    JobSpec {
        argv,
        env: [("TOKEN".to_owned(), SECRET.to_owned())].into(),
        timeout_s: None,
        lease_s: None,
        priority: 0,
        retries: 0,
        artifacts: Vec::new(),
        cache_commit: Vec::new(),
    }
}

fn wanted(spec: JobSpec, hold: bool) -> SubmitJob {
    SubmitJob { spec, hold }
}

fn holder() -> String {
    "uid:0".to_owned()
}

/// Returns an archive with a file `/work/input`.
pub fn inputs() -> Vec<u8> {
    let mut archive = Writer::new(Vec::new());
    let entry = Entry {
        name: b"work/input".to_vec(),
        kind: Kind::file(3),
        mode: 0o644,
        modified: Time::default(),
        xattrs: Vec::new(),
    };
    archive.entry(&entry).and_then(|()| archive.data(b"in\n")).expect("archive");
    archive.finish().expect("archive")
}

/// Returns a job that has not ended, if there is one. Advances the clock where only time would end
/// the wait.
pub async fn unfinished_work(agent: &Agent, records: &RecordSet) -> Option<String> {
    let job = records.jobs.values().find(|job| !job.state.has_ended())?;
    if job.state == JobState::Preparing {
        // The client that submitted the job is gone.
        agent.advance(PREPARING);
        if let Err(error) = agent.work.jobs.tidy().await {
            return Some(error.to_string());
        }
    }
    agent.base.records.touch();
    Some(format!("{job:?}"))
}

/// Checks that each job has ended, has run at most once per attempt, and has its files and no
/// others.
pub fn faults(agent: &Agent, records: &RecordSet) -> Vec<String> {
    let mut faults = Vec::new();
    let mut known: BTreeSet<String> = BTreeSet::new();
    for job in records.jobs.values() {
        known.insert(job.id.to_string());
        faults.extend(of_job(agent, job).into_iter().map(|fault| format!("{fault}: {job:?}")));
    }
    let dirs = super::checks::names(&agent.base.state_dir.jobs());
    faults.extend(dirs.difference(&known).map(|name| format!("directory of job {name}")));
    faults
}

fn of_job(agent: &Agent, job: &Job) -> Option<String> {
    let begun = job.attempts.iter().filter(|attempt| attempt.began_at.is_some()).count();
    let ran = runs(agent, job.id);
    let have = super::checks::names(&agent.work.jobs.files.dir(job.id));
    let left = have.iter().find(|name| {
        name.ends_with(".new") || ["inputs.tar", "values.json"].contains(&name.as_str())
    });
    let told = serde_json::to_string(job).expect("JSON").contains(SECRET);
    match () {
        () if told || job.spec.env.keys().ne(["TOKEN"]) => {
            Some("its record is to have the names of its variables alone".to_owned())
        }
        () if !job.state.has_ended() => Some("not over".to_owned()),
        () if ran > begun => Some(format!("it ran {ran} times, {begun} are recorded")),
        () if begun > usize::from(job.spec.retries) + 1 => Some("it was run too often".to_owned()),
        () if job.state == JobState::Succeeded && ran == 0 => Some("it never ran".to_owned()),
        () => left.map(|name| format!("{name} is left")),
    }
}

/// Returns how often the command has run, according to its log.
fn runs(agent: &Agent, id: JobId) -> usize {
    let log = std::fs::read(agent.work.jobs.files.log(id)).unwrap_or_default();
    log.windows(RAN.len()).filter(|window| *window == RAN.as_bytes()).count()
}
