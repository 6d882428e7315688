//! Templates that are given up and made anew: what could not be loaded, and what came up dead.
//!
//! A template that is given up leaves a note beside where it was: until the new one is there an
//! agent that starts knows as well that one is to be made, whatever the pool's counts are.

use crate::Result;
use crate::clock::wall;
use crate::labels::{Labels, of_pool};
use crate::locks::locked;
use crate::node::Node;
use crate::problem::io;
use crate::state_dir::{remove_dir, remove_file, write_atomically};
use crate::template::Template;
use mvm_model::template::{CloneEnd, Renewal, Standing};
use mvm_model::{Pool, PoolRef};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as Lock};

/// What ends the name of the note that a template is to be made anew.
pub(crate) const NOTE: &str = ".anew";
/// The note of a template that was made anew, in its directory.
pub(crate) const RENEWED: &str = "renewal.json";

/// What is known of templates by their clones, in memory only.
#[derive(Default)]
pub(crate) struct Renewals {
    standings: Lock<HashMap<String, Standing>>,
    /// Pools whose template is being made anew.
    under_way: Lock<BTreeSet<PoolRef>>,
    given_up: Family<Labels, Counter>,
    /// Instances that were booted although their pool has a template that ought to be there.
    booted: Family<Labels, Counter>,
}

impl Renewals {
    /// Registers what is counted.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let what = "Templates that were given up and are made anew";
        registry.register("templates_given_up", what, self.given_up.clone());
        let what = "Instances that were booted for want of a template that was given up";
        registry.register("booted_without_template", what, self.booted.clone());
    }
}

/// What the end of a clone's way up says of its template.
fn end_of(outcome: &Result<()>) -> CloneEnd {
    match outcome.as_ref().map_err(|problem| &*problem.code) {
        Ok(()) => CloneEnd::Answered,
        Err("restore_failed") => CloneEnd::Unusable,
        Err(
            "guest_unreachable"
            | "guest_silent"
            | "guest_channel_broken"
            | "machine_died"
            | "gone"
            | "qmp_failed"
            | "qmp_timeout",
        ) => CloneEnd::Silent,
        Err(_) => CloneEnd::Unrelated,
    }
}

impl Node {
    fn note(&self, key: &str) -> PathBuf {
        self.parts.root.templates().join(format!("{key}{NOTE}"))
    }

    /// Takes into account how a clone of the template came up; gives the template up where that is
    /// one too many.
    pub(crate) fn judge(&self, pool: &PoolRef, template: &Template, outcome: &Result<()>) {
        let end = end_of(outcome);
        // Another clone may have been sooner: then this one says nothing of the template that is there.
        let present = self.template(template.key.clone());
        if present.is_none_or(|present| present.made_at != template.made_at) {
            return;
        }
        let given_up = {
            let mut standings = locked(&self.renewals.standings);
            let standing = standings.entry(template.key.clone()).or_default();
            let (after, given_up) = standing.after(template.made_at, end);
            *standing = after;
            given_up
        };
        if !given_up {
            return;
        }
        let why = outcome.as_ref().err().map(|problem| problem.to_string()).unwrap_or_default();
        let first = why.lines().next().unwrap_or_default();
        let reason = match end {
            CloneEnd::Unusable => format!("it could not be loaded: {first}"),
            _ => format!("its clones came up dead, one after the other: {first}"),
        };
        tracing::warn!(%pool, template = template.key, reason, "a template is given up");
        self.renewals.given_up.get_or_create(&of_pool(pool)).inc();
        let renewal = Renewal { at: wall(), made_at: template.made_at, reason, done: false };
        // The note first: a template that is gone without one would not be missed.
        let text = serde_json::to_vec(&renewal).unwrap_or_default();
        let gone = write_atomically(&self.note(&template.key), &text, 0o600)
            .and_then(|()| remove_dir(&template.files.dir));
        if let Err(problem) = gone {
            tracing::error!(template = template.key, "cannot give a template up: {problem}");
        }
        self.wake.notify();
    }

    /// Why the template of this name was given up, if a new one is to be made.
    pub(crate) fn to_be_renewed(&self, key: &str) -> Option<Renewal> {
        read(&self.note(key))
    }

    /// An instance is booted: counted where its pool's template was given up.
    pub(crate) fn count_boot(&self, pool: &Pool) {
        if self.key_of_pool(pool).is_some_and(|key| self.to_be_renewed(&key).is_some()) {
            self.renewals.booted.get_or_create(&of_pool(&pool.reference)).inc();
        }
    }

    /// What became of the pool's template, if it was ever given up.
    pub(crate) fn renewal_of(&self, pool: &Pool) -> Option<Renewal> {
        let key = self.key_of_pool(pool)?;
        self.to_be_renewed(&key).or_else(|| read(&self.template_files(&key).dir.join(RENEWED)))
    }

    /// What an agent that was killed left half done: the old template goes, a new one is noted.
    pub(crate) fn end_renewal(&self, pool: &Pool) -> Result<()> {
        let Some(template) = self.template_of_pool(pool) else { return Ok(()) };
        match self.to_be_renewed(&template.key) {
            Some(renewal) if template.made_at == renewal.made_at => remove_dir(&template.files.dir),
            Some(_) => self.renewed(&template.key),
            None => Ok(()),
        }
    }

    /// The new template is there.
    pub(crate) fn renewed(&self, key: &str) -> Result<()> {
        let Some(renewal) = self.to_be_renewed(key) else { return Ok(()) };
        let text = serde_json::to_vec(&Renewal { done: true, ..renewal }).unwrap_or_default();
        write_atomically(&self.template_files(key).dir.join(RENEWED), &text, 0o600)?;
        remove_file(&self.note(key))
    }

    /// Begins to make the templates anew that were given up, in every pool.
    pub(crate) async fn renew_templates(self: &Arc<Self>) {
        let pools: Vec<PoolRef> = self.records.read(|world| {
            let lacks = |pool: &&Pool| {
                self.key_of_pool(pool).is_some_and(|key| self.to_be_renewed(&key).is_some())
            };
            world.pools.values().filter(lacks).map(|pool| pool.reference.clone()).collect()
        });
        for pool in pools {
            let due = crate::now() >= self.health(&pool).failures.retry_at();
            if !due || !locked(&self.renewals.under_way).insert(pool.clone()) {
                continue;
            }
            let node = self.clone();
            tokio::spawn(async move {
                match node.ensure_template_of(&pool).await {
                    Ok(()) => node.succeeded(&pool),
                    Err(problem) => node.failed(&pool, &problem),
                }
                locked(&node.renewals.under_way).remove(&pool);
                node.wake.notify();
            });
        }
    }

    /// Removes the notes of templates that no pool needs any more.
    pub(crate) fn sweep_notes(&self, names: &[String], needed: &BTreeSet<String>) {
        for name in names {
            let key = name.strip_suffix(NOTE);
            if key.is_some_and(|key| !needed.contains(key))
                && let Err(problem) = remove_file(&self.parts.root.templates().join(name))
            {
                tracing::warn!("{problem}");
            }
        }
    }
}

fn read(path: &Path) -> Option<Renewal> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
        Err(e) => {
            tracing::warn!("{}", io(format!("read {}", path.display()), e));
            return None;
        }
    };
    serde_json::from_slice(&text).ok()
}
