//! A client of several coordinators: any may answer, and no request is carried out twice.

use crate::support::{HOUR, Lab, now, refused};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::get;
use axum::serve::Listener;
use axum::{Json, Router};
use mvm_api::client::Event;
use mvm_api::{Client, ClientError};
use mvm_model::Code;
use mvm_server::TlsListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// A coordinator of one test.
struct Server {
    address: String,
    /// The number of requests that it has had.
    asked: Arc<AtomicUsize>,
    ending: Arc<Notify>,
    serving: JoinHandle<()>,
}

impl Server {
    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Stops the server and closes its connections.
    async fn end(self) {
        self.ending.notify_one();
        self.serving.await.expect("it ends");
    }
}

async fn listen(lab: &Lab, name: &str) -> TlsListener {
    let loopback = ["127.0.0.1:0".parse().expect("address")];
    let credentials = lab.credentials(&format!("coordinator/{name}"));
    TlsListener::bind(&loopback, credentials).await.expect("listens")
}

/// A server that returns its name to every request.
async fn named(lab: &Lab, name: &'static str) -> Server {
    let listener = listen(lab, name).await;
    let (address, asked) = (listener.addresses()[0].to_string(), Arc::new(AtomicUsize::new(0)));
    let say = move |State(asked): State<Arc<AtomicUsize>>| async move {
        asked.fetch_add(1, Ordering::SeqCst);
        Json(name)
    };
    let app = Router::new().route("/name", get(say).post(say)).with_state(asked.clone());
    let ending = Arc::new(Notify::new());
    let end = ending.clone();
    let serving = tokio::spawn(async move {
        let serving = axum::serve(listener, app);
        drop(serving.with_graceful_shutdown(async move { end.notified().await }).await);
    });
    Server { address, asked, ending, serving }
}

/// A server that takes each request, sends these bytes, and breaks the connection.
async fn breaking(lab: &Lab, name: &str, says: &'static [u8]) -> Server {
    let mut listener = listen(lab, name).await;
    let (address, asked) = (listener.addresses()[0].to_string(), Arc::new(AtomicUsize::new(0)));
    let (count, ending) = (asked.clone(), Arc::new(Notify::new()));
    let end = ending.clone();
    let serving = tokio::spawn(async move {
        loop {
            let (mut stream, _) = tokio::select! {
                accepted = listener.accept() => accepted,
                () = end.notified() => return,
            };
            if stream.read(&mut [0; 4096]).await.is_ok_and(|read| read > 0) {
                count.fetch_add(1, Ordering::SeqCst);
                let _ = stream.write_all(says).await;
                let _ = stream.flush().await;
            }
        }
    });
    Server { address, asked, ending, serving }
}

/// An address where no server listens.
async fn nobody() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listens");
    listener.local_addr().expect("address").to_string()
}

fn client(lab: &Lab, addresses: &[&str]) -> Client {
    let one = |address: &&str| lab.client(address, lab.credential("operator/alice", HOUR));
    addresses.iter().map(one).reduce(Client::or).expect("an address")
}

async fn name(client: &Client) -> String {
    client.get("/name").await.expect("an answer")
}

#[tokio::test]
async fn the_next_is_asked_where_one_is_not_there() {
    let lab = Lab::new();
    let (gone, c1, c2) = (nobody().await, named(&lab, "c1").await, named(&lab, "c2").await);
    let client = client(&lab, &[&gone, &c1.address, &c2.address]);
    assert_eq!(name(&client).await, "c1");
    assert_eq!(client.post::<String>("/name", &()).await.expect("an answer"), "c1");
    // The kept connections are to a server that has ended. Requests that change something were not
    // sent to it, so they may go to another.
    let asked = c1.asked.clone();
    c1.end().await;
    assert_eq!(client.post::<String>("/name", &()).await.expect("an answer"), "c2");
    // The server that answered last is asked first, also by clones.
    assert_eq!(name(&client.clone()).await, "c2");
    assert_eq!((asked.load(Ordering::SeqCst), c2.asked()), (2, 2));
}

