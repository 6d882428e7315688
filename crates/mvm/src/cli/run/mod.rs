//! `mvm run`

use super::copying::Copying;
use super::environment::Environment;
use super::instance::own_failure;
use super::job::Options;
use crate::cli::context::Context;
use crate::error::CliError;
use crate::job::{self, Input, WORK, split};
use crate::output::{self, Outcome};
use crate::session;
use clap::Args;
use mvm_api::Client;
use mvm_api::jobs::JobView;
use mvm_guest::protocol::ExecRequest;
use mvm_model::{Code, InstanceRef, JobState, PoolRef, State, WayUp};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

mod held;

use held::Held;

/// Options that only a queued job can have.
const QUEUE_ONLY: [&str; 3] = ["priority", "retries", "cache_commit"];

/// Runs a command in an instance of its own: takes a warm one, else a sleeping, else a new one;
/// copies inputs in and results out; then recycles the instance.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mvm run ci/runners -- uname -a
  mvm run ci/runners --in ./src --out /work/src/report.txt -- make -C src test
  mvm run ci/runners --timeout 600 -e MODE=release -- ./job.sh
  mvm run ci/runners -e TOKEN --env-file secrets.env -- ./deploy.sh

The command runs in /work; an input DIR is /work/DIR there. It is a job that ends with this command:
where the quotas leave no room for it, it waits for its turn. With --interactive or --tty nothing is
queued. Exit status: the command's; 124 after --timeout; 125 where mvm itself failed.")]
pub struct Run {
    /// tenant/pool
    pool: PoolRef,
    /// Copy a file or folder to /work in the guest, or to another folder
    #[arg(long = "in", value_name = "PATH[:FOLDER]")]
    inputs: Vec<String>,
    /// Copy a file or folder from the guest to the working directory, or to another folder
    #[arg(long = "out", value_name = "PATH[:FOLDER]")]
    outputs: Vec<String>,
    #[command(flatten)]
    copying: Copying,
    #[command(flatten)]
    options: Options,
    /// Pass standard input to the command; not queued
    #[arg(long, short, conflicts_with_all = QUEUE_ONLY)]
    interactive: bool,
    /// Give the command a terminal; not queued
    #[arg(long, short, conflicts_with_all = QUEUE_ONLY)]
    tty: bool,
    /// Print on standard error how long each step took
    #[arg(long)]
    timings: bool,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// How long a guest may take, after its timeout, to hand over the files to copy back.
const LAST: Duration = Duration::from_secs(10);

/// How long an agent may take to accept the cancellation of a job. The job ends with our
/// connection, too.
const TOLD: Duration = Duration::from_secs(1);

/// The steps of a run, with their durations.
type Steps = Vec<(String, Duration)>;

/// Runs the command.
pub async fn run(context: &Context, run: Run) -> Outcome {
    own_failure(run_and_tell(context, run).await, context)
}

async fn run_and_tell(context: &Context, run: Run) -> Outcome {
    let inputs: Vec<Input> =
        run.inputs.iter().map(|text| Input::parse(text)).collect::<Result<_, _>>()?;
    run.options.variables.leave_input(run.interactive)?;
    let env = run.options.environment()?;
    for output in &run.outputs {
        job::check_target(Path::new(split(output, ".").1))?;
    }
    let client = context.patient()?;
    let mut steps = Steps::new();
    // All nodes of a fleet share one queue of claims.
    let of_fleet = context.coordinator.is_some() && run.options.is_plain();
    let outcome = match run.interactive || run.tty || of_fleet {
        true => claim_and_run(context, &client, &run, env, &mut steps).await,
        false => submit_and_follow(&client, &run, inputs, env, &mut steps).await,
    };
    if run.timings {
        for (what, took) in &steps {
            output::note(format_args!("mvm: {what}: {:.1} ms", took.as_secs_f64() * 1000.0));
        }
    }
    outcome
}

/// Describes how a machine was obtained: its state before, and how it started to run where it did
/// not. Older agents do not say so.
fn way(from: State, way_up: Option<WayUp>) -> String {
    match way_up {
        Some(way_up) => format!("{from}, {way_up}"),
        None => from.to_string(),
    }
}

/// Runs the command as a job that ends with this process.
async fn submit_and_follow(
    client: &Client,
    run: &Run,
    inputs: Vec<Input>,
    env: Environment,
    steps: &mut Steps,
) -> Outcome {
    let outputs: Vec<(&str, &str)> = run.outputs.iter().map(|text| split(text, ".")).collect();
    let artifacts = outputs.iter().map(|(path, _)| (*path).to_owned()).collect();
    let spec = run.options.spec(run.command.clone(), artifacts, env);
    let began = Instant::now();
    let submitting = job::submit(client, &run.pool, spec, inputs, true);
    let made = tokio::select! {
        made = submitting => made?,
        status = interrupted() => return Ok(status),
    };
    let uploaded = began.elapsed();
    let following = job::attach(client, made.job_id);
    let (view, signal) = tokio::select! {
        ended = following => ended?,
        // The job gets these signals, too. It ends with this process.
        status = interrupted() => {
            let told = job::verb(client, made.job_id, "cancel");
            let _ = tokio::time::timeout(TOLD, told).await;
            return Ok(status);
        }
    };
    if let Some(attempt) = view.attempts.last() {
        // The time from the queue to a ready machine.
        let waited = attempt.since.since(view.queued_at.unwrap_or(attempt.since));
        let claim = waited + Duration::from_micros(attempt.claim_us);
        steps.push((format!("claim ({})", way(attempt.from, attempt.way_up)), claim));
        if !run.inputs.is_empty() {
            let took = uploaded + Duration::from_micros(attempt.inputs_us);
            steps.push((format!("in {}", run.inputs.join(" ")), took));
        }
        steps.push(("command".to_owned(), Duration::from_micros(attempt.command_us)));
    }
    let status = status_of(&view, signal, run)?;
    for (index, (path, folder)) in outputs.iter().enumerate() {
        let Some(artifact) = view.artifacts.get(index).filter(|a| a.bytes.is_some()) else {
            // A command that failed may have ended before it made the file.
            output::note(format_args!("mvm: no {path} to copy back"));
            continue;
        };
        let began = Instant::now();
        let rules = run.copying.rules();
        job::fetch(client, view.job_id, index, Path::new(folder), rules).await?;
        let took = began.elapsed() + Duration::from_micros(artifact.took_us);
        steps.push((format!("out {path}"), took));
    }
    Ok(status)
}

/// Returns the exit status of a job. Prints a message where the status alone does not say what
/// happened.
fn status_of(view: &JobView, signal: u8, run: &Run) -> Outcome {
    let why = view.reason.clone().unwrap_or_default();
    match view.state {
        JobState::Succeeded => {
            if !why.is_empty() {
                output::note(format_args!("mvm: {why}"));
            }
            Ok(0)
        }
        JobState::TimedOut => {
            let seconds = run.options.timeout.unwrap_or_default();
            output::note(format_args!("mvm: ended after {seconds} s, as asked with --timeout"));
            Ok(124)
        }
        JobState::Canceled if signal > 0 && view.exit_status.is_none() => Ok(128 + signal),
        JobState::Canceled if signal == 0 => {
            output::note(format_args!("mvm: job {} was canceled: {why}", view.job_id));
            Ok(view.shell_status.unwrap_or(130))
        }
        JobState::Canceled => Ok(view.shell_status.unwrap_or(130)),
        JobState::Failed if view.exit_status.is_some_and(|status| status != 0) => {
            if !why.is_empty() {
                output::note(format_args!("mvm: {why}"));
            }
            Ok(view.shell_status.unwrap_or(125))
        }
        JobState::Lost => Err(CliError::new(Code::JobLost, why)
            .hint("it is not run again by itself; submit it with --retries if it may be")),
        _ => Err(CliError::new(Code::JobFailed, why)
            .hint(format!("see more of it: mvm job info {}", view.job_id))),
    }
}

/// Runs the command with our standard input or terminal, under a claim that lasts as long as this
/// connection.
async fn claim_and_run(
    context: &Context,
    client: &Client,
    run: &Run,
    env: Environment,
    steps: &mut Steps,
) -> Outcome {
    let began = Instant::now();
    let lease_s = run.options.lease.or(run.options.timeout.map(|seconds| seconds + 3600));
    let mut held = Held::claim(client, &run.pool, lease_s).await?;
    let instance = held.claim.reference.clone();
    let how = way(held.claim.from, held.claim.way_up);
    steps.push((format!("claim ({how})"), began.elapsed()));
    // A claim made at a node ends with its connection.
    let of_fleet = context.coordinator.is_some();
    let timeout = run.options.timeout.map(Duration::from_secs);
    let late = async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout + LAST).await,
            None => std::future::pending().await,
        }
    };
    let outcome = tokio::select! {
        outcome = work(client, &instance, run, env, steps) => outcome,
        // The guest stalls at a copy. Its machine ends with the claim.
        () = late => {
            let seconds = timeout.unwrap_or_default().as_secs();
            output::note(format_args!("mvm: ended after {seconds} s, as asked with --timeout, while files were copied"));
            Ok(124)
        }
        // Until the command runs, only this process handles these signals; after that the command
        // gets them, too.
        status = interrupted() => Ok(status),
        () = held.keep(client), if of_fleet => {
            Err(CliError::internal("a claim was kept to its end"))
        }
    };
    if of_fleet {
        held.release(client).await;
    }
    outcome
}

