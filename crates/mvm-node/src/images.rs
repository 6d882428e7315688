//! The images on this node.

use crate::locks::locked;
use crate::problem::OrProblem;
use crate::{Result, now};
use mvm_image::ImageStore;
use mvm_model::Millis;
use std::collections::BTreeMap;
use std::sync::Mutex as Lock;

/// How long what is on the disk counts as known.
const KNOWN_MS: Millis = 2000;

/// The store of images, and what is known to be in it.
pub(crate) struct Images {
    store: ImageStore,
    /// Content by digest, and when that was looked at.
    known: Lock<(Millis, BTreeMap<String, String>)>,
}

impl Images {
    /// The images in this store.
    pub(crate) fn new(store: ImageStore) -> Images {
        Images { store, known: Lock::default() }
    }

    /// The store.
    pub(crate) fn store(&self) -> &ImageStore {
        &self.store
    }

    /// Invalidates what is known: the next look reads the disk.
    pub(crate) fn look(&self) {
        locked(&self.known).0 = 0;
    }

    /// The images that are here: what each is, by its digest.
    pub(crate) fn on_disk(&self) -> Result<BTreeMap<String, String>> {
        let mut known = locked(&self.known);
        let now = now();
        if now >= known.0 + KNOWN_MS {
            let images = self.store.list().or_problem()?;
            let content = images.into_iter().map(|i| (i.digest.clone(), i.content())).collect();
            *known = (now, content);
        }
        Ok(known.1.clone())
    }
}
