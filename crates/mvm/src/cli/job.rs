//! `mvm job`

use super::context::{Context, explain_empty};
use super::copying::Copying;
use super::environment::{Environment, Variables};
use super::values::ListScope;
use crate::error::CliError;
use crate::job::{self, Input};
use crate::output::{self, Outcome};
use clap::{Args, Subcommand};
use mvm_api::jobs;
use mvm_api::jobs::JobView;
use mvm_model::job::JobSpec;
use mvm_model::{Code, JobId, JobState, Name, PoolRef};
use std::path::Path;

/// Jobs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Queues a command for an instance of its own, and prints the job's id
    #[command(after_help = "\
Examples:
  mvm job submit ci/runners -- make test
  mvm job submit ci/runners --in ./src --artifact src/report.txt --retries 1 -- make -C src test
  mvm job submit ci/runners --priority 10 --timeout 600 -e MODE=release -- ./job.sh
  mvm job submit ci/runners -e TOKEN --env-file secrets.env -- ./deploy.sh")]
    Submit(Submit),
    /// Lists jobs
    #[command(
        after_help = "Examples:\n  mvm job list\n  mvm job list ci/runners --state queued -o json"
    )]
    List {
        /// Only those of this tenant, or tenant/pool
        of: Option<ListScope>,
        /// Only those in this state: queued, running, succeeded …
        #[arg(long)]
        state: Option<JobState>,
    },
    /// Shows a job: its attempts, its result, its place in the queue
    #[command(after_help = "Examples:\n  mvm job info j-0123abcd")]
    Info {
        /// The job
        job: JobId,
    },
    /// Shows what a job's command has printed
    #[command(after_help = "Examples:\n  mvm job logs j-0123abcd\n  mvm job logs -f j-0123abcd")]
    Logs {
        /// The job
        job: JobId,
        /// Keep showing output until the job has ended
        #[arg(long, short)]
        follow: bool,
    },
    /// Cancels jobs: queued ones at once, running ones after a moment to end by themselves
    #[command(after_help = "Examples:\n  mvm job cancel j-0123abcd")]
    Cancel {
        /// The jobs
        #[arg(required = true)]
        jobs: Vec<JobId>,
    },
    /// Waits until a job has ended, and exits with its command's status
    #[command(after_help = "\
Examples:
  mvm job wait j-0123abcd
  mvm job wait j-0123abcd --timeout 600

Exit status: the command's; 124 after the job's timeout, 130 if it was canceled, 125 if it was lost,
if mvm failed, or if it has not ended within --timeout.")]
    Wait {
        /// The job
        job: JobId,
        /// At most this many seconds
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
    },
    /// Copies a job's artifacts to a local folder
    #[command(
        after_help = "Examples:\n  mvm job artifacts j-0123abcd\n  mvm job artifacts j-0123abcd ./out"
    )]
    Artifacts {
        /// The job
        job: JobId,
        /// Where to
        #[arg(default_value = ".")]
        folder: String,
        #[command(flatten)]
        copying: Copying,
    },
}

/// A job to queue.
#[derive(Debug, Args)]
pub struct Submit {
    /// tenant/pool
    pool: PoolRef,
    /// Copy a file or folder to /work in the guest, or to another folder
    #[arg(long = "in", value_name = "PATH[:FOLDER]")]
    inputs: Vec<String>,
    /// Keep a file or folder of the guest when the command has ended
    #[arg(long = "artifact", value_name = "PATH")]
    artifacts: Vec<String>,
    #[command(flatten)]
    options: Options,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// How a job is run.
#[derive(Clone, Debug, Args)]
pub struct Options {
    #[command(flatten)]
    pub variables: Variables,
    /// End the job this many seconds after its machine is up: inputs, command and artifacts together
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// Longest length of the lease on the machine, in seconds [default: an hour over the timeout;
    /// without one, as long as the command runs]
    #[arg(long, value_name = "SECONDS")]
    pub lease: Option<u64>,
    /// Runs before all jobs of lower priority, -100 to 100
    #[arg(long, default_value_t = 0, allow_hyphen_values = true,
          value_parser = clap::value_parser!(i8).range(-100..=100))]
    priority: i8,
    /// Run it again, at most this many times (0 to 10), if it fails, times out or is lost
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=10))]
    retries: u8,
    /// If the job succeeds, its copy of this cache becomes the pool's
    #[arg(long, value_name = "NAME")]
    cache_commit: Vec<Name>,
}

impl Options {
    /// Returns whether the options ask for nothing that only a queued job can have.
    pub fn is_plain(&self) -> bool {
        (self.priority, self.retries) == (0, 0) && self.cache_commit.is_empty()
    }

    /// Reads the environment variables.
    pub fn environment(&self) -> Result<Environment, CliError> {
        self.variables.read()
    }

