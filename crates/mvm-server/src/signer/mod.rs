//! The signer: an authority with records of the certificates that it issued and revoked. It runs in
//! a coordinator or in `mvm ca serve`, where the authority's key is.
//!
//! Every decision rests on the store's records and is written under a condition. Several signers
//! may share a store, and each may be killed at any time: no two of them make a node of one token.

mod routes;

pub use routes::{routes, serve};

use crate::idempotency::Idempotency;
use crate::{Error, Result};
use mvm_api::identity::{Facts, Identity, Role};
use mvm_api::routes::Server;
use mvm_api::types::{CertificateView, IdentityView, Invitation, Invite, Signed};
use mvm_clock::Clock;
use mvm_identity::authority::{Authority, Issued, NODE_LIFETIME, Revocation, request_key};
use mvm_identity::{JoinToken, Seal, authority, journal};
use mvm_model::Timestamp;
use mvm_store::{Expect, Record, SqliteStore, Store, Write};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The prefixes of records in the store.
const IDENTITIES: &str = "ca/identities/";
const TOKENS: &str = "ca/tokens/";
/// The key of the revocation list's record.
pub const LIST: &str = "ca/list";
/// How often a change is tried that collides with other changes.
const TRIES: usize = 16;
/// The longest lifetime of a join token, in seconds: a week.
const LONGEST_TOKEN_S: u64 = 7 * 24 * 3600;

/// An authority and its records.
pub struct Signer {
    authority: Authority,
    dir: PathBuf,
    store: Arc<dyn Store>,
    /// The lifetime of nodes' and coordinators' certificates.
    lifetime: Duration,
}

/// A token that has been used.
#[derive(Debug, Serialize, Deserialize)]
struct Used {
    /// The public key that the certificate was made for.
    key: String,
    /// The node's certificate, for a caller that repeats the request because the answer was lost.
    certificate: String,
    /// When the token expires; the record is of no use after that.
    not_after: Timestamp,
}

/// The record of the revocation list.
#[derive(Debug, Default, Serialize, Deserialize)]
struct List {
    number: u64,
    revoked: Vec<Revocation>,
    crl: String,
}

impl Signer {
    /// Opens the authority in the directory `dir`, with its records in `store`.
    pub fn open(dir: &Path, store: Arc<dyn Store>) -> Result<Signer> {
        let authority = Authority::open(dir)?;
        Ok(Signer { authority, dir: dir.to_owned(), store, lifetime: NODE_LIFETIME })
    }

    /// Opens the authority in the directory `dir`, with its records in a file beside it. No other
    /// process may have that file open.
    pub fn embedded(dir: &Path) -> Result<Signer> {
        // The authority is opened first, so that a directory without one gets no file.
        Authority::open(dir)?;
        Signer::open(dir, Arc::new(SqliteStore::open(&dir.join("ca.db"))?))
    }

    /// Sets the lifetime of nodes' and coordinators' certificates.
    pub fn lifetime(mut self, lifetime: Duration) -> Signer {
        self.lifetime = lifetime;
        self
    }

    /// Returns the authority.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Returns the records of requests with an idempotency key, for a server that starts now by this
    /// clock.
    pub fn once(&self, clock: Clock) -> Result<Idempotency> {
        let (store, seal) = (self.store.clone(), Some(Arc::new(Seal::of(&self.authority)?)));
        let started_at = clock.wall();
        Ok(Idempotency { store, server: Server::Signer, started_at, seal, clock })
    }

    /// Adds the authority's certificate and the revocation list to a certificate.
    async fn signed(&self, certificate: String, now: Timestamp) -> Result<Signed> {
        let ca = self.authority.certificate().to_owned();
        Ok(Signed { certificate, ca, crl: self.crl(now).await? })
    }

    /// Makes a join token for a node that has no valid certificate.
    pub async fn invite(&self, invite: &Invite, now: Timestamp) -> Result<Invitation> {
        let node = Identity::Node(invite.name.clone());
        self.absent(&self.view(&node).await?.0, now)?;
        let (invitation, facts) = invitation(&self.authority, invite, now)?;
        self.record(&facts, now).await?;
        Ok(invitation)
    }

    /// Makes the holder of a join token the node that it names, once. A caller that repeats the
    /// request with the same key gets the same certificate.
    pub async fn join(&self, token: &Facts, request: &str, now: Timestamp) -> Result<Signed> {
        let Identity::Joiner(name) = &token.identity else {
            return Err(Error::NoToken { holder: token.identity.holder() });
        };
        let node = Identity::Node(name.clone());
        let issued = self.authority.answer(&node, request, self.lifetime, now)?;
        let key = request_key(request)?;
        let place = format!("{TOKENS}{}", token.serial);
        for _ in 0..TRIES {
            // The node is read before the token: if this token makes the node in between, the
            // token's record shows it.
            let (mut view, revision) = self.view(&node).await?;
            if let Some(used) = self.get::<Used>(&place).await? {
                if used.0.key == key {
                    return self.signed(used.0.certificate, now).await;
                }
                return Err(Error::TokenUsed(name.clone()));
            }
            self.absent(&view, now)?;
            add(&mut view, &issued.facts, now);
            let used = Used {
                key: key.clone(),
                certificate: issued.pem.clone(),
                not_after: token.validity.not_after,
            };
            let mut writes = self.stale_tokens(now).await?;
            writes.push(put(place.clone(), &used, Expect::Absent));
            writes.push(put(identity_key(&node), &view, revision));
            if self.commit(writes).await? {
                return self.signed(issued.pem, now).await;
            }
        }
        Err(Error::Contended)
    }

