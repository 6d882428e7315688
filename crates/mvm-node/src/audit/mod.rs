//! The audit log, as the agent writes it: every call that changes something, every session, and the
//! agent's own operations.
//!
//! An act has a record when it begins, before its first side effect, and one when its outcome is
//! known, durable before the response is sent. If the agent is killed in between, the second is
//! missing. The act travels with its task ([`with_act`]), so that code far below can note what it
//! finds out: the instance that was made, or the lease that was taken.

mod final_frame;
mod log;
pub mod session;

use crate::Result;
use crate::blocking::blocking;
use crate::locks::locked;
use crate::records::Records;
use log::{Logs, Written};
use mvm_api::audit::{AuditLogView, PrunedView};
use mvm_clock::Clock;
use mvm_model::audit::{AGENT, Entry, NODE_LOG, OK, bounded};
use mvm_model::{Instance, InstanceRef, Job, JobId, Name, Timestamp};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as Lock};

tokio::task_local! {
    /// The act of the current task.
    static CURRENT: Act;
}

/// The audit logs of the node.
pub struct Audit {
    logs: Logs,
    records: Counter,
    failures: Counter,
}

impl Audit {
    /// Opens the logs in this directory, for records with this clock's times.
    pub fn open(dir: PathBuf, clock: Clock) -> Result<Audit> {
        Ok(Audit {
            logs: Logs::open(dir, clock)?,
            records: Counter::default(),
            failures: Counter::default(),
        })
    }

    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        let what = "Records written to the audit logs since the agent started";
        registry.register("audit_records", what, self.records.clone());
        let what = "Records that could not be written to an audit log";
        registry.register("audit_failures", what, self.failures.clone());
    }

    /// Lists all logs by name.
    pub fn list(&self) -> Vec<AuditLogView> {
        self.logs.list()
    }

    /// Returns the files of a log, oldest first; none where the log does not exist.
    pub fn files(&self, log: &str) -> Vec<PathBuf> {
        self.logs.files(log)
    }

    /// Opens the files of a log together. A file that is pruned meanwhile can still be read.
    pub fn open_files(&self, log: &str) -> std::io::Result<Vec<(PathBuf, File)>> {
        self.logs.open_files(log)
    }

    /// Removes the records of these logs that were written before a time, on behalf of this actor.
    pub fn prune(
        &self,
        logs: &[String],
        before: Timestamp,
        entry: &Entry,
    ) -> Result<Vec<PrunedView>> {
        let prune = |log: &String| self.logs.prune(log, before, entry, |_| Ok(()));
        logs.iter().map(prune).collect()
    }

    /// At start: renames the logs of destroyed tenants.
    pub fn retire_all_but(&self, lives: impl Fn(&str) -> bool) -> Result<()> {
        self.logs.retire_all_but(lives)
    }

    fn append(&self, log: &str, entry: Entry) -> Result<Written> {
        let written = self.logs.append(log, entry);
        match &written {
            Ok(_) => self.records.inc(),
            Err(_) => self.failures.inc(),
        };
        written
    }
}

/// An act under way whose beginning is in the log. Every holder of a clone can add what it finds
/// out.
#[derive(Clone)]
pub struct Act(Arc<Inner>);

struct Inner {
    audit: Arc<Audit>,
    log: String,
    entry: Lock<Entry>,
    /// Whether another task ends the act than the one that began it.
    deferred: AtomicBool,
}

impl Act {
    /// Records that an act begins, in the log of this tenant or else the node's.
    pub fn begin(audit: &Arc<Audit>, tenant: Option<&Name>, mut entry: Entry) -> Result<Act> {
        let log = tenant.map_or(NODE_LOG, Name::as_str).to_owned();
        let written = audit.append(&log, entry.clone())?;
        entry.of = Some(written.number);
        let (audit, entry) = (audit.clone(), Lock::new(entry));
        Ok(Act(Arc::new(Inner { audit, log, entry, deferred: AtomicBool::new(false) })))
    }

    /// Records the act's outcome: [`OK`] or an error's code. Returns when the record is durable.
    pub async fn end(&self, outcome: &str) {
        let Inner { audit, log, entry, .. } = &*self.0;
        let mut entry = locked(entry).clone();
        entry.outcome = Some(outcome.to_owned());
        let made = (entry.verb == "tenant.create" && outcome == OK && log == NODE_LOG)
            .then(|| Entry { of: None, ..entry.clone() });
        let unmade = (entry.verb == "tenant.destroy" && outcome == OK).then_some(log);
        let mut outcomes = vec![audit.append(log, entry)];
        if let Some(entry) = made {
            // This is the first record in the new tenant's own log.
            let tenant = entry.target.clone();
            outcomes.push(audit.append(&tenant, entry));
        }
        for outcome in outcomes {
            match outcome {
                Ok(written) => audit.logs.synced(written).await,
                Err(error) => tracing::error!("{error}"),
            }
        }
        if let Some(tenant) = unmade.filter(|log| *log != NODE_LOG) {
            let (audit, tenant) = (audit.clone(), tenant.clone());
            if let Err(error) = blocking(move || audit.logs.retire(&tenant)).await {
                tracing::error!("{error}");
            }
        }
    }

