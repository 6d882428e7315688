//! `mvm audit`

use super::context::Context;
use super::values::Moment;
use crate::error::CliError;
use crate::output::{self, Flow, Format, Outcome};
use clap::{Args, Subcommand};
use mvm_api::audit::{AuditLogView, PruneAudit, PruneResult};
use mvm_api::{Client, paths};
use mvm_model::Code;
use mvm_model::audit::{Expected, Flaw, NODE_LOG, Sealed, Verdict, Verifier};
use serde::Serialize;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The audit log.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Lists who did what to a tenant, when, and the outcome
    #[command(
        after_help = "Examples:\n  mvm audit list ci\n  mvm audit list ci -f -o json\n  mvm audit list --file ci.log\n\nWithout a tenant, it lists what concerned none, such as images and kernels. `begun` without an\noutcome after it means that the call is under way, or that the agent ended during it."
    )]
    List {
        /// The tenant; for one that was destroyed, the name that `audit verify` shows
        log: Option<String>,
        /// Keep showing new records
        #[arg(long, short)]
        follow: bool,
        /// Read this copy of a log instead of the agent's
        #[arg(long, value_name = "FILE", conflicts_with_all = ["log", "follow"])]
        file: Option<PathBuf>,
    },
    /// Proves that no record of a log was edited, removed, added or moved
    #[command(
        after_help = "Examples:\n  mvm audit verify\n  mvm audit verify ci\n  mvm audit verify ci --head DIGEST\n  mvm audit verify --file ci.log\n\nKeep the digest that it prints elsewhere: with --head it shows later whether records up to that\none were cut off at the end. Exit status 1 where a log is not whole."
    )]
    Verify(Verify),
    /// Prints a log as it is, to be kept elsewhere
    #[command(
        after_help = "Examples:\n  mvm audit export ci > ci.log\n  mvm audit verify --file ci.log"
    )]
    Export {
        /// The tenant; without one, what concerned none
        log: Option<String>,
    },
    /// Removes old records; what is left still verifies
    #[command(
        after_help = "Examples:\n  mvm audit export ci > ci.log\n  mvm audit prune --before 90d\n  mvm audit prune --before 2025-01-31 --tenant ci\n\nA record that stays says who removed how many, up to which time, number and digest; without it the\nlog does not verify. A log that is not whole is left as it is."
    )]
    Prune {
        /// Remove records written before this: a date (UTC), a time, or an age such as 90d
        #[arg(long, value_name = "DATE|AGE")]
        before: Moment,
        /// Only in this tenant's log, or `_node` [default: every log of this node]
        #[arg(long, value_name = "TENANT")]
        tenant: Option<String>,
    },
}

/// What is to be verified, and against what.
#[derive(Debug, Args)]
pub struct Verify {
    /// The tenant [default: every log of this node]
    log: Option<String>,
    /// Verify this copy of a log instead of the agent's
    #[arg(long, value_name = "FILE", conflicts_with = "log")]
    file: Option<PathBuf>,
    /// A digest of a record that must be in the log
    #[arg(long, value_name = "DIGEST")]
    head: Option<String>,
    /// The digest of the record before the first, where the log's beginning is kept elsewhere
    #[arg(long, value_name = "DIGEST")]
    after: Option<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    log: String,
    #[serde(flatten)]
    verdict: Option<Verdict>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flaw: Option<String>,
}

/// Runs the command.
pub async fn run(context: &Context, command: Command) -> Outcome {
    match command {
        Command::List { log, follow, file } => list(context, log, follow, file).await,
        Command::Verify(verify) => self::verify(context, verify).await,
        Command::Prune { before, tenant } => prune(context, before, tenant).await,
        Command::Export { log } => {
            let path = paths::audit(log.as_deref().unwrap_or(NODE_LOG), false);
            let (client, flow) = (context.client()?, Flow::default());
            let shown = client.streams().download(&path, |piece| flow.print(piece));
            flow.of(async { shown.await.map_err(CliError::from) }).await.map(|()| 0)
        }
    }
}

