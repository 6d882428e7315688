//! Mutual TLS on loopback: which clients get in, which do not, and that refused ones do not disturb
//! the others.

use crate::support::{HOUR, Lab, id, now, refused};
use mvm_identity::Authority;
use mvm_identity::tls::{Credentials, Expect};
use mvm_model::Code;
use mvm_server::{TlsListener, renewal};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn whoever_has_a_good_certificate_gets_in_and_is_known() {
    let lab = Lab::new();
    let address = lab.serve(&lab.credentials("coordinator/c1")).await;
    for (identity, holder) in [
        ("operator/alice", "operator:alice"),
        ("tenant-operator/ci/bob", "tenant-operator:ci/bob"),
        ("node/n1", "node:n1"),
        ("coordinator/c2", "coordinator:c2"),
    ] {
        let client = lab.client(&address, lab.credential(identity, HOUR));
        assert_eq!(client.get::<String>("/who").await.expect("an answer"), holder);
        // The second call goes over the same connection.
        assert_eq!(client.get::<String>("/who").await.expect("an answer"), holder);
    }
}

#[tokio::test]
async fn wrong_certificates_are_refused_before_a_request_is_read() {
    let (lab, foreign) = (Lab::new(), Lab::new());
    let server = lab.credentials("coordinator/c1");
    let address = lab.serve(&server).await;
    let trusting = |mut credential: mvm_identity::Credential| {
        credential.roots = server.credential().roots;
        credential
    };
    let from_elsewhere = trusting(foreign.credential("operator/alice", HOUR));
    let old = lab.credential_at("operator/alice", HOUR, now() - HOUR * 2);
    let early = lab.credential_at("operator/alice", HOUR, now() + HOUR * 2);
    for (credential, words) in [
        (from_elsewhere, "another authority signed our certificate"),
        (old, "our certificate has run out"),
        (early, "does not let us in"),
    ] {
        let problem = refused(lab.client(&address, credential).get::<String>("/who").await);
        assert_eq!(problem.code, Code::CertificateRefused, "{problem}");
        assert!(problem.detail.contains(words), "{problem}");
    }
    // A client that does not trust the server never presents its own certificate.
    let stranger = lab.client(&address, foreign.credential("operator/alice", HOUR));
    let problem = refused(stranger.get::<String>("/who").await);
    assert_eq!(problem.code, Code::PeerUntrusted, "{problem}");
}

#[tokio::test]
async fn a_server_is_known_by_its_identity_whatever_its_address() {
    let lab = Lab::new();
    let address = lab.serve(&lab.credentials("node/n1")).await;
    let ask = async |expect: Expect| {
        let credentials = lab.credentials("operator/alice");
        mvm_identity::client(&address, credentials, expect).get::<String>("/who").await
    };
    let n1 = || Some("n1".parse().expect("name"));
    assert!(ask(Expect::Node(None)).await.is_ok());
    assert!(ask(Expect::Node(n1())).await.is_ok());
    let other = refused(ask(Expect::Node(Some("n2".parse().expect("name")))).await);
    assert_eq!(other.code, Code::PeerUntrusted);
    assert!(other.detail.contains("node:n1 answers where the node n2 should"), "{other}");
    assert_eq!(refused(ask(Expect::Coordinator).await).code, Code::PeerUntrusted);
    // An operator's certificate cannot serve.
    let loopback = ["127.0.0.1:0".parse().expect("address")];
    let listener = TlsListener::bind(&loopback, lab.credentials("operator/alice")).await;
    assert_eq!(listener.err().expect("refused").code(), Code::WrongIdentity);
}

