//! The images on this node.

use crate::Result;
use crate::locks::locked;
use mvm_clock::Clock;
use mvm_image::ImageStore;
use mvm_model::{Digest, Timestamp};
use std::collections::BTreeMap;
use std::sync::Mutex as Lock;
use std::time::Duration;

/// How long a listing of the disk is valid, in ms.
const KNOWN: Duration = Duration::from_secs(2);

/// The store of images, with a cached listing.
pub(crate) struct Images {
    store: ImageStore,
    clock: Clock,
    /// The digest of each image's bytes by the image's digest, and when they were listed.
    known: Lock<(Timestamp, BTreeMap<Digest, String>)>,
}

impl Images {
    /// Makes the service for this store.
    pub(crate) fn new(store: ImageStore, clock: Clock) -> Images {
        Images { store, clock, known: Lock::default() }
    }

    /// Returns the store.
    pub(crate) fn store(&self) -> &ImageStore {
        &self.store
    }

    /// Discards the listing, so that the next call reads the disk.
    pub(crate) fn invalidate(&self) {
        locked(&self.known).0 = Timestamp::EPOCH;
    }

    /// Returns the images on the disk: the digest of each one's bytes, by its digest.
    pub(crate) fn on_disk(&self) -> Result<BTreeMap<Digest, String>> {
        let mut known = locked(&self.known);
        let now = self.clock.now();
        if now >= known.0 + KNOWN {
            let images = self.store.list()?;
            let content = images.into_iter().map(|i| (i.digest, i.content())).collect();
            *known = (now, content);
        }
        Ok(known.1.clone())
    }
}
