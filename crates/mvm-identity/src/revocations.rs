//! What is revoked, and the connections that end with it.

use crate::certificate::Revoked;
use mvm_api::identity::Serial;
use parking_lot::{Mutex, RwLock};
use std::sync::{Arc, Weak};
use tokio_util::sync::CancellationToken;

/// What is revoked, as of now, and the connections that end when their certificate is.
#[derive(Debug, Default)]
pub struct Revocations {
    revoked: RwLock<Revoked>,
    open: Mutex<Vec<Weak<Open>>>,
}

/// A connection that stands open.
#[derive(Debug)]
pub(crate) struct Open {
    serial: Serial,
    /// Cancelled when its certificate is revoked.
    pub(crate) cut: CancellationToken,
}

impl Revocations {
    /// Those of a list.
    pub(crate) fn new(revoked: Revoked) -> Revocations {
        Revocations { revoked: RwLock::new(revoked), open: Mutex::default() }
    }

    /// Whether this certificate is revoked.
    pub fn holds(&self, serial: &Serial) -> bool {
        self.revoked.read().serials.contains(serial)
    }

    /// The number of the list in force.
    pub fn number(&self) -> u64 {
        self.revoked.read().number
    }

    /// Puts a newer list in force and cuts the connections whose certificate it revokes.
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

    /// Remembers a connection for as long as what this gives lives.
    pub(crate) fn opened(&self, serial: Serial) -> Arc<Open> {
        let one = Arc::new(Open { serial, cut: CancellationToken::new() });
        let mut open = self.open.lock();
        // Those that have ended are swept out when there is no more room: it costs nothing on
        // the average, however many there are.
        if open.len() == open.capacity() {
            open.retain(|one| one.strong_count() > 0);
        }
        open.push(Arc::downgrade(&one));
        // A list that came since the handshake may name it already.
        if self.holds(&one.serial) {
            one.cut.cancel();
        }
        one
    }
}
