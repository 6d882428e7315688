//! The coordinator's process: from its options to a served API.

use crate::fleet::{Fleet, Options};
use crate::port::Network;
use crate::{Result, api, stored};
use mvm_api::identity::{Identity, IdentityDir, Signer, keep};
use mvm_api::tls::{Keeper, TlsListener};
use mvm_api::{Peer, Problem, service};
use mvm_model::Name;
use mvm_model::fleet::Limits;
use mvm_store::{EtcdOptions, EtcdStore, SqliteStore, Store};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

/// Where the fleet's state is.
#[derive(Clone, Debug)]
pub enum StoreOptions {
    /// In the root, for a single coordinator.
    Sqlite,
    /// In an etcd cluster, for as many as there are.
    Etcd(EtcdOptions),
}

/// How `mvm coordinator serve` was called.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The directory of the socket, and of the state where that is embedded.
    pub root: PathBuf,
    /// The fleet.
    pub fleet_id: Name,
    /// Its own name; that of its identity where none is given.
    pub name: Option<Name>,
    /// Where to serve, over mutual TLS; none: on the Unix socket only.
    pub listen: Vec<SocketAddr>,
    /// Where others reach it; the first address where none is given.
    pub advertise: Option<String>,
    /// Where the fleet's state is.
    pub store: StoreOptions,
    /// Who it is.
    pub identity: Option<IdentityDir>,
    /// The authority's directory, if it is to sign.
    pub ca: Option<PathBuf>,
    /// How long it counts as there after it has died.
    pub ttl: Duration,
    /// How long a claim waits for a machine.
    pub patience: Duration,
}

/// Serves until SIGTERM or SIGINT. Nodes go on by themselves.
pub fn serve(options: ServeOptions) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Problem::internal(format!("cannot start the runtime: {e}")))?;
    let outcome = runtime.block_on(run(options));
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn run(options: ServeOptions) -> Result<()> {
    let io = |what: &str, e: std::io::Error| Problem::new(500, "io", format!("cannot {what}: {e}"));
    std::fs::create_dir_all(&options.root)
        .map_err(|e| io(&format!("make {}", options.root.display()), e))?;
    let (store, kind): (Arc<dyn Store>, _) = match options.store {
        StoreOptions::Sqlite => {
            let path = options.root.join("fleet.db");
            (Arc::new(SqliteStore::open(&path).map_err(stored)?), "sqlite")
        }
        StoreOptions::Etcd(etcd) => {
            (Arc::new(EtcdStore::connect(etcd).await.map_err(stored)?), "etcd")
        }
    };
    let keeper = options.identity.map(Keeper::open).transpose()?;
    let own = keeper.as_ref().map(|keeper| keeper.credential().facts.identity);
    let own = match own {
        Some(Identity::Coordinator(name)) => Some(name),
        Some(other) => {
            let detail = format!("{} is no coordinator", other.holder());
            return Err(Problem::new(400, "wrong_identity", detail)
                .hint("issue one: mvm ca issue --role coordinator --name NAME --out DIR"));
        }
        None => None,
    };
    let signer = match options.ca {
        Some(dir) => Some(Arc::new(Signer::open(&dir, store.clone())?)),
        None => None,
    };
    let socket = options.root.join("coordinator.sock");
    let listener = match (&keeper, options.listen.is_empty()) {
        (_, true) => None,
        (Some(keeper), false) => Some(TlsListener::bind(&options.listen, keeper.clone()).await?),
        (None, false) => {
            return Err(Problem::new(400, "identity_missing", "to listen needs an identity")
                .hint("name its directory with --identity"));
        }
    };
    let bound = listener.as_ref().and_then(|l| l.addresses().first()).map(ToString::to_string);
    let address = options.advertise.or(bound);
    let address = address.unwrap_or_else(|| format!("unix:{}", socket.display()));
    let fleet = Fleet::new(
        Options {
            fleet_id: options.fleet_id,
            name: match options.name.or(own) {
                Some(name) => name,
                None => "coordinator".parse()?,
            },
            address,
            store: kind,
            ttl: options.ttl,
            patience: options.patience,
            pushes: 64,
            limits: Limits { per_node: 16, per_tenant: 1000, total: 20_000 },
        },
        store,
        Arc::new(Network { keeper: keeper.clone() }),
    );
    let follow = fleet.clone();
    let work = tokio::spawn(async move { follow.run().await });
    if let Some(keeper) = &keeper {
        let source = signer.clone().map_or(keep::Source::Remote, keep::Source::Local);
        tokio::spawn(keep::keep(keeper.clone(), source));
    }
    let app = api::router(fleet.clone(), signer.zip(keeper));
    if let Some(listener) = listener {
        tracing::info!(addresses = ?listener.addresses(), "serving over TLS");
        let app = app.clone().into_make_service_with_connect_info::<Peer>();
        tokio::spawn(async move { axum::serve(listener, app).await });
    }
    let unix = listen(&socket).map_err(|e| io(&format!("listen on {}", socket.display()), e))?;
    tracing::info!(socket = %socket.display(), "serving");
    let app = app.into_make_service_with_connect_info::<Peer>();
    service::ready(&format!("serving {}", socket.display()));
    // That this is told at all says that tasks are still run.
    tokio::spawn(service::live(|| std::future::ready(())));
    let mut term = signal(SignalKind::terminate()).map_err(|e| io("watch signals", e))?;
    let mut int = signal(SignalKind::interrupt()).map_err(|e| io("watch signals", e))?;
    let outcome = tokio::select! {
        outcome = axum::serve(unix, app) => outcome.map_err(|e| io("serve", e)),
        ended = work => Err(Problem::internal(format!("the coordinator's work has ended: {ended:?}"))),
        _ = term.recv() => Ok(()),
        _ = int.recv() => Ok(()),
    };
    service::stopping();
    let _ = std::fs::remove_file(&socket);
    outcome
}

/// Binds the socket under another name first, so that nobody finds it with a wider mode. One that is
/// there was left by a coordinator that was killed: the store's lock, or the election, says who is.
fn listen(socket: &Path) -> std::io::Result<UnixListener> {
    let early = socket.with_extension("new");
    let _ = std::fs::remove_file(&early);
    let listener = UnixListener::bind(&early)?;
    std::fs::set_permissions(&early, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&early, socket)?;
    Ok(listener)
}