    /// Lets another task end the act, since the outcome is not known when the response is sent.
    fn defer(&self) {
        self.0.deferred.store(true, Ordering::Relaxed);
    }

    /// Returns whether another task ends the act.
    pub fn is_deferred(&self) -> bool {
        self.0.deferred.load(Ordering::Relaxed)
    }

    fn note(&self, change: impl FnOnce(&mut Entry)) {
        change(&mut locked(&self.0.entry));
    }
}

/// Returns the outcome in a record's form.
pub fn outcome<T>(outcome: &Result<T>) -> String {
    outcome.as_ref().map_or_else(|error| error.code().to_string(), |_| OK.to_owned())
}

/// Runs `work` with the caller's act, for a task of its own.
pub fn with_act<T>(work: impl Future<Output = T> + Send) -> impl Future<Output = T> + Send {
    let act = CURRENT.try_with(Act::clone).ok();
    async move {
        match act {
            Some(act) => CURRENT.scope(act, work).await,
            None => work.await,
        }
    }
}

/// Runs `work` as a part of `act`.
pub fn within<T>(act: Act, work: impl Future<Output = T>) -> impl Future<Output = T> {
    CURRENT.scope(act, work)
}

/// Returns the caller's act for another task to end, where its outcome is known only after the
/// response.
pub fn take_over() -> Option<Act> {
    CURRENT.try_with(|act| (act.defer(), act.clone()).1).ok()
}

/// Notes the target of the caller's act.
pub fn note_target(target: impl ToString) {
    let _ = CURRENT.try_with(|act| act.note(|entry| entry.target = target.to_string()));
}

/// Notes the lease that the caller's act takes, and its instance.
pub fn note_lease(instance: &Instance) {
    let Some(lease) = &instance.lease else { return };
    let (target, lease) = (instance.reference().to_string(), lease.id.to_string());
    let _ = CURRENT.try_with(|act| {
        act.note(|entry| (entry.target, entry.lease) = (target, Some(lease)));
    });
}

/// Notes the job that the caller's act creates.
pub fn note_job(id: JobId) {
    let _ = CURRENT.try_with(|act| act.note(|entry| entry.job = Some(id.to_string())));
}

/// Records the agent's own operations, and the runs of jobs.
pub(crate) struct Auditor {
    audit: Arc<Audit>,
    records: Arc<Records>,
}

impl Auditor {
    /// Writes to these logs, with the names in these records.
    pub(crate) fn new(audit: Arc<Audit>, records: Arc<Records>) -> Auditor {
        Auditor { audit, records }
    }

    /// Records that a job begins to run in an instance, as an act of the job's submitter. An
    /// accepted job runs even if the log cannot be written.
    pub(crate) fn begin_job(&self, id: JobId, instance: &Instance) -> Option<Act> {
        let about = |job: &Job| (job.holder.clone(), job.spec.argv.first().map(|p| bounded(p)));
        let (actor, program) = self.records.read(|records| records.jobs.get(&id).map(about))?;
        let entry = Entry {
            actor,
            verb: "job.run".to_owned(),
            target: instance.reference().to_string(),
            lease: instance.lease.as_ref().map(|lease| lease.id.to_string()),
            job: Some(id.to_string()),
            program,
            ..Entry::default()
        };
        let act = Act::begin(&self.audit, Some(&instance.pool.tenant), entry);
        act.inspect_err(|error| tracing::error!("{error}")).ok()
    }

    /// Runs an operation of the agent itself as an act. Within a call, it is part of that call's
    /// act. The operation runs even if the log cannot be written.
    pub(crate) async fn as_agent<T>(
        &self,
        verb: &str,
        tenant: Option<&Name>,
        target: impl ToString,
        lease: Option<String>,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        // Acts may be nested, which would take too much of the stack.
        let work = Box::pin(work);
        if CURRENT.try_with(|_| ()).is_ok() {
            return work.await;
        }
        let (actor, verb, target) = (AGENT.to_owned(), verb.to_owned(), target.to_string());
        let tenant = self.known_tenant(tenant);
        let entry = Entry { actor, verb, target, lease, ..Entry::default() };
        let act = match Act::begin(&self.audit, tenant.as_ref(), entry) {
            Ok(act) => act,
            Err(error) => {
                tracing::error!("{error}");
                return work.await;
            }
        };
        let result = within(act.clone(), work).await;
        act.end(&outcome(&result)).await;
        result
    }

    /// Does as [`Auditor::as_agent`], for one instance.
    pub(crate) async fn as_agent_on<T>(
        &self,
        verb: &str,
        instance: mvm_model::InstanceId,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let about =
            |i: &Instance| (i.reference(), i.lease.as_ref().map(|lease| lease.id.to_string()));
        let about = self.records.read(|records| records.instances.get(&instance).map(about));
        match about {
            Some((reference, lease)) => {
                let InstanceRef { pool, .. } = &reference;
                self.as_agent(verb, Some(&pool.tenant), &reference, lease, work).await
            }
            None => work.await,
        }
    }

    /// Returns the tenant if it exists, so that a call with an unknown name does not begin a log.
    pub(crate) fn known_tenant(&self, tenant: Option<&Name>) -> Option<Name> {
        let tenant = tenant?;
        self.records.read(|records| records.tenants.contains_key(tenant)).then(|| tenant.clone())
    }
}
