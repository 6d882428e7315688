//! Signs of life of a guest: what its host receives, and how it asks.
//!
//! A ping is a packet of the link itself, below the streams: no window holds it up, and the guest's
//! agent answers it before anything else. Bytes of any kind count as an answer: a guest that sends
//! as fast as it can has no space for a pong.

use crate::packet::{Kind, Packet};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc::{Sender, WeakSender};
use tokio::time::Instant;

/// Announces, in a WELCOME, that the guest answers pings; older guests do not send it.
pub(crate) const SPEAKS_PING: u8 = 1;

/// The host's view of one session with a guest.
#[derive(Debug)]
pub struct Pulse {
    session: u64,
    /// Weak, so that a pulse does not keep the channel open.
    outgoing: WeakSender<Vec<u8>>,
    answers_pings: bool,
    heard: Mutex<Instant>,
    /// Whether another request for a sign of life is under way.
    asking: AtomicBool,
}

impl Pulse {
    /// Makes the pulse of a session whose WELCOME had this payload.
    pub(crate) fn new(session: u64, outgoing: &Sender<Vec<u8>>, welcome: &[u8]) -> Pulse {
        Pulse {
            session,
            outgoing: outgoing.downgrade(),
            answers_pings: welcome.contains(&SPEAKS_PING),
            heard: Mutex::new(Instant::now()),
            asking: AtomicBool::new(false),
        }
    }

    /// Records that something has come from the guest.
    pub(crate) fn beat(&self) {
        *self.heard.lock() = Instant::now();
    }

    /// Returns when something last came from the guest.
    pub fn heard(&self) -> Instant {
        *self.heard.lock()
    }

    /// Returns whether the guest's agent answers pings; older ones do not.
    pub fn answers_pings(&self) -> bool {
        self.answers_pings
    }

    /// Sends a ping. It is dropped if the channel is full, since then there are bytes that the
    /// guest has not taken yet.
    pub fn ping(&self) {
        if let Some(outgoing) = self.outgoing.upgrade() {
            let _ = outgoing.try_send(Packet::bare(Kind::Ping, self.session).encode());
        }
    }

    /// Marks another request for a sign of life as under way; returns false if one already is,
    /// since one is enough.
    pub(crate) fn begin_asking(&self) -> bool {
        !self.asking.swap(true, Ordering::Relaxed)
    }

    /// Marks that request as answered or given up.
    pub(crate) fn end_asking(&self) {
        self.asking.store(false, Ordering::Relaxed);
    }
}
