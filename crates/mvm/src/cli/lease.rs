//! `mvm lease`

use super::context::{Context, explain_empty};
use super::values::ListScope;
use crate::error::CliError;
use crate::output::{self, Outcome};
use clap::Subcommand;
use mvm_api::types::{ExtendLease, LeaseView};
use mvm_api::{Client, paths};
use mvm_model::{Code, LeaseId};

/// Leases.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Lists the leases
    #[command(after_help = "Examples:\n  mvm lease list\n  mvm lease list ci/runners -o json")]
    List {
        /// Only those of this tenant, or tenant/pool
        of: Option<ListScope>,
    },
    /// Sets how long a lease lasts from now
    #[command(
        after_help = "Examples:\n  mvm lease extend l-0123abcd --lease 7200\n  mvm lease extend ci/runners/i-0123abcd --lease 7200"
    )]
    Extend {
        /// The lease, or the instance that it is on
        lease: String,
        /// How long the lease lasts from now, in seconds
        #[arg(long = "lease", value_name = "SECONDS", default_value_t = 3600)]
        seconds: u64,
    },
    /// Ends a lease now, even a job's; its instance is recycled by the pool's rule
    #[command(after_help = "Examples:\n  mvm lease release l-0123abcd")]
    Release {
        /// The lease, or the instance that it is on
        lease: String,
    },
}

/// Runs the command.
pub async fn run(context: &Context, command: Command) -> Outcome {
    let client = context.client()?;
    match command {
        Command::List { of } => {
            let mut leases: Vec<LeaseView> = client.list(paths::LEASES).await?;
            leases.retain(|view| match &of {
                None => true,
                Some(ListScope::Tenant(tenant)) => view.instance.pool.tenant == *tenant,
                Some(ListScope::Pool(pool)) => view.instance.pool == *pool,
            });
            if leases.is_empty() {
                explain_empty(&client, of.as_ref()).await?;
            }
            list(context, &leases)
        }
        Command::Extend { lease, seconds } => {
            let path = format!("{}/{}/extend", paths::LEASES, id_of(&client, &lease).await?);
            let body = ExtendLease { lease_s: seconds };
            let view: LeaseView = client.post(&path, &body).await?;
            let line = format!("lease {} on {} ends in {seconds} s", view.lease.id, view.instance);
            output::say(context.format, &view, &line)
        }
        Command::Release { lease } => {
            let id = id_of(&client, &lease).await?;
            let path = format!("{}/{id}", paths::LEASES);
            let done: serde_json::Value = client.delete(&path).await?;
            output::say(context.format, &done, &format!("lease {id} has ended"))
        }
    }
}

/// Returns the id of the lease with this id, or of the lease on this instance.
async fn id_of(client: &Client, wanted: &str) -> Result<LeaseId, CliError> {
    let leases: Vec<LeaseView> = client.list(paths::LEASES).await?;
    let fits = |view: &&LeaseView| {
        view.lease.id.to_string() == wanted || view.instance.to_string() == wanted
    };
    leases.iter().find(fits).map(|view| view.lease.id).ok_or_else(|| {
        CliError::new(Code::NotFound, format!("there is no lease {wanted:?}"))
            .hint("see the leases with `mvm lease list`")
    })
}

fn list(context: &Context, leases: &[LeaseView]) -> Outcome {
    let rows = leases.iter().map(|view| {
        let LeaseView { lease, instance, left_s, held_by, .. } = view;
        // A lease with a holder lasts as long as its holder, or until its longest time.
        let left = match held_by {
            Some(_) if lease.longest_until.is_none() => "-".to_owned(),
            _ => format!("{left_s} s"),
        };
        vec![
            lease.id.to_string(),
            instance.to_string(),
            lease.holder.clone(),
            lease.purpose.to_string(),
            output::age(lease.since),
            left,
            held_by.map_or_else(|| "-".to_owned(), |by| by.to_string()),
        ]
    });
    let titles = ["LEASE", "INSTANCE", "HOLDER", "PURPOSE", "SINCE", "LEFT", "HELD BY"];
    output::show(context.format, &leases, &titles, rows)
}
