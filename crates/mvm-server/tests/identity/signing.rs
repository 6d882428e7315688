//! A signer's tokens, certificates and revocations, with a real store, and with several signers at
//! once.

use crate::support::{HOUR, Lab, id, now};
use mvm_api::Problem;
use mvm_api::identity::{Facts, Identity};
use mvm_api::types::{Invite, Signed};
use mvm_identity::tls::Credentials;
use mvm_identity::{
    Authority, Credential, IdentityDir, JoinToken, authority, certificate, enrolment, journal,
};
use mvm_model::{AnyCode, Code, Timestamp};
use mvm_server::signer::Signer;
use mvm_server::{renewal, signer};
use mvm_store::SqliteStore;
use std::sync::Arc;
use std::time::Duration;

fn invite(name: &str, ttl_s: u64) -> Invite {
    let name = name.parse().expect("name");
    Invite { name, ttl_s, addresses: vec!["127.0.0.1:1".to_owned()] }
}

/// Makes a token for this node; returns the contents of its certificate.
async fn token(lab: &Lab, name: &str) -> Facts {
    let invitation = lab.signer.invite(&invite(name, 3600), now()).await.expect("invited");
    let token: JoinToken = invitation.token.parse().expect("a token");
    token.credential(now()).expect("good").0.facts
}

fn request() -> String {
    authority::request(&authority::new_key().expect("key")).expect("request")
}

fn code<T>(outcome: Result<T, impl Into<Problem>>) -> AnyCode {
    outcome.err().expect("refused").into().code
}

fn facts(signed: &Signed) -> Facts {
    use rustls::pki_types::pem::PemObject;
    let pem = signed.certificate.as_bytes();
    certificate::read(&rustls::pki_types::CertificateDer::from_pem_slice(pem).expect("PEM"))
        .expect("read")
}

#[tokio::test]
async fn a_token_makes_one_node() {
    let lab = Lab::new();
    let token = token(&lab, "n1").await;
    let ours = request();
    let first = lab.signer.join(&token, &ours, now()).await.expect("joined");
    assert_eq!(facts(&first).identity, id("node/n1"));
    // The answer may be lost: a repetition with the same key gets the same certificate.
    let again = lab.signer.join(&token, &ours, now()).await.expect("the same");
    assert_eq!(first.certificate, again.certificate);
    assert_eq!(code(lab.signer.join(&token, &request(), now()).await), Code::TokenUsed);
    // Another token does not make a node that exists, either.
    assert_eq!(code(lab.signer.invite(&invite("n1", 60), now()).await), Code::Exists);
    let offline = signer::invitation(lab.signer.authority(), &invite("n1", 60), now());
    let second = offline.expect("a token").1;
    assert_eq!(code(lab.signer.join(&second, &request(), now()).await), Code::Exists);
    assert_eq!(code(lab.signer.join(&token, "rubbish", now()).await), Code::InvalidDocument);
    let nobody = Facts { identity: id("operator/alice"), ..token };
    assert_eq!(code(lab.signer.join(&nobody, &request(), now()).await), Code::Forbidden);
}

/// Two signers share one store, and many callers one token: exactly one becomes the node.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_at_once_one_becomes_the_node() {
    let mut lab = Lab::new();
    let store = Arc::new(SqliteStore::in_memory().expect("store"));
    lab.signer = Lab::signer_on(&lab.dir, store.clone());
    let other = Lab::signer_on(&lab.dir, store);
    let token = token(&lab, "n1").await;
    let mut callers = Vec::new();
    for at in 0..16 {
        let signer = if at % 2 == 0 { lab.signer.clone() } else { other.clone() };
        let token = token.clone();
        callers.push(tokio::spawn(async move { signer.join(&token, &request(), now()).await }));
    }
    let mut joined = 0;
    for caller in callers {
        match caller.await.expect("ends") {
            Ok(_) => joined += 1,
            Err(error) => assert_eq!(error.code(), Code::TokenUsed),
        }
    }
    assert_eq!(joined, 1);
    let views = other.identities(now()).await.expect("list");
    let node = views.iter().find(|view| view.identity == id("node/n1")).expect("the node");
    assert_eq!(node.certificates.len(), 1);
}