#[tokio::test]
async fn who_is_not_there_is_named() {
    let lab = Lab::new();
    let (one, other) = (nobody().await, nobody().await);
    let problem = refused(client(&lab, &[&one, &other]).get::<String>("/name").await);
    assert_eq!(problem.code, Code::AgentUnreachable);
    assert!(problem.detail.contains(&one) && problem.detail.contains(&other), "{problem}");
    // A server with a foreign certificate gives a better error than silence.
    let strange = named(&Lab::new(), "c9").await;
    let problem = refused(client(&lab, &[&one, &strange.address]).get::<String>("/name").await);
    assert_eq!(problem.code, Code::PeerUntrusted, "{problem}");
    assert_eq!(strange.asked(), 0);
    let good = named(&lab, "c1").await;
    assert_eq!(name(&client(&lab, &[&strange.address, &good.address])).await, "c1");
}

#[tokio::test]
async fn what_may_have_been_done_is_said_again_only_where_that_is_safe() {
    let lab = Lab::new();
    let (broken, good) = (breaking(&lab, "c1", b"").await, named(&lab, "c2").await);
    let both = || client(&lab, &[&broken.address, &good.address]);
    let problem = refused(both().post::<String>("/name", &()).await);
    assert_eq!(problem.code, Code::ConnectionBroken, "{problem}");
    assert_eq!((broken.asked(), good.asked()), (1, 0));
    assert_eq!(name(&both()).await, "c2");
    assert_eq!((broken.asked(), good.asked()), (2, 1));
    // The other server does not know the protocol, but the request has reached it.
    let outcome = both().streams().upgrade_keyed("/name", &(), "key").await;
    assert!(matches!(outcome, Err(ClientError::Broken { .. })), "no stream");
    assert_eq!((broken.asked(), good.asked()), (3, 2));
}

#[tokio::test]
async fn who_is_not_let_in_does_not_ask_everybody() {
    let lab = Lab::new();
    let (c1, c2) = (named(&lab, "c1").await, named(&lab, "c2").await);
    let past = now() - 3 * HOUR;
    let old = |address: &str| lab.client(address, lab.credential_at("operator/alice", HOUR, past));
    let problem = refused(old(&c1.address).or(old(&c2.address)).get::<String>("/name").await);
    assert_eq!(problem.code, Code::CertificateRefused, "{problem}");
    assert!(problem.detail.contains(&c1.address), "{problem}");
}

#[tokio::test]
async fn followers_go_on_at_another() {
    let lab = Lab::new();
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
        transfer-encoding: chunked\r\n\r\n13\r\nid: 7\ndata: seven\n\n\r\n";
    let first = breaking(&lab, "c1", head).await;
    let listener = listen(&lab, "c2").await;
    let second = listener.addresses()[0].to_string();
    let after = Arc::new(Mutex::new(String::new()));
    let app = Router::new().route(
        "/events",
        get({
            let after = after.clone();
            move |headers: HeaderMap| async move {
                let last = headers["last-event-id"].to_str().expect("text").to_owned();
                *after.lock().expect("lock") = last;
                "id: 8\ndata: eight\n\n"
            }
        }),
    );
    tokio::spawn(async move { axum::serve(listener, app).await });
    let client = client(&lab, &[&first.address, &second]);
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let following = tokio::spawn(async move {
        let each = |event: Event| drop(tell.send(event.data));
        client.streams().resume("/events", each, |_| {}).await
    });
    assert_eq!(told.recv().await.as_deref(), Some("seven"));
    // The connection breaks again at the same server, which still runs, until the server ends.
    first.end().await;
    let next = async {
        loop {
            match told.recv().await.expect("an event").as_str() {
                "seven" => {}
                other => return other.to_owned(),
            }
        }
    };
    assert_eq!(next.await, "eight");
    assert_eq!(*after.lock().expect("lock"), "7");
    following.abort();
}

#[tokio::test]
async fn a_download_goes_on_after_the_last_byte() {
    let lab = Lab::new();
    let part = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabc";
    let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabcdef";
    let (first, second) = (breaking(&lab, "c1", part).await, breaking(&lab, "c2", whole).await);
    let client = client(&lab, &[&first.address, &second.address]);
    let mut had = Vec::new();
    let download = client.streams().download_on("/log", |piece| {
        had.extend_from_slice(piece);
        first.ending.notify_one();
    });
    download.await.expect("all of it");
    assert_eq!(had, b"abcdef");
    assert_eq!(second.asked(), 1);
}