#[tokio::test]
async fn revoked_ones_are_cut_off_and_stay_out() {
    let lab = Lab::new();
    let server = lab.credentials("coordinator/c1");
    let address = lab.serve(&server).await;
    let key = mvm_identity::authority::new_key().expect("key");
    let issued = lab.signer.issue(&id("operator/mallory"), &key, now()).await.expect("issued");
    let both = format!("{}\n{}", issued.pem, key.serialize_pem());
    let roots = lab.signer.authority().certificate();
    let credential =
        mvm_identity::Credential::read(both.as_bytes(), roots.as_bytes(), None, Default::default())
            .expect("a credential");
    let mallory = lab.client(&address, credential.clone());
    mallory.get::<String>("/who").await.expect("good so far");
    // A raw connection that stays open.
    let credentials = Credentials::in_memory(credential.clone()).expect("credentials");
    let mut open = mvm_identity::tls::connect(&address, &credentials, &Expect::Coordinator)
        .await
        .expect("connects");
    open.write_all(b"GET /who HTTP/1.1\r\nhost: mvm\r\n\r\n").await.expect("writes");
    assert!(open.read(&mut [0; 4096]).await.expect("an answer") > 0);

    let alice = lab.client(&address, lab.credential("operator/alice", HOUR));
    let body = serde_json::json!({ "identity": id("operator/mallory") });
    let list: mvm_api::types::RevocationList =
        alice.post("/v1/ca/revoke", &body).await.expect("revoked");

    assert!(matches!(open.read(&mut [0; 64]).await, Ok(0) | Err(_)), "the connection is cut");
    let kept = refused(mallory.get::<String>("/who").await);
    let anew = refused(lab.client(&address, credential).get::<String>("/who").await);
    for problem in [kept, anew] {
        assert_eq!(problem.code, Code::CertificateRefused, "{problem}");
        assert!(problem.detail.contains("our certificate was revoked"), "{problem}");
    }
    alice.get::<String>("/who").await.expect("others go on");
    // An older list does not undo the revocation, a foreign one is refused, and the same list again
    // is accepted.
    let older = lab.signer.authority().list(1, &[], now()).expect("list");
    assert!(!server.revoke(&older).expect("taken"));
    assert!(!server.revoke(&list.crl).expect("taken"));
    let elsewhere = Lab::new().signer.authority().list(99, &[], now()).expect("list");
    assert_eq!(server.revoke(&elsewhere).expect_err("refused").code(), Code::CrlInvalid);
    assert_eq!(server.revoke("rubbish").expect_err("refused").code(), Code::CrlInvalid);
    alice.post::<serde_json::Value>("/v1/ca/revoke", &body).await.expect("again");
}

#[tokio::test]
async fn a_server_that_is_revoked_is_not_trusted_any_more() {
    let lab = Lab::new();
    let server = lab.credentials("node/n1");
    let address = lab.serve(&server).await;
    let alice = lab.credentials("operator/alice");
    let client = mvm_identity::client(&address, alice.clone(), Expect::Node(None));
    client.get::<String>("/who").await.expect("good so far");
    let facts = server.credential().facts;
    let revoked = mvm_identity::authority::Revocation {
        serial: facts.serial,
        at: now(),
        not_after: facts.validity.not_after,
    };
    let list = lab.signer.authority().list(7, &[revoked], now()).expect("list");
    assert!(alice.revoke(&list).expect("taken"));
    let problem = refused(client.get::<String>("/who").await);
    assert_eq!(problem.code, Code::PeerUntrusted, "{problem}");
    assert!(problem.detail.contains("revoked"), "{problem}");
}

