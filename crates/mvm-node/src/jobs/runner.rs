//! The state of one run of a job.

use super::dispatcher::Dispatcher;
use super::job_channel::JobChannel;
use super::limit::Limit;
use mvm_model::job::Outcome;
use mvm_model::{Instance, JobId};
use std::sync::Arc;

/// The working directory of jobs in the guest.
pub(super) const WORK: &str = "/work";
/// One run of a job.
pub(super) struct Runner {
    pub dispatcher: Arc<Dispatcher>,
    pub channel: Arc<JobChannel>,
    pub id: JobId,
    pub instance: Instance,
    pub limit: Limit,
    /// Whether the guest did not act in time or was interrupted, so that its machine must be
    /// discarded.
    pub cut: bool,
    /// Whether an earlier agent has begun the command.
    pub again: bool,
}

impl Runner {
    /// Does work that needs the guest, until the deadline passes or a signal comes.
    pub(super) async fn hold<T>(
        &mut self,
        doing: &str,
        work: impl Future<Output = T>,
    ) -> std::result::Result<T, Outcome> {
        self.limit.hold(work).await.map_err(|cut| {
            self.cut = true;
            self.limit.outcome(cut, doing)
        })
    }

    /// Like [`Runner::hold`], for a command that is being resumed.
    pub(super) async fn hold_on<T>(
        &mut self,
        doing: &str,
        work: impl Future<Output = T>,
    ) -> std::result::Result<T, Outcome> {
        self.limit.hold_on(work).await.map_err(|cut| {
            self.cut = true;
            self.limit.outcome(cut, doing)
        })
    }
}
