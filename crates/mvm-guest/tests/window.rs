//! Large pieces go through the window: both ends over one file, and a host whose guest lies.

use mvm_guest::agent::{Agent, Powers};
use mvm_guest::channel::{Channel, wire};
use mvm_guest::link::{Decoder, Kind, Packet};
use mvm_guest::window::{SIZE, SLOT, SLOTS, Window};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const DEADLINE: Duration = Duration::from_secs(5);
/// Limit after which a hanging test fails.
const HANGS: Duration = Duration::from_secs(60);

/// Makes a directory on a disk: a guest bypasses the page cache, which not every file system in
/// memory supports.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("directory")
}

fn window_in(dir: &Path) -> PathBuf {
    let path = dir.join("window");
    std::fs::File::create(&path).and_then(|file| file.set_len(SIZE)).expect("window");
    path
}

/// Passes packets on as changed by `change`, whose second argument says whether they come from the
/// guest.
async fn relay(
    mut host: UnixStream,
    mut guest: UnixStream,
    mut change: impl FnMut(Packet, bool) -> Packet,
) {
    let (mut from_host, mut from_guest) = (Decoder::default(), Decoder::default());
    let (mut of_host, mut of_guest) = (vec![0; 1 << 16], vec![0; 1 << 16]);
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
            guest.write_all(&change(packet, false).encode()).await.expect("guest");
        }
        while let Some(packet) = from_guest.next_packet() {
            host.write_all(&change(packet, true).encode()).await.expect("host");
        }
    }
}

/// Connects a channel whose packets go through `change`, over two ends of a window.
async fn channel(
    of_host: Option<&Path>,
    of_guest: Option<&Path>,
    change: impl FnMut(Packet, bool) -> Packet + Send + 'static,
) -> Channel {
    let (host, outside) = UnixStream::pair().expect("pair");
    let (inside, guest) = UnixStream::pair().expect("pair");
    tokio::spawn(relay(outside, inside, change));
    let window = of_guest.map(|path| Window::of_guest(path).expect("the guest's end"));
    tokio::spawn(Agent::new(Powers::Tame).serve(wire(guest), window));
    Channel::with_window(host, of_host.map(Window::of_host), DEADLINE).await.expect("session")
}