async fn prune(context: &Context, before: Moment, log: Option<String>) -> Outcome {
    let asked = PruneAudit { before: before.time(), log };
    let done: PruneResult = context.client()?.post(paths::AUDIT, &asked).await?;
    let cells = done.logs.iter().map(|log| {
        let last = log.last.map(|last| last.to_string()).unwrap_or_default();
        let head = log.head.clone().unwrap_or_default();
        vec![log.log.clone(), log.records.to_string(), output::mib(log.bytes), last, head]
    });
    output::show(context.format, &done, &["LOG", "REMOVED", "SIZE", "UP TO", "DIGEST"], cells)
}

async fn list(
    context: &Context,
    log: Option<String>,
    follow: bool,
    file: Option<PathBuf>,
) -> Outcome {
    let mut records = Vec::new();
    if let Some(file) = file {
        let mut reading = Verifier::new(Expected::default());
        let read = read_file(&file, |piece| reading.feed(piece, |sealed| records.push(sealed)));
        let whole = read?.and_then(|()| reading.end());
        whole.map_err(|flaw| not_whole(&file.display().to_string(), &flaw))?;
        return show(context.format, &records);
    }
    let log = log.as_deref().unwrap_or(NODE_LOG);
    let client = context.client()?;
    // The log is verified while it is read: the records before a flaw are shown nonetheless.
    let mut reading = Verifier::new(Expected::default());
    let (mut flaw, flow) = (None, Flow::default());
    let take = |piece: &[u8]| {
        let each = |sealed: Sealed| match follow {
            true => tell(context.format, &sealed, &flow),
            false => records.push(sealed),
        };
        if flaw.is_none() {
            flaw = reading.feed(piece, each).err();
        }
    };
    let path = paths::audit(log, follow);
    let read = client.streams().download(&path, take);
    match flow.of(async { read.await.map_err(CliError::from) }).await {
        // Nothing has been recorded yet.
        Err(problem)
            if problem.code() == Some(Code::NotFound) && is_known(&client, log).await? => {}
        other => other?,
    }
    if !follow {
        show(context.format, &records)?;
        flaw = flaw.or_else(|| reading.end().err());
    }
    flaw.map_or(Ok(0), |flaw| Err(not_whole(log, &flaw)))
}

/// Returns whether a log that does not exist yet may come to exist.
async fn is_known(client: &Client, log: &str) -> Result<bool, CliError> {
    if log == NODE_LOG {
        return Ok(true);
    }
    let tenants: Vec<mvm_api::types::TenantView> = client.list(paths::TENANTS).await?;
    Ok(tenants.iter().any(|tenant| tenant.tenant_id.as_str() == log))
}

fn show(format: Format, records: &[Sealed]) -> Outcome {
    let titles = ["NUMBER", "AGO", "ACTOR", "VERB", "TARGET", "OUTCOME", "LEASE", "PROGRAM"];
    output::show(format, &records, &titles, records.iter().map(row))
}

/// Prints a record in one line as it arrives: JSON for programs.
fn tell(format: Format, sealed: &Sealed, flow: &Flow) {
    let line = match format {
        Format::Table => row(sealed).join("  "),
        _ => serde_json::to_string(sealed).unwrap_or_default(),
    };
    flow.print(format!("{line}\n").as_bytes());
}

fn row(sealed: &Sealed) -> Vec<String> {
    let record = &sealed.record;
    let entry = &record.entry;
    let or_none = |text: &Option<String>| text.clone().unwrap_or_default();
    let outcome = match (&entry.outcome, entry.of) {
        (None, _) => "begun".to_owned(),
        (Some(outcome), None) => outcome.clone(),
        (Some(outcome), Some(of)) => format!("{outcome} (of {of})"),
    };
    vec![
        record.number.to_string(),
        output::age(record.at),
        entry.actor.clone(),
        entry.verb.clone(),
        entry.target.clone(),
        outcome,
        or_none(&entry.lease),
        or_none(&entry.program),
    ]
}

