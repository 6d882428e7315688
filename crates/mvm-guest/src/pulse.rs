//! Signs of life of a guest: what its host hears of it, and how it asks.
//!
//! A ping is a packet of the link itself, below the streams: no window holds it up, and the guest's agent
//! answers it before anything else. Bytes of any kind count as an answer: a guest that sends as fast as it
//! can has no room for one.

use crate::packet::{Kind, Packet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use tokio::sync::mpsc::{Sender, WeakSender};
use tokio::time::Instant;

/// What a guest that answers pings says in its WELCOME; older ones say nothing.
pub(crate) const SPEAKS_PING: u8 = 1;

/// The host's view of one session with a guest.
#[derive(Debug)]
pub struct Pulse {
    session: u64,
    /// Weak: whoever looks at a pulse does not keep the channel open.
    outgoing: WeakSender<Vec<u8>>,
    answers_pings: bool,
    heard: Mutex<Instant>,
    /// Whether a question of another kind is on its way.
    asking: AtomicBool,
}

impl Pulse {
    /// Of a session that the guest has just welcomed with these bytes.
    pub(crate) fn new(session: u64, outgoing: &Sender<Vec<u8>>, welcome: &[u8]) -> Pulse {
        Pulse {
            session,
            outgoing: outgoing.downgrade(),
            answers_pings: welcome.contains(&SPEAKS_PING),
            heard: Mutex::new(Instant::now()),
            asking: AtomicBool::new(false),
        }
    }

    /// The guest has said something.
    pub(crate) fn beat(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// When the guest was last heard of.
    pub fn heard(&self) -> Instant {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the guest's agent is so new that it answers pings.
    pub fn answers_pings(&self) -> bool {
        self.answers_pings
    }

    /// Asks for a sign of life. What does not fit into the channel is not sent: there are bytes in it
    /// that the guest has not taken yet.
    pub fn ping(&self) {
        if let Some(outgoing) = self.outgoing.upgrade() {
            let _ = outgoing.try_send(Packet::bare(Kind::Ping, self.session).encode());
        }
    }

    /// Begins a question of another kind, unless one is on its way: one is enough, whatever becomes of it.
    pub(crate) fn begin_asking(&self) -> bool {
        !self.asking.swap(true, Ordering::Relaxed)
    }

    /// The question was answered, or given up.
    pub(crate) fn end_asking(&self) {
        self.asking.store(false, Ordering::Relaxed);
    }
}
