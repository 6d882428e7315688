//! The agent of one node: puts its services together, and owns no logic.
//!
//! The services stand in groups, each constructed from the groups before it. A service is given the
//! parts that it uses, never the agent. Only the API's handlers and the server hold the agent.

mod base;
mod lifecycle;
mod parts;
mod pools;
mod steering;
mod supplies;
mod views;
mod work;

pub(crate) use parts::{AgentParts, AgentSettings};

use crate::Result;
use base::{Base, Process};
use lifecycle::Lifecycle;
use mvm_clock::Clock;
use pools::Pools;
use std::sync::Arc;
use steering::Steering;
use supplies::Supplies;
use views::Views;
use work::Work;

/// The agent of one node.
pub(crate) struct Agent {
    pub process: Process,
    pub base: Base,
    pub supplies: Supplies,
    pub lifecycle: Lifecycle,
    pub work: Work,
    pub pools: Pools,
    pub steering: Steering,
    pub views: Views,
}

impl Agent {
    /// Reads the records and makes the services, whose time is this clock's. No machine is touched.
    pub async fn open(parts: AgentParts, clock: Clock) -> Result<Arc<Agent>> {
        let process = Process::new(&parts, &clock);
        let base = Base::open(&parts, clock).await?;
        let supplies = Supplies::new(&parts, &base);
        let lifecycle = Lifecycle::new(&parts, &base, &supplies);
        let work = Work::new(&parts.settings, &base, &supplies, &lifecycle);
        let pools = Pools::new(&base, &supplies, &lifecycle, &work);
        let steering =
            Steering::new(&parts.settings, &process, &base, &supplies, &lifecycle, &work, &pools);
        let views = Views::new(&process, &base, &supplies, &lifecycle, &work, &pools);
        Ok(Arc::new(Agent { process, base, supplies, lifecycle, work, pools, steering, views }))
    }

    /// Advances this agent's clock, which its test has made.
    #[cfg(test)]
    pub fn advance(&self, by: std::time::Duration) {
        self.base.records.clock().hand().expect("a clock of a test").advance(by);
    }
}
