//! `mvm instance`

use super::context::{Context, LeaseLength, explain_empty};
use super::copying::Copying;
use super::environment::Variables;
use super::ssh;
use super::values::{CopyEndpoint, ListScope};
use crate::error::CliError;
use crate::job;
use crate::output::{self, Flow, Outcome};
use crate::session::{self, Run};
use clap::{Args, Subcommand};
use mvm_api::types::{CreateInstance, InstanceStats, InstanceView, MoveInstance, Moved};
use mvm_api::{Client, paths};
use mvm_guest::protocol::ExecRequest;
use mvm_model::{Code, InstanceRef, PoolRef};
use std::io::IsTerminal;
use std::path::Path;

/// Instances.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Makes an instance
    #[command(
        after_help = "Examples:\n  mvm instance create ci/runners\n  mvm instance create ci/runners --start"
    )]
    Create {
        /// tenant/pool
        pool: PoolRef,
        /// Start it at once, under a lease
        #[arg(long)]
        start: bool,
    },
    /// Lists instances
    #[command(
        after_help = "Examples:\n  mvm instance list\n  mvm instance list ci/runners -o json"
    )]
    List {
        /// Only those of this tenant, or tenant/pool
        of: Option<ListScope>,
    },
    /// Shows an instance
    #[command(after_help = "Examples:\n  mvm instance info ci/runners/i-0123abcd")]
    Info {
        /// tenant/pool/id
        instance: InstanceRef,
    },
    /// Boots an instance that is created, stopped or failed, under a lease
    #[command(after_help = "Examples:\n  mvm instance start ci/runners/i-0123abcd")]
    Start {
        /// tenant/pool/id
        instance: InstanceRef,
        #[command(flatten)]
        length: LeaseLength,
    },
    /// Shuts an instance down; its disks and address stay
    #[command(after_help = "Examples:\n  mvm instance stop ci/runners/i-0123abcd")]
    Stop {
        /// tenant/pool/id
        instance: InstanceRef,
    },
    /// Pauses the vCPUs: memory is held, no CPU is used
    #[command(after_help = "Examples:\n  mvm instance warm ci/runners/i-0123abcd")]
    Warm {
        /// tenant/pool/id
        instance: InstanceRef,
    },
    /// Writes a snapshot: only disk is used, and for a while an idle process, for a quick wake
    #[command(
        after_help = "Examples:\n  mvm instance sleep ci/runners/i-0123abcd\n  mvm instance sleep ci/runners/i-0123abcd --no-linger"
    )]
    Sleep {
        /// tenant/pool/id
        instance: InstanceRef,
        /// End its process at once, whatever the pool's --linger
        #[arg(long)]
        no_linger: bool,
    },
    /// Brings a warm or sleeping instance back, under a lease
    #[command(after_help = "Examples:\n  mvm instance wake ci/runners/i-0123abcd")]
    Wake {
        /// tenant/pool/id
        instance: InstanceRef,
        #[command(flatten)]
        length: LeaseLength,
    },
    /// Opens an OpenSSH session, or runs a command over SSH; wakes the instance
    #[command(
        after_help = "Examples:\n  mvm instance ssh ci/runners/i-0123abcd\n  mvm instance ssh ci/runners/i-0123abcd -- uname -a"
    )]
    Ssh {
        /// tenant/pool/id
        instance: InstanceRef,
        #[command(flatten)]
        length: LeaseLength,
        /// The command and its arguments
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Runs a command through the guest's agent; needs no network; wakes the instance
    #[command(
        after_help = "Examples:\n  mvm instance exec ci/runners/i-0123abcd -- make test\n  mvm instance exec -it ci/runners/i-0123abcd -- bash"
    )]
    Exec(Exec),
    /// Copies files to or from an instance
    #[command(
        after_help = "Examples:\n  mvm instance cp ./src ci/runners/i-0123abcd:/work\n  mvm instance cp ci/runners/i-0123abcd:/work/report.txt ."
    )]
    Cp {
        /// A local path, or tenant/pool/id:/path
        from: CopyEndpoint,
        /// A local folder, or tenant/pool/id:/folder
        to: CopyEndpoint,
        #[command(flatten)]
        copying: Copying,
    },
    /// Shows the console
    #[command(
        after_help = "Examples:\n  mvm instance logs ci/runners/i-0123abcd -f\n  mvm instance logs ci/runners/i-0123abcd --raw\n\nOn a terminal, what could move the cursor is escaped; a file or a pipe gets the bytes as they are."
    )]
    Logs {
        /// tenant/pool/id
        instance: InstanceRef,
        /// Keep showing new output
        #[arg(long, short)]
        follow: bool,
        /// Print the bytes as they are, even on a terminal, where a guest's output can move the
        /// cursor and worse
        #[arg(long)]
        raw: bool,
    },
    /// Shows what an instance uses
    #[command(after_help = "Examples:\n  mvm instance stats ci/runners/i-0123abcd -o json")]
    Stats {
        /// tenant/pool/id
        instance: InstanceRef,
    },
    /// Destroys instances: memory, disks, address
    #[command(after_help = "Examples:\n  mvm instance destroy ci/runners/i-0123abcd")]
    Destroy {
        /// tenant/pool/id
        #[arg(required = true)]
        instances: Vec<InstanceRef>,
    },
    /// Connects standard input and output with a port of the guest
    #[command(
        hide = true,
        after_help = "Examples:\n  ssh -o ProxyCommand='mvm instance proxy ci/runners/i-0123abcd 22' root@vm"
    )]
    Proxy {
        /// tenant/pool/id
        instance: InstanceRef,
        /// TCP port of the guest's loopback
        port: u16,
        #[command(flatten)]
        length: LeaseLength,
    },
}

