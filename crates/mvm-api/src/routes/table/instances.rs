//! Routes of instances, claims and leases.

use super::rows::{AGENT, BOTH, narrowed, tenant};
use crate::query::{Follow, InstanceFilter, LeaseFilter, SleepOptions, StreamOptions};
use crate::routes::route::Route;
use crate::types::*;

pub(super) const ROUTES: &[Route] = &[
    tenant(
        BOTH,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/claims",
        "claim.create",
        "Claims for a job",
    )
    .takes::<ClaimRequest>()
    .upgrades(),
    tenant(
        BOTH,
        "GET",
        "/v1/tenants/{tenant}/pools/{pool}/instances",
        "pool.instances",
        "Lists instances",
    )
    .lists::<InstanceView>(),
    tenant(
        AGENT,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/instances",
        "instance.create",
        "Makes an instance",
    )
    .takes::<CreateInstance>()
    .gives::<InstanceView>()
    .once(),
    narrowed(BOTH, "GET", "/v1/instances", "instance.list", "Lists the instances of all pools")
        .query::<InstanceFilter>()
        .lists::<InstanceView>(),
    tenant(
        BOTH,
        "GET",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}",
        "instance.show",
        "Shows one",
    )
    .gives::<InstanceView>(),
    tenant(
        BOTH,
        "DELETE",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}",
        "instance.destroy",
        "Destroys one",
    )
    .gives::<Done>(),
    tenant(
        BOTH,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/start",
        "instance.start",
        "Boots it",
    )
    .takes::<MoveInstance>()
    .gives::<Moved>(),
    tenant(
        BOTH,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/wake",
        "instance.wake",
        "Wakes it",
    )
    .takes::<MoveInstance>()
    .gives::<Moved>(),
    tenant(
        BOTH,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/warm",
        "instance.warm",
        "Pauses it",
    )
    .gives::<Moved>(),
    tenant(
        BOTH,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/sleep",
        "instance.sleep",
        "Sleeps it",
    )
    .query::<SleepOptions>()
    .gives::<Moved>(),
    tenant(
        BOTH,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/stop",
        "instance.stop",
        "Stops it",
    )
    .gives::<Moved>(),
    tenant(
        BOTH,
        "POST",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/stream",
        "instance.stream",
        "Opens a stream to the guest's agent; wakes the instance",
    )
    .query::<StreamOptions>()
    .upgrades(),
    tenant(
        BOTH,
        "GET",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/logs",
        "instance.logs",
        "Its console",
    )
    .query::<Follow>()
    .octets(),
    tenant(
        BOTH,
        "GET",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/stats",
        "instance.stats",
        "Its use",
    )
    .gives::<InstanceStats>(),
    tenant(
        BOTH,
        "GET",
        "/v1/tenants/{tenant}/pools/{pool}/instances/{id}/ssh",
        "instance.ssh",
        "Says what OpenSSH needs to reach it",
    )
    .gives::<SshAccess>(),
    narrowed(BOTH, "GET", "/v1/leases", "lease.list", "Lists the leases")
        .query::<LeaseFilter>()
        .lists::<LeaseView>(),
    narrowed(BOTH, "DELETE", "/v1/leases/{id}", "lease.release", "Ends a lease").gives::<Done>(),
    narrowed(
        BOTH,
        "POST",
        "/v1/leases/{id}/extend",
        "lease.extend",
        "Gives a lease another length",
    )
    .takes::<ExtendLease>()
    .gives::<LeaseView>(),
];
