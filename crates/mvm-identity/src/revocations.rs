//! The revocation list in force, and the connections that end with their certificate.

use crate::certificate::Revoked;
use mvm_api::identity::Serial;
use parking_lot::{Mutex, RwLock};
use std::sync::{Arc, Weak};
use tokio_util::sync::CancellationToken;

/// The revocation list in force. A connection ends when its peer's certificate is revoked.
#[derive(Debug, Default)]
pub struct Revocations {
    revoked: RwLock<Revoked>,
    open: Mutex<Vec<Weak<Open>>>,
}

/// An open connection.
#[derive(Debug)]
pub(crate) struct Open {
    serial: Serial,
    /// Cancelled when the connection's certificate is revoked.
    pub(crate) cut: CancellationToken,
}

impl Revocations {
    /// Begins with the revocations of a list.
    pub(crate) fn new(revoked: Revoked) -> Revocations {
        Revocations { revoked: RwLock::new(revoked), open: Mutex::default() }
    }

    /// Returns whether this certificate is revoked.
    pub fn holds(&self, serial: &Serial) -> bool {
        self.revoked.read().serials.contains(serial)
    }

    /// Returns the number of the list in force.
    pub fn number(&self) -> u64 {
        self.revoked.read().number
    }

    /// Puts a newer list in force and closes the connections whose certificate it revokes.
    pub(crate) fn replace(&self, revoked: Revoked) {
        let mut open = self.open.lock();
        for one in open.iter().filter_map(Weak::upgrade) {
            if revoked.serials.contains(&one.serial) {
                one.cut.cancel();
            }
        }
        open.retain(|one| one.strong_count() > 0);
        *self.revoked.write() = revoked;
    }

    /// Registers a connection. It stays registered for as long as the returned handle lives.
    pub(crate) fn opened(&self, serial: Serial) -> Arc<Open> {
        let one = Arc::new(Open { serial, cut: CancellationToken::new() });
        let mut open = self.open.lock();
        // Ended connections are removed only when the list is full: the cost per connection stays
        // constant on average.
        if open.len() == open.capacity() {
            open.retain(|one| one.strong_count() > 0);
        }
        open.push(Arc::downgrade(&one));
        // A list that arrived since the handshake may name the certificate.
        if self.holds(&one.serial) {
            one.cut.cancel();
        }
        one
    }
}
