//! `mvm net clean`

use super::context::Context;
use crate::error::CliError;
use crate::output::{self, Outcome};
use clap::Args;
use mvm_model::Code;
use mvm_node::remains::{self, StateDirRemains, Verdict};
use serde::Serialize;
use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;

/// Arguments.
#[derive(Debug, Args)]
pub struct Clean {
    /// Remove them without asking
    #[arg(long)]
    yes: bool,
    /// Look into this network namespace (ip-netns(8))
    #[arg(long, env = "MVM_NETNS", value_name = "NAME")]
    netns: Option<String>,
}

/// A leftover of a state directory.
#[derive(Debug, Serialize)]
struct Item {
    kind: &'static str,
    name: String,
    owner: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<String>,
    /// `orphan`: its state directory is gone. `unknown`: its state directory is not known, so it is
    /// left alone. `lives`: the state directory is gone, and its agent still runs.
    verdict: &'static str,
    removed: bool,
}

/// Runs the command on a thread of its own, since only that thread enters the namespace.
pub fn run(context: &Context, asked: Clean) -> Outcome {
    let (root, format) = (context.root.clone(), context.format);
    let work = move || {
        if let Some(name) = asked.netns.filter(|name| !name.is_empty()) {
            remains::enter(&name)?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| CliError::internal(e.to_string()))?;
        let items = runtime.block_on(clean(&root, asked.yes))?;
        if items.is_empty() {
            return output::say(
                format,
                &items,
                "nothing is left of state directories that are gone",
            );
        }
        let rows = items.iter().map(|item| {
            let done = if item.removed { "removed" } else { "" };
            let root = item.root.clone().unwrap_or_default();
            vec![item.kind.into(), item.name.clone(), root, item.verdict.into(), done.into()]
        });
        output::show(format, &items, &["KIND", "NAME", "ROOT", "VERDICT", "DONE"], rows)?;
        let left = items.iter().any(|item| item.verdict == "orphan" && !item.removed);
        if left && !asked.yes && !std::io::stdin().is_terminal() {
            let what = "nothing was removed: there is no terminal to ask at";
            return Err(CliError::new(Code::NotConfirmed, what)
                .hint("remove what is an orphan here: mvm net clean --yes"));
        }
        Ok(0)
    };
    let thread = std::thread::spawn(work);
    thread.join().unwrap_or_else(|_| Err(CliError::internal("the thread that cleans has died")))
}

async fn clean(root: &Path, yes: bool) -> Result<Vec<Item>, CliError> {
    let all = remains::find_remains(root).await?;
    let orphans: Vec<&StateDirRemains> =
        all.iter().filter(|left| left.verdict == Verdict::Orphan).collect();
    let agreed = yes || (!orphans.is_empty() && agrees(&orphans));
    let mut removed = Vec::new();
    if agreed {
        // Leftovers whose owner has come to life since they were shown are left alone.
        for left in remains::find_remains(root).await? {
            let shown = orphans.iter().any(|orphan| orphan.owner == left.owner);
            if left.verdict == Verdict::Orphan && shown {
                remains::remove(&left).await?;
                removed.push(left.owner);
            }
        }
    }
    let items = all.into_iter().flat_map(|left| match left.verdict {
        Verdict::Lives => agents_of(&left),
        _ => {
            let removed = removed.contains(&left.owner);
            items_of(left, removed)
        }
    });
    Ok(items.collect())
}

/// Lists the agents to stop first, where a state directory is gone and its agent still runs. Other
/// things that live are not shown.
fn agents_of(left: &StateDirRemains) -> Vec<Item> {
    let item = |pid: &u32| Item {
        kind: "agent",
        name: format!("agent pid {pid} has its lock open: end it first"),
        owner: left.owner.clone(),
        root: left.roots.first().map(|root| root.display().to_string()),
        verdict: "lives",
        removed: false,
    };
    left.agents.iter().map(item).collect()
}

fn items_of(left: StateDirRemains, removed: bool) -> Vec<Item> {
    let verdict = if left.verdict == Verdict::Orphan { "orphan" } else { "unknown" };
    let root = left.roots.first().map(|root| root.display().to_string());
    let processes = left.processes.iter();
    let processes = processes.map(|p| ("process", format!("{} ({})", p.pid, p.marker)));
    let item = |(kind, name)| Item {
        kind,
        name,
        owner: left.owner.clone(),
        root: root.clone(),
        verdict,
        removed,
    };
    processes.chain(left.things.iter().cloned()).map(item).collect()
}

/// Shows the leftovers, and asks the user at the terminal.
fn agrees(orphans: &[&StateDirRemains]) -> bool {
    if !std::io::stdin().is_terminal() {
        return false;
    }
    for left in orphans {
        let root = left.roots.first().map(|root| root.display().to_string()).unwrap_or_default();
        output::note(format!("of {root}, which is gone:"));
        let names = left.things.iter().map(|(kind, name)| format!("{kind} {name}"));
        let processes = left.processes.iter().map(|p| format!("process {} ({})", p.pid, p.marker));
        names.chain(processes).for_each(|name| output::note(format!("  {name}")));
    }
    let _ = write!(std::io::stderr(), "remove them? [y/N] ");
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}
