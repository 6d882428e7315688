//! `mvm bench`

use super::context::Context;
use super::density;
use super::instance::go;
use super::stages::{Stage, Times};
use crate::error::CliError;
use crate::output::{self, Outcome};
use clap::Args;
use hdrhistogram::Histogram;
use mvm_api::types::{CreateInstance, InstanceStats, InstanceView};
use mvm_api::{Client, paths};
use mvm_model::{Code, Mib, PoolRef};
use serde::Serialize;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Measures the ways to a running command: from the start of the command line's process to the first
/// byte out of a command in the guest.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mvm bench --pool ci/runners
  mvm bench --pool ci/runners -n 50 --output json
  mvm bench --pool ci/runners --stages
  mvm bench --pool ci/runners --density 8

It makes an instance of its own, and destroys it afterwards. `run` takes the pool's spares.")]
pub struct Bench {
    /// The pool, built
    #[arg(long, value_name = "TENANT/POOL")]
    pool: PoolRef,
    /// How many times each path is measured; boots are measured a fifth as often
    #[arg(short, long, default_value_t = 20)]
    number: u32,
    /// Show where the time goes on each path, as the agent counts it
    #[arg(long)]
    stages: bool,
    /// Measure instead what this many warm clones take of the host's memory, each on average
    #[arg(long, value_name = "CLONES", conflicts_with_all = ["number", "stages"])]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    density: Option<u32>,
}

#[derive(Debug, Serialize)]
struct Row {
    path: &'static str,
    runs: u64,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    pool: PoolRef,
    mem_mib: Mib,
    rows: Vec<Row>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stages: Vec<Stage>,
    clones_per_minute: f64,
    warm_resident_kib: u64,
    warm_proportional_kib: u64,
}

/// Runs the command.
pub async fn run(context: &Context, bench: Bench) -> Outcome {
    let client = context.client()?;
    if let Some(clones) = bench.density {
        return density::run(context, &client, bench.pool, clones).await;
    }
    let path = paths::pool_part(&bench.pool, "instances");
    let made: InstanceView = client.post(&path, &CreateInstance { start: true }).await?;
    let outcome = measure(context, &client, &bench, &made).await;
    let gone: Result<serde_json::Value, _> = client.delete(&paths::instance(&made.reference)).await;
    let report = outcome?;
    gone?;
    let mut rows: Vec<Vec<String>> = report.rows.iter().map(row).collect();
    rows.push(vec![
        "host memory of a warm instance".to_owned(),
        String::new(),
        format!("RSS {} MiB", report.warm_resident_kib / 1024),
        format!("PSS {} MiB", report.warm_proportional_kib / 1024),
        format!("of {}", report.mem_mib),
    ]);
    let rate = format!("{:.0}", report.clones_per_minute);
    rows.push(vec!["clones a minute, made and destroyed".to_owned(), String::new(), rate]);
    for stage in &report.stages {
        rows.push(vec![
            format!("{}: {} {}", stage.path, stage.operation, stage.stage),
            stage.count.to_string(),
            format!("{:.2}", stage.mean_ms),
        ]);
    }
    output::show(context.format, &report, &["PATH", "RUNS", "P50 MS", "P95 MS", "P99 MS"], rows)
}

fn row(row: &Row) -> Vec<String> {
    let ms = |value: f64| format!("{value:.1}");
    vec![row.path.to_owned(), row.runs.to_string(), ms(row.p50_ms), ms(row.p95_ms), ms(row.p99_ms)]
}

async fn measure(
    context: &Context,
    client: &Client,
    bench: &Bench,
    made: &InstanceView,
) -> Result<Report, CliError> {
    let instance = made.reference.to_string();
    let exec = ["instance", "exec", &instance, "--", "echo", "up"];
    let few = bench.number.div_ceil(5);
    let mut measured = Measurements::begin(client).await?;
    let mut samples = Vec::new();
    for _ in 0..bench.number {
        samples.push(first_byte(context, &exec)?);
    }
    measured.add("exec, running", &mut samples).await?;
    for _ in 0..bench.number {
        go(client, &made.reference, "warm").await?;
        samples.push(first_byte(context, &exec)?);
    }
    measured.add("wake from warm", &mut samples).await?;
    go(client, &made.reference, "warm").await?;
    let stats: InstanceStats = client.get(&paths::instance_part(&made.reference, "stats")).await?;
    // The first sleep gives a clone memory of its own; it is not part of the measurement.
    go(client, &made.reference, "sleep").await?;
    first_byte(context, &exec)?;
    for (path, verb) in
        [("wake from sleeping", "sleep"), ("wake from disk alone", super::instance::SLEEP_AT_ONCE)]
    {
        for _ in 0..bench.number {
            go(client, &made.reference, verb).await?;
            samples.push(first_byte(context, &exec)?);
        }
        measured.add(path, &mut samples).await?;
    }
    for _ in 0..few {
        go(client, &made.reference, "stop").await?;
        let began = Instant::now();
        go(client, &made.reference, "start").await?;
        first_byte(context, &exec)?;
        samples.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    measured.add("cold boot", &mut samples).await?;
    samples = clones(context, client, bench, few).await?;
    measured.add("clone of the template", &mut samples).await?;
    let pool = bench.pool.to_string();
    for _ in 0..few {
        samples.push(first_byte(context, &["run", &pool, "--", "echo", "up"])?);
    }
    measured.add("run, from whatever is ready", &mut samples).await?;
    let stages = if bench.stages { measured.stages } else { Vec::new() };
    Ok(Report {
        pool: bench.pool.clone(),
        mem_mib: made.instance_resources.mem_mib,
        rows: measured.rows,
        stages,
        clones_per_minute: clone_rate(client, bench).await?,
        warm_resident_kib: stats.resident_kib,
        warm_proportional_kib: stats.proportional_kib,
    })
}

/// The measurements so far.
struct Measurements<'a> {
    client: &'a Client,
    rows: Vec<Row>,
    stages: Vec<Stage>,
    before: Times,
}

