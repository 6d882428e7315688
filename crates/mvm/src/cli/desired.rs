//! Documents of desired state: the command reads them, the agent carries them out.

use super::context::Context;
use super::flake::absolute_inputs;
use super::values::Pair;
use crate::error::CliError;
use crate::output::{self, Outcome};
use clap::Args;
use mvm_api::types::{ApplyDesired, DesiredPlan, DesiredStatus, PoolView};
use mvm_api::{Client, paths};
use mvm_model::desired::{DesiredState, needs_a_person};
use mvm_model::{AnyCode, Code, Fault};
use mvm_node::DesiredFile;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How a document is taken.
#[derive(Clone, Debug, Args)]
pub struct DocumentOptions {
    /// Remove what the document does not name; leased instances end with their leases
    #[arg(long)]
    prune: bool,
    #[command(flatten)]
    inputs: Inputs,
}

/// What is replaced in a document's flakes.
#[derive(Clone, Debug, Args)]
pub struct Inputs {
    /// Replace an input of every pool's flake, beside the document's own
    #[arg(long, value_name = "NAME=REF")]
    override_input: Vec<Pair>,
}

impl Inputs {
    fn override_inputs(&self) -> Result<BTreeMap<String, String>, CliError> {
        absolute_inputs(&self.override_input)
    }
}

/// Returns the settings of a document that the agent watches.
pub fn file(path: &Path, how: &DocumentOptions) -> Result<DesiredFile, CliError> {
    let absolute = std::path::absolute(path);
    let path = absolute.map_err(|cause| unreadable(path, &cause))?;
    Ok(DesiredFile { path, prune: how.prune, override_inputs: how.inputs.override_inputs()? })
}

fn unreadable(path: &Path, cause: &std::io::Error) -> CliError {
    CliError::file(format!("cannot read {}: {cause}", path.display()))
}

/// Reads a document. Its relative paths start at the document's folder.
pub fn read_document<T>(
    path: &Path,
    inputs: &Inputs,
    parse: impl FnOnce(&[u8], &str, &BTreeMap<String, String>) -> Result<T, Fault>,
) -> Result<T, CliError> {
    let failed = |cause| unreadable(path, &cause);
    let (text, folder) = if path == Path::new("-") {
        let mut text = Vec::new();
        std::io::stdin().read_to_end(&mut text).map_err(failed)?;
        (text, std::env::current_dir().map_err(failed)?)
    } else {
        let text = std::fs::read(path).map_err(failed)?;
        let path = std::path::absolute(path).map_err(failed)?;
        (text, path.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned))
    };
    Ok(parse(&text, &folder.to_string_lossy(), &inputs.override_inputs()?)?)
}

/// Asks the agent to bring its node to the document.
pub async fn reconcile(
    context: &Context,
    path: &Path,
    how: &DocumentOptions,
    dry_run: bool,
    wait: Option<u64>,
) -> Outcome {
    let body = ApplyDesired {
        document: read_document(path, &how.inputs, DesiredState::parse_in)?,
        prune: how.prune,
        dry_run,
    };
    let client = context.agent()?;
    let plan: DesiredPlan = client.put(paths::DESIRED, &body).await?;
    let seconds = wait.filter(|_| !body.dry_run);
    if let Some(seconds) = seconds {
        converge(&client, &body.document, Duration::from_secs(seconds)).await?;
    }
    let rows: Vec<Vec<String>> = plan.steps.iter().map(|step| vec![step.to_string()]).collect();
    if rows.is_empty() {
        return output::say(context.format, &plan, "nothing to do");
    }
    output::show(context.format, &plan, &["STEP"], rows)
}

/// Waits until all steps are done and the pools hold their counts.
async fn converge(
    client: &Client,
    document: &DesiredState,
    deadline: Duration,
) -> Result<(), CliError> {
    let ends = Instant::now() + deadline;
    let mut reported = ReportedFailures::default();
    loop {
        let status: DesiredStatus = client.get(paths::DESIRED_STATUS).await?;
        given_up(status.last_failure.as_deref(), status.last_failure_code.as_ref())?;
        reported.report(status.last_failure.as_deref());
        let missing = match status.pending.first() {
            Some(step) => Some(step.to_string()),
            None => unfilled(client, document).await?,
        };
        let Some(missing) = missing else { return Ok(()) };
        if Instant::now() >= ends {
            let why = status.last_failure.map(|why| format!(" ({why})")).unwrap_or_default();
            let seconds = deadline.as_secs();
            let detail = format!("after {seconds} s there is still to do: {missing}{why}");
            return Err(CliError::new(Code::NotConverged, detail)
                .hint("the agent goes on with it; see `mvm agent status`"));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The failures that were reported already.
#[derive(Default)]
pub struct ReportedFailures(BTreeSet<String>);

impl ReportedFailures {
    /// Reports a failure once, on standard error.
    pub fn report(&mut self, failure: Option<&str>) {
        if let Some(why) = failure
            && self.0.insert(why.to_owned())
        {
            output::note(format_args!("mvm: {why}; it is tried again"));
        }
    }
}

/// Stops waiting where only a person can remove the cause.
pub fn given_up(why: Option<&str>, code: Option<&AnyCode>) -> Result<(), CliError> {
    match (why, code) {
        (Some(why), Some(code)) if code.known().is_some_and(needs_a_person) => {
            Err(CliError::new(Code::NeedsMending, why).hint(
                "mend the flake or the document and apply it again; trying again does not help",
            ))
        }
        _ => Ok(()),
    }
}

/// Returns the first pool that does not hold its counts yet, and the reason.
async fn unfilled(client: &Client, document: &DesiredState) -> Result<Option<String>, CliError> {
    for tenant in &document.tenants {
        for wanted in &tenant.pools {
            let pool = wanted.reference(&tenant.tenant_id);
            let view: PoolView = client.get(&paths::pool(&pool)).await?;
            if view.ready_counts != wanted.desired_counts {
                let why = view.last_failure.unwrap_or_else(|| "it is under way".to_owned());
                return Ok(Some(format!("fill pool {pool}: {why}")));
            }
        }
    }
    Ok(None)
}