async fn verify(context: &Context, verify: Verify) -> Outcome {
    let Verify { log, file, head, after } = verify;
    if (head.is_some() || after.is_some()) && log.is_none() && file.is_none() {
        return Err(CliError::new(Code::Usage, "a digest is of one log")
            .hint("name a tenant, or --file FILE"));
    }
    let expected = Expected { log: None, after, head };
    if let Some(file) = file {
        let mut reading = Verifier::new(expected);
        let fed = read_file(&file, |piece| reading.feed(piece, drop))?;
        let outcome = fed.and_then(|()| reading.end());
        return report(context.format, vec![(file.display().to_string(), outcome)]);
    }
    let client = context.client()?;
    let logs = match log {
        Some(log) => vec![log],
        None => {
            let logs: Vec<AuditLogView> = client.list(paths::AUDIT).await?;
            logs.into_iter().map(|view| view.log).collect()
        }
    };
    let mut rows = Vec::new();
    for log in logs {
        // `ci@1732480000000` is the log of a destroyed tenant `ci`.
        let of = log.split('@').next().map(str::to_owned);
        let mut reading = Verifier::new(Expected { log: of, ..expected.clone() });
        let mut fed = Ok(());
        let take = |piece: &[u8]| {
            if fed.is_ok() {
                fed = reading.feed(piece, drop);
            }
        };
        client.streams().download(&paths::audit(&log, false), take).await?;
        let outcome = fed.and_then(|()| reading.end());
        rows.push((log, outcome));
    }
    report(context.format, rows)
}

/// Shows each log's verdict. The first damaged log is the command's error.
fn report(format: Format, outcomes: Vec<(String, Result<Verdict, Flaw>)>) -> Outcome {
    let problem = outcomes
        .iter()
        .find_map(|(log, outcome)| outcome.as_ref().err().map(|flaw| not_whole(log, flaw)));
    let rows: Vec<Row> = outcomes
        .into_iter()
        .map(|(log, outcome)| match outcome {
            Ok(verdict) => Row { log, verdict: Some(verdict), flaw: None },
            Err(flaw) => Row { log, verdict: None, flaw: Some(flaw.to_string()) },
        })
        .collect();
    let cells = rows.iter().map(|row| {
        let Some(v) = &row.verdict else {
            return vec![row.log.clone(), String::new(), "NOT WHOLE".to_owned(), String::new()];
        };
        let head = match v.torn_bytes {
            0 => v.head.clone(),
            torn => format!("{} (and {torn} bytes of a torn record)", v.head),
        };
        let by = v.pruned_by.as_deref().unwrap_or_default();
        let pruned = v.pruned.as_ref().map(|p| format!("up to {} by {by}", p.last));
        let records = format!("{}-{}", v.first, v.last);
        vec![row.log.clone(), records, head, pruned.unwrap_or_default()]
    });
    output::show(format, &rows, &["LOG", "RECORDS", "HEAD", "PRUNED"], cells)?;
    problem.map_or(Ok(0), Err)
}

fn not_whole(log: &str, flaw: &Flaw) -> CliError {
    CliError::new(Code::AuditBroken, format!("the audit log {log} is not whole: {flaw}")).hint(
        "compare it with a copy that was kept elsewhere: everything before that record is sound",
    )
}

/// Passes a file to `each` in pieces, until `each` finds a flaw.
fn read_file(
    path: &Path,
    mut each: impl FnMut(&[u8]) -> Result<(), Flaw>,
) -> Result<Result<(), Flaw>, CliError> {
    let failed = |cause: std::io::Error| {
        CliError::file(format!("cannot read {}: {cause}", path.display()))
            .hint("name a file that you may read")
    };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok(Ok(())),
            count => {
                if let Err(flaw) = each(&buffer[..count]) {
                    return Ok(Err(flaw));
                }
            }
        }
    }
}