impl<'a> Measurements<'a> {
    async fn begin(client: &'a Client) -> Result<Measurements<'a>, CliError> {
        let before = Times::now(client).await?;
        Ok(Measurements { client, rows: Vec::new(), stages: Vec::new(), before })
    }

    /// Adds the samples of one path, and the stages that the agent has timed since the last one.
    async fn add(&mut self, path: &'static str, samples: &mut Vec<f64>) -> Result<(), CliError> {
        self.rows.push(summary(path, samples)?);
        samples.clear();
        let now = Times::now(self.client).await?;
        self.stages.extend(now.since(&self.before, path));
        self.before = now;
        Ok(())
    }
}

/// Measures how many instances per minute can be created, up to their guests' answer, and
/// destroyed, with as many concurrent clients as there are CPUs.
async fn clone_rate(client: &Client, bench: &Bench) -> Result<f64, CliError> {
    let clients = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let each = bench.number.div_ceil(clients as u32);
    let path = paths::pool_part(&bench.pool, "instances");
    let began = Instant::now();
    let one = || async {
        for _ in 0..each {
            let made: InstanceView = client.post(&path, &CreateInstance { start: true }).await?;
            let _: serde_json::Value = client.delete(&paths::instance(&made.reference)).await?;
        }
        Ok::<_, CliError>(())
    };
    futures::future::try_join_all((0..clients).map(|_| one())).await?;
    Ok(f64::from(each) * clients as f64 * 60.0 / began.elapsed().as_secs_f64())
}

/// Measures new instances, from the call that creates them to the first byte out of their guests.
async fn clones(
    context: &Context,
    client: &Client,
    bench: &Bench,
    count: u32,
) -> Result<Vec<f64>, CliError> {
    let path = paths::pool_part(&bench.pool, "instances");
    let mut samples = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        let made: InstanceView = client.post(&path, &CreateInstance { start: true }).await?;
        let instance = made.reference.to_string();
        let first = first_byte(context, &["instance", "exec", &instance, "--", "echo", "up"]);
        samples.push(began.elapsed().as_secs_f64() * 1000.0);
        let gone: Result<serde_json::Value, _> =
            client.delete(&paths::instance(&made.reference)).await;
        first?;
        gone?;
    }
    Ok(samples)
}

/// Starts this program with `arguments`. Returns the ms until its first byte of output.
fn first_byte(context: &Context, arguments: &[&str]) -> Result<f64, CliError> {
    let failed = |what: String| CliError::new(Code::BenchFailed, format!("{arguments:?}: {what}"));
    let program = std::env::current_exe().map_err(|e| failed(e.to_string()))?;
    let began = Instant::now();
    let mut child = Command::new(program)
        .arg("--root")
        .arg(&context.root)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    let mut first = [0];
    let read = child.stdout.take().map(|mut out| out.read(&mut first));
    let took = began.elapsed();
    let status = child.wait().map_err(|e| failed(e.to_string()))?;
    match read {
        Some(Ok(1)) if status.success() => Ok(took.as_secs_f64() * 1000.0),
        _ => Err(failed(format!("it ended with {status} and without a word"))),
    }
}

fn summary(path: &'static str, samples: &[f64]) -> Result<Row, CliError> {
    let failed = |e: &dyn std::fmt::Display| CliError::internal(e.to_string());
    // The histogram holds microseconds, up to ten minutes, with three significant digits.
    let mut histogram = Histogram::<u64>::new_with_max(600_000_000, 3).map_err(|e| failed(&e))?;
    for sample in samples {
        histogram.record((sample * 1000.0) as u64).map_err(|e| failed(&e))?;
    }
    let ms = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(Row { path, runs: histogram.len(), p50_ms: ms(0.5), p95_ms: ms(0.95), p99_ms: ms(0.99) })
}
