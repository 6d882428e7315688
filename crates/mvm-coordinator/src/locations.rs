//! Where instances and jobs were found last.

use mvm_model::Name;
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;

/// The node of each instance and job that was looked for, by its reference.
#[derive(Default)]
pub(crate) struct Locations(Mutex<HashMap<String, Name>>);

impl Locations {
    /// How many are remembered; then all are forgotten, and looked for again.
    const MOST: usize = 200_000;

    fn map(&self) -> MutexGuard<'_, HashMap<String, Name>> {
        self.0.lock()
    }

    pub fn of(&self, what: &str) -> Option<Name> {
        self.map().get(what).cloned()
    }

    pub fn note(&self, what: String, node: &Name) {
        let mut map = self.map();
        if map.len() >= Self::MOST {
            map.clear();
        }
        map.insert(what, node.clone());
    }

    pub fn forget(&self, what: &str) {
        self.map().remove(what);
    }
}