    /// Signs a new certificate for an identity whose certificate is valid.
    pub async fn renew(&self, present: &Facts, request: &str, now: Timestamp) -> Result<Signed> {
        let lifetime = match present.identity.role() {
            Role::Node | Role::Coordinator => self.lifetime,
            _ => present.validity.not_after.since(present.validity.not_before),
        };
        let issued = self.authority.answer(&present.identity, request, lifetime, now)?;
        for _ in 0..TRIES {
            let (mut view, expect) = self.view(&present.identity).await?;
            let shown = |one: &&CertificateView| one.facts.serial == present.serial;
            // Another signer may have revoked the certificate just now. The revocation changes this
            // record, too, so a certificate is never renewed past its revocation.
            if view.certificates.iter().find(shown).is_some_and(|one| one.revoked_at.is_some()) {
                return Err(Error::Revoked { holder: present.identity.holder() });
            }
            add(&mut view, &issued.facts, now);
            if self.commit(vec![put(identity_key(&present.identity), &view, expect)]).await? {
                return self.signed(issued.pem, now).await;
            }
        }
        Err(Error::Contended)
    }

    /// Issues a certificate for a key of this process, and records it.
    pub async fn issue(
        &self,
        identity: &Identity,
        key: &rcgen::KeyPair,
        now: Timestamp,
    ) -> Result<Issued> {
        let issued = self.authority.issue(identity, key, self.lifetime, now)?;
        self.record(&issued.facts, now).await?;
        Ok(issued)
    }

    /// Revokes all certificates of an identity; for a node also those in its join tokens. Returns
    /// the new revocation list.
    pub async fn revoke(&self, identity: &Identity, now: Timestamp) -> Result<String> {
        let mut identities = vec![identity.clone()];
        if let Identity::Node(name) = identity {
            identities.push(Identity::Joiner(name.clone()));
        }
        for _ in 0..TRIES {
            let (mut list, revision) = self.list(now).await?;
            let (mut writes, mut known, mut new) = (Vec::new(), false, Vec::new());
            for identity in &identities {
                let (mut view, revision) = self.view(identity).await?;
                known |= !view.certificates.is_empty();
                for one in view.certificates.iter_mut().filter(|one| live(one, now)) {
                    one.revoked_at = Some(now);
                    let (serial, not_after) =
                        (one.facts.serial.clone(), one.facts.validity.not_after);
                    new.push(Revocation { serial, at: now, not_after });
                }
                writes.push(put(identity_key(identity), &view, revision));
            }
            if !known {
                return Err(Error::NoCertificates { holder: identity.holder() });
            }
            if new.is_empty() {
                return Ok(list.crl);
            }
            list.number += 1;
            list.revoked.retain(|one| one.not_after > now);
            list.revoked.extend(new);
            list.crl = self.authority.list(list.number, &list.revoked, now)?;
            writes.push(put(LIST.to_owned(), &list, revision));
            if self.commit(writes).await? {
                return Ok(list.crl);
            }
        }
        Err(Error::Contended)
    }

    /// Returns the revocation list in PEM.
    pub async fn crl(&self, now: Timestamp) -> Result<String> {
        for _ in 0..TRIES {
            let (list, revision) = self.list(now).await?;
            if revision != Expect::Absent {
                return Ok(list.crl);
            }
            self.commit(vec![put(LIST.to_owned(), &list, revision)]).await?;
        }
        Err(Error::Contended)
    }

    /// Returns the list's record; an empty first list where there is none yet.
    async fn list(&self, now: Timestamp) -> Result<(List, Expect)> {
        if let Some((list, revision)) = self.get(LIST).await? {
            return Ok((list, Expect::Revision(revision)));
        }
        let crl = self.authority.list(1, &[], now)?;
        Ok((List { number: 1, revoked: Vec::new(), crl }, Expect::Absent))
    }

    /// Returns the identities that have unexpired certificates.
    pub async fn identities(&self, now: Timestamp) -> Result<Vec<IdentityView>> {
        let mut views = Vec::new();
        for record in self.store.list(IDENTITIES).await? {
            views.push(read::<IdentityView>(&record)?);
        }
        for facts in journal::read(&self.dir)? {
            match views.iter_mut().find(|view| view.identity == facts.identity) {
                Some(view) => add_known(view, facts),
                None => views.push(IdentityView {
                    identity: facts.identity.clone(),
                    certificates: vec![CertificateView { facts, revoked_at: None }],
                }),
            }
        }
        for view in &mut views {
            view.certificates.retain(|one| one.facts.validity.not_after > now);
        }
        views.retain(|view| !view.certificates.is_empty());
        views.sort_by(|a, b| a.identity.cmp(&b.identity));
        Ok(views)
    }

