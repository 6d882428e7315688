//! The errors of jobs.

use super::advice::FREE_SPACE;
use mvm_model::{Code, JobId, JobState, Mib};
use std::borrow::Cow;
use std::path::PathBuf;

/// Why something was not done for a job.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// The bytes that arrive for a tenant's jobs would take more than they leave to others.
    #[error(
        "{} has {free} left, of which {} are kept back: the {arriving} \
         that arrive for this tenant may not take more than they leave to others",
        disk.display(), reserve.0
    )]
    NoRoom {
        /// A path on the disk.
        disk: PathBuf,
        /// How much arrives for the tenant.
        arriving: Mib,
        /// How much of the disk is free.
        free: Mib,
        /// How much of that no files of tenants may take.
        reserve: Mib,
    },
    /// The client stopped sending inputs before their end.
    #[error("the inputs broke off: {cause}")]
    InputsBrokeOff {
        /// The error of the request's body.
        cause: String,
    },
    /// The inputs are larger than any may be.
    #[error("the inputs have over {gib} GiB")]
    InputsTooLarge {
        /// The limit in GiB.
        gib: u64,
    },
    /// Inputs came for a job that is queued or further.
    #[error("job {id} is {state}")]
    InputsTooLate {
        /// The job.
        id: JobId,
        /// Its state.
        state: JobState,
    },
    /// A client wants to go on following a job that no client was attached to.
    #[error("job {id} is {state} and attached to no client")]
    NotAttached {
        /// The job.
        id: JobId,
        /// Its state.
        state: JobState,
    },
    /// The file with the values of the job's variables cannot be read.
    #[error("the values of its variables cannot be read: {}: {source}", file.display())]
    ValuesDamaged {
        /// The file.
        file: PathBuf,
        /// Why it cannot be read.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl JobError {
    /// Returns the stable code of the error.
    pub fn code(&self) -> Code {
        match self {
            Self::NoRoom { .. } => Code::NoSpace,
            Self::InputsBrokeOff { .. } => Code::InputsIncomplete,
            Self::InputsTooLarge { .. } => Code::TooLarge,
            Self::InputsTooLate { .. } | Self::NotAttached { .. } => Code::WrongState,
            Self::ValuesDamaged { .. } => Code::RecordDamaged,
        }
    }

    /// Returns what to do next, or nothing.
    pub fn hint(&self) -> Cow<'static, str> {
        match self {
            Self::NoRoom { .. } => FREE_SPACE.into(),
            Self::InputsBrokeOff { .. } | Self::InputsTooLarge { .. } => "".into(),
            Self::InputsTooLate { .. } => {
                "inputs are given before a job is queued: submit another".into()
            }
            Self::NotAttached { id, .. } => format!("follow it with `mvm job logs -f {id}`").into(),
            Self::ValuesDamaged { .. } => "submit it again".into(),
        }
    }
}
