//! Streams of events over TLS whose connection breaks in the middle.

use super::{Agent, agent, app, ask};
use crate::api::serve_tls;
use mvm_api::client::Event;
use mvm_clock::Clock;
use mvm_identity::directory::Signers;
use mvm_identity::tls::{Credentials, Expect};
use mvm_identity::{Authority, Credential, authority};
use mvm_model::{InstanceId, State};
use mvm_server::{Peer, TlsListener};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

const HOUR: Duration = Duration::from_secs(3600);

/// Makes credentials of one authority.
fn credentials(identities: [&str; 2]) -> [Arc<Credentials>; 2] {
    let (dir, now) = (tempfile::tempdir().expect("directory"), Clock::system().wall());
    Authority::create(dir.path(), now).expect("an authority");
    let authority = Authority::open(dir.path()).expect("an authority");
    identities.map(|identity| {
        let identity = format!("spiffe://mvm/{identity}").parse().expect("an identity");
        let key = authority::new_key().expect("a key");
        let issued = authority.issue(&identity, &key, HOUR, now).expect("issued");
        let both = format!("{}\n{}", issued.pem, key.serialize_pem());
        let roots = authority.certificate().as_bytes();
        let credential = Credential::read(both.as_bytes(), roots, None, Signers::default());
        Credentials::in_memory(credential.expect("a credential")).expect("a credentials")
    })
}

/// Forwards connections to `to`, and breaks each after this many bytes of response.
async fn cutting(to: SocketAddr, bytes: u64, cuts: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let cuts = cuts.clone();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(to).await.expect("connects");
                let ((far_in, mut far_out), (mut near_in, mut near_out)) =
                    (far.split(), near.split());
                let mut back = far_in.take(bytes);
                tokio::select! {
                    _ = tokio::io::copy(&mut back, &mut near_out) => {}
                    _ = tokio::io::copy(&mut near_in, &mut far_out) => {}
                }
                cuts.fetch_add(1, Ordering::Relaxed);
            });
        }
    });
    address
}

/// Moves an instance from state to state, with one event each.
async fn happen(agent: &Agent, times: usize) {
    let id: InstanceId = "i-00000000".parse().expect("an id");
    for _ in 0..times {
        let done = agent.base.records.change(|records, changes| {
            let mut instance = records.instances[&id].clone();
            instance.state =
                if instance.state == State::Running { State::Warm } else { State::Running };
            changes.put_instance(instance);
            Ok(())
        });
        done.await.expect("written");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_cut_again_and_again_tells_everything_once() {
    let (_dir, agent) = agent().await;
    let [ours, alice] = credentials(["node/n1", "operator/alice"]);
    let loopback = ["127.0.0.1:0".parse().expect("an address")];
    let listener = TlsListener::bind(&loopback, ours).await.expect("listens");
    let address = listener.addresses()[0];
    tokio::spawn(serve_tls(listener, app(agent.clone())));
    let cuts = Arc::new(AtomicUsize::new(0));
    let address = cutting(address, 11_000, cuts.clone()).await;
    let client = mvm_identity::client(address.to_string(), alice, Expect::Node(None));
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel::<Event>();
    let following = tokio::spawn(async move {
        let each = |event| drop(tell.send(event));
        client.streams().resume("/v1/events/stream", each, |_| {}).await
    });
    // Some events are past when the stream begins, and others come while it is broken.
    happen(&agent, 120).await;
    let mut seen = Vec::new();
    let last = 2 + 120 + 180;
    let happening = tokio::spawn(async move { happen(&agent, 180).await });
    while seen.last() != Some(&last) {
        let event = tokio::time::timeout(std::time::Duration::from_secs(120), told.recv()).await;
        let event = event.expect("an event in time").expect("an event");
        assert_eq!(event.name, "event");
        seen.push(event.id.parse().expect("a number"));
    }
    happening.await.expect("written");
    following.abort();
    assert_eq!(seen, (1..=last).collect::<Vec<u64>>(), "each of them once, in order");
    assert!(cuts.load(Ordering::Relaxed) >= 5, "{cuts:?}");
}

#[tokio::test]
async fn a_position_that_is_not_known_any_more_is_told_as_a_gap_or_begun_anew() {
    let (_dir, agent) = agent().await;
    happen(&agent, 10).await;
    // Removes the first events, as ten thousand more would.
    let gone = (1..=6).map(|id| mvm_store::Write::Delete {
        key: crate::records::event_key(id),
        expect: mvm_store::Expect::Any,
    });
    agent.base.records.store().commit(gone.collect()).await.expect("written");
    let app = app(agent);
    let root = Peer::Unix { uid: Some(0) };
    let stream = |since: &str| {
        let path = format!("/v1/events/stream?since={since}");
        let (app, root) = (app.clone(), root.clone());
        async move { ask(&app, "GET", &path, &root).await }
    };
    let (_, told) = stream("3").await;
    assert!(told.starts_with("event: gap\ndata: {\"after\":3,\"before\":7}\n"), "{told}");
    assert!(told.contains("id: 12\n"), "{told}");
    for whole in ["0", "7", "6"] {
        let (_, told) = stream(whole).await;
        assert!(!told.contains("gap") && told.contains("id: 12\n"), "{whole}: {told}");
    }
    // The position is of an earlier life of this node.
    let (_, told) = stream("99").await;
    assert!(told.contains("id: 7\n") && told.contains("id: 12\n"), "{told}");
    for bad in ["x", "-1", "n1:3", "99999999999999999999"] {
        let (status, told) = stream(bad).await;
        assert_eq!(status, 400, "{bad}");
        assert!(told.contains("invalid_value"), "{bad}: {told}");
    }
}
