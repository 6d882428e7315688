//! The values of jobs' variables: in a file beside the record until the job has ended, then overwritten.
//!
//! A record is copied about (the database's log, its free pages, backups of it); what is secret is in one
//! file only. It is durable before the record, so that no job runs with other values than it was given.

use crate::Result;
use crate::blocking::blocking;
use crate::node::Node;
use crate::problem::io;
use crate::state_dir::write_atomically;
use mvm_api::Problem;
use mvm_model::{Job, JobId};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Names and values.
type Values = BTreeMap<String, String>;

impl Node {
    fn values_file(&self, id: JobId) -> PathBuf {
        self.job_dir(id).join("values.json")
    }

    /// Keeps a job's values until [`Node::forget_values`]. Its directory is there.
    pub(super) async fn keep_values(&self, id: JobId, values: Values) -> Result<()> {
        let file = self.values_file(id);
        blocking(move || keep(&file, &values)).await
    }

    /// The values that a job's command is to have. Errors: `record_damaged`, `io`.
    pub(super) async fn values_of(&self, job: &Job) -> Result<Values> {
        if !job.values_apart {
            return Ok(job.spec.env.clone());
        }
        let file = self.values_file(job.id);
        blocking(move || read(&file)).await
    }

    /// Overwrites and removes a job's values, if there are any.
    pub(super) async fn forget_values(&self, id: JobId) {
        let file = self.values_file(id);
        if let Err(problem) = blocking(move || forget(&file)).await {
            tracing::error!(job = %id, "its variables' values are still there: {problem}");
        }
    }

    /// Takes values out of records of earlier versions, and out of whatever the database keeps of
    /// records that were changed.
    pub(super) async fn part_values(&self) -> Result<()> {
        let has = |job: &&Job| !job.values_apart && job.spec.env.values().any(|v| !v.is_empty());
        let old: Vec<Job> =
            self.records.read(|world| world.jobs.values().filter(has).cloned().collect());
        if old.is_empty() {
            return Ok(());
        }
        for job in old.iter().filter(|job| !job.state.has_ended()) {
            self.keep_values(job.id, job.spec.env.clone()).await?;
        }
        self.records
            .change(|_, changes| {
                for mut job in old {
                    job.part_values();
                    changes.put_job(job);
                }
                Ok(())
            })
            .await?;
        self.parts.store.scrub().await?;
        Ok(())
    }
}

fn keep(file: &Path, values: &Values) -> Result<()> {
    let bytes = serde_json::to_vec(values).map_err(|e| Problem::internal(e.to_string()))?;
    write_atomically(file, &bytes, 0o600)?;
    let mut dirs = file.ancestors().skip(1).take(2);
    dirs.try_for_each(|dir| File::open(dir).and_then(|dir| dir.sync_all()))
        .map_err(|e| io(format!("write {}", file.display()), e))
}

fn read(file: &Path) -> Result<Values> {
    let damaged = |cause: &dyn std::fmt::Display| {
        let detail =
            format!("the values of its variables cannot be read: {}: {cause}", file.display());
        Problem::new(500, "record_damaged", detail).hint("submit it again")
    };
    let bytes = std::fs::read(file).map_err(|e| damaged(&e))?;
    serde_json::from_slice(&bytes).map_err(|e| damaged(&e))
}

fn forget(file: &Path) -> Result<()> {
    let forget = || {
        let mut old = match OpenOptions::new().write(true).open(file) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            old => old?,
        };
        // Before it is nobody's: a block that is freed keeps what it has.
        let zeroes = vec![0; old.metadata()?.len() as usize];
        old.write_all(&zeroes)?;
        old.sync_data()?;
        std::fs::remove_file(file)
    };
    forget().map_err(|e| io(format!("remove {}", file.display()), e))
}
