//! A watch that continues at another member when one fails, after the last change that it reported.

use super::cluster::{Cluster, Failure};
use super::keys::{Keys, end_of, revision_of};
use crate::{Change, Error, Result, Watch};
use etcd_client::{EventType, WatchOptions, WatchResponse, WatchStream};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Pause between two tries while no member answers.
const PAUSE: Duration = Duration::from_millis(200);

struct Watcher {
    cluster: Arc<Cluster>,
    keys: Keys,
    prefix: String,
    /// Everything up to this revision was reported, or is in `ready`.
    after: u64,
    /// The open stream, and the number of the member that it comes from.
    stream: Option<(usize, WatchStream)>,
    ready: VecDeque<Vec<Change>>,
    failed: bool,
}

/// Watches every change of keys that begin with `prefix` after the revision `after`.
pub fn watch(cluster: Arc<Cluster>, keys: Keys, prefix: &str, after: u64) -> Watch {
    let prefix = prefix.to_owned();
    let watcher = Watcher {
        cluster,
        keys,
        prefix,
        after,
        stream: None,
        ready: VecDeque::new(),
        failed: false,
    };
    Box::pin(futures::stream::unfold(watcher, |mut watcher| async move {
        if watcher.failed {
            return None;
        }
        let item = watcher.next().await;
        watcher.failed = item.is_err();
        Some((item, watcher))
    }))
}

impl Watcher {
    async fn next(&mut self) -> Result<Vec<Change>> {
        loop {
            if let Some(changes) = self.ready.pop_front() {
                return Ok(changes);
            }
            let (member, mut stream) = match self.stream.take() {
                Some(open) => open,
                None => self.open().await?,
            };
            let failure = match stream.message().await {
                Ok(Some(response)) if response.canceled() => self.canceled(&response)?,
                Ok(Some(response)) => {
                    self.take(&response);
                    self.stream = Some((member, stream));
                    continue;
                }
                Ok(None) => Failure::Lost("the stream has ended".to_owned()),
                Err(error) => self.cluster.judge(error),
            };
            self.cluster.abandon(member);
            self.pause(failure).await?;
        }
    }

    /// Opens a watch at the first member that accepts it.
    async fn open(&self) -> Result<(usize, WatchStream)> {
        loop {
            let member = self.cluster.member();
            let key = self.keys.of(&self.prefix);
            let options = WatchOptions::new()
                .with_range(end_of(&key))
                .with_start_revision(self.after as i64 + 1)
                .with_progress_notify();
            let opened = self.cluster.attempt(member, |client| async move {
                let client = client.watch_client().max_decoding_message_size(usize::MAX);
                { client }.watch(key, Some(options)).await
            });
            match opened.await {
                Ok(stream) => return Ok((member, stream)),
                Err(failure) => self.pause(failure).await?,
            }
        }
    }

    /// Waits before the next try; returns the error of a refusal.
    async fn pause(&self, failure: Failure) -> Result<()> {
        match failure {
            Failure::Refused(error) => Err(error),
            Failure::Unsent(cause) | Failure::Lost(cause) => {
                tracing::debug!(prefix = self.prefix, cause, "the watch goes on elsewhere");
                tokio::time::sleep(PAUSE).await;
                Ok(())
            }
        }
    }

    fn canceled(&self, response: &WatchResponse) -> Result<Failure> {
        if response.compact_revision() > 0 {
            return Err(Error::Compacted { after: self.after });
        }
        Ok(Failure::Lost(response.cancel_reason().to_owned()))
    }

    fn take(&mut self, response: &WatchResponse) {
        // A progress report says that there were no changes of these keys up to its revision.
        if response.events().is_empty() && !response.created() {
            self.after = self.after.max(revision_of(response.header()));
        }
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let revision = kv.mod_revision() as u64;
            let value = (event.event_type() == EventType::Put).then(|| kv.value().to_vec());
            let change = Change { key: self.keys.back(kv.key()), value, revision };
            match self.ready.back_mut() {
                // The changes of one transaction come together and share its revision.
                Some(changes) if self.after == revision => changes.push(change),
                _ => self.ready.push_back(vec![change]),
            }
            self.after = revision;
        }
    }
}
