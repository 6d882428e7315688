//! Templates that are given up and renewed: those that could not be loaded, and those whose clones
//! did not answer.
//!
//! A template that is given up leaves a note beside its former place. Until there is a new
//! template, the note also tells the next agent that one must be made, whatever the pool's counts
//! are.

use super::lookup::{Template, Templates, made_at, withdraw};
use super::metrics::{NOTE, RENEWED};
use crate::Result;
use crate::blocking::blocking;
use crate::error::io;
use crate::labels::of_pool;
use crate::locks::locked;
use crate::state_dir::{remove_dir, remove_file, write_atomically};
use mvm_model::template::{CloneEnd, Renewal};
use mvm_model::{Code, Pool, PoolRef};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Returns what the end of a clone's start says about its template.
fn end_of(outcome: &Result<()>) -> CloneEnd {
    match outcome.as_ref().map_err(|error| error.code().known()) {
        Ok(()) => CloneEnd::Answered,
        Err(Some(Code::RestoreFailed)) => CloneEnd::Unusable,
        Err(Some(
            Code::GuestUnreachable
            | Code::GuestSilent
            | Code::GuestChannelBroken
            | Code::MachineDied
            | Code::Gone
            | Code::QmpFailed
            | Code::QmpTimeout,
        )) => CloneEnd::Silent,
        Err(_) => CloneEnd::Unrelated,
    }
}

impl Templates {
    fn note(&self, key: &str) -> PathBuf {
        self.state_dir.templates().join(format!("{key}{NOTE}"))
    }

    /// Counts how a clone of the template came up, and gives the template up after too many
    /// failures.
    pub(crate) async fn note_clone_end(
        &self,
        pool: &PoolRef,
        template: &Template,
        outcome: &Result<()>,
    ) {
        let end = end_of(outcome);
        // Another clone may have given the template up: then this result does not concern the
        // present one.
        let present = self.find(template.key.clone());
        if present.is_none_or(|present| present.made_at != template.made_at) {
            return;
        }
        let given_up = {
            let mut healths = locked(&self.renewals.healths);
            let health = healths.entry(template.key.clone()).or_default();
            let (after, given_up) = health.after(template.made_at, end);
            *health = after;
            given_up
        };
        if !given_up {
            return;
        }
        let why = outcome.as_ref().err().map(|error| error.to_string()).unwrap_or_default();
        let first = why.lines().next().unwrap_or_default();
        let reason = match end {
            CloneEnd::Unusable => format!("it could not be loaded: {first}"),
            _ => format!("its clones came up dead, one after the other: {first}"),
        };
        tracing::warn!(%pool, template = template.key, reason, "a template is given up");
        self.renewals.given_up.get_or_create(&of_pool(pool)).inc();
        let at = self.records.clock().wall();
        let renewal = Renewal { at, made_at: template.made_at, reason, done: false };
        if let Err(error) = self.give_up(template.clone(), renewal).await {
            tracing::error!(template = template.key, "cannot give a template up: {error}");
        }
        self.wake.notify();
    }

    /// Notes that the template is to be renewed, and removes it. Does nothing if there is another
    /// template of its name by now.
    async fn give_up(&self, template: Template, renewal: Renewal) -> Result<()> {
        let (note, turn) = (self.note(&template.key), self.renewals.turn.clone());
        blocking(move || {
            let turn = locked(&turn);
            if made_at(&template.files) != template.made_at {
                return Ok(());
            }
            // The note comes first: a removed template without a note would not be renewed.
            let text = serde_json::to_vec(&renewal).unwrap_or_default();
            write_atomically(&note, &text, 0o600)?;
            let withdrawn = withdraw(&template.files.dir)?;
            drop(turn);
            remove_dir(&withdrawn)
        })
        .await
    }

    /// Returns why the template of this name was given up, if a new one is to be made.
    pub(crate) fn to_be_renewed(&self, key: &str) -> Option<Renewal> {
        read(&self.note(key))
    }

    /// Counts the boot of an instance if its pool's template was given up.
    pub(crate) fn count_boot(&self, pool: &Pool) {
        if self.key_of_pool(pool).is_some_and(|key| self.to_be_renewed(&key).is_some()) {
            self.renewals.booted.get_or_create(&of_pool(&pool.reference)).inc();
        }
    }

    /// Returns the last renewal of the pool's template, if the template was ever given up.
    pub(crate) fn renewal_of(&self, pool: &Pool) -> Option<Renewal> {
        let key = self.key_of_pool(pool)?;
        self.to_be_renewed(&key).or_else(|| read(&self.files(&key).dir.join(RENEWED)))
    }

    /// Completes the renewal that a killed agent left unfinished: removes the old template, or
    /// notes that the new one is made.
    pub(crate) async fn end_renewal(&self, pool: &Pool) -> Result<()> {
        let Some(template) = self.of_pool(pool) else { return Ok(()) };
        match self.to_be_renewed(&template.key) {
            Some(renewal) if template.made_at == renewal.made_at => {
                self.give_up(template, renewal).await
            }
            Some(_) => self.renewed(&template.key).await,
            None => Ok(()),
        }
    }

    /// Notes that the new template is made, unless that one is to be renewed already.
    pub(crate) async fn renewed(&self, key: &str) -> Result<()> {
        let (files, note, turn) = (self.files(key), self.note(key), self.renewals.turn.clone());
        blocking(move || {
            let _turn = locked(&turn);
            let Some(renewal) = read(&note) else { return Ok(()) };
            if renewal.made_at == made_at(&files) {
                return Ok(());
            }
            let text = serde_json::to_vec(&Renewal { done: true, ..renewal }).unwrap_or_default();
            write_atomically(&files.dir.join(RENEWED), &text, 0o600)?;
            remove_file(&note)
        })
        .await
    }

    /// Removes the notes of templates that no pool needs any more.
    pub(crate) fn sweep_notes(&self, names: &[String], needed: &BTreeSet<String>) {
        for name in names {
            let key = name.strip_suffix(NOTE);
            if key.is_some_and(|key| !needed.contains(key))
                && let Err(error) = remove_file(&self.state_dir.templates().join(name))
            {
                tracing::warn!("{error}");
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
