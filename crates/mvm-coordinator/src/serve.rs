//! The coordinator's process: from its options to a served API.

use crate::node_client::Network;
use crate::state::{ClusterState, Options};
use crate::{Error, Result, api, revocations};
use mvm_api::identity::Identity;
use mvm_clock::Clock;
use mvm_identity::IdentityDir;
use mvm_identity::files::io;
use mvm_identity::tls::Credentials;
use mvm_model::Name;
use mvm_model::fleet::Limits;
use mvm_server::{Peer, Signer, TlsListener, private, renewal, service};
use mvm_store::{EtcdOptions, EtcdStore, SqliteStore, Store};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

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
    /// The fleet's name.
    pub fleet_id: Name,
    /// The coordinator's name; its identity's where none is given.
    pub name: Option<Name>,
    /// Where to serve besides the Unix socket.
    pub api: ApiOptions,
    /// Where the fleet's state is.
    pub store: StoreOptions,
    /// The authority's directory, if it is to sign.
    pub ca: Option<PathBuf>,
    /// How long it counts as there after it has died.
    pub ttl: Duration,
    /// How long a claim waits for a machine.
    pub patience: Duration,
}

/// Where a coordinator serves.
#[derive(Clone, Debug)]
pub struct ApiOptions {
    /// Where to serve over mutual TLS; where empty, only the Unix socket is served.
    pub listen: Vec<SocketAddr>,
    /// Where others reach it; where absent, the first address that is no wildcard.
    pub advertise: Option<String>,
    /// Its identity; without one it serves and reaches servers on this machine only.
    pub identity: Option<IdentityDir>,
}

/// How long what is under way may still take when the coordinator is to end.
const GRACE: Duration = Duration::from_secs(30);

/// Serves until SIGTERM or SIGINT: then another leads at once, nothing new is taken, and what is under
/// way has 30 s to end, or until the next signal. Nodes go on by themselves.
pub fn serve(options: ServeOptions) -> Result<()> {
    private::narrow_umask();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::Runtime)?;
    let outcome = runtime.block_on(run(options));
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn run(mut options: ServeOptions) -> Result<()> {
    // From here on, and so before anything is served, a signal ends the coordinator in order.
    let signals = Signals::catch()?;
    private::own_dir(&options.root)?;
    let (store, kind) = open_store(&options).await?;
    private::close(&options.root)?;
    let file = options.root.join("clock.json");
    let clock = Clock::open(&file).map_err(|e| io(format!("open {}", file.display()), e))?;
    let credentials = options.api.identity.take().map(Credentials::open).transpose()?;
    let own = credentials.as_deref().map(own_name).transpose()?;
    let signer = options.ca.as_deref().map(|dir| Signer::open(dir, store.clone())).transpose()?;
    let signer = signer.map(Arc::new);
    let listener = match (&credentials, options.api.listen.is_empty()) {
        (_, true) => None,
        (Some(credentials), false) => {
            Some(TlsListener::bind(&options.api.listen, credentials.clone()).await?)
        }
        (None, false) => {
            return Err(Error::ListenWithoutIdentity);
        }
    };
    let address = address(&options, listener.as_ref().map_or(&[], TlsListener::addresses))?;
    let name = options.name.or(own).map_or_else(|| "coordinator".parse(), Ok)?;
    let fleet = ClusterState::new(
        Options {
            fleet_id: options.fleet_id,
            name,
            address,
            store: kind,
            ttl: options.ttl,
            patience: options.patience,
            pushes: 64,
            limits: Limits { per_node: 16, per_tenant: 1000, total: 20_000 },
        },
        store,
        Arc::new(Network { credentials: credentials.clone() }),
        clock.clone(),
    );
    if let Some(credentials) = &credentials {
        let source = signer.clone().map_or(renewal::Source::Remote, renewal::Source::Local);
        tokio::spawn(renewal::keep(credentials.clone(), source, clock));
        tokio::spawn(revocations::run(fleet.clone(), credentials.clone()));
    }
    let app = api::router(fleet.clone(), signer.zip(credentials))?;
    let mut servers = Servers { fleet, app, tasks: JoinSet::new() };
    if let Some(listener) = listener {
        tracing::info!(addresses = ?listener.addresses(), "serving over TLS");
        let app = servers.app.clone().into_make_service_with_connect_info::<Peer>();
        let serving = axum::serve(listener, app).with_graceful_shutdown(servers.ending());
        servers.tasks.spawn(serving.into_future());
    }
    let socket = socket(&options.root);
    let unix = listen(&socket).map_err(|e| io(format!("listen on {}", socket.display()), e))?;
    tracing::info!(socket = %socket.display(), "serving");
    service::ready(&format!("serving {}", socket.display()));
    // A sign of life that is sent at all shows that tasks are still run.
    tokio::spawn(service::live(|| std::future::ready(())));
    let app = servers.app.clone().into_make_service_with_connect_info::<Peer>();
    let serving = axum::serve(unix, app).with_graceful_shutdown(servers.ending());
    servers.tasks.spawn(serving.into_future());
    servers.until_ended(&socket, signals).await
}

