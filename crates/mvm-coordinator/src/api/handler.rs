//! What every handler takes and gives.

use crate::Result;
use crate::state::ClusterState;
use axum::Json;
use axum::extract::State;
use mvm_api::page::List;
pub(super) use mvm_server::extract::Listing as Asked;
use std::sync::Arc;

/// The state, as every handler takes it.
pub(super) type Shared = State<Arc<ClusterState>>;

/// The result of most handlers.
pub(super) type Answer<T> = Result<Json<T>>;

/// The result of the handlers of lists: a page.
pub(super) type Listing<T> = Result<List<T>>;
