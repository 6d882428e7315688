//! The files of jobs: inputs, logs, artifacts, and the values of their variables. The values are in
//! a file beside the record until the job has ended; then the file is overwritten.
//!
//! A record is copied to several places (the database's log, its free pages, its backups), but
//! secrets are in this one file only. The file is durable before the record, so that a job never
//! runs with other values than it was given.

use crate::Result;
use crate::blocking::blocking;
use crate::error::{InternalError, JobError, io};
use crate::state_dir::{StateDir, write_atomically};
use mvm_model::{Job, JobId};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncSeekExt, Take};

/// Variables' values by name.
type Values = BTreeMap<String, String>;

/// The files of jobs.
pub(crate) struct JobFiles {
    state_dir: StateDir,
}

impl JobFiles {
    /// Makes the service for files in this state directory.
    pub(super) fn new(state_dir: StateDir) -> JobFiles {
        JobFiles { state_dir }
    }

    /// Returns the directory that holds the directories of all jobs.
    pub(super) fn all(&self) -> PathBuf {
        self.state_dir.jobs()
    }

    /// Returns a path on the disk that the files are on.
    pub(super) fn disk(&self) -> &Path {
        self.state_dir.path()
    }

    /// Returns the directory of a job.
    pub(crate) fn dir(&self, id: JobId) -> PathBuf {
        self.state_dir.jobs().join(id.to_string())
    }

    /// Returns the path of the archive of a job's inputs.
    pub(crate) fn inputs(&self, id: JobId) -> PathBuf {
        self.dir(id).join("inputs.tar")
    }

    /// Returns the path of a job's log.
    pub(crate) fn log(&self, id: JobId) -> PathBuf {
        self.dir(id).join("log")
    }

    /// Returns the path of the archive of one of a job's artifacts.
    pub(crate) fn artifact(&self, id: JobId, index: usize) -> PathBuf {
        self.dir(id).join(format!("artifact-{index}.tar"))
    }

    /// Returns the present content of the log from byte `from` on; `None` where there is no log.
    pub(super) async fn log_from(
        &self,
        id: JobId,
        from: u64,
    ) -> Result<Option<Take<tokio::fs::File>>> {
        let path = self.log(id);
        let Ok(mut file) = tokio::fs::File::open(&path).await else { return Ok(None) };
        let read = async {
            let length = file.metadata().await?.len();
            file.seek(std::io::SeekFrom::Start(from.min(length))).await?;
            Ok(length.saturating_sub(from))
        };
        let left = read.await.map_err(|e| io(format!("read {}", path.display()), e))?;
        Ok(Some(file.take(left)))
    }

    fn values(&self, id: JobId) -> PathBuf {
        self.dir(id).join("values.json")
    }

    /// Keeps a job's values until [`JobFiles::forget_values`]. The job's directory must exist.
    pub(super) async fn keep_values(&self, id: JobId, values: Values) -> Result<()> {
        let file = self.values(id);
        blocking(move || store_values(&file, &values)).await
    }

    /// Returns the values of the variables of a job's command. Errors: `record_damaged`, `io`.
    pub(super) async fn values_of(&self, job: &Job) -> Result<Values> {
        if !job.values_apart {
            return Ok(job.spec.env.clone());
        }
        let file = self.values(job.id);
        blocking(move || read(&file)).await
    }

    /// Overwrites and removes a job's values, if there are any.
    pub(super) async fn forget_values(&self, id: JobId) {
        let file = self.values(id);
        if let Err(error) = blocking(move || forget(&file)).await {
            tracing::error!(job = %id, "its variables' values are still there: {error}");
        }
    }
}

fn store_values(file: &Path, values: &Values) -> Result<()> {
    let bytes = serde_json::to_vec(values).map_err(InternalError::Json)?;
    write_atomically(file, &bytes, 0o600)?;
    let mut dirs = file.ancestors().skip(1).take(2);
    dirs.try_for_each(|dir| File::open(dir).and_then(|dir| dir.sync_all()))
        .map_err(|e| io(format!("write {}", file.display()), e))
}

fn read(file: &Path) -> Result<Values> {
    let damaged = |source| JobError::ValuesDamaged { file: file.to_owned(), source };
    let bytes = std::fs::read(file).map_err(|e| damaged(e.into()))?;
    Ok(serde_json::from_slice(&bytes).map_err(|e| damaged(e.into()))?)
}

fn forget(file: &Path) -> Result<()> {
    let forget = || {
        let mut old = match OpenOptions::new().write(true).open(file) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            old => old?,
        };
        // Overwritten before the file is removed: a freed block keeps its content.
        let zeroes = vec![0; old.metadata()?.len() as usize];
        old.write_all(&zeroes)?;
        old.sync_data()?;
        std::fs::remove_file(file)
    };
    forget().map_err(|e| io(format!("remove {}", file.display()), e))
}
