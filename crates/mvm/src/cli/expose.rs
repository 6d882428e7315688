//! `mvm pool expose` and `mvm pool unexpose`

use super::context::Context;
use crate::output::{self, Outcome};
use clap::Args;
use mvm_api::expose::{ExposePool, ExposeView, UnexposePool};
use mvm_api::paths;
use mvm_model::PoolRef;
use mvm_model::expose::Limits;
use std::net::SocketAddr;

/// Arguments of `expose`.
#[derive(Debug, Args)]
pub struct Expose {
    /// tenant/pool
    #[arg(required_unless_present = "list")]
    pool: Option<PoolRef>,
    /// Where to listen, in the agent's network namespace; port 0 chooses a free one
    #[arg(long, value_name = "ADDR:PORT", required_unless_present = "list")]
    listen: Option<SocketAddr>,
    /// The guest's TCP port
    #[arg(long, value_name = "PORT", required_unless_present = "list")]
    to: Option<u16>,
    /// Connections that one instance serves at once, 1 to 100 [default: 32]
    #[arg(long, value_name = "COUNT")]
    max_connections: Option<u32>,
    /// Instances that serve at once [default: as many as the quotas allow]
    #[arg(long, value_name = "COUNT")]
    max_instances: Option<u32>,
    /// Seconds without a connection until an instance is put to sleep [default: 60]
    #[arg(long, value_name = "SECONDS")]
    idle: Option<u64>,
    /// Longest time that a connection waits for an instance, in seconds [default: 60]
    #[arg(long, value_name = "SECONDS")]
    wake_timeout: Option<u64>,
    /// Only list what is exposed, of this pool or of all
    #[arg(long, conflicts_with_all = ["listen", "to", "max_connections", "max_instances", "idle", "wake_timeout"])]
    list: bool,
}

/// Arguments of `unexpose`.
#[derive(Debug, Args)]
pub struct Unexpose {
    /// tenant/pool
    pool: PoolRef,
    /// Only the port that listens here
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
}

/// Runs `mvm pool expose`.
pub async fn expose(context: &Context, asked: Expose) -> Outcome {
    let (Some(pool), Some(listen), Some(to), false) =
        (&asked.pool, asked.listen, asked.to, asked.list)
    else {
        return list(context, asked.pool.as_ref()).await;
    };
    let usual = Limits::default();
    let limits = Limits {
        max_connections: asked.max_connections.unwrap_or(usual.max_connections),
        max_instances: asked.max_instances.unwrap_or(usual.max_instances),
        idle_s: asked.idle.unwrap_or(usual.idle_s),
        wake_timeout_s: asked.wake_timeout.unwrap_or(usual.wake_timeout_s),
    };
    let path = paths::pool_part(pool, "expose");
    let body = ExposePool { listen, to, limits };
    let view: ExposeView = context.client()?.post(&path, &body).await?;
    let line = format!("pool {pool} (port {to}) is behind {}", view.listen);
    output::say(context.format, &view, &line)
}

async fn list(context: &Context, pool: Option<&PoolRef>) -> Outcome {
    let mut views: Vec<ExposeView> = context.client()?.list(paths::EXPOSES).await?;
    let is_of = |view: &ExposeView, pool: &PoolRef| {
        view.tenant_id == pool.tenant && view.pool_id == pool.pool
    };
    views.retain(|view| pool.is_none_or(|pool| is_of(view, pool)));
    let rows = views.iter().map(|view| {
        vec![
            view.listen.to_string(),
            format!("{}/{}", view.tenant_id, view.pool_id),
            view.to.to_string(),
            view.serving.len().to_string(),
            view.connections.to_string(),
            view.waiting.to_string(),
            view.refused.clone().unwrap_or_else(|| "open".to_owned()),
        ]
    });
    let titles = ["LISTEN", "POOL", "TO", "INSTANCES", "CONNECTIONS", "WAITING", "STATE"];
    output::show(context.format, &views, &titles, rows)
}

/// Runs `mvm pool unexpose`.
pub async fn unexpose(context: &Context, asked: Unexpose) -> Outcome {
    let path = paths::pool_part(&asked.pool, "unexpose");
    let body = UnexposePool { listen: asked.listen };
    let done: serde_json::Value = context.client()?.post(&path, &body).await?;
    let what = asked.listen.map_or_else(String::new, |listen| format!(" on {listen}"));
    output::say(
        context.format,
        &done,
        &format!("pool {} is not exposed any more{what}", asked.pool),
    )
}
