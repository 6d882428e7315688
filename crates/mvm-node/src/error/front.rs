//! The errors of fronts, and of the connections through them.

use mvm_model::{Code, PoolRef};
use std::borrow::Cow;
use std::net::SocketAddr;

/// Why a front is not made, or does not serve a connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrontError {
    /// The guest's port is 0.
    #[error("port 0 of the guest")]
    GuestPortZero,
    /// Another front listens on the address.
    #[error("{listen} is a front of {pool} (port {to})")]
    Taken {
        /// The address.
        listen: SocketAddr,
        /// The other front's pool.
        pool: PoolRef,
        /// The other front's port of the guest.
        to: u16,
    },
    /// Another program listens on the port.
    #[error("cannot listen on {listen}: {source}")]
    PortInUse {
        /// The address.
        listen: SocketAddr,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The address is not one of this machine.
    #[error("cannot listen on {listen}: {source}")]
    AddressNotOurs {
        /// The address.
        listen: SocketAddr,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The front cannot listen for another reason.
    #[error("cannot listen on {listen}: {source}")]
    CannotListen {
        /// The address.
        listen: SocketAddr,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// As many connections wait for an instance as may.
    #[error("too many connections wait already")]
    TooManyWait,
    /// No instance was ready in time.
    #[error("no instance within {seconds} s")]
    WakeTimeout {
        /// How long the connection has waited, in seconds.
        seconds: u64,
    },
}

impl FrontError {
    /// Returns the stable code of the error.
    pub fn code(&self) -> Code {
        match self {
            Self::GuestPortZero => Code::InvalidValue,
            Self::Taken { .. } => Code::InUse,
            Self::PortInUse { .. } => Code::PortInUse,
            Self::AddressNotOurs { .. } | Self::CannotListen { .. } => Code::ListenFailed,
            Self::TooManyWait => Code::Busy,
            Self::WakeTimeout { .. } => Code::WakeTimeout,
        }
    }

    /// Returns what to do next, or nothing.
    pub fn hint(&self) -> Cow<'static, str> {
        match self {
            Self::GuestPortZero => {
                "name the port that the guest's server listens on, 1 to 65535".into()
            }
            Self::Taken { pool, .. } => format!("remove it: mvm pool unexpose {pool}").into(),
            Self::PortInUse { .. } => {
                "choose another port, or end what listens there: see `ss -ltnp`".into()
            }
            Self::AddressNotOurs { .. } => {
                "name an address of this machine, in the agent's network namespace".into()
            }
            Self::CannotListen { .. } | Self::TooManyWait | Self::WakeTimeout { .. } => "".into(),
        }
    }

    /// Makes the error of a listener that cannot be bound.
    pub(crate) fn of_bind(listen: SocketAddr, source: std::io::Error) -> FrontError {
        match source.kind() {
            std::io::ErrorKind::AddrInUse => Self::PortInUse { listen, source },
            std::io::ErrorKind::AddrNotAvailable => Self::AddressNotOurs { listen, source },
            _ => Self::CannotListen { listen, source },
        }
    }
}
