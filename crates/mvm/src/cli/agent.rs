//! `mvm agent`

use super::context::Context;
use super::desired::{self, DocumentOptions};
use super::globals::Globals;
use super::offer::OfferArgs;
use super::progress::with_stage;
use super::values::Address;
use crate::agent_holder::{self, Holder};
use crate::agent_process;
use crate::error::CliError;
use crate::logging;
use crate::output::{self, Format, Outcome};
use clap::{Args, Subcommand, ValueEnum};
use mvm_api::paths;
use mvm_api::types::{Done, ProbeResult};
use mvm_model::accelerator::Wanted;
use mvm_model::desired::DesiredState;
use mvm_model::halt::NO_SPACE_TIMEOUT_S;
use mvm_model::{Code, Mib, Name};
use mvm_node::{ApiOptions, Driver, NodeOptions, Sandbox, ServeOptions};
use rustix::process::Signal;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

/// How long an agent may take to confirm that it stops, and then to stop.
const ANSWER: Duration = Duration::from_secs(5);
const ENDING: Duration = Duration::from_secs(10);

/// The agent.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves in the foreground; other commands start an agent by themselves
    #[command(
        after_help = "Examples:\n  mvm agent serve\n  mvm --root /srv/mvm agent serve --netns ci\n  mvm agent serve --listen 0.0.0.0:4433\n  mvm agent serve --no-space-timeout 3600\n  mvm --root /tmp/sim agent serve --hypervisor sim"
    )]
    Serve {
        /// What runs the machines; with sim nothing is real, and every listing says so
        #[arg(long, env = "MVM_HYPERVISOR", value_enum, default_value_t)]
        hypervisor: Hypervisor,
        /// Put everything, VMs included, into this network namespace (ip-netns(8))
        #[arg(long, env = "MVM_NETNS", value_name = "NAME")]
        netns: Option<String>,
        /// Also serve the API here, over mutual TLS; several may be given (see `mvm node join`)
        #[arg(long, value_name = "ADDRESS:PORT")]
        listen: Vec<SocketAddr>,
        /// Where a fleet's coordinators reach this node [default: the first address of --listen]
        #[arg(long, value_name = "HOST:PORT", requires = "listen")]
        advertise: Option<Address>,
        /// The name of this node in desired-state documents [default: its identity's]
        #[arg(long, value_name = "ID")]
        node_id: Option<Name>,
        /// Keep the node as this document says (schema_version 1), and watch the file for changes
        #[arg(long, value_name = "FILE")]
        desired: Option<PathBuf>,
        #[command(flatten)]
        how: DocumentOptions,
        #[command(flatten)]
        offer: OfferArgs,
        /// Limit for sending images to other nodes, all transfers together [default: unlimited]
        #[arg(long, value_name = "MIB_PER_SECOND")]
        image_rate: Option<NonZeroU32>,
        /// Whether flakes may have derivations built outside Nix's sandbox (__noChroot); use
        /// relaxed only where all flakes are trusted
        #[arg(long, env = "MVM_NIX_SANDBOX", value_enum, default_value_t)]
        nix_sandbox: NixSandbox,
        #[command(flatten)]
        host: Box<HostArgs>,
    },
    /// Brings this node to what a document of desired state says
    #[command(
        after_help = "Examples:\n  mvm agent reconcile --desired desired-state.json --dry-run\n  mvm agent reconcile --desired desired-state.json --prune --wait"
    )]
    Reconcile {
        /// The document (schema_version 1); - reads the standard input
        #[arg(long, value_name = "FILE")]
        desired: PathBuf,
        #[command(flatten)]
        how: DocumentOptions,
        /// Only show what would be done
        #[arg(long)]
        dry_run: bool,
        /// Wait until it is there, for at most this many seconds
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1800")]
        wait: Option<u64>,
    },
    /// Prints what this node holds as a document of desired state
    #[command(after_help = "Examples:\n  mvm agent desired > desired-state.json")]
    Desired,
    /// Shows whether an agent is serving, and what it runs on
    #[command(after_help = "Examples:\n  mvm agent status -o json")]
    Status,
    /// Tries again whether a kernel boots under KVM (at most 60 s); new machines then use what works
    #[command(after_help = "Examples:\n  mvm agent probe\n  mvm agent probe -o json")]
    Probe,
    /// Ends the agent, even one that does not answer; no VM is touched
    #[command(after_help = "Examples:\n  mvm agent stop")]
    Stop,
}

