//! The errors of this crate, each with a stable code.

use mvm_model::Code;

/// Why a link or rule could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `nft` is not installed.
    #[error("nft is not in PATH: install it, on Debian with `apt-get install nftables`")]
    NftMissing,
    /// `nft` refused the rules; the old ones are in force.
    #[error("nft refused the firewall rules; the old ones stay in force: {0}")]
    NftRefused(String),
    /// The caller lacks the right to change the network.
    #[error("{what}: not permitted; the agent needs CAP_NET_ADMIN (run it as root)")]
    NotPermitted {
        /// What was being done.
        what: String,
    },
    /// The network namespace does not exist.
    #[error(
        "there is no network namespace {name}; make it with `ip netns add {name}` (there are: {known})"
    )]
    NetnsNotFound {
        /// The name that was given.
        name: String,
        /// The namespaces that exist, for people.
        known: String,
    },
    /// The text cannot be the name of a network namespace.
    #[error(
        "{name:?} is not the name of a network namespace: name one of those that `ip netns list` shows, \
         without a path"
    )]
    NetnsName {
        /// The text that was given.
        name: String,
    },
    /// A link has the name but does not carry this owner's mark.
    #[error("a network link {name} exists that is not ours; remove or rename it")]
    NameTaken {
        /// The link's name.
        name: String,
    },
    /// Any other error of the kernel.
    #[error("{what}: {cause}")]
    Kernel {
        /// What was being done.
        what: String,
        /// The kernel's error.
        cause: String,
    },
}

impl Error {
    /// Returns the stable code of the failure.
    pub fn code(&self) -> Code {
        match self {
            Error::NftMissing => Code::NftMissing,
            Error::NftRefused(_) => Code::NftRefused,
            Error::NotPermitted { .. } => Code::NotPermitted,
            Error::NetnsNotFound { .. } | Error::NetnsName { .. } => Code::NetnsNotFound,
            Error::NameTaken { .. } => Code::NameTaken,
            Error::Kernel { .. } => Code::NetworkFailed,
        }
    }

    /// Wraps an I/O error that occurred while doing `what`.
    pub(crate) fn io(what: impl Into<String>, cause: &std::io::Error) -> Error {
        let what = what.into();
        match cause.kind() {
            std::io::ErrorKind::PermissionDenied => Error::NotPermitted { what },
            _ => Error::Kernel { what, cause: cause.to_string() },
        }
    }

    /// Wraps an rtnetlink error that occurred while doing `what`.
    pub(crate) fn netlink(what: impl Into<String>, cause: &rtnetlink::Error) -> Error {
        match cause {
            rtnetlink::Error::NetlinkError(message) => Self::io(what, &message.to_io()),
            other => Error::Kernel { what: what.into(), cause: other.to_string() },
        }
    }
}
