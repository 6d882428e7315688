//! Handler of the revocation list.

use super::handler::{Answer, Body, Done, Shared, done};
use axum::extract::State;
use mvm_api::Problem;
use mvm_api::types::RevocationList;
use mvm_model::Code;

/// Puts a newer revocation list in force; an older one changes nothing.
pub async fn revoke(State(agent): Shared, Body(body): Body<RevocationList>) -> Answer<Done> {
    let Some(credentials) = &agent.process.credentials else {
        let detail = "this node has no identity: it serves no other machine";
        return Err(Problem::new(Code::IdentityMissing, detail).into());
    };
    if credentials.revoke(&body.crl)? {
        tracing::info!(
            number = credentials.revocations().number(),
            "took a list of revoked certificates"
        );
    }
    Ok(done())
}
