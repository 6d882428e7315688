//! Routes of tenants, their pools, and pools behind ports.

use super::rows::{AGENT, BOTH, FLEET, narrowed, on, tenant};
use crate::expose::{ExposePool, ExposeView, UnexposePool};
use crate::routes::route::Route;
use crate::types::*;
use mvm_model::pool::RevisionEntry;

pub(super) const ROUTES: &[Route] = &[
    narrowed(BOTH, "GET", "/v1/tenants", "tenant.list", "Lists the tenants").lists::<TenantView>(),
    on(AGENT, "POST", "/v1/tenants", "tenant.create", "Makes a tenant", FLEET)
        .takes::<CreateTenant>()
        .gives::<TenantView>()
        .once(),
    tenant(BOTH, "GET", "/v1/tenants/{tenant}", "tenant.show", "Shows a tenant")
        .gives::<TenantView>(),
    on(AGENT, "PATCH", "/v1/tenants/{tenant}", "tenant.update", "Changes a tenant's quotas", FLEET)
        .takes::<QuotaPatch>()
        .gives::<TenantView>(),
    on(
        AGENT,
        "DELETE",
        "/v1/tenants/{tenant}",
        "tenant.destroy",
        "Removes a tenant that holds nothing",
        FLEET,
    )
    .gives::<Done>(),
    tenant(BOTH, "GET", "/v1/tenants/{tenant}/pools", "tenant.pools", "Lists a tenant's pools")
        .lists::<PoolView>(),
    // The author of a flake runs programs on the node and puts the node's files into images, so a
    // tenant may not choose one.
    on(AGENT, "POST", "/v1/tenants/{tenant}/pools", "pool.create", "Makes a pool", FLEET)
        .takes::<CreatePool>()
        .gives::<PoolView>()
        .once(),
    narrowed(BOTH, "GET", "/v1/pools", "pool.list", "Lists the pools").lists::<PoolView>(),
    tenant(BOTH, "GET", "/v1/tenants/{tenant}/pools/{pool}", "pool.show", "Shows a pool")
        .gives::<PoolView>(),
    on(AGENT, "PATCH", "/v1/tenants/{tenant}/pools/{pool}", "pool.update", "Changes a pool", FLEET)
        .takes::<UpdatePool>()
        .gives::<PoolView>(),
    on(
        AGENT,
        "DELETE",
        "/v1/tenants/{tenant}/pools/{pool}",
        "pool.destroy",
        "Removes a pool",
        FLEET,
    )
    .gives::<Done>(),
    on(
        AGENT,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/build",
        "pool.build",
        "Builds a pool's image",
        FLEET,
    )
    .takes::<BuildPool>()
    .reports::<BuildResult>(),
    on(
        AGENT,
        "DELETE",
        "/v1/tenants/{tenant}/pools/{pool}/build",
        "pool.cancel_build",
        "Ends the build of a pool's image that is under way",
        FLEET,
    )
    .gives::<Done>(),
    tenant(
        AGENT,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/scale",
        "pool.scale",
        "Says how many stand ready",
    )
    .takes::<ScalePool>()
    .gives::<PoolView>(),
    tenant(
        AGENT,
        "GET",
        "/v1/tenants/{tenant}/pools/{pool}/revisions",
        "pool.revisions",
        "Lists revisions",
    )
    .lists::<RevisionView>(),
    tenant(
        AGENT,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/rollback",
        "pool.rollback",
        "Takes an older revision",
    )
    .takes::<Rollback>()
    .gives::<RevisionEntry>()
    .once(),
    // A port on the node's addresses is open to others, so a tenant may not choose one either.
    on(
        AGENT,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/expose",
        "pool.expose",
        "Listens for a pool",
        FLEET,
    )
    .takes::<ExposePool>()
    .gives::<ExposeView>()
    .once(),
    on(
        AGENT,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/unexpose",
        "pool.unexpose",
        "Listens no more",
        FLEET,
    )
    .takes::<UnexposePool>()
    .gives::<Done>(),
    narrowed(AGENT, "GET", "/v1/exposes", "expose.list", "Lists the fronts of all pools")
        .lists::<ExposeView>(),
];