/// A command to run.
#[derive(Debug, Args)]
pub struct Exec {
    /// tenant/pool/id
    pub instance: InstanceRef,
    #[command(flatten)]
    pub options: ExecOptions,
}

/// How it is run.
#[derive(Debug, Args)]
pub struct ExecOptions {
    #[command(flatten)]
    length: LeaseLength,
    /// Pass standard input to the command
    #[arg(long, short)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(long, short)]
    tty: bool,
    #[command(flatten)]
    variables: Variables,
    /// Working directory
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<String>,
    /// User to run as
    #[arg(long, short)]
    user: Option<String>,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs the command.
pub async fn run(context: &Context, command: Command) -> Outcome {
    let format = context.format;
    match command {
        Command::Create { pool, start } => {
            let path = paths::pool_part(&pool, "instances");
            let view: InstanceView =
                context.client()?.post(&path, &CreateInstance { start }).await?;
            output::say(format, &view, &view.reference.to_string())
        }
        Command::List { of } => list(context, &context.client()?, of).await,
        Command::Info { instance } => {
            let view: InstanceView = context.client()?.get(&paths::instance(&instance)).await?;
            output::describe(format, &view)
        }
        Command::Start { instance, length } => {
            moved(context, &instance, "start", length.lease).await
        }
        Command::Wake { instance, length } => moved(context, &instance, "wake", length.lease).await,
        Command::Stop { instance } => moved(context, &instance, "stop", None).await,
        Command::Warm { instance } => moved(context, &instance, "warm", None).await,
        Command::Sleep { instance, no_linger } => {
            let verb = if no_linger { SLEEP_AT_ONCE } else { "sleep" };
            moved(context, &instance, verb, None).await
        }
        Command::Ssh { instance, length, command } => {
            ssh::run(context, &instance, length.lease, &command).await
        }
        Command::Exec(exec) => own_failure(execute(context, exec).await, context),
        Command::Cp { from, to, copying } => copy(context, &from, &to, copying).await,
        Command::Logs { instance, follow, raw } => {
            let path = format!("{}?follow={follow}", paths::instance_part(&instance, "logs"));
            let (client, flow) = (context.client()?, Flow::default());
            let raw = raw || !std::io::stdout().is_terminal();
            let mut cleaner = output::Cleaner::default();
            let shown = client.streams().download(&path, |bytes| match raw {
                true => flow.print_raw(bytes),
                false => flow.print(cleaner.clean(bytes).as_bytes()),
            });
            flow.of(async { shown.await.map_err(CliError::from) }).await.map(|()| 0)
        }
        Command::Stats { instance } => {
            let path = paths::instance_part(&instance, "stats");
            let stats: InstanceStats = context.client()?.get(&path).await?;
            output::describe(format, &stats)
        }
        Command::Destroy { instances } => {
            let client = context.client()?;
            for instance in &instances {
                let _: serde_json::Value = client.delete(&paths::instance(instance)).await?;
            }
            let names: Vec<String> = instances.iter().map(ToString::to_string).collect();
            output::say(format, &names, &format!("{} is gone", names.join(", ")))
        }
        Command::Proxy { instance, port, length } => {
            session::proxy(&context.client()?, &instance, port, length.lease).await
        }
    }
}

async fn execute(context: &Context, exec: Exec) -> Outcome {
    let Exec { instance, options } = exec;
    let interactive = options.interactive;
    options.variables.leave_input(interactive)?;
    let request = ExecRequest {
        argv: options.command,
        env: options.variables.read()?,
        cwd: options.workdir,
        user: options.user,
        tty: options.tty.then(session::terminal),
        stdin: interactive,
        keep: None,
    };
    let run = Run { request, interactive, timeout: None, lease_s: options.length.lease };
    session::exec(&context.client()?, &instance, run).await
}

/// Gives our own errors an exit status that the program's cannot be confused with.
pub fn own_failure(outcome: Outcome, context: &Context) -> Outcome {
    outcome.or_else(|problem| {
        if output::is_of_output(&problem) {
            return Err(problem);
        }
        output::complain(problem, context.format);
        Ok(125)
    })
}

/// Lists the instances of a node or a fleet.
pub async fn list(context: &Context, client: &Client, of: Option<ListScope>) -> Outcome {
    let path = match &of {
        None => paths::INSTANCES.to_owned(),
        Some(ListScope::Pool(pool)) => paths::pool_part(pool, "instances"),
        Some(ListScope::Tenant(tenant)) => format!("{}?tenant={tenant}", paths::INSTANCES),
    };
    let views: Vec<InstanceView> = client.list(&path).await?;
    if views.is_empty() {
        explain_empty(client, of.as_ref()).await?;
    }
    let fleet = views.iter().any(|view| view.node_id.is_some());
    let rows = views.iter().map(|view| {
        let state = match view.going_to {
            Some(to) => format!("{} -> {to}", view.state),
            None => view.state.to_string(),
        };
        let state = match &view.paused {
            Some(paused) => format!("{state} (paused: {})", paused.reason),
            None => state,
        };
        let simulated = if view.simulated { " (simulated)" } else { "" };
        let mut row = vec![
            view.reference.to_string(),
            format!("{state}{simulated}"),
            view.accelerator.map_or("-".to_owned(), |accelerator| accelerator.to_string()),
            view.address.to_string(),
            view.lease.as_ref().map_or("-".to_owned(), |lease| lease.holder.clone()),
            view.pid.map_or("-".to_owned(), |pid| pid.to_string()),
            output::age(view.state_since),
        ];
        row.extend(fleet.then(|| view.node_id.as_ref().map_or(String::new(), ToString::to_string)));
        row
    });
    let mut head = vec!["INSTANCE", "STATE", "ACCELERATOR", "ADDRESS", "LEASE", "PID", "SINCE"];
    head.extend(fleet.then_some("NODE"));
    output::show(context.format, &views, &head, rows)
}

/// The verb of a sleep that leaves no hypervisor process behind.
pub const SLEEP_AT_ONCE: &str = "sleep?linger=false";

async fn moved(
    context: &Context,
    instance: &InstanceRef,
    verb: &str,
    lease_s: Option<u64>,
) -> Outcome {
    let moved = call(&context.client()?, instance, verb, lease_s).await?;
    let line = format!("{instance} is {} ({:.1} ms)", moved.instance.state, moved.took_ms);
    output::say(context.format, &moved, &line)
}

async fn call(
    client: &Client,
    instance: &InstanceRef,
    verb: &str,
    lease_s: Option<u64>,
) -> Result<Moved, CliError> {
    let path = paths::instance_part(instance, verb);
    Ok(client.post(&path, &MoveInstance { lease_s }).await?)
}

/// Moves an instance to another state without a word about it.
pub(super) async fn go(
    client: &Client,
    instance: &InstanceRef,
    verb: &str,
) -> Result<(), CliError> {
    call(client, instance, verb, None).await.map(drop)
}

async fn copy(
    context: &Context,
    from: &CopyEndpoint,
    to: &CopyEndpoint,
    copying: Copying,
) -> Outcome {
    match (from, to) {
        (CopyEndpoint::Guest(instance, path), CopyEndpoint::Local(folder)) => {
            let (client, folder) = (context.client()?, Path::new(folder));
            job::check_target(folder)?;
            session::get(&client, instance, path, folder, copying.rules()).await?;
        }
        (CopyEndpoint::Local(path), CopyEndpoint::Guest(instance, folder)) => {
            if let Err(cause) = std::fs::metadata(path) {
                return Err(CliError::file(format!("cannot read {path}: {cause}")));
            }
            session::put(&context.client()?, instance, Path::new(path), folder).await?;
        }
        _ => {
            let detail = "of the two places one must be in an instance, and the other not";
            return Err(CliError::new(Code::Usage, detail)
                .hint("write the one in the instance as tenant/pool/i-0123abcd:/path"));
        }
    }
    Ok(0)
}
