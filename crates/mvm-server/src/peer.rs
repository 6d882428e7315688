//! Who calls: the process at the other end of a Unix socket, or the holder of a certificate.

use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::serve::IncomingStream;
use mvm_api::Problem;
use mvm_api::identity::{Facts, Identity, Role};
use mvm_identity::revocations::Revocations;
use mvm_model::{Code, Millis, Name};
use std::sync::Arc;
use tokio::net::UnixListener;

/// What every handler can ask for: who calls.
pub type Caller = ConnectInfo<Peer>;

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A process of this machine, as the kernel says (unix(7), SO_PEERCRED).
    Unix {
        /// Its user.
        uid: Option<u32>,
    },
    /// The holder of a certificate that the handshake has checked.
    Certificate {
        /// What it says.
        facts: Facts,
        /// Where to see whether it still counts.
        revocations: Arc<Revocations>,
    },
    /// Somebody for whom a coordinator asks.
    Forwarded {
        /// For whom.
        identity: Identity,
        /// The coordinator.
        by: Name,
    },
}

impl Peer {
    /// Its role; a process of this machine is an operator if it is root's or runs as we do.
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

    /// The identity that it has or asks for; a process of this machine has none.
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Peer::Unix { .. } => None,
            Peer::Certificate { facts, .. } => Some(&facts.identity),
            Peer::Forwarded { identity, .. } => Some(identity),
        }
    }

    /// As leases name their holder: `uid:0`, `operator:alice`.
    pub fn holder(&self) -> String {
        match self {
            Peer::Unix { uid } => {
                uid.map_or_else(|| "unknown".to_owned(), |uid| format!("uid:{uid}"))
            }
            Peer::Certificate { facts, .. } => facts.identity.holder(),
            Peer::Forwarded { identity, .. } => identity.holder(),
        }
    }

    /// The tenant that it is confined to, if it is.
    pub fn tenant(&self) -> Option<&Name> {
        self.identity().and_then(Identity::tenant)
    }

    /// Whether it may see what is this tenant's.
    pub fn sees(&self, tenant: &Name) -> bool {
        self.tenant().is_none_or(|own| own == tenant)
    }

    /// Whether it reads the files of this machine by itself.
    pub fn is_local(&self) -> bool {
        matches!(self, Peer::Unix { .. })
    }

    /// Whether its certificate still counts at `now`: a connection may outlive it.
    pub fn standing(&self, now: Millis) -> Result<(), Problem> {
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
