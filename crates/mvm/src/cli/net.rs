//! `mvm net`

use super::cleaning::{self, Clean};
use super::context::Context;
use crate::output::{self, Format, Outcome};
use clap::Subcommand;
use mvm_api::paths;
use mvm_api::types::{DifferenceKind, NetworkReport};

/// The node's network.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Compares the kernel's links, addresses and firewall rules with what they should be; exits 1
    /// if something differs
    #[command(after_help = "Examples:\n  mvm net verify\n  mvm net verify --output json")]
    Verify,
    /// Shows what is left of state directories that are gone for good (links, firewall tables,
    /// processes of machines), and removes it, but nothing of a state directory that exists. Needs
    /// no agent
    #[command(
        after_help = "Examples:\n  mvm net clean\n  mvm net clean --yes\n  mvm net clean --netns ci --output json"
    )]
    Clean(Clean),
}

/// Runs the command.
pub async fn run(context: &Context, command: Command) -> Outcome {
    match command {
        Command::Verify => verify(context).await,
        Command::Clean(asked) => cleaning::run(context, asked),
    }
}

async fn verify(context: &Context) -> Outcome {
    let report: NetworkReport = context.client()?.get(paths::NETWORK).await?;
    if report.differences.is_empty() && context.format == Format::Table {
        let (bridges, taps) = (report.bridges, report.taps);
        let line = format!("{bridges} bridges, {taps} taps and the rules are as they should be");
        return output::say(context.format, &report, &line);
    }
    let rows = report.differences.iter().map(|difference| {
        let kind = match difference.kind {
            DifferenceKind::Link => "link",
            DifferenceKind::Address => "address",
            DifferenceKind::Forwarding => "forwarding",
            DifferenceKind::Rules => "rules",
        };
        vec![kind.to_owned(), difference.what.clone(), difference.detail.clone()]
    });
    output::show(context.format, &report, &["KIND", "WHAT", "DIFFERS"], rows)?;
    Ok(u8::from(!report.differences.is_empty()))
}
