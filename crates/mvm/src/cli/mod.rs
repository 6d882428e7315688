//! The commands, one file per noun.

mod agent;
mod api;
mod audit;
mod bench;
mod ca;
mod cleaning;
mod context;
mod coordinator;
mod coordinator_serve;
mod copying;
mod density;
mod desired;
mod doctor;
mod environment;
mod events;
mod expose;
mod flake;
mod fleet;
mod globals;
mod images;
mod instance;
mod job;
mod lease;
mod net;
mod node;
mod offer;
mod pool;
mod progress;
mod remote;
mod run;
mod ssh;
mod stages;
mod tenant;
mod values;

use crate::error::CliError;
use crate::output::{self, Outcome};
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use context::Context;
use globals::Globals;
use mvm_api::client::Patience;
use remote::OurIdentity;
use std::path::PathBuf;

/// Fleets of microVMs, ready to work.
///
/// Every CI job (or any untrusted work) gets a virtual machine of its own within milliseconds, used
/// once and thrown away.
#[derive(Debug, Parser)]
#[command(
    name = "mvm",
    version,
    after_help = "\
Examples:
  mvm tenant create ci --net-id 20 --subnet 10.240.20.0/24
  mvm pool create ci/runners --flake ./ci-flake --profile ci-runner --cpus 4 --mem 4096
  mvm pool build ci/runners
  mvm pool scale ci/runners --running 0 --warm 4 --sleeping 8
  mvm run ci/runners -- make test

Exit status: 0 done, 1 failed, 2 wrong usage; run, exec and ssh give that of the
program (124 after --timeout, 126 and 127 where it cannot be run). 125: our own
output could not be written, on a full disk say; 141: its reader has gone."
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub globals: Globals,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What there is to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tenants: boundaries of security, network and quota
    #[command(
        subcommand,
        after_help = "Examples:\n  mvm tenant create ci --net-id 20 --subnet 10.240.20.0/24\n  mvm tenant info ci"
    )]
    Tenant(tenant::Command),
    /// Pools: instances of one image and one shape
    #[command(
        subcommand,
        after_help = "Examples:\n  mvm pool build ci/runners\n  mvm pool scale ci/runners --running 0 --warm 4 --sleeping 8"
    )]
    Pool(pool::Command),
    /// Instances: single microVMs
    #[command(
        subcommand,
        after_help = "Examples:\n  mvm instance list ci/runners\n  mvm instance wake ci/runners/i-0123abcd\n  mvm instance ssh ci/runners/i-0123abcd"
    )]
    Instance(instance::Command),
    /// Leases: who uses which instance, and for how long
    #[command(
        subcommand,
        after_help = "Examples:\n  mvm lease list\n  mvm lease extend l-0123abcd --lease 7200"
    )]
    Lease(lease::Command),
    /// Jobs: commands in instances of their own, queued, with logs and results that are kept
    #[command(
        subcommand,
        after_help = "Examples:\n  mvm job submit ci/runners -- make test\n  mvm job logs -f j-0123abcd"
    )]
    Job(job::Command),
    /// Runs a command in a fresh instance of a pool
    Run(run::Run),
    /// The node's network: links, addresses and firewall rules
    #[command(subcommand, after_help = "Examples:\n  mvm net verify\n  mvm net verify -o json")]
    Net(net::Command),
    /// Kernels that images boot
    #[command(
        subcommand,
        after_help = "Examples:\n  mvm kernel fetch\n  mvm kernel import ./vmlinux"
    )]
    Kernel(images::KernelCommand),
    /// Images that pools were built to
    #[command(subcommand, after_help = "Examples:\n  mvm image list\n  mvm image gc --dry-run")]
    Image(images::ImageCommand),
    /// The agent: the daemon of this machine
    #[command(subcommand, after_help = "Examples:\n  mvm agent status\n  mvm agent stop")]
    Agent(agent::Command),
    /// The API: what programs call
    #[command(subcommand, after_help = "Examples:\n  mvm api describe > openapi.json")]
    Api(api::Command),
    /// A fleet's coordinator, and instances on other machines
    #[command(
        subcommand,
        after_help = "Examples:\n  mvm coordinator wake --node 10.0.1.5:4433 --tenant ci --pool runners --instance i-0123abcd"
    )]
    Coordinator(coordinator::Command),
    /// The fleet: many machines from one document
    #[command(
        subcommand,
        after_help = "Examples:\n  mvm fleet apply fleet.json --wait\n  mvm fleet nodes"
    )]
    Fleet(fleet::Command),
    /// Nodes: the machines of a fleet
    #[command(
        subcommand,
        after_help = "Examples:\n  mvm node invite node-1 --address 10.0.1.1:4433 > token\n  mvm node join - < token"
    )]
    Node(node::Command),
    /// The certificate authority: who is who in a fleet
    #[command(
        subcommand,
        after_help = "Examples:\n  mvm ca init\n  mvm ca issue --role operator --name alice --out ./alice"
    )]
    Ca(ca::Command),
    /// Says what is missing on this machine, and how to get it
    #[command(
        after_help = "Examples:\n  mvm doctor\n  mvm doctor --output json\n  mvm doctor --production"
    )]
    Doctor(doctor::Doctor),
    /// Measures how long each way to a running command takes
    Bench(bench::Bench),
    /// Shows what has happened to instances
    Events(events::Events),
    /// The audit log: who did what, when, and the outcome
    #[command(subcommand, after_help = "Examples:\n  mvm audit list ci\n  mvm audit verify")]
    Audit(audit::Command),
    /// Prints the agent's metrics in the OpenMetrics text format, as at /metrics
    #[command(after_help = "Examples:\n  mvm metrics | grep mvm_transition_seconds")]
    Metrics,
    /// Prints completions for a shell
    #[command(after_help = "Examples:\n  mvm completions bash > /etc/bash_completion.d/mvm")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Writes the manual pages
    #[command(after_help = "Examples:\n  mvm man /usr/local/share/man/man1\n  mvm man | man -l -")]
    Man {
        /// The folder to write to; without it, mvm(1) is printed
        dir: Option<PathBuf>,
    },
}