#[tokio::test]
async fn who_was_removed_may_be_invited_again_and_its_old_certificates_stay_revoked() {
    let lab = Lab::new();
    let first = token(&lab, "n1").await;
    let node = lab.signer.join(&first, &request(), now()).await.expect("joined");
    let unused = signer::invitation(lab.signer.authority(), &invite("n1", 3600), now());
    let unused = unused.expect("a token").1;
    journal::append(lab.dir.path(), &unused).expect("noted");
    let list = lab.signer.revoke(&id("node/n1"), now()).await.expect("removed");
    let credentials = lab.credentials("operator/alice");
    credentials.revoke(&list).expect("taken");
    let revoked = credentials.revocations();
    for facts in [&facts(&node), &first, &unused] {
        assert!(revoked.holds(&facts.serial), "{facts:?}");
    }
    assert_eq!(
        code(lab.signer.renew(&facts(&node), &request(), now()).await),
        Code::CertificateRevoked
    );
    let again = token(&lab, "n1").await;
    let node = lab.signer.join(&again, &request(), now()).await.expect("joined anew");
    assert!(!revoked.holds(&facts(&node).serial));
    // A second revocation is accepted; the revocation of an unknown identity is refused.
    let same = lab.signer.crl(now()).await.expect("list");
    assert_eq!(list, same);
    assert_eq!(code(lab.signer.revoke(&id("node/n9"), now()).await), Code::NotFound);
}

/// Renewals and a removal at the same time leave no valid certificate.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_renewal_does_not_outlive_a_removal() {
    let lab = Lab::new();
    for round in 0..8 {
        let name = format!("n{round}");
        let token = token(&lab, &name).await;
        let node = facts(&lab.signer.join(&token, &request(), now()).await.expect("joined"));
        let renewals: Vec<_> = (0..4)
            .map(|_| {
                let (signer, node) = (lab.signer.clone(), node.clone());
                tokio::spawn(async move { signer.renew(&node, &request(), now()).await })
            })
            .collect();
        lab.signer.revoke(&node.identity, now()).await.expect("removed");
        let mut issued = Vec::new();
        for renewal in renewals {
            issued.extend(renewal.await.expect("ends").ok().map(|signed| facts(&signed)));
        }
        let credentials = lab.credentials("operator/alice");
        credentials.revoke(&lab.signer.crl(now()).await.expect("list")).expect("taken");
        for facts in issued {
            assert!(credentials.revocations().holds(&facts.serial), "renewed past its removal");
        }
    }
}

#[tokio::test]
async fn lifetimes_are_kept() {
    let lab = Lab::new();
    let store = Arc::new(SqliteStore::in_memory().expect("store"));
    let signer = Signer::open(lab.dir.path(), store).expect("signer").lifetime(HOUR * 10);
    let key = authority::new_key().expect("key");
    let long = |facts: &Facts| {
        let lifetime = facts.validity.not_after.since(now());
        (lifetime + HOUR / 2).as_secs() / HOUR.as_secs()
    };
    let issue = |identity: &str, lifetime| {
        signer.authority().issue(&id(identity), &key, lifetime, now()).expect("issued").facts
    };
    // A node's lifetime is the signer's; a person's stays what it was.
    let node = issue("node/n1", HOUR);
    assert_eq!(long(&facts(&signer.renew(&node, &request(), now()).await.expect("renewed"))), 10);
    let alice = issue("operator/alice", HOUR * 7);
    let renewed = signer.renew(&alice, &request(), now()).await.expect("renewed");
    assert!((7..=8).contains(&long(&facts(&renewed))));
    // No certificate outlives its authority, and none is too short to be renewed.
    let years: u32 = 3650 * 24;
    assert!(long(&issue("operator/alice", HOUR * (10 * years))) <= years.into());
    let short = signer.authority().issue(&id("node/n1"), &key, Duration::from_millis(2999), now());
    assert_eq!(code(short), Code::InvalidValue);
    for ttl_s in [0, 2, 8 * 24 * 3600] {
        assert_eq!(code(signer.invite(&invite("n2", ttl_s), now()).await), Code::InvalidValue);
    }
    let nowhere = Invite { addresses: Vec::new(), ..invite("n2", 60) };
    assert_eq!(code(signer.invite(&nowhere, now()).await), Code::InvalidValue);
}

#[tokio::test]
async fn a_machine_joins_over_the_network_and_is_renewed_by_itself() {
    let lab = Lab::new();
    let server = lab.credentials("coordinator/c1");
    let address = lab.serve(&server).await;
    let wanted = Invite { addresses: vec!["127.0.0.1:1".into(), address], ..invite("n1", 3600) };
    let invitation = lab.signer.invite(&wanted, now()).await.expect("invited");
    let token: JoinToken = invitation.token.parse().expect("a token");
    let place = tempfile::tempdir().expect("directory");
    let dir = IdentityDir::new(place.path().join("identity"));
    // No server listens at the first address, so the second is tried.
    assert_eq!(enrolment::join(&token, &dir, now()).await.expect("joined").as_str(), "n1");
    let credential = dir.load().expect("an identity");
    assert_eq!(credential.facts.identity, id("node/n1"));
    assert_eq!(credential.roots, server.credential().roots);
    assert!(credential.list.is_some());
    let other = IdentityDir::new(place.path().join("other"));
    assert_eq!(code(enrolment::join(&token, &other, now()).await), Code::TokenUsed);
    assert!(!other.exists());

    let credentials = Credentials::open(dir.clone()).expect("credentials");
    let source = renewal::Source::Remote;
    renewal::renew(&credentials, &source, now()).await.expect("renewed");
    let renewed = dir.load().expect("an identity").facts;
    assert!(renewed.serial != credential.facts.serial && renewed.identity == id("node/n1"));
    assert_eq!(renewed, credentials.credential().facts);
    // An identity that another process stores there is adopted, too.
    let elsewhere = Credentials::open(dir.clone()).expect("credentials");
    renewal::renew(&elsewhere, &source, now()).await.expect("renewed");
    credentials.reload().expect("read");
    assert_eq!(dir.load().expect("an identity").facts, credentials.credential().facts);
}

