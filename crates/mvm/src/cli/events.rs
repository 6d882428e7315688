//! `mvm events`, `mvm metrics`

use super::context::Context;
use crate::error::CliError;
use crate::output::{self, Flow, Format, Outcome};
use clap::Args;
use mvm_api::client::Event;
use mvm_api::position::Position;
use mvm_api::types::{EventGap, EventView};
use mvm_api::{ClientError, paths};
use mvm_model::Name;

/// What has happened to instances: every transition with its cause and duration.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mvm events
  mvm events -f --tenant ci
  mvm events --since 1200 -o json
  mvm events -f --coordinator 10.0.1.1:4433")]
pub struct Events {
    /// Keep showing new events; a connection that breaks is made again
    #[arg(long, short)]
    follow: bool,
    /// Only those of this tenant
    #[arg(long)]
    tenant: Option<Name>,
    /// Only events after this one; for a fleet, one event per node: node-1:42,node-2:7
    #[arg(long, value_name = "ID", default_value = "0")]
    since: Position,
}

/// Runs the command.
pub async fn run(context: &Context, events: Events) -> Outcome {
    let client = context.patient()?;
    let mut query = format!("since={}", events.since);
    if let Some(tenant) = &events.tenant {
        query.push_str(&format!("&tenant={tenant}"));
    }
    if events.follow {
        let path = format!("{}?{query}", paths::EVENTS_STREAM);
        let mut last_reported = String::new();
        let lost = |error: &ClientError| {
            let why = error.to_string();
            if why != last_reported {
                output::note(format_args!("{why}; trying again"));
                last_reported = why;
            }
        };
        let flow = Flow::default();
        let shown = client.streams().resume(&path, |sent| show(context.format, &sent, &flow), lost);
        return flow.of(async { shown.await.map_err(CliError::from) }).await.map(|()| 0);
    }
    let path = format!("{}?{query}", paths::EVENTS);
    let mut events: Vec<EventView> = client.list(&path).await?;
    // A fleet's events arrive node by node.
    if events.iter().any(|view| view.node_id.is_some()) {
        events.sort_by_key(|view| view.event.at);
    }
    let titles = ["ID", "AGO", "INSTANCE", "FROM", "TO", "TOOK", "CAUSE"];
    output::show(context.format, &events, &titles, events.iter().map(row))
}

/// Prints an event in one line as it arrives: JSON for programs.
fn show(format: Format, sent: &Event, flow: &Flow) {
    if sent.name == "gap" {
        if let Ok(EventGap { after, before, node_id }) = serde_json::from_str(&sent.data) {
            let node = node_id.map(|node| format!(" of node {node}")).unwrap_or_default();
            let gap =
                format_args!("events{node} between {after} and {before} are not kept any more");
            output::note(gap);
        }
        return;
    }
    let Ok(view) = serde_json::from_str::<EventView>(&sent.data) else { return };
    let line = match format {
        Format::Table => output::clean(&row(&view).join("  ")),
        _ => output::ascii(&sent.data),
    };
    flow.print(format!("{line}\n").as_bytes());
}

fn row(EventView { event, node_id }: &EventView) -> Vec<String> {
    let why = event.reason.as_deref().and_then(|reason| reason.lines().next());
    let id = event.id;
    vec![
        node_id.as_ref().map_or_else(|| id.to_string(), |node| format!("{node}:{id}")),
        output::age(event.at),
        event.instance.to_string(),
        event.from.map_or_else(|| "-".to_owned(), |from| from.to_string()),
        event.to.to_string(),
        event.took_ms.map_or_else(|| "-".to_owned(), |took| format!("{took} ms")),
        why.map_or_else(|| event.cause.clone(), |why| format!("{}: {why}", event.cause)),
    ]
}

/// Prints the metrics unchanged.
pub async fn metrics(context: &Context) -> Outcome {
    let mut text = Vec::new();
    let take = |piece: &[u8]| text.extend_from_slice(piece);
    context.client()?.streams().download(paths::METRICS, take).await?;
    output::print(&text)
}
