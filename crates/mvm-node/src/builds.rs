//! Builds that are under way: when they began, and how to cancel them.

use crate::locks::locked;
use mvm_model::{PoolRef, Timestamp};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// All builds that are under way on the node.
#[derive(Debug, Default)]
pub(crate) struct Builds(Mutex<Vec<Arc<Running>>>);

#[derive(Debug)]
struct Running {
    pool: PoolRef,
    since: Timestamp,
    canceled: watch::Sender<bool>,
}

/// A build that is under way until this is dropped.
pub(crate) struct Building<'a> {
    builds: &'a Builds,
    running: Arc<Running>,
}

impl Builds {
    /// Registers a build of this pool.
    pub(crate) fn begin(&self, pool: &PoolRef, since: Timestamp) -> Building<'_> {
        let (pool, canceled) = (pool.clone(), watch::Sender::new(false));
        let running = Arc::new(Running { pool, since, canceled });
        locked(&self.0).push(running.clone());
        Building { builds: self, running }
    }

    /// Returns when the pool's oldest build under way began.
    pub(crate) fn since(&self, pool: &PoolRef) -> Option<Timestamp> {
        locked(&self.0).iter().find(|build| build.pool == *pool).map(|build| build.since)
    }

    /// Cancels all builds of this pool; returns whether there was one.
    pub(crate) fn cancel(&self, pool: &PoolRef) -> bool {
        let builds = locked(&self.0);
        let mut found = false;
        for build in builds.iter().filter(|build| build.pool == *pool) {
            build.canceled.send_replace(true);
            found = true;
        }
        found
    }
}

impl Building<'_> {
    /// Waits until the build is cancelled.
    pub(crate) async fn canceled(&self) {
        // The sender is a field of ours, so it lives.
        let _ = self.running.canceled.subscribe().wait_for(|canceled| *canceled).await;
    }
}

impl Drop for Building<'_> {
    fn drop(&mut self) {
        locked(&self.builds.0).retain(|build| !Arc::ptr_eq(build, &self.running));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cancel_ends_the_builds_of_its_pool_alone() {
        let builds = Builds::default();
        let [ci, lab]: [PoolRef; 2] = ["ci/a", "lab/a"].map(|pool| pool.parse().expect("pool"));
        assert!(!builds.cancel(&ci));
        let time = Timestamp::from_millis;
        let (first, second) = (builds.begin(&ci, time(5)), builds.begin(&ci, time(7)));
        let other = builds.begin(&lab, time(6));
        assert_eq!((builds.since(&ci), builds.since(&lab)), (Some(time(5)), Some(time(6))));
        assert!(builds.cancel(&ci));
        first.canceled().await;
        second.canceled().await;
        assert!(futures::FutureExt::now_or_never(other.canceled()).is_none());
        drop((first, second));
        assert_eq!((builds.since(&ci), builds.since(&lab)), (None, Some(time(6))));
        assert!(!builds.cancel(&ci));
    }
}