#[tokio::test]
async fn who_shows_no_certificate_or_speaks_something_else_is_refused() {
    let lab = Lab::new();
    let server = lab.credentials("coordinator/c1");
    let address = lab.serve(&server).await;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(server.credential().roots[0].clone()).expect("root");
    let anonymous = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(anonymous));
    let stream = TcpStream::connect(&address).await.expect("connects");
    let name = "mvm.internal".try_into().expect("name");
    let mut stream = connector.connect(name, stream).await.expect("its half of the handshake");
    let _ = stream.write_all(b"GET /who HTTP/1.1\r\nhost: mvm\r\n\r\n").await;
    let error = stream.read(&mut [0; 64]).await.expect_err("refused");
    assert!(error.to_string().contains("CertificateRequired"), "{error}");

    let said_to = async |bytes: &[u8]| {
        let mut stream = TcpStream::connect(&address).await.expect("connects");
        stream.write_all(bytes).await.expect("writes");
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        answer
    };
    // An alert, fatal: protocol_version (RFC 8446, section 6).
    assert_eq!(said_to(&hello_of_tls_1_2()).await, [0x15, 3, 3, 0, 2, 2, 70]);
    for bytes in [&b"GET /who HTTP/1.1\r\n\r\n"[..], &[0; 600], b"\x16\x03\x01\xff\xff"] {
        let answer = said_to(bytes).await;
        // The server sends at most an alert, never a response.
        assert!(answer.len() < 16 && !answer.starts_with(b"HTTP"), "{answer:?}");
    }
    // The server still works.
    let alice = lab.client(&address, lab.credential("operator/alice", HOUR));
    alice.get::<String>("/who").await.expect("an answer");
}

/// The first message of a client that knows only TLS 1.2: one cipher suite, and the extensions with
/// a curve and a signature scheme that the server knows, too.
fn hello_of_tls_1_2() -> Vec<u8> {
    let extensions = [0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0, 0, 13, 0, 4, 0, 2, 4, 3];
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0, 0, extensions.len() as u8]);
    hello.extend(extensions);
    let length = hello.len() as u8;
    let mut record = vec![0x16, 3, 1, 0, length + 4, 1, 0, 0, length];
    record.extend(hello);
    record
}

#[tokio::test]
async fn who_is_slow_holds_up_nobody() {
    let lab = Lab::new();
    let address = lab.serve(&lab.credentials("coordinator/c1")).await;
    let mut slow = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(&address).await.expect("connects");
        stream.write_all(&[0x16, 3]).await.expect("writes");
        slow.push(stream);
    }
    let alice = lab.client(&address, lab.credential("operator/alice", HOUR));
    alice.get::<String>("/who").await.expect("an answer meanwhile");
    // The deadline disconnects them.
    for mut stream in slow {
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        let ended = tokio::time::timeout(std::time::Duration::from_secs(60), ended).await;
        let _ = ended.expect("the connection ends");
    }
}

#[tokio::test]
async fn a_server_is_renewed_while_connections_stand() {
    let lab = Lab::new();
    let server = lab.credentials("coordinator/c1");
    let address = lab.serve(&server).await;
    let alice = lab.credentials("operator/alice");
    let mut open =
        mvm_identity::tls::connect(&address, &alice, &Expect::Coordinator).await.expect("connects");
    let before = server.credential().facts;
    let source = renewal::Source::Local(lab.signer.clone());
    renewal::renew(&server, &source, now()).await.expect("renewed");
    let after = server.credential().facts;
    assert_eq!(before.identity, after.identity);
    assert!(before.serial != after.serial && before.validity.not_after < after.validity.not_after);
    open.write_all(b"GET /who HTTP/1.1\r\nhost: mvm\r\n\r\n").await.expect("writes");
    let mut answer = [0; 4096];
    let count = open.read(&mut answer).await.expect("goes on");
    assert!(answer[..count].starts_with(b"HTTP/1.1 200"));
    let anew = mvm_identity::tls::connect(&address, &alice, &Expect::Coordinator).await;
    let anew = anew.expect("connects");
    let shown = anew.facts();
    assert_eq!(shown.serial, after.serial, "who comes anew sees the new one");
}

#[tokio::test]
async fn an_authority_is_made_once() {
    let lab = Lab::new();
    let again = Authority::create(lab.dir.path(), now()).err().expect("refused");
    assert_eq!(again.code(), Code::Exists);
    let mode = |name: &str| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(lab.dir.path().join(name)).expect(name).permissions().mode() & 0o777
    };
    assert_eq!(mode("ca-key.pem"), 0o600);
}
