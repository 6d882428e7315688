//! Signs of life of a guest that is busy, of one that is too old for pings, and of one that is
//! gone.

use mvm_guest::agent::{Agent, Powers};
use mvm_guest::channel::Channel;
use mvm_guest::frame::{self, Frame};
use mvm_guest::link::{Decoder, Kind, Packet};
use mvm_guest::protocol::{ExecRequest, Request};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::Instant;

const DEADLINE: Duration = Duration::from_secs(5);
/// Limit after which a hanging test fails.
const HANGS: Duration = Duration::from_secs(60);

/// Asks, and waits until something comes.
async fn hear(channel: &Channel, since: Instant) {
    let heard = async {
        while channel.pulse().heard() <= since {
            channel.ask();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(HANGS, heard).await.expect("a sign of life");
}

/// Passes the guest's bytes on, changed to those of an older guest.
async fn as_old(mut host: UnixStream, mut guest: UnixStream) {
    let (mut from_host, mut from_guest) = (Decoder::default(), Decoder::default());
    let (mut of_host, mut of_guest) = ([0; 4096], [0; 4096]);
    loop {
        tokio::select! {
            count = host.read(&mut of_host) => match count {
                Ok(count @ 1..) => from_host.feed(&of_host[..count]),
                _ => return,
            },
            count = guest.read(&mut of_guest) => match count {
                Ok(count @ 1..) => from_guest.feed(&of_guest[..count]),
                _ => return,
            },
        }
        while let Some(packet) = from_host.next_packet() {
            if packet.kind != Kind::Ping {
                guest.write_all(&packet.encode()).await.expect("guest");
            }
        }
        while let Some(packet) = from_guest.next_packet() {
            let payload = if packet.kind == Kind::Welcome { Vec::new() } else { packet.payload };
            host.write_all(&Packet { payload, ..packet }.encode()).await.expect("host");
        }
    }
}

#[tokio::test]
async fn a_guest_answers_a_ping_whatever_else_is_on_its_way() {
    let (host, guest) = UnixStream::pair().expect("pair");
    tokio::spawn(Agent::new(Powers::Tame).serve_stream(guest));
    let channel = Channel::from_stream(host, DEADLINE).await.expect("session");
    assert!(channel.pulse().answers_pings());
    let quiet = channel.pulse().heard();
    hear(&channel, quiet).await;
    // Output that nobody takes fills every window: only what lies below the streams gets through.
    let argv = ["sh", "-c", "cat /dev/zero"].map(str::to_owned).to_vec();
    let request = ExecRequest { argv, ..ExecRequest::default() };
    let mut stream = channel.open_raw().await.expect("stream");
    frame::ask::<()>(&mut stream, Request::Exec(request)).await.expect("started");
    let first = frame::read(&mut stream).await.expect("output");
    assert!(matches!(first, Some(Frame::Stdout(_))), "{first:?}");
    let full = async {
        let mut heard = channel.pulse().heard();
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if channel.pulse().heard() == std::mem::replace(&mut heard, channel.pulse().heard()) {
                return heard;
            }
        }
    };
    let full = tokio::time::timeout(HANGS, full).await.expect("it stops when all is full");
    hear(&channel, full).await;
}

#[tokio::test]
async fn a_guest_that_does_not_know_pings_is_asked_who_it_is() {
    let ((host, near), (far, guest)) =
        (UnixStream::pair().expect("pair"), UnixStream::pair().expect("pair"));
    tokio::spawn(Agent::new(Powers::Tame).serve_stream(guest));
    tokio::spawn(as_old(near, far));
    let channel = Channel::from_stream(host, DEADLINE).await.expect("session");
    assert!(!channel.pulse().answers_pings());
    let quiet = channel.pulse().heard();
    hear(&channel, quiet).await;
    channel.hello().await.expect("all else is as ever");
}

#[tokio::test]
async fn a_pulse_does_not_hold_the_channel_and_asking_nobody_is_harmless() {
    let (host, guest) = UnixStream::pair().expect("pair");
    let agent = tokio::spawn(Agent::new(Powers::Tame).serve_stream(guest));
    let channel = Channel::from_stream(host, DEADLINE).await.expect("session");
    let pulse = channel.pulse().clone();
    agent.abort();
    channel.close().await;
    assert!(channel.is_closed());
    drop(channel);
    let heard = pulse.heard();
    pulse.ping();
    assert_eq!(pulse.heard(), heard);
}