/// The signals that ask the coordinator to end: SIGTERM and SIGINT.
struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn catch() -> Result<Signals> {
        let catch = |kind| signal(kind).map_err(|e| io("watch signals", e));
        Ok(Signals { term: catch(SignalKind::terminate())?, int: catch(SignalKind::interrupt())? })
    }

    /// Waits for the next signal.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// The servers of a coordinator, and the tasks that they run in.
struct Servers {
    fleet: Arc<ClusterState>,
    app: axum::Router,
    tasks: JoinSet<std::io::Result<()>>,
}

impl Servers {
    /// Resolves when nothing new is to be taken.
    fn ending(&self) -> impl Future<Output = ()> + Send + 'static {
        let fleet = self.fleet.clone();
        async move { fleet.lifecycle.shutdown.begun().await }
    }

    /// Works and serves until a signal asks it to end, and what is under way has ended or has had
    /// its time.
    async fn until_ended(mut self, socket: &Path, mut signals: Signals) -> Result<()> {
        let fleet = self.fleet.clone();
        let work = tokio::spawn(async move { crate::run(&fleet).await });
        let outcome = tokio::select! {
            Some(ended) = self.tasks.join_next() => {
                Err(Error::TaskEnded { what: "serving", how: format!("{ended:?}") })
            }
            ended = work => {
                Err(Error::TaskEnded { what: "the coordinator's work", how: format!("{ended:?}") })
            }
            () = signals.next() => Ok(()),
        };
        service::stopping();
        // Another one may serve there before this one's sessions have ended.
        let _ = std::fs::remove_file(socket);
        outcome?;
        tracing::info!("ends when what is under way has ended");
        self.fleet.lifecycle.shutdown.begin();
        let over = async {
            while self.tasks.join_next().await.is_some() {}
            self.fleet.lifecycle.shutdown.over().await;
        };
        tokio::select! {
            () = over => tracing::info!("ends"),
            () = tokio::time::sleep(GRACE) => tracing::warn!("ends: what is under way is cut off"),
            () = signals.next() => tracing::warn!("ends at once, as asked"),
        }
        Ok(())
    }
}

async fn open_store(options: &ServeOptions) -> Result<(Arc<dyn Store>, &'static str)> {
    Ok(match &options.store {
        StoreOptions::Sqlite => {
            let path = options.root.join("fleet.db");
            (Arc::new(SqliteStore::open(&path)?), "sqlite")
        }
        StoreOptions::Etcd(etcd) => (Arc::new(EtcdStore::connect(etcd.clone()).await?), "etcd"),
    })
}

/// Returns the name of the coordinator that the identity is of. Errors: `wrong_identity`.
fn own_name(credentials: &Credentials) -> Result<Name> {
    match credentials.credential().facts.identity {
        Identity::Coordinator(name) => Ok(name),
        other => Err(Error::NotACoordinator { holder: other.holder() }),
    }
}

/// Returns where others reach the coordinator. Errors: `invalid_value`, where only wildcards are
/// known.
fn address(options: &ServeOptions, bound: &[SocketAddr]) -> Result<String> {
    let reachable = bound.iter().find(|address| !address.ip().is_unspecified());
    match (&options.api.advertise, reachable) {
        (Some(address), _) => Ok(address.clone()),
        (None, Some(address)) => Ok(address.to_string()),
        (None, None) if matches!(options.store, StoreOptions::Etcd(_)) && !bound.is_empty() => {
            Err(Error::Wildcard)
        }
        (None, None) => Ok(format!("unix:{}", socket(&options.root).display())),
    }
}

fn socket(root: &Path) -> PathBuf {
    root.join("coordinator.sock")
}

/// Binds the socket under another name first, so that nobody finds it with a wider mode. A socket
/// that is there was left by a coordinator that was killed: the store's lock, or the election, says
/// which one lives.
fn listen(socket: &Path) -> std::io::Result<UnixListener> {
    let early = socket.with_extension("new");
    let _ = std::fs::remove_file(&early);
    let listener = UnixListener::bind(&early)?;
    std::fs::set_permissions(&early, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&early, socket)?;
    Ok(listener)
}
