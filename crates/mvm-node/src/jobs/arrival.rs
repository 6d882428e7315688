//! Accounts for the bytes that arrive for a job.

use super::intake::Arrival;
use super::queue::Jobs;
use crate::records::RecordSet;
use crate::{Error, Result};
use mvm_model::JobId;
use mvm_model::intake::Account;

impl Jobs {
    /// Begins to account for bytes of a job.
    pub(crate) async fn arrival(&self, id: JobId) -> Result<Arrival> {
        let (mut account, others) = self.records.read(|records: &RecordSet| {
            let tenant = records.job(id)?.pool.tenant.clone();
            let used = records.usage(&tenant).disk_mib.bytes();
            let quotas = records.tenant(&tenant)?.quotas;
            let live = |job: &&mvm_model::Job| {
                job.pool.tenant == tenant && job.id != id && !job.state.has_ended()
            };
            let others: Vec<JobId> = records.jobs.values().filter(live).map(|job| job.id).collect();
            Ok::<_, Error>((Account { tenant, quotas, used }, others))
        })?;
        // The inputs of jobs that have not ended are in no record, so the usage does not count
        // them.
        for other in others {
            let waits = tokio::fs::metadata(self.files.inputs(other)).await;
            account.used = account.used.saturating_add(waits.map_or(0, |file| file.len()));
        }
        Ok(Arrival {
            intake: self.intake.clone(),
            account,
            reserve: self.reserve,
            disk: self.files.disk().to_owned(),
            bytes: 0,
            allowed: 0,
        })
    }
}
