//! Faults of mvm itself.

use tokio::task::JoinError;

/// A fault of mvm itself. The agent's log says more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InternalError {
    /// A task panicked.
    #[error("{0}")]
    Task(JoinError),
    /// The task of an operation panicked.
    #[error("the operation did not end well: {0}")]
    Operation(JoinError),
    /// The task of a call panicked.
    #[error("the call did not end well: {0}")]
    Call(JoinError),
    /// All ids that were drawn for an instance are taken.
    #[error("no free instance id was drawn")]
    NoInstanceId,
    /// The id that was drawn for a job is taken.
    #[error("no free job id was drawn")]
    NoJobId,
    /// A job is waited for whose channel is gone.
    #[error("a job's channel was cleared away")]
    ChannelCleared,
    /// A cache was given up before it was copied once.
    #[error("a cache was never copied")]
    CacheNeverCopied,
    /// A claim was given up before an instance was tried.
    #[error("a claim ended without a result")]
    ClaimWithoutResult,
    /// The claim's task ended without saying how.
    #[error("the claim ended without a result")]
    ClaimVanished,
    /// An audit log was opened and is not there.
    #[error("a log that was opened is not there")]
    LogNotOpen,
    /// A task still receives an image that is to be finished.
    #[error("an image is still being received")]
    ImageStillReceived,
    /// An SSH key cannot be made.
    #[error("cannot make an SSH key: {0}")]
    SshKey(#[from] ssh_key::Error),
    /// The host's kernel gives no random bytes.
    #[error("the host gives no random bytes: {0}")]
    Random(getrandom::Error),
    /// A value cannot be written as JSON.
    #[error("{0}")]
    Json(serde_json::Error),
    /// The metrics cannot be written as text.
    #[error("{0}")]
    Metrics(std::fmt::Error),
}