/// Returns bytes that never repeat, so that a slot that is read too early or too late is noticed.
fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Copies a file of `length` bytes in and out again, and compares.
async fn there_and_back(channel: &Channel, dir: &Path, length: usize, seed: u64) {
    let (name, content) = (format!("f{seed}"), bytes(length, seed));
    let source = dir.join(format!("from-{seed}"));
    std::fs::create_dir(&source).expect("directory");
    std::fs::write(source.join(&name), &content).expect("file");
    let mut packer = mvm_archive::Packer::new(Vec::new());
    packer.add(&source.join(&name), name.as_bytes()).expect("pack");
    let (archive, _) = packer.finish().expect("pack");
    let inside = dir.join(format!("in-{seed}"));
    channel.put(inside.to_str().expect("path"), &archive[..]).await.expect("put");
    assert!(std::fs::read(inside.join(&name)).expect("file") == content, "{length} bytes in");
    let mut archive = Vec::new();
    channel.get(inside.join(&name).to_str().expect("path"), &mut archive).await.expect("get");
    let out = dir.join(format!("out-{seed}"));
    std::fs::create_dir(&out).expect("directory");
    mvm_archive::unpack(&archive[..], &out, mvm_archive::Trust::Full).expect("unpack");
    assert!(std::fs::read(out.join(&name)).expect("file") == content, "{length} bytes out");
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_go_through_the_window_in_both_directions() {
    let dir = folder();
    let path = window_in(dir.path());
    let pieces = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let counted = pieces.clone();
    let count = move |packet: Packet, from_guest| {
        if packet.kind == Kind::Piece {
            counted[usize::from(from_guest)].fetch_add(1, Ordering::Relaxed);
        }
        packet
    };
    let channel = channel(Some(&path), Some(&path), count).await;
    let lengths =
        [0, 1, SLOT - 1, SLOT, SLOT + 1, SLOTS * SLOT, SLOTS * SLOT + 4097, (20 << 20) + 7];
    for (length, seed) in lengths.into_iter().zip(1..) {
        there_and_back(&channel, dir.path(), length, seed).await;
    }
    for way in pieces.iter() {
        assert!(way.load(Ordering::Relaxed) > 20, "{pieces:?}");
    }
    // Two copies at once share the window.
    tokio::join!(
        there_and_back(&channel, dir.path(), (9 << 20) + 1, 101),
        there_and_back(&channel, dir.path(), (9 << 20) + 2, 102),
    );
}

#[tokio::test]
async fn where_one_side_has_no_window_all_goes_through_the_port() {
    let dir = folder();
    let path = window_in(dir.path());
    let gone = dir.path().join("gone");
    let ends = [(Some(&*path), None), (None, Some(&*path)), (None, None), (Some(&*gone), None)];
    for ((of_host, of_guest), seed) in ends.into_iter().zip(1..) {
        let none = |packet: Packet, _| {
            assert!(packet.kind != Kind::Piece, "a piece in a window that one side has not");
            packet
        };
        let channel = channel(of_host, of_guest, none).await;
        there_and_back(&channel, dir.path(), 3 << 20, seed).await;
    }
}

/// The host's disk may be full: what cannot be written to the window goes through the port.
#[tokio::test]
async fn a_window_that_cannot_be_written_is_done_without() {
    let dir = folder();
    let path = window_in(dir.path());
    let held = std::fs::File::open(&path).expect("window");
    // As if an earlier channel to the machine were still about to write.
    held.lock().expect("lock");
    let from_guest_only = |packet: Packet, from_guest| {
        assert!(packet.kind != Kind::Piece || from_guest);
        packet
    };
    let channel = channel(Some(&path), Some(&path), from_guest_only).await;
    there_and_back(&channel, dir.path(), 3 << 20, 1).await;
}

/// What a guest says about the window is checked: a lie ends the session, and nothing else.
#[tokio::test]
async fn a_guest_that_lies_of_its_window_loses_its_session() {
    let dir = folder();
    let lies: [(Kind, &[u8]); 8] = [
        (Kind::Piece, &[SLOTS as u8, 0, 0, 0, 1]),
        (Kind::Piece, &[0, 0xff, 0xff, 0xff, 0xff]),
        (Kind::Piece, &[0, 0, 4, 0, 1]),
        (Kind::Piece, &[0, 0, 0, 0, 0]),
        (Kind::Piece, &[]),
        (Kind::Taken, &[0]),
        (Kind::Taken, &[255]),
        (Kind::Taken, &[0, 0]),
    ];
    for (kind, payload) in lies {
        let path = window_in(dir.path());
        // The first packet of the guest after its greeting is the lie.
        let lie = move |packet: Packet, from_guest| match packet.kind {
            Kind::Data if from_guest => Packet { kind, payload: payload.to_vec(), ..packet },
            _ => packet,
        };
        let channel = channel(Some(&path), Some(&path), lie).await;
        let ended = tokio::time::timeout(HANGS, channel.hello()).await.expect("it ends");
        assert!(ended.is_err(), "{kind:?} {payload:?}");
        tokio::time::timeout(HANGS, async {
            while !channel.is_closed() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("the channel closes");
    }
}

/// A guest announces what its window does not contain: the file was truncated under the host.
#[tokio::test]
async fn a_piece_that_is_not_there_ends_the_session() {
    let dir = folder();
    let path = window_in(dir.path());
    std::fs::File::create(&path).expect("empty");
    let lie = |packet: Packet, from_guest| match packet.kind {
        Kind::Data if from_guest => {
            Packet { kind: Kind::Piece, payload: vec![0, 0, 0, 16, 0], ..packet }
        }
        _ => packet,
    };
    let channel = channel(Some(&path), Some(&path), lie).await;
    let ended = tokio::time::timeout(HANGS, channel.hello()).await.expect("it ends");
    assert!(ended.is_err());
}