#[tokio::test]
async fn tokens_that_are_old_foreign_or_no_tokens_are_refused() {
    let (lab, foreign) = (Lab::new(), Lab::new());
    let address = lab.serve(&lab.credentials("coordinator/c1")).await;
    let make = |lab: &Lab, at: Timestamp| {
        let wanted = Invite { addresses: vec![address.clone()], ..invite("n1", 60) };
        let made = signer::invitation(lab.signer.authority(), &wanted, at).expect("a token");
        made.0.token.parse::<JoinToken>().expect("a token")
    };
    let place = tempfile::tempdir().expect("directory");
    let dir = IdentityDir::new(place.path().join("identity"));
    let old = make(&lab, now() - HOUR);
    assert_eq!(code(enrolment::join(&old, &dir, now()).await), Code::TokenExpired);
    // The token trusts another authority than the server's, and the server another than the
    // token's.
    let mut other = make(&foreign, now());
    assert_eq!(code(enrolment::join(&other, &dir, now()).await), Code::PeerUntrusted);
    other.ca = lab.signer.authority().certificate().to_owned();
    assert_eq!(code(enrolment::join(&other, &dir, now()).await), Code::CertificateRefused);
    // The server's clock decides, not the joiner's.
    let (credential, _) = make(&lab, now() - HOUR).credential(now() - HOUR).expect("good then");
    let client = lab.client(&address, credential);
    let body = serde_json::json!({ "request": request() });
    let outcome = client.post::<Signed>("/v1/ca/join", &body).await;
    assert_eq!(crate::support::refused(outcome).code, Code::CertificateRefused);
    // An operator's certificate is no join token.
    let key = authority::new_key().expect("key");
    let ca = lab.signer.authority();
    let issued = ca.issue(&id("operator/alice"), &key, HOUR, now()).expect("issued");
    let disguised = JoinToken::new(
        vec![address.clone()],
        ca.certificate().to_owned(),
        issued.pem,
        key.serialize_pem(),
    );
    assert_eq!(code(disguised.credential(now())), Code::TokenInvalid);
    assert!(!dir.exists());
}

#[tokio::test]
async fn an_identity_that_does_not_fit_together_is_refused() {
    let lab = Lab::new();
    let place = tempfile::tempdir().expect("directory");
    let dir = IdentityDir::new(place.path());
    assert_eq!(code(dir.load()), Code::IdentityMissing);
    let (key, other) = (authority::new_key().expect("key"), authority::new_key().expect("key"));
    let ca: &Authority = lab.signer.authority();
    let issued = ca.issue(&id("node/n1"), &key, HOUR, now()).expect("issued");
    let store = |key: &rcgen::KeyPair, roots: &str, list: Option<&str>| {
        let signers = Default::default();
        dir.store(&issued.pem, &key.serialize_pem(), roots, list, &signers).expect("stored");
        dir.load()
    };
    assert!(store(&key, ca.certificate(), None).is_ok());
    assert_eq!(code(store(&other, ca.certificate(), None)), Code::IdentityDamaged);
    assert_eq!(code(store(&key, "", None)), Code::IdentityDamaged);
    let foreign = Lab::new().signer.authority().list(3, &[], now()).expect("list");
    assert_eq!(code(store(&key, ca.certificate(), Some(&foreign))), Code::CrlInvalid);
    let mode = |name: &str| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(dir.path().join(name)).expect(name).permissions().mode() & 0o777
    };
    assert_eq!(mode("identity.pem"), 0o600);
    for rubbish in ["", "rubbish", &issued.pem] {
        assert!(Credential::read(rubbish.as_bytes(), b"", None, Default::default()).is_err());
    }
    // The authority's own certificate has no identity.
    let itself = Identity::Operator("ca".parse().expect("name"));
    assert!(!ca.certificate().contains(&itself.to_string()));
    let both = format!("{}\n{}", ca.certificate(), key.serialize_pem());
    let outcome = Credential::read(both.as_bytes(), b"", None, Default::default());
    assert_eq!(code(outcome), Code::CertificateUnreadable);
}
