//! The signer's routes: mounted by whoever has the authority's key.

use super::signer::Signer;
use super::wire::{
    IdentityView, Invitation, Invite, RevocationList, Revoke, Signed, SigningRequest,
};
use super::{Facts, Result, now};
use crate::Problem;
use crate::body::Body;
use crate::peer::{Caller, Peer};
use crate::routes::Routes;
use crate::tls::Keeper;
use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::routing::{get, post};
use std::sync::Arc;

/// What the handlers get.
#[derive(Clone)]
struct Service {
    signer: Arc<Signer>,
    keeper: Arc<Keeper>,
}

type Shared = State<Service>;

/// The signer's routes. `keeper` is of the server that mounts them: what is revoked here counts
/// there at once.
pub fn routes<T>(signer: Arc<Signer>, keeper: Arc<Keeper>) -> Routes<T> {
    Routes::new()
        .route("/v1/ca/join", post(join))
        .route("/v1/ca/renew", post(renew))
        .route("/v1/ca/crl", get(crl))
        .route("/v1/ca/invites", post(invite))
        .route("/v1/ca/identities", get(identities))
        .route("/v1/ca/revoke", post(revoke))
        .with_state(Service { signer, keeper })
}

/// What the certificate says that the caller has shown itself.
fn shown(peer: &Peer) -> Result<&Facts> {
    match peer {
        Peer::Certificate { facts, .. } => Ok(facts),
        _ => Err(Problem::new(403, "forbidden", "this is for those who show a certificate")),
    }
}

async fn join(
    State(service): Shared,
    ConnectInfo(peer): Caller,
    Body(body): Body<SigningRequest>,
) -> Result<Json<Signed>> {
    let token = shown(&peer)?;
    let signed = service.signer.join(token, &body.request, now()).await?;
    tracing::info!(node = %token.identity.name(), "joined");
    Ok(Json(signed))
}

async fn renew(
    State(service): Shared,
    ConnectInfo(peer): Caller,
    Body(body): Body<SigningRequest>,
) -> Result<Json<Signed>> {
    let signed = service.signer.renew(shown(&peer)?, &body.request, now()).await?;
    tracing::info!(who = peer.holder(), "renewed");
    Ok(Json(signed))
}

async fn crl(State(service): Shared) -> Result<Json<RevocationList>> {
    Ok(Json(RevocationList { crl: service.signer.crl(now()).await? }))
}

async fn invite(
    State(service): Shared,
    ConnectInfo(peer): Caller,
    Body(body): Body<Invite>,
) -> Result<Json<Invitation>> {
    let invitation = service.signer.invite(&body, now()).await?;
    tracing::info!(who = peer.holder(), node = %body.name, "invited");
    Ok(Json(invitation))
}

async fn identities(State(service): Shared) -> Result<Json<Vec<IdentityView>>> {
    Ok(Json(service.signer.identities(now()).await?))
}

async fn revoke(
    State(service): Shared,
    ConnectInfo(peer): Caller,
    Body(body): Body<Revoke>,
) -> Result<Json<RevocationList>> {
    let crl = service.signer.revoke(&body.identity, now()).await?;
    service.keeper.revoke(&crl)?;
    tracing::info!(who = peer.holder(), identity = %body.identity, "revoked");
    Ok(Json(RevocationList { crl }))
}
