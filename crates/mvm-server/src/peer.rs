//! The caller: the process at the other end of a Unix socket, or the holder of a certificate.

use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::serve::IncomingStream;
use mvm_api::Problem;
use mvm_api::identity::{Facts, Identity, Role};
use mvm_identity::revocations::Revocations;
use mvm_model::{Code, Name, Timestamp};
use std::sync::Arc;
use tokio::net::UnixListener;

/// The extractor with which a handler gets the caller.
pub type Caller = ConnectInfo<Peer>;

/// The caller at the other end of a connection.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A process on this machine, as the kernel reports it (unix(7), SO_PEERCRED).
    Unix {
        /// The process's user id.
        uid: Option<u32>,
    },
    /// The holder of a certificate that the handshake has checked.
    Certificate {
        /// The certificate's contents.
        facts: Facts,
        /// The revocations that apply to the certificate.
        revocations: Arc<Revocations>,
    },
    /// A caller on whose behalf a coordinator asks.
    Forwarded {
        /// The caller's identity.
        identity: Identity,
        /// The coordinator's name.
        by: Name,
    },
}

impl Peer {
    /// Returns the caller's role. A process on this machine is an operator if it runs as root or as
    /// our own user.
    pub fn role(&self) -> Option<Role> {
        match self {
            Peer::Unix { uid: Some(uid) } => {
                let own = rustix::process::geteuid().as_raw();
                (*uid == 0 || *uid == own).then_some(Role::Operator)
            }
            Peer::Unix { uid: None } => None,
            Peer::Certificate { .. } | Peer::Forwarded { .. } => {
                self.identity().map(Identity::role)
            }
        }
    }

    /// Returns the caller's identity; `None` for a process on this machine.
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Peer::Unix { .. } => None,
            Peer::Certificate { facts, .. } => Some(&facts.identity),
            Peer::Forwarded { identity, .. } => Some(identity),
        }
    }

    /// Returns the caller's name as a lease's holder: `uid:0`, `operator:alice`.
    pub fn holder(&self) -> String {
        match self {
            Peer::Unix { uid } => {
                uid.map_or_else(|| "unknown".to_owned(), |uid| format!("uid:{uid}"))
            }
            Peer::Certificate { facts, .. } => facts.identity.holder(),
            Peer::Forwarded { identity, .. } => identity.holder(),
        }
    }

    /// Returns the tenant that the caller is confined to, if any.
    pub fn tenant(&self) -> Option<&Name> {
        self.identity().and_then(Identity::tenant)
    }

    /// Returns whether the caller may see what belongs to this tenant.
    pub fn sees(&self, tenant: &Name) -> bool {
        self.tenant().is_none_or(|own| own == tenant)
    }

    /// Returns whether the caller can read this machine's files itself.
    pub fn is_local(&self) -> bool {
        matches!(self, Peer::Unix { .. })
    }

    /// Checks that the caller's certificate is valid at `now`, since a connection may outlive it.
    pub fn standing(&self, now: Timestamp) -> Result<(), Problem> {
        let Peer::Certificate { facts, revocations } = self else { return Ok(()) };
        let refused = |code: Code, how: &str| {
            let detail = format!("the certificate of {} {how}", facts.identity.holder());
            Err(Problem::new(code, detail).hint("connect anew, with one that is good"))
        };
        if now >= facts.validity.not_after {
            return refused(Code::CertificateExpired, "has run out");
        }
        match revocations.holds(&facts.serial) {
            true => refused(Code::CertificateRevoked, "was revoked"),
            false => Ok(()),
        }
    }
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Peer::Unix { uid: stream.io().peer_cred().ok().map(|peer| peer.uid()) }
    }
}