/// What of its host an agent reads and takes, and where it logs.
#[derive(Debug, Args)]
pub struct HostArgs {
    /// The file that reports memory pressure, such as a cgroup's memory.pressure [default:
    /// /proc/pressure/memory]
    #[arg(long, env = "MVM_PRESSURE", value_name = "FILE")]
    pressure: Option<PathBuf>,
    /// How long a job waits while its machine is paused because the host's disk is full; then the
    /// job is lost, with no_space as the reason
    #[arg(long, env = "MVM_NO_SPACE_TIMEOUT", value_name = "SECONDS",
          default_value_t = NO_SPACE_TIMEOUT_S)]
    no_space_timeout: u64,
    /// Disk space that artifacts and inputs of jobs leave free, whatever the quotas say [default: a
    /// twentieth of it, 128 MiB to 4 GiB]
    #[arg(long, env = "MVM_DISK_RESERVE", value_name = "MIB")]
    disk_reserve: Option<u64>,
    /// What executes the instructions of new machines; with auto, KVM where a kernel boots under it
    #[arg(long, env = "MVM_ACCELERATOR", value_enum, default_value_t)]
    accelerator: AcceleratorArg,
    /// Log as JSON lines
    #[arg(long)]
    log_json: bool,
    /// Log to this file instead of standard error; at 16 MiB it is renamed to FILE.1
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
}

/// What makes the machines.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Hypervisor {
    /// QEMU
    #[default]
    Qemu,
    /// Nothing: machines are simulated
    Sim,
}

impl From<Hypervisor> for Driver {
    fn from(named: Hypervisor) -> Self {
        match named {
            Hypervisor::Qemu => Driver::Qemu,
            Hypervisor::Sim => Driver::Sim,
        }
    }
}

/// What executes the instructions of new machines.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum AcceleratorArg {
    /// KVM where it works, otherwise emulation
    #[default]
    Auto,
    /// KVM; the agent does not start where it cannot be had
    Kvm,
    /// Emulation by QEMU, although KVM may work
    Tcg,
}

impl From<AcceleratorArg> for Wanted {
    fn from(named: AcceleratorArg) -> Self {
        match named {
            AcceleratorArg::Auto => Wanted::Auto,
            AcceleratorArg::Kvm => Wanted::Kvm,
            AcceleratorArg::Tcg => Wanted::Tcg,
        }
    }
}

/// What flakes' builders may do.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum NixSandbox {
    /// Everything is built in the sandbox
    #[default]
    Strict,
    /// Derivations that say __noChroot are built outside it
    Relaxed,
}

impl From<NixSandbox> for Sandbox {
    fn from(named: NixSandbox) -> Self {
        match named {
            NixSandbox::Strict => Sandbox::Strict,
            NixSandbox::Relaxed => Sandbox::Relaxed,
        }
    }
}

/// Runs `mvm agent serve`, if that is the command. It runs before there is a runtime, since it
/// makes its own.
pub fn serve_if_asked(globals: &Globals, command: &Command) -> Option<Result<(), CliError>> {
    let Command::Serve {
        hypervisor,
        netns,
        listen,
        advertise,
        node_id,
        desired,
        how,
        offer,
        image_rate,
        nix_sandbox,
        host,
    } = command
    else {
        return None;
    };
    let desired = match desired.as_ref().map(|path| desired::file(path, how)).transpose() {
        Ok(desired) => desired,
        Err(problem) => return Some(Err(problem)),
    };
    let stages = match logging::begin(host.log_json, host.log_file.as_deref()) {
        Ok(stages) => stages,
        Err(problem) => return Some(Err(problem)),
    };
    let options = ServeOptions {
        root: globals.root(),
        driver: (*hypervisor).into(),
        guest: crate::guest::GUEST,
        sandbox: (*nix_sandbox).into(),
        api: ApiOptions {
            listen: listen.clone(),
            identity: (globals.identity.clone().filter(|_| globals.identity_named))
                .map(|dir| std::path::absolute(&dir).unwrap_or(dir)),
            advertise: advertise.as_ref().map(ToString::to_string),
        },
        desired,
        stages,
        node: NodeOptions {
            netns: netns.clone().filter(|name| !name.is_empty()),
            node_id: node_id.clone(),
            accelerator: host.accelerator.into(),
            offer: offer.into(),
            pressure: host.pressure.clone(),
            image_rate: *image_rate,
            no_space_timeout: Duration::from_secs(host.no_space_timeout),
            disk_reserve: host.disk_reserve.map(Mib),
        },
    };
    Some(mvm_node::serve(options).map_err(CliError::from))
}

