//! The errors of the node itself: its state directory, records, logs, and its place in a fleet.

use mvm_model::audit::Flaw;
use mvm_model::{Code, Name};
use std::borrow::Cow;
use std::path::PathBuf;

/// Why the node itself does not do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The state directory's path leaves no room for the names of sockets.
    #[error(
        "the state directory {} has {} characters; a Unix socket's path allows {longest}",
        path.display(), path.as_os_str().len()
    )]
    RootTooLong {
        /// The state directory.
        path: PathBuf,
        /// The greatest length, in bytes.
        longest: usize,
    },
    /// The file with the state directory's id is damaged.
    #[error("{} does not hold sixteen hexadecimal digits", file.display())]
    RootDamaged {
        /// The file.
        file: PathBuf,
    },
    /// The file of a key is damaged.
    #[error("{} is not an OpenSSH private key: {source}", path.display())]
    KeyDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ssh_key::Error,
    },
    /// A record cannot be read.
    #[error("the record {key} cannot be read: {source}")]
    RecordDamaged {
        /// The record's key in the store.
        key: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The agent cannot listen on its socket.
    #[error("cannot listen on {}: {source}", socket.display())]
    Socket {
        /// The socket's path.
        socket: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// An audit log was renamed while it was pruned, since its tenant was destroyed.
    #[error("the audit log {log} was put aside meanwhile")]
    LogPutAside {
        /// The log's name.
        log: String,
    },
    /// An audit log was changed by somebody else.
    #[error("the audit log {log} is not whole, and is left as it is: {flaw}")]
    LogBroken {
        /// The log's name.
        log: String,
        /// What is wrong with it.
        flaw: Flaw,
    },
    /// A file keeps the desired state, so a fleet's document is not taken.
    #[error("this node keeps what {file} says")]
    KeepsFile {
        /// The file.
        file: String,
    },
    /// The leader of another fleet asks.
    #[error("this node belongs to fleet {ours}, not to {theirs}")]
    OtherFleet {
        /// The fleet of this node.
        ours: Name,
        /// The fleet of who asks.
        theirs: Name,
    },
    /// A former leader asks.
    #[error("leader {epoch} is succeeded by {newest}")]
    StaleLeader {
        /// The number of the leader that asks.
        epoch: u64,
        /// The number of the newest leader.
        newest: u64,
    },
    /// The agent was told to use KVM, and cannot.
    #[error("this agent was told to use KVM (--accelerator kvm), which cannot be had: {reason}")]
    KvmUnavailable {
        /// Why KVM cannot be had.
        reason: String,
    },
    /// The node cannot show an identity to another machine.
    #[error("this node has no identity: it asks no other machine for images")]
    NoIdentity,
}

impl NodeError {
    /// Returns the stable code of the error.
    pub fn code(&self) -> Code {
        match self {
            Self::RootTooLong { .. } => Code::RootTooLong,
            Self::RootDamaged { .. } => Code::RootDamaged,
            Self::KeyDamaged { .. } => Code::KeyDamaged,
            Self::RecordDamaged { .. } => Code::RecordDamaged,
            Self::Socket { .. } => Code::Socket,
            Self::LogPutAside { .. } | Self::KeepsFile { .. } => Code::Conflict,
            Self::LogBroken { .. } => Code::AuditBroken,
            Self::OtherFleet { .. } => Code::OtherFleet,
            Self::StaleLeader { .. } => Code::StaleLeader,
            Self::KvmUnavailable { .. } => Code::KvmUnavailable,
            Self::NoIdentity => Code::IdentityMissing,
        }
    }

    /// Returns what to do next, or nothing.
    pub fn hint(&self) -> Cow<'static, str> {
        let hint = match self {
            Self::RootTooLong { .. } => "choose a shorter --root (or MVM_ROOT)",
            Self::KeyDamaged { .. } => {
                "move the file away; a new key is made at the next start of the instance"
            }
            Self::LogPutAside { .. } => "see `mvm audit verify`",
            Self::LogBroken { .. } => {
                "keep it elsewhere (`mvm audit export`) and compare it with an earlier copy"
            }
            Self::KeepsFile { .. } => "start its agent without --desired",
            Self::OtherFleet { .. } => "give it a state directory of its own",
            Self::KvmUnavailable { .. } => {
                "see `mvm doctor --production`; or start the agent with --accelerator auto"
            }
            Self::NoIdentity => "have it join (mvm node join), and serve with --listen",
            Self::RootDamaged { .. }
            | Self::RecordDamaged { .. }
            | Self::Socket { .. }
            | Self::StaleLeader { .. } => "",
        };
        hint.into()
    }
}
