//! `mvm fleet`: many machines from one document.

use super::context::{Context, is_between_leaders};
use super::desired::{Inputs, ReportedFailures, given_up, read_document};
use super::instance;
use super::values::{Address, ListScope};
use crate::error::CliError;
use crate::output::{self, Format, Outcome};
use clap::Subcommand;
use mvm_api::fleet::{
    ApplyFleet, FleetPlan, FleetPoolView, FleetStatus, NodeView, RegisterNode, SetDuty,
};
use mvm_api::{Client, paths};
use mvm_model::fleet::{Duty, FleetState};
use mvm_model::{Code, Counts, Name};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The pause between two checks while a command waits.
const AGAIN: Duration = Duration::from_millis(200);

/// The fleet.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Applies a document to the fleet
    #[command(
        after_help = "Examples:\n  mvm fleet apply fleet.json --dry-run\n  mvm fleet apply fleet.json --wait --coordinator 10.0.1.1:4433"
    )]
    Apply {
        /// The document (schema_version 1); - reads the standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        inputs: Inputs,
        /// Only show what would be done
        #[arg(long)]
        dry_run: bool,
        /// Wait until it is there, for at most this many seconds
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1800")]
        wait: Option<u64>,
    },
    /// Prints the fleet's document
    #[command(after_help = "Examples:\n  mvm fleet show > fleet.json")]
    Show,
    /// Shows how far the fleet has come with its document
    #[command(after_help = "Examples:\n  mvm fleet status\n  mvm fleet status -o json")]
    Status,
    /// Lists the nodes, or shows one
    #[command(after_help = "Examples:\n  mvm fleet nodes\n  mvm fleet nodes node-1")]
    Nodes {
        /// Only this node, with all that it reports
        node: Option<Name>,
    },
    /// Adds a machine to the fleet as a node; nodes that have joined do so by themselves
    #[command(
        after_help = "Examples:\n  mvm fleet add node-1 10.0.1.5:4433\n  mvm fleet add node-1 unix:/var/lib/mvm/agent.sock"
    )]
    Add {
        /// Its name
        node: Name,
        /// Where its agent serves
        #[arg(value_name = "HOST:PORT")]
        address: Address,
    },
    /// Takes a node out of the fleet; what it holds stays there
    #[command(after_help = "Examples:\n  mvm fleet remove node-1")]
    Remove {
        /// Its name
        node: Name,
    },
    /// Empties a node: its share goes elsewhere, and its leases end by themselves
    #[command(after_help = "Examples:\n  mvm fleet drain node-1 --wait")]
    Drain {
        /// Its name
        node: Name,
        /// Wait until it is empty, for at most this many seconds
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "86400")]
        wait: Option<u64>,
    },
    /// Assigns nothing more to a node; it keeps and serves what it has
    #[command(after_help = "Examples:\n  mvm fleet cordon node-1")]
    Cordon {
        /// Its name
        node: Name,
    },
    /// Lets a drained or cordoned node take its share again
    #[command(after_help = "Examples:\n  mvm fleet uncordon node-1")]
    Uncordon {
        /// Its name
        node: Name,
    },
    /// Lists the instances of all nodes
    #[command(
        after_help = "Examples:\n  mvm fleet instances\n  mvm fleet instances ci/runners -o json"
    )]
    Instances {
        /// tenant, or tenant/pool
        of: Option<ListScope>,
    },
}

