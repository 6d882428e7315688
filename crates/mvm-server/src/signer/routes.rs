//! The signer's routes, which every server with the authority's key mounts.

use super::Signer;
use crate::extract::{All, Body, Listing};
use crate::guard::guard;
use crate::listener::TlsListener;
use crate::peer::{Caller, Peer};
use crate::renewal;
use crate::router::Routes;
use crate::{Error, Result};
use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::routing::{get, post};
use mvm_api::identity::{Facts, Identity};
use mvm_api::page::List;
use mvm_api::routes::Server;
use mvm_api::types::{
    IdentityView, Invitation, Invite, RevocationList, Revoke, Signed, SigningRequest,
};
use mvm_clock::Clock;
use mvm_identity::authority;
use mvm_identity::directory::{IdentityDir, Signers};
use mvm_identity::files::io;
use mvm_identity::tls::Credentials;
use mvm_model::Timestamp;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// The state of the handlers.
#[derive(Clone)]
struct Service {
    signer: Arc<Signer>,
    credentials: Arc<Credentials>,
    clock: Clock,
}

type Shared = State<Service>;

/// Returns the signer's routes. `credentials` and `clock` belong to the server that mounts them: a
/// revocation is in force there at once.
pub fn routes<T>(
    signer: Arc<Signer>,
    credentials: Arc<Credentials>,
    clock: Clock,
) -> Result<Routes<T>> {
    let once = signer.once(clock.clone())?;
    let routes = Routes::new()
        .route("/v1/ca/join", post(join))
        .route("/v1/ca/renew", post(renew))
        .route("/v1/ca/crl", get(crl))
        .route("/v1/ca/invites", post(invite))
        .route("/v1/ca/identities", get(identities))
        .route("/v1/ca/revoke", post(revoke))
        .once(once);
    Ok(routes.with_state(Service { signer, credentials, clock }))
}

/// Serves the authority in the directory `dir` at these addresses until SIGTERM or SIGINT. It
/// issues nodes' certificates with this lifetime.
pub async fn serve(
    dir: &Path,
    listen: &[SocketAddr],
    lifetime: Duration,
    clock: Clock,
) -> Result<()> {
    let signer = Arc::new(Signer::embedded(dir)?.lifetime(lifetime));
    let credentials =
        own_identity(&signer, IdentityDir::new(dir.join("server")), clock.wall()).await?;
    let listener = TlsListener::bind(listen, credentials.clone()).await?;
    tracing::info!(addresses = ?listener.addresses(), "serving");
    let source = renewal::Source::Local(signer.clone());
    tokio::spawn(renewal::keep(credentials.clone(), source, clock.clone()));
    let routes = routes(signer, credentials, clock.clone())?;
    let app = guard(routes.into_router(), Server::Signer, clock);
    let served = axum::serve(listener, app.into_make_service_with_connect_info::<Peer>());
    let watch = |kind| signal(kind).map_err(|e| io("watch signals", e));
    let (mut term, mut int) = (watch(SignalKind::terminate())?, watch(SignalKind::interrupt())?);
    tokio::select! {
        outcome = served => outcome.map_err(|e| io("serve", e).into()),
        _ = term.recv() => Ok(()),
        _ = int.recv() => Ok(()),
    }
}

/// Opens the signer's own identity. Where that is missing or invalid, the signer issues itself a
/// new one.
async fn own_identity(
    signer: &Signer,
    dir: IdentityDir,
    wall: Timestamp,
) -> Result<Arc<Credentials>> {
    let good = |credentials: &Arc<Credentials>| {
        let credential = credentials.credential();
        wall < credential.facts.validity.not_after && !credential.due(wall)
    };
    if let Some(credentials) = Credentials::open(dir.clone()).ok().filter(good) {
        return Ok(credentials);
    }
    let identity = Identity::Coordinator("ca".parse()?);
    let key = authority::new_key()?;
    let issued = signer.issue(&identity, &key, wall).await?;
    let (roots, list) = (signer.authority().certificate(), signer.crl(wall).await?);
    dir.store(&issued.pem, &key.serialize_pem(), roots, Some(&list), &Signers::default())?;
    Ok(Credentials::open(dir)?)
}

/// Returns the contents of the certificate that the caller has presented itself.
fn shown(peer: &Peer) -> Result<&Facts> {
    match peer {
        Peer::Certificate { facts, .. } => Ok(facts),
        _ => Err(Error::NoCertificate),
    }
}

async fn join(
    State(service): Shared,
    ConnectInfo(peer): Caller,
    Body(body): Body<SigningRequest>,
) -> Result<Json<Signed>> {
    let token = shown(&peer)?;
    let signed = service.signer.join(token, &body.request, service.clock.wall()).await?;
    tracing::info!(node = %token.identity.name(), "joined");
    Ok(Json(signed))
}

async fn renew(
    State(service): Shared,
    ConnectInfo(peer): Caller,
    Body(body): Body<SigningRequest>,
) -> Result<Json<Signed>> {
    let signed = service.signer.renew(shown(&peer)?, &body.request, service.clock.wall()).await?;
    tracing::info!(who = peer.holder(), "renewed");
    Ok(Json(signed))
}

async fn crl(State(service): Shared) -> Result<Json<RevocationList>> {
    Ok(Json(RevocationList { crl: service.signer.crl(service.clock.wall()).await? }))
}

async fn invite(
    State(service): Shared,
    ConnectInfo(peer): Caller,
    Body(body): Body<Invite>,
) -> Result<Json<Invitation>> {
    let invitation = service.signer.invite(&body, service.clock.wall()).await?;
    tracing::info!(who = peer.holder(), node = %body.name, "invited");
    Ok(Json(invitation))
}

async fn identities(
    State(service): Shared,
    Listing { page, filter: All {} }: Listing,
) -> Result<List<IdentityView>> {
    Ok(page.of(service.signer.identities(service.clock.wall()).await?))
}

async fn revoke(
    State(service): Shared,
    ConnectInfo(peer): Caller,
    Body(body): Body<Revoke>,
) -> Result<Json<RevocationList>> {
    let crl = service.signer.revoke(&body.identity, service.clock.wall()).await?;
    service.credentials.revoke(&crl)?;
    tracing::info!(who = peer.holder(), identity = %body.identity, "revoked");
    Ok(Json(RevocationList { crl }))
}
