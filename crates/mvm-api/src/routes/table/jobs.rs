//! Routes of jobs and events.

use super::rows::{AGENT, BOTH, OPERATOR, narrowed, on, tenant};
use crate::audit::{AuditLogView, PruneAudit, PruneResult};
use crate::jobs::{JobFilter, JobView, SubmitJob};
use crate::query::{AttachOptions, EventFilter, Follow, LogOptions, WaitOptions};
use crate::routes::builder::schema_of;
use crate::routes::route::Route;
use crate::routes::shape::Sent;
use crate::types::*;

const EVENTS: &[Sent] = &[("event", schema_of::<EventView>), ("gap", schema_of::<EventGap>)];

pub(super) const ROUTES: &[Route] = &[
    tenant(BOTH, "POST", "/v1/tenants/{tenant}/pools/{pool}/jobs", "job.create", "Makes a job")
        .takes::<SubmitJob>()
        .gives::<JobView>()
        .once(),
    narrowed(BOTH, "GET", "/v1/jobs", "job.list", "Lists jobs")
        .query::<JobFilter>()
        .lists::<JobView>(),
    narrowed(BOTH, "GET", "/v1/jobs/{id}", "job.show", "Shows a job").gives::<JobView>(),
    narrowed(
        BOTH,
        "PUT",
        "/v1/jobs/{id}/inputs",
        "job.inputs",
        "Takes a job's inputs, a tar archive",
    )
    .takes_octets()
    .gives::<Done>(),
    narrowed(BOTH, "POST", "/v1/jobs/{id}/submit", "job.submit", "Queues a job").gives::<JobView>(),
    narrowed(
        BOTH,
        "POST",
        "/v1/jobs/{id}/attach",
        "job.attach",
        "Queues a job and streams its output, or goes on with one that was attached before",
    )
    .query::<AttachOptions>()
    .upgrades(),
    narrowed(BOTH, "POST", "/v1/jobs/{id}/cancel", "job.cancel", "Cancels a job")
        .gives::<JobView>(),
    narrowed(BOTH, "GET", "/v1/jobs/{id}/wait", "job.wait", "Answers when a job has ended")
        .query::<WaitOptions>()
        .gives::<JobView>(),
    narrowed(BOTH, "GET", "/v1/jobs/{id}/log", "job.log", "A job's output")
        .query::<LogOptions>()
        .octets(),
    narrowed(
        BOTH,
        "GET",
        "/v1/jobs/{id}/artifacts/{index}",
        "job.artifact",
        "One artifact, a tar archive",
    )
    .octets(),
    narrowed(BOTH, "GET", "/v1/events", "event.list", "Lists what has happened")
        .query::<EventFilter>()
        .lists::<EventView>(),
    narrowed(BOTH, "GET", "/v1/events/stream", "event.stream", "Streams what happens")
        .query::<EventFilter>()
        .streams(EVENTS),
    narrowed(AGENT, "GET", "/v1/audit", "audit.list", "Lists the audit logs")
        .lists::<AuditLogView>(),
    on(AGENT, "POST", "/v1/audit", "audit.prune", "Removes old audit records", OPERATOR)
        .takes::<PruneAudit>()
        .gives::<PruneResult>(),
    narrowed(AGENT, "GET", "/v1/audit/{log}", "audit.show", "Shows an audit log")
        .query::<Follow>()
        .octets(),
];
