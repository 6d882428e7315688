//! `mvm run`

use super::instance::own_failure;
use super::values::{Pair, environment};
use super::{Context, refused};
use crate::output::Outcome;
use crate::session;
use clap::Args;
use mvm_api::types::{Claim, ClaimRequest};
use mvm_api::{Client, Problem, paths};
use mvm_guest::protocol::ExecRequest;
use mvm_model::{InstanceRef, PoolRef};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::signal::unix::{SignalKind, signal};

/// Where a job works in its guest.
const WORK: &str = "/work";

/// Runs a command in an instance of its own: takes a warm one, else a sleeping, else a new one;
/// copies inputs in and results out; then recycles the instance.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mvm run ci/runners -- uname -a
  mvm run ci/runners --in ./src --out /work/src/report.txt -- make -C src test
  mvm run ci/runners --timeout 600 -e MODE=release -- ./job.sh

The command runs in /work; an input DIR is /work/DIR there. Exit status: the command's;
124 after --timeout; 125 where mvm itself failed.")]
pub struct Run {
    /// tenant/pool
    pool: PoolRef,
    /// Copy a file or folder to /work in the guest, or to another folder
    #[arg(long = "in", value_name = "PATH[:FOLDER]")]
    inputs: Vec<String>,
    /// Copy a file or folder of the guest back to here, or to another folder
    #[arg(long = "out", value_name = "PATH[:FOLDER]")]
    outputs: Vec<String>,
    /// Set a variable of its environment
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<Pair>,
    /// End the command after so many seconds
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Longest length of the lease on the machine, in seconds [default: an hour over the timeout]
    #[arg(long, value_name = "SECONDS")]
    lease: Option<u64>,
    /// Give it our standard input
    #[arg(long, short)]
    interactive: bool,
    /// Give it a terminal
    #[arg(long, short)]
    tty: bool,
    /// Say on standard error what took how long
    #[arg(long)]
    timings: bool,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Carries it out.
pub async fn run(context: &Context, run: Run) -> Outcome {
    own_failure(claim_and_run(context, run).await, context)
}

async fn claim_and_run(context: &Context, run: Run) -> Outcome {
    let env = environment(&run.env);
    for input in &run.inputs {
        let (path, _) = split(input, WORK);
        if !Path::new(path).exists() {
            return Err(Problem::new(400, "local_file", format!("there is no input {path}")));
        }
    }
    let client = context.client()?;
    let began = Instant::now();
    let lease_s = run.lease.or(run.timeout.map(|seconds| seconds + 3600));
    let path = paths::pool_part(&run.pool, "claims");
    let stream = client.upgrade(&path, &ClaimRequest { lease_s }).await.map_err(refused)?;
    // The lease lasts as long as this connection: until the end of this function, or of us.
    let mut lines = BufReader::new(stream).lines();
    let line = lines.next_line().await.ok().flatten().unwrap_or_default();
    let claim: Claim = serde_json::from_str::<serde_json::Value>(&line)
        .and_then(|value| serde_json::from_value(value["claim"].clone()))
        .map_err(|e| Problem::new(502, "connection_broken", format!("no claim came: {e}")))?;
    let mut steps = vec![(format!("claim ({})", claim.from), began.elapsed())];
    let job = work(&client, &claim.reference, &run, env, &mut steps);
    let outcome = tokio::select! {
        outcome = job => outcome,
        // Until the command runs nobody else listens to these; then it gets them as well.
        status = interrupted() => Ok(status),
    };
    if run.timings {
        for (what, took) in &steps {
            eprintln!("mvm: {what}: {:.1} ms", took.as_secs_f64() * 1000.0);
        }
    }
    outcome
}

async fn work(
    client: &Client,
    instance: &InstanceRef,
    run: &Run,
    env: std::collections::BTreeMap<String, String>,
    steps: &mut Vec<(String, Duration)>,
) -> Outcome {
    for input in &run.inputs {
        let began = Instant::now();
        let (path, folder) = split(input, WORK);
        session::put(client, instance, Path::new(path), folder).await?;
        steps.push((format!("in {path}"), began.elapsed()));
    }
    let began = Instant::now();
    let request = ExecRequest {
        argv: run.command.clone(),
        env,
        cwd: Some(WORK.to_owned()),
        user: None,
        tty: run.tty.then(session::terminal),
        stdin: run.interactive,
    };
    let timeout = run.timeout.map(Duration::from_secs);
    // The claim has its own lease already.
    let exec = session::Run { request, interactive: run.interactive, timeout, lease_s: None };
    let status = session::exec(client, instance, exec).await?;
    steps.push(("command".to_owned(), began.elapsed()));
    for output in &run.outputs {
        let began = Instant::now();
        let (path, folder) = split(output, ".");
        match session::get(client, instance, path, Path::new(folder)).await {
            Ok(()) => {}
            // A command that failed may not have come so far as to make it.
            Err(problem) if status != 0 && problem.code == "not_found" => {
                eprintln!("mvm: no {path} to copy back");
            }
            Err(problem) => return Err(problem),
        }
        steps.push((format!("out {path}"), began.elapsed()));
    }
    Ok(status)
}

/// Resolves a while after an interrupt: the command has had its chance to end by itself.
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

fn split<'a>(text: &'a str, default: &'a str) -> (&'a str, &'a str) {
    text.rsplit_once(':').unwrap_or((text, default))
}