impl Cli {
    /// Parses the command line of this process.
    pub fn of_process() -> Result<Cli, clap::Error> {
        let matches = Cli::command().try_get_matches()?;
        let mut cli =
            Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut Cli::command()))?;
        let mut deepest = &matches;
        while let Some((_, below)) = deepest.subcommand() {
            deepest = below;
        }
        let source = deepest.try_contains_id("identity").is_ok();
        let source = source.then(|| deepest.value_source("identity")).flatten();
        cli.globals.identity_named = source == Some(ValueSource::CommandLine);
        Ok(cli)
    }
}

/// Runs the command if it serves as an agent or a coordinator. Such a command is no client, and
/// makes its own runtime.
pub fn serve_if_asked(cli: &Cli) -> Option<Result<(), CliError>> {
    match &cli.command {
        Command::Agent(command) => agent::serve_if_asked(&cli.globals, command),
        Command::Coordinator(coordinator::Command::Serve(serve)) => {
            Some(coordinator_serve::serve(&cli.globals, serve))
        }
        _ => None,
    }
}

/// Runs a command.
pub async fn run(cli: Cli) -> Outcome {
    let globals = cli.globals;
    let context = Context {
        root: globals.root(),
        format: globals.output,
        remote: None,
        coordinator: globals.coordinator,
        ours: OurIdentity { identity: globals.identity, is_named: globals.identity_named },
        patience: Patience::new(globals.patience.duration(), |line| {
            output::note(format_args!("mvm: {line}"))
        }),
    };
    match cli.command {
        Command::Tenant(command) => tenant::run(&context, command).await,
        Command::Pool(command) => pool::run(&context, command).await,
        Command::Instance(command) => instance::run(&context, command).await,
        Command::Lease(command) => lease::run(&context, command).await,
        Command::Job(command) => job::run(&context, command).await,
        Command::Net(command) => net::run(&context, command).await,
        Command::Run(command) => run::run(&context, command).await,
        Command::Kernel(command) => images::kernel(&context, command).await,
        Command::Image(command) => images::image(&context, command).await,
        Command::Agent(command) => agent::run(&context, command).await,
        Command::Api(command) => api::run(command),
        Command::Coordinator(command) => coordinator::run(&context, command).await,
        Command::Fleet(command) => fleet::run(&context, command).await,
        Command::Node(command) => node::run(&context, command).await,
        Command::Ca(command) => ca::run(&context, command).await,
        Command::Doctor(asked) => doctor::run(&context, asked).await,
        Command::Bench(command) => bench::run(&context, command).await,
        Command::Events(command) => events::run(&context, command).await,
        Command::Audit(command) => audit::run(&context, command).await,
        Command::Metrics => events::metrics(&context).await,
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "mvm", &mut text);
            output::print(&text)
        }
        Command::Man { dir } => man(dir),
    }
}

fn man(dir: Option<PathBuf>) -> Outcome {
    let Some(dir) = dir else {
        let mut text = Vec::new();
        let page = clap_mangen::Man::new(Cli::command());
        page.render(&mut text).map_err(|e| CliError::internal(e.to_string()))?;
        return output::print(&text);
    };
    let failed = |cause: std::io::Error| {
        let detail = format!("cannot write manual pages to {}: {cause}", dir.display());
        CliError::file(detail).hint("name a directory that you may write to")
    };
    std::fs::create_dir_all(&dir).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), &dir).map_err(failed)?;
    Ok(0)
}