async fn work(
    client: &Client,
    instance: &InstanceRef,
    run: &Run,
    env: Environment,
    steps: &mut Steps,
) -> Outcome {
    let began = Instant::now();
    for input in &run.inputs {
        let began = Instant::now();
        let (path, folder) = split(input, WORK);
        let put = async || session::put(client, instance, Path::new(path), folder).await;
        session::copied(client, put).await?;
        steps.push((format!("in {path}"), began.elapsed()));
    }
    let timeout =
        run.options.timeout.map(|limit| Duration::from_secs(limit).saturating_sub(began.elapsed()));
    let began = Instant::now();
    let request = ExecRequest {
        argv: run.command.clone(),
        env,
        cwd: Some(WORK.to_owned()),
        user: None,
        tty: run.tty.then(session::terminal),
        stdin: run.interactive,
        keep: None,
    };
    // The claim holds a lease already.
    let exec = session::Run { request, interactive: run.interactive, timeout, lease_s: None };
    let status = session::exec(client, instance, exec).await?;
    steps.push(("command".to_owned(), began.elapsed()));
    for output in &run.outputs {
        let began = Instant::now();
        let (path, folder) = split(output, ".");
        let (folder, rules) = (Path::new(folder), run.copying.rules());
        let get = async || session::get(client, instance, path, folder, rules).await;
        match session::copied(client, get).await {
            Ok(()) => {}
            // A command that failed may have ended before it made the file.
            Err(problem) if status != 0 && problem.code() == Some(Code::NotFound) => {
                output::note(format_args!("mvm: no {path} to copy back"));
            }
            Err(problem) => return Err(problem),
        }
        steps.push((format!("out {path}"), began.elapsed()));
    }
    Ok(status)
}

/// Resolves a while after an interrupt, so that the command has time to end by itself.
async fn interrupted() -> u8 {
    let (Ok(mut int), Ok(mut term)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    let status = tokio::select! {
        _ = int.recv() => 130,
        _ = term.recv() => 143,
    };
    tokio::time::sleep(Duration::from_secs(2)).await;
    status
}
