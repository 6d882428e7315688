//! What one run of a job works with.

use super::dispatcher::Dispatcher;
use super::job_channel::JobChannel;
use super::limit::Limit;
use mvm_model::job::Outcome;
use mvm_model::{Instance, JobId};
use std::sync::Arc;

/// Where a job works in its guest.
pub(super) const WORK: &str = "/work";
/// What runs a job.
pub(super) struct Runner {
    pub dispatcher: Arc<Dispatcher>,
    pub channel: Arc<JobChannel>,
    pub id: JobId,
    pub instance: Instance,
    pub limit: Limit,
    /// The guest did not do in time what it was to, or was interrupted: nobody is to have it again.
    pub cut: bool,
    /// Its command was begun by an agent before this one.
    pub again: bool,
}

impl Runner {
    /// Does something that needs the guest, as long as the job may go on.
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

    /// The same while a command that runs already is taken up.
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