/// Runs the command.
pub async fn run(context: &Context, command: Command) -> Outcome {
    let root = context.root.display();
    match command {
        Command::Serve { .. } => Err(CliError::internal("the agent is served elsewhere")),
        Command::Reconcile { desired, how, dry_run, wait } => {
            desired::reconcile(context, &desired, &how, dry_run, wait).await
        }
        Command::Desired => {
            let document: DesiredState = context.agent()?.get(paths::DESIRED).await?;
            let format = match context.format {
                Format::Table => Format::Json,
                format => format,
            };
            output::describe(format, &document)
        }
        Command::Status => {
            let Some(client) = agent_process::running(&context.root) else {
                return Err(CliError::new(
                    Code::AgentUnreachable,
                    format!("no agent serves {root}"),
                )
                .hint("any command that needs one starts it; or run `mvm agent serve`"));
            };
            output::describe(context.format, &agent_process::info(&client).await?)
        }
        Command::Probe => probe(context).await,
        Command::Stop => stop(context).await,
    }
}

async fn probe(context: &Context) -> Outcome {
    let client = context.agent()?;
    let asked = client.post(paths::AGENT_PROBE, &());
    let stage = "starting a kernel under /dev/kvm, which takes up to 60 s";
    let probed: ProbeResult = with_stage(context.format, stage, asked).await?;
    let mut line = format!("{}: {}", probed.verdict, probed.reason);
    if probed.accelerator != probed.verdict {
        let why = &probed.accelerator_reason;
        line.push_str(&format!("; new machines use {} all the same: {why}", probed.accelerator));
    } else if probed.accelerator != probed.before {
        line.push_str(&format!("; new machines use it instead of {}", probed.before));
    }
    output::say(context.format, &probed, &line)
}

async fn stop(context: &Context) -> Outcome {
    let root = context.root.display();
    let holder = agent_holder::of(&context.root);
    let Some(client) = agent_process::running(&context.root) else {
        let Some(holder) = holder else {
            return output::say(context.format, &Done {}, &format!("no agent serves {root}"));
        };
        return end(context, holder).await;
    };
    let asked = client.post::<Done>(paths::AGENT_STOP, &());
    let asked = tokio::time::timeout(ANSWER, asked).await;
    let refusal = asked.ok().map(|asked| asked.map_err(CliError::from).err());
    let broken = |problem: &CliError| problem.code() == Some(Code::ConnectionBroken);
    let heard = matches!(&refusal, Some(refusal) if refusal.as_ref().is_none_or(broken));
    let holder = match holder {
        // Where the process cannot be seen, the agent's answer has to do.
        None if heard => return ended(context),
        None => return Err(refusal.flatten().unwrap_or_else(|| silent(&root))),
        Some(holder) => holder,
    };
    // The agent may have stopped before its answer was sent.
    match (holder.ended_within(if heard { ENDING } else { Duration::ZERO }).await, refusal) {
        (Ok(()), _) => ended(context),
        (Err(_), Some(Some(problem))) if !broken(&problem) => Err(problem),
        (Err(holder), _) => end(context, holder).await,
    }
}

fn ended(context: &Context) -> Outcome {
    let line = format!("the agent of {} has ended; its machines go on", context.root.display());
    output::say(context.format, &Done {}, &line)
}

fn silent(root: &impl std::fmt::Display) -> CliError {
    let what =
        format!("the agent of {root} does not answer, and its process is not to be seen here");
    CliError::new(Code::AgentSilent, what).hint("end its process where it runs")
}

/// Stops an agent that does not answer, by its process id. The next agent finds unfinished work in
/// the records.
async fn end(context: &Context, holder: Holder) -> Outcome {
    let pid = holder.pid;
    let state = if holder.is_stopped() { " (it was stopped)" } else { "" };
    output::note(format!("the agent, process {pid}, does not answer{state}: ending it"));
    holder.send(Signal::TERM)?;
    // A stopped process handles the signal once it continues.
    holder.send(Signal::CONT)?;
    let Err(holder) = holder.ended_within(ENDING).await else { return ended(context) };
    output::note(format!("process {pid} does not end by itself: killing it"));
    holder.send(Signal::KILL)?;
    match holder.ended_within(ENDING).await {
        Ok(()) => ended(context),
        Err(_) => Err(CliError::new(Code::AgentSilent, format!("process {pid} cannot be killed"))
            .hint("it waits for the host itself: see the kernel's log")),
    }
}
