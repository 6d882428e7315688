//! `mvm events`, `mvm metrics`

use super::{Context, refused};
use crate::output::{self, Format, Outcome};
use clap::Args;
use mvm_api::paths;
use mvm_model::Name;
use mvm_model::event::Event;
use std::io::Write;

/// What has happened to instances: every transition with its cause and duration.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mvm events
  mvm events -f --tenant ci
  mvm events --since 1200 -o json")]
pub struct Events {
    /// Go on showing what happens
    #[arg(long, short)]
    follow: bool,
    /// Only those of this tenant
    #[arg(long)]
    tenant: Option<Name>,
    /// Only those after this one
    #[arg(long, value_name = "ID", default_value_t = 0)]
    since: u64,
}

/// Carries it out.
pub async fn run(context: &Context, events: Events) -> Outcome {
    let client = context.client()?;
    let mut query = format!("since={}", events.since);
    if let Some(tenant) = &events.tenant {
        query.push_str(&format!("&tenant={tenant}"));
    }
    if events.follow {
        let path = format!("{}?{query}", paths::EVENTS_STREAM);
        let each = |sent: mvm_api::client::Event| {
            if let Ok(event) = serde_json::from_str::<Event>(&sent.data) {
                show(context.format, &event, &sent.data);
            }
        };
        client.follow(&path, each).await.map_err(refused)?;
        return Ok(0);
    }
    let path = format!("{}?{query}", paths::EVENTS);
    let events: Vec<Event> = client.list(&path).await.map_err(refused)?;
    let titles = ["ID", "AGO", "INSTANCE", "FROM", "TO", "TOOK", "CAUSE"];
    output::show(context.format, &events, &titles, events.iter().map(row))
}

/// One line an event, as it comes: JSON for programs.
fn show(format: Format, event: &Event, json: &str) {
    let line = match format {
        Format::Table => row(event).join("  "),
        _ => json.to_owned(),
    };
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn row(event: &Event) -> Vec<String> {
    let why = event.reason.as_deref().and_then(|reason| reason.lines().next());
    vec![
        event.id.to_string(),
        output::age(event.at),
        event.instance.to_string(),
        event.from.map_or_else(|| "-".to_owned(), |from| from.to_string()),
        event.to.to_string(),
        event.took_ms.map_or_else(|| "-".to_owned(), |took| format!("{took} ms")),
        why.map_or_else(|| event.cause.clone(), |why| format!("{}: {why}", event.cause)),
    ]
}

/// Prints the metrics as they are.
pub async fn metrics(context: &Context) -> Outcome {
    let mut text = Vec::new();
    let take = |piece: &[u8]| text.extend_from_slice(piece);
    context.client()?.download(paths::METRICS, take).await.map_err(refused)?;
    output::print(&text)
}