/// Runs the command.
pub async fn run(context: &Context, command: Command) -> Outcome {
    let client = context.coordinator()?;
    match command {
        Command::Apply { file, inputs, dry_run, wait } => {
            let document = read_document(&file, &inputs, FleetState::parse_in)?;
            apply(context, &client, document, dry_run, wait).await
        }
        Command::Show => {
            let document: FleetState = client.get(paths::FLEET).await?;
            let format =
                if context.format == Format::Table { Format::Json } else { context.format };
            output::describe(format, &document)
        }
        Command::Status => {
            let status: FleetStatus = client.get(paths::FLEET_STATUS).await?;
            show_status(context, &status)
        }
        Command::Nodes { node: Some(node) } => {
            let node: NodeView = client.get(&paths::node(&node)).await?;
            output::describe(context.format, &node)
        }
        Command::Nodes { node: None } => {
            let nodes: Vec<NodeView> = client.list(paths::NODES).await?;
            let head =
                ["NODE", "ADDRESS", "STATE", "RUNNING", "WARM", "SLEEPING", "LEASED", "DOCUMENT"];
            output::show(context.format, &nodes, &head, nodes.iter().map(row))
        }
        Command::Add { node, address } => {
            let body = RegisterNode { node_id: node, address: address.to_string() };
            let node: NodeView = client.post(paths::NODES, &body).await?;
            output::say(context.format, &node, &format!("{} is a node of the fleet", node.node_id))
        }
        Command::Remove { node } => {
            let done: serde_json::Value = client.delete(&paths::node(&node)).await?;
            output::say(context.format, &done, &format!("{node} is no longer a node of the fleet"))
        }
        Command::Drain { node, wait } => {
            let view = set_duty(&client, &node, Duty::Draining).await?;
            if let Some(seconds) = wait {
                emptied(&client, &node, Duration::from_secs(seconds)).await?;
            }
            output::say(context.format, &view, &format!("{node} is being emptied"))
        }
        Command::Cordon { node } => {
            let view = set_duty(&client, &node, Duty::Cordoned).await?;
            output::say(context.format, &view, &format!("{node} gets nothing more"))
        }
        Command::Uncordon { node } => {
            let view = set_duty(&client, &node, Duty::Open).await?;
            output::say(context.format, &view, &format!("{node} gets its part again"))
        }
        Command::Instances { of } => instance::list(context, &client, of).await,
    }
}

async fn set_duty(client: &Client, node: &Name, duty: Duty) -> Result<NodeView, CliError> {
    client.post(&paths::node_duty(node), &SetDuty { duty }).await.map_err(CliError::from)
}

fn row(node: &NodeView) -> Vec<String> {
    let Counts { running, warm, sleeping } = node.ready_counts;
    let state = match (node.alive, node.duty) {
        (false, _) => "lost".to_owned(),
        (true, Duty::Open) => "ready".to_owned(),
        (true, Duty::Cordoned) => "cordoned".to_owned(),
        (true, Duty::Draining) => "draining".to_owned(),
    };
    let document = match (&node.refused, node.up_to_date) {
        (Some(why), _) => format!("refused: {why}"),
        (None, true) => "held".to_owned(),
        (None, false) => "on its way".to_owned(),
    };
    let counts = [running, warm, sleeping, node.leased].map(|count| count.to_string());
    [vec![node.node_id.to_string(), node.address.clone(), state], counts.to_vec(), vec![document]]
        .concat()
}

fn show_status(context: &Context, status: &FleetStatus) -> Outcome {
    if context.format != Format::Table {
        return output::describe(context.format, status);
    }
    let leader = status.leader.as_deref().unwrap_or("nobody");
    let line = format!(
        "fleet {}: led by {leader}, {} nodes, {} of them lost; {}\n",
        status.fleet_id,
        status.nodes_alive + status.nodes_lost,
        status.nodes_lost,
        if status.converged { "all is there" } else { "not all is there yet" },
    );
    output::print(line.as_bytes())?;
    for unplaced in &status.unplaced {
        output::print(format!("{}\n", output::clean(&unplaced.to_string())).as_bytes())?;
    }
    let of = |have: u32, want: u32| format!("{have}/{want}");
    let rows = status.pools.iter().map(|pool| {
        let (have, want) = (pool.ready_counts, pool.desired_counts);
        vec![
            pool.pool.to_string(),
            of(have.running, want.running),
            of(have.warm, want.warm),
            of(have.sleeping, want.sleeping),
            pool.leased.to_string(),
            pool.nodes.to_string(),
            pool.last_failure.clone().unwrap_or_default(),
        ]
    });
    let head = ["POOL", "RUNNING", "WARM", "SLEEPING", "LEASED", "NODES", "FAILURE"];
    output::show(context.format, status, &head, rows)
}