    /// Returns an identity's certificates, those issued without a store included, and the condition
    /// for replacing the record.
    async fn view(&self, identity: &Identity) -> Result<(IdentityView, Expect)> {
        let (mut view, expect) = match self.get(&identity_key(identity)).await? {
            Some((view, revision)) => (view, Expect::Revision(revision)),
            None => {
                let view = IdentityView { identity: identity.clone(), certificates: Vec::new() };
                (view, Expect::Absent)
            }
        };
        for facts in journal::read(&self.dir)? {
            if facts.identity == *identity {
                add_known(&mut view, facts);
            }
        }
        Ok((view, expect))
    }

    /// Refuses an identity that has a valid certificate.
    fn absent(&self, view: &IdentityView, now: Timestamp) -> Result<()> {
        if !view.certificates.iter().any(|one| live(one, now)) {
            return Ok(());
        }
        Err(Error::NodeExists(view.identity.name().to_string()))
    }

    /// Records an issued certificate.
    async fn record(&self, facts: &Facts, now: Timestamp) -> Result<()> {
        for _ in 0..TRIES {
            let (mut view, expect) = self.view(&facts.identity).await?;
            add(&mut view, facts, now);
            if self.commit(vec![put(identity_key(&facts.identity), &view, expect)]).await? {
                return Ok(());
            }
        }
        Err(Error::Contended)
    }

    /// Returns the writes that remove the records of expired tokens.
    async fn stale_tokens(&self, now: Timestamp) -> Result<Vec<Write>> {
        let mut writes = Vec::new();
        for record in self.store.list(TOKENS).await? {
            if read::<Used>(&record)?.not_after <= now {
                writes.push(Write::Delete { key: record.key, expect: Expect::Any });
            }
        }
        Ok(writes)
    }

    async fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<(T, u64)>> {
        let record = self.store.get(key).await?;
        record.map(|record| Ok((read(&record)?, record.revision))).transpose()
    }

    /// Commits the writes. Returns false where another process was faster.
    async fn commit(&self, writes: Vec<Write>) -> Result<bool> {
        match self.store.commit(writes).await {
            Ok(_) => Ok(true),
            Err(mvm_store::Error::Conflict { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Reads the revocation list in PEM from its record.
pub fn list_of(record: &[u8]) -> Result<String> {
    let list = serde_json::from_slice::<List>(record);
    Ok(list.map_err(|cause| Error::RecordDamaged { key: LIST.to_owned(), cause })?.crl)
}

/// Makes a join token with the authority alone, without records. Returns the contents of the
/// token's certificate, too.
pub fn invitation(
    authority: &Authority,
    invite: &Invite,
    now: Timestamp,
) -> Result<(Invitation, Facts)> {
    let Invite { name, ttl_s, addresses } = invite;
    if !(3..=LONGEST_TOKEN_S).contains(ttl_s) {
        return Err(Error::TokenLifetime { seconds: *ttl_s, longest: LONGEST_TOKEN_S });
    }
    if addresses.is_empty() {
        return Err(Error::TokenWithoutAddress);
    }
    let key = authority::new_key()?;
    let issued =
        authority.issue(&Identity::Joiner(name.clone()), &key, Duration::from_secs(*ttl_s), now)?;
    let ca = authority.certificate().to_owned();
    let token = JoinToken::new(addresses.clone(), ca, issued.pem, key.serialize_pem());
    let expires_at = issued.facts.validity.not_after;
    Ok((Invitation { name: name.clone(), token: token.to_string(), expires_at }, issued.facts))
}

fn live(one: &CertificateView, now: Timestamp) -> bool {
    one.revoked_at.is_none() && one.facts.validity.not_after > now
}

/// Adds a certificate, and removes expired ones.
fn add(view: &mut IdentityView, facts: &Facts, now: Timestamp) {
    view.certificates.retain(|one| one.facts.validity.not_after > now);
    add_known(view, facts.clone());
}

fn add_known(view: &mut IdentityView, facts: Facts) {
    if !view.certificates.iter().any(|one| one.facts.serial == facts.serial) {
        view.certificates.push(CertificateView { facts, revoked_at: None });
    }
}

fn identity_key(identity: &Identity) -> String {
    format!("{IDENTITIES}{}", identity.key())
}

fn put(key: String, value: &impl Serialize, expect: Expect) -> Write {
    // Plain structs of strings and numbers cannot fail to serialise.
    Write::Put { key, value: serde_json::to_vec(value).unwrap_or_default(), expect }
}

fn read<T: DeserializeOwned>(record: &Record) -> Result<T> {
    serde_json::from_slice(&record.value)
        .map_err(|cause| Error::RecordDamaged { key: record.key.clone(), cause })
}
