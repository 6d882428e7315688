//! An authority for one test, and servers and clients with its certificates.

use axum::extract::ConnectInfo;
use axum::routing::{get, post};
use axum::{Json, Router};
use mvm_api::identity::Identity;
use mvm_api::routes::Server;
use mvm_api::{Client, ClientError, Problem};
use mvm_clock::Clock;
use mvm_identity::directory::Signers;
use mvm_identity::tls::{Credentials, Expect};
use mvm_identity::{Authority, Credential, authority};
use mvm_model::Timestamp;
use mvm_server::signer::Signer;
use mvm_server::{Peer, TlsListener, guard, signer};
use mvm_store::SqliteStore;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

pub const HOUR: Duration = Duration::from_secs(3600);

/// Returns the wall clock, which handshakes go by.
pub fn now() -> Timestamp {
    Clock::system().wall()
}

pub fn id(text: &str) -> Identity {
    format!("spiffe://mvm/{text}").parse().expect("an identity")
}

/// An authority in a temporary directory.
pub struct Lab {
    pub dir: TempDir,
    pub signer: Arc<Signer>,
}

impl Lab {
    pub fn new() -> Lab {
        let dir = tempfile::tempdir().expect("directory");
        Authority::create(dir.path(), now()).expect("an authority");
        let signer = Lab::signer_on(&dir, Arc::new(SqliteStore::in_memory().expect("store")));
        Lab { dir, signer }
    }

    pub fn signer_on(dir: &TempDir, store: Arc<SqliteStore>) -> Arc<Signer> {
        Arc::new(Signer::open(dir.path(), store).expect("a signer"))
    }

    /// Returns a credential for this identity, valid for `lifetime`.
    pub fn credential(&self, identity: &str, lifetime: Duration) -> Credential {
        self.credential_at(identity, lifetime, now())
    }

    pub fn credential_at(&self, identity: &str, lifetime: Duration, now: Timestamp) -> Credential {
        let key = authority::new_key().expect("key");
        let authority = self.signer.authority();
        let issued = authority.issue(&id(identity), &key, lifetime, now).expect("issued");
        let both = format!("{}\n{}", issued.pem, key.serialize_pem());
        let roots = authority.certificate().as_bytes();
        Credential::read(both.as_bytes(), roots, None, Signers::default()).expect("a credential")
    }

    pub fn credentials(&self, identity: &str) -> Arc<Credentials> {
        Credentials::in_memory(self.credential(identity, HOUR)).expect("a credentials")
    }

    /// Starts a signer that also serves `/v1/agent` to every client that gets in. Returns its
    /// address.
    pub async fn serve(&self, credentials: &Arc<Credentials>) -> String {
        let loopback = ["127.0.0.1:0".parse().expect("address")];
        let listener = TlsListener::bind(&loopback, credentials.clone()).await.expect("listens");
        let address = listener.addresses()[0].to_string();
        let clock = Clock::system();
        let signer = signer::routes(self.signer.clone(), credentials.clone(), clock.clone());
        let signer = signer.expect("routes").into_router();
        let app = guard(signer, Server::Signer, clock).merge(open_routes());
        let app = app.into_make_service_with_connect_info::<Peer>();
        tokio::spawn(async move { axum::serve(listener, app).await });
        address
    }

    pub fn client(&self, address: &str, credential: Credential) -> Client {
        let credentials = Credentials::in_memory(credential).expect("a credentials");
        mvm_identity::client(address, credentials, Expect::Coordinator)
    }
}

/// Routes without the table's checks: they show what the handshake alone lets through.
fn open_routes() -> Router {
    async fn who(ConnectInfo(peer): ConnectInfo<Peer>) -> Json<String> {
        Json(peer.holder())
    }
    Router::new().route("/who", get(who)).route("/echo", post(|body: Json<String>| async { body }))
}

/// Returns the problem that a call must end with.
pub fn refused<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> Problem {
    outcome.expect_err("refused").into_problem()
}