    /// Returns the specification of a job that runs `command` with these variables.
    pub fn spec(&self, command: Vec<String>, artifacts: Vec<String>, env: Environment) -> JobSpec {
        JobSpec {
            argv: command,
            env,
            timeout_s: self.timeout,
            lease_s: self.lease,
            priority: self.priority,
            retries: self.retries,
            artifacts,
            cache_commit: self.cache_commit.clone(),
        }
    }
}

/// Runs the command.
pub async fn run(context: &Context, command: Command) -> Outcome {
    let format = context.format;
    match command {
        Command::Submit(submit) => {
            let inputs: Vec<Input> =
                submit.inputs.iter().map(|text| Input::parse(text)).collect::<Result<_, _>>()?;
            let env = submit.options.environment()?;
            let spec = submit.options.spec(submit.command, submit.artifacts, env);
            let client = context.patient()?;
            let view = job::submit(&client, &submit.pool, spec, inputs, false).await?;
            output::say(format, &view, &view.job_id.to_string())
        }
        Command::List { of, state } => list(context, of, state).await,
        Command::Info { job } => {
            let view: JobView = context.client()?.get(&jobs::job(job)).await?;
            output::describe(format, &view)
        }
        Command::Logs { job, follow } => {
            job::log(&context.patient()?, job, follow).await?;
            Ok(0)
        }
        Command::Cancel { jobs } => {
            let client = context.patient()?;
            let mut views = Vec::new();
            for id in &jobs {
                views.push(job::verb(&client, *id, "cancel").await?);
            }
            let tell = |view: &JobView| match view.shell_status {
                Some(_) => format!("job {} is {}", view.job_id, view.state),
                None => format!("job {} is being ended", view.job_id),
            };
            let lines: Vec<String> = views.iter().map(tell).collect();
            output::say_lines(format, &views, &lines)
        }
        Command::Wait { job, timeout } => {
            super::instance::own_failure(wait(context, job, timeout).await, context)
        }
        Command::Artifacts { job, folder, copying } => {
            artifacts(context, job, &folder, copying).await
        }
    }
}

async fn wait(context: &Context, job: JobId, timeout: Option<u64>) -> Outcome {
    let query = timeout.map(|seconds| format!("?timeout_s={seconds}")).unwrap_or_default();
    let path = jobs::job_part(job, "wait") + &query;
    let view: JobView = context.patient()?.get(&path).await?;
    let Some(status) = view.shell_status else {
        let what = format!("job {job} is {} after {} s", view.state, timeout.unwrap_or_default());
        return Err(CliError::new(Code::NotEnded, what)
            .hint(format!("see what it waits for: mvm job info {job}")));
    };
    let why = view.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
    output::say(context.format, &view, &format!("{}{why}", view.state))?;
    Ok(status)
}

async fn artifacts(context: &Context, job: JobId, folder: &str, copying: Copying) -> Outcome {
    let client = context.patient()?;
    let view: JobView = client.get(&jobs::job(job)).await?;
    let there = view.artifacts.iter().enumerate().filter(|(_, artifact)| artifact.bytes.is_some());
    let mut lines = Vec::new();
    for (index, artifact) in there {
        job::fetch(&client, job, index, Path::new(folder), copying.rules()).await?;
        lines.push(artifact.path.clone());
    }
    if lines.is_empty() {
        let what = format!("job {job} is {} and has left no artifacts", view.state);
        return Err(CliError::new(Code::NotFound, what)
            .hint("name them when it is submitted: mvm job submit --artifact PATH"));
    }
    output::say_lines(context.format, &view.artifacts, &lines)
}

async fn list(context: &Context, of: Option<ListScope>, state: Option<JobState>) -> Outcome {
    let mut query = Vec::new();
    match &of {
        None => {}
        Some(ListScope::Tenant(tenant)) => query.push(format!("tenant={tenant}")),
        Some(ListScope::Pool(pool)) => query.push(format!("pool={pool}")),
    }
    query.extend(state.map(|state| format!("state={state}")));
    let path = format!("{}?{}", jobs::JOBS, query.join("&"));
    let client = context.client()?;
    let views: Vec<JobView> = client.list(&path).await?;
    if views.is_empty() {
        explain_empty(&client, of.as_ref()).await?;
    }
    let rows = views.iter().map(|view| {
        let mut command = view.command.join(" ");
        if let Some((at, _)) = command.char_indices().nth(40) {
            command.truncate(at);
            command.push('…');
        }
        vec![
            view.job_id.to_string(),
            format!("{}/{}", view.tenant_id, view.pool_id),
            view.state.to_string(),
            view.position.map_or_else(|| "-".to_owned(), |place| place.to_string()),
            view.priority.to_string(),
            view.attempts.len().to_string(),
            view.shell_status.map_or_else(|| "-".to_owned(), |status| status.to_string()),
            output::age(view.created_at),
            command.replace(char::is_control, " "),
        ]
    });
    let head = ["JOB", "POOL", "STATE", "PLACE", "PRIORITY", "RUNS", "STATUS", "AGE", "COMMAND"];
    output::show(context.format, &views, &head, rows)
}
