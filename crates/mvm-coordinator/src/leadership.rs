//! Who leads: this coordinator, as long as its leadership holds, or another one.

use crate::records::Candidate;
use crate::{Error, Result};
use mvm_api::fleet::Leader;
use mvm_model::Name;
use mvm_store::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long a former leader has to answer what it was asked before.
const SUCCEEDED: Duration = Duration::from_secs(3);

/// The leadership of this coordinator.
pub(crate) struct Lead {
    leadership: mvm_store::Leadership,
    /// The leader as nodes know it: fleet and epoch.
    pub leader: Leader,
    /// When the leadership began.
    pub since: Instant,
}

impl Lead {
    /// Returns the leadership over the fleet of this name, which begins now.
    pub fn new(leadership: mvm_store::Leadership, fleet_id: Name) -> Lead {
        let leader = Leader { fleet_id, epoch: leadership.since() };
        Lead { leadership, leader, since: Instant::now() }
    }

    /// Returns the condition that belongs into every write of the leader.
    pub fn fence(&self) -> Write {
        self.leadership.fence()
    }

    /// Waits until the leadership is lost.
    pub async fn lost(&self) {
        self.leadership.lost().await;
    }

    /// Gives the leadership up, so that another coordinator leads at once.
    pub async fn resign(&self) -> Result<()> {
        self.leadership.resign().await.map_err(Error::from)
    }

    /// Returns whether the leadership is not known to be lost.
    pub fn is_held(&self) -> bool {
        self.leadership.is_held()
    }
}

/// Who leads, as far as this coordinator knows.
pub(crate) struct Leadership {
    /// Our own leadership, while we lead.
    ours: watch::Sender<Option<Arc<Lead>>>,
    /// Who leads, as the store says.
    leader: watch::Sender<Option<Candidate>>,
}

impl Default for Leadership {
    fn default() -> Leadership {
        Leadership { ours: watch::channel(None).0, leader: watch::channel(None).0 }
    }
}

impl Leadership {
    /// Returns our own leadership while we lead.
    pub fn ours(&self) -> Option<Arc<Lead>> {
        self.ours.borrow().clone().filter(|lead| lead.is_held())
    }

    /// Notes that this coordinator leads from now on, or not any more.
    pub fn set_ours(&self, lead: Option<Arc<Lead>>) {
        self.ours.send_replace(lead);
    }

    /// Returns who leads, as the store says.
    pub fn leader(&self) -> Option<Candidate> {
        self.leader.borrow().clone()
    }

    /// Notes who leads, as the store says.
    pub fn set_leader(&self, leader: Option<Candidate>) {
        self.leader.send_replace(leader);
    }

    /// Waits until another coordinator than `leader` leads, and a moment more: one that gives its place
    /// up in order has answered by then. One that hangs never does, though its machine keeps its
    /// connections.
    pub fn succession(&self, leader: &Name) -> impl Future<Output = ()> + Send + use<> {
        let (mut seen, leader) = (self.leader.subscribe(), leader.clone());
        async move {
            let other = |now: &Option<Candidate>| now.as_ref().is_some_and(|n| n.name != leader);
            if seen.wait_for(other).await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(SUCCEEDED).await;
        }
    }
}