async fn apply(
    context: &Context,
    client: &Client,
    document: FleetState,
    dry_run: bool,
    wait: Option<u64>,
) -> Outcome {
    let body = ApplyFleet { document, dry_run };
    let before: Option<FleetStatus> = client.get(paths::FLEET_STATUS_OF_LEADER).await.ok();
    let plan: FleetPlan = client.put(paths::FLEET, &body).await?;
    if let Some(seconds) = wait.filter(|_| !dry_run) {
        // If the document is the same as before, the cause of an old failure may have been removed
        // since.
        let old = before.filter(|status| status.document.as_ref() == Some(&plan.document));
        let old = old.map_or_else(Vec::new, |status| status.pools);
        converged(client, &plan.document, &old, Duration::from_secs(seconds)).await?;
    }
    for unplaced in &plan.unplaced {
        output::note(format_args!("mvm: {unplaced}"));
    }
    if plan.changes.is_empty() {
        return output::say(context.format, &plan, "nothing changes on any node");
    }
    let counts = |counts: Option<Counts>| match counts {
        Some(Counts { running, warm, sleeping }) => format!("{running}/{warm}/{sleeping}"),
        None => "-".to_owned(),
    };
    let rows = plan.changes.iter().map(|change| {
        vec![
            change.node_id.to_string(),
            change.pool.to_string(),
            counts(change.from),
            counts(change.to),
        ]
    });
    output::show(context.format, &plan, &["NODE", "POOL", "FROM", "TO"], rows)
}

/// Waits until the document of this digest is in force and the fleet has converged.
async fn converged(
    client: &Client,
    document: &str,
    old: &[FleetPoolView],
    deadline: Duration,
) -> Result<(), CliError> {
    let ends = Instant::now() + deadline;
    let mut reported = ReportedFailures::default();
    loop {
        let asked = client.get(paths::FLEET_STATUS_OF_LEADER).await.map_err(CliError::from);
        let status: FleetStatus = match asked {
            Err(problem) if is_between_leaders(&problem) && Instant::now() < ends => {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            asked => asked?,
        };
        let ours = status.document.as_deref() == Some(document);
        if ours && status.converged {
            return Ok(());
        }
        for pool in status.pools.iter().filter(|_| ours) {
            let known = |other: &FleetPoolView| other.last_failure == pool.last_failure;
            if !old.iter().any(known) {
                given_up(pool.last_failure.as_deref(), pool.last_failure_code.as_ref())?;
            }
            reported.report(pool.last_failure.as_deref());
        }
        if Instant::now() >= ends {
            let short = status.pools.iter().find(|pool| pool.ready_counts != pool.desired_counts);
            let what = match (status.unplaced.first(), short) {
                _ if !ours => "another document is in force".to_owned(),
                (Some(unplaced), _) => unplaced.to_string(),
                (None, Some(pool)) => {
                    let why = pool.last_failure.as_deref().unwrap_or("it is under way");
                    format!("pool {} is not filled: {why}", pool.pool)
                }
                (None, None) => "nodes still change: see `mvm fleet nodes`".to_owned(),
            };
            let detail = format!("after {} s: {what}", deadline.as_secs());
            return Err(CliError::new(Code::NotConverged, detail)
                .hint("the fleet goes on with it; see `mvm fleet status`"));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Waits until the node holds no instances.
async fn emptied(client: &Client, node: &Name, deadline: Duration) -> Result<(), CliError> {
    let ends = Instant::now() + deadline;
    loop {
        let view: NodeView = client.get(&paths::node(node)).await?;
        let pools = view.status.iter().flat_map(|status| status.pools.values());
        let pending = view.status.as_ref().map_or(0, |status| status.pending);
        let (instances, jobs) = pools.fold((0, 0), |(instances, jobs), pool| {
            (instances + pool.instances, jobs + pool.open_jobs)
        });
        if view.alive && view.up_to_date && pending == 0 && instances == 0 && jobs == 0 {
            return Ok(());
        }
        if Instant::now() >= ends {
            let detail = format!(
                "after {} s node {node} still has {instances} instances, {} of them leased, and {jobs} \
                 jobs that have not ended",
                deadline.as_secs(),
                view.leased
            );
            return Err(CliError::new(Code::NotConverged, detail)
                .hint("its leases end by themselves; see them with `mvm lease list`"));
        }
        tokio::time::sleep(AGAIN).await;
    }
}
