//! Every reader of untrusted bytes, as a function that takes any bytes and must not panic.
//!
//! A target also checks what its reader guarantees: a value that was read is the same after it was
//! written and read again, and an archive touches nothing outside its folder.

use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use mvm_api::page::{Page, cursor_of, next_of};
use mvm_api::position::Position;
use mvm_archive::{Links, Rules, Trust};
use mvm_guest::frame;
use mvm_guest::link::Decoder;
use mvm_identity::JoinToken;
use mvm_model::{DesiredState, FleetState, Timestamp};
use std::path::Path;
use std::sync::LazyLock;

/// A reader of untrusted bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name of the target and of its corpus's folder.
    pub name: &'static str,
    /// Reads the bytes. Returns whether they were valid. Panics if a guarantee is broken.
    pub read: fn(&[u8]) -> bool,
}

/// All targets.
pub const TARGETS: [Target; 12] = [
    Target { name: "frames", read: frames },
    Target { name: "packets", read: packets },
    Target { name: "window", read: window },
    Target { name: "archive", read: archive },
    Target { name: "migration-stream", read: migration_stream },
    Target { name: "snapshot-header", read: snapshot_header },
    Target { name: "kernel", read: kernel },
    Target { name: "image-manifest", read: image_manifest },
    Target { name: "join-token", read: join_token },
    Target { name: "page", read: page },
    Target { name: "documents", read: documents },
    Target { name: "problem", read: problem },
];

/// Reads the frames that a guest's agent sends over a stream.
fn frames(mut bytes: &[u8]) -> bool {
    let mut count = 0;
    while let Ok(Some(read)) = futures::executor::block_on(frame::read(&mut bytes)) {
        let written = frame::bytes(&read);
        let again = futures::executor::block_on(frame::read(&mut written.as_slice()));
        assert_eq!(again.ok().flatten(), Some(read), "a frame that is written is read as it was");
        count += 1;
    }
    count > 0
}

/// Reads the packets on a guest's channel. The first byte is the size of the pieces in which they
/// arrive.
fn packets(bytes: &[u8]) -> bool {
    let Some((size, rest)) = bytes.split_first() else { return false };
    let taken = |size: usize| {
        let mut decoder = Decoder::default();
        let mut all = Vec::new();
        for piece in rest.chunks(size) {
            decoder.feed(piece);
            all.extend(std::iter::from_fn(|| decoder.next_packet()));
        }
        all
    };
    let (pieces, whole) = (taken(usize::from(*size).max(1)), taken(rest.len().max(1)));
    assert_eq!(pieces, whole, "packets do not depend on the pieces that they arrive in");
    !whole.is_empty()
}

/// What a guest announces of its window, the disk over which it passes large pieces to the host.
fn window(bytes: &[u8]) -> bool {
    static FILE: LazyLock<tempfile::NamedTempFile> = LazyLock::new(|| {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(&file, mvm_guest::fuzzing::window_content()).expect("written");
        file
    });
    mvm_guest::fuzzing::window(FILE.path(), bytes)
}

/// Unpacks a guest's archive on the host. The first byte selects the rules for the archive.
fn archive(bytes: &[u8]) -> bool {
    let Some((rules, rest)) = bytes.split_first() else { return false };
    let links = [Links::Keep, Links::Skip, Links::Refuse][usize::from(rules % 3)];
    let trust = Trust::Stranger(Rules { links, most_entries: 64, most_bytes: 1 << 20 });
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let made = tempfile::Builder::new().prefix("mvm-fuzz-").tempdir_in(base);
    let dir = made.expect("a folder");
    let (into, beside) = (dir.path().join("into"), dir.path().join("beside"));
    std::fs::create_dir(&into).expect("a folder");
    std::fs::write(&beside, "untouched").expect("a file");
    let unpacked = mvm_archive::unpack(rest, &into, trust);
    let left: Vec<_> = std::fs::read_dir(dir.path()).expect("a folder").flatten().collect();
    assert_eq!(left.len(), 2, "an archive makes nothing beside its folder: {left:?}");
    assert_eq!(std::fs::read(&beside).expect("a file"), b"untouched");
    unpacked.is_ok()
}

/// Reads the state of a machine, as QEMU writes it.
fn migration_stream(bytes: &[u8]) -> bool {
    mvm_hypervisor::qemu::fuzzing::migration_stream(bytes)
}

/// Reads the header of a snapshot's file.
fn snapshot_header(bytes: &[u8]) -> bool {
    mvm_hypervisor::qemu::fuzzing::snapshot_header(bytes)
}

/// Reads a kernel's file and a module's, as users import them.
fn kernel(bytes: &[u8]) -> bool {
    mvm_image::fuzzing::kernel(bytes)
}

/// Reads another node's description of an image.
fn image_manifest(bytes: &[u8]) -> bool {
    mvm_image::fuzzing::manifest(bytes)
}

/// Reads the token with which a machine joins a fleet.
fn join_token(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(token) = text.parse::<JoinToken>() else { return false };
    let _ = token.credential(Timestamp::from_millis(1_000_000_000_000));
    let again = token.to_string().parse::<JoinToken>().map(|again| again.to_string());
    assert_eq!(again.ok(), Some(token.to_string()));
    true
}

/// Reads queries of lists, links to their next pages, and positions in a stream of events.
fn page(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let uri = format!("/v1/tenants?{text}").parse::<Uri>();
    let query = uri.is_ok_and(|uri| Page::of_uri(&uri).is_ok());
    let link = next_of(text).and_then(cursor_of).is_some();
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return query || link };
    let headers = HeaderMap::from_iter([(HeaderName::from_static("last-event-id"), value)]);
    let Ok(Some(position)) = Position::of_headers(&headers) else { return query || link };
    assert_eq!(position.to_string().parse::<Position>().ok(), Some(position));
    true
}

/// Reads desired-state documents, of a node and of a fleet.
fn documents(bytes: &[u8]) -> bool {
    let node = DesiredState::parse(bytes).ok();
    if let Some(document) = &node {
        let written = serde_json::to_vec(document).expect("JSON");
        assert_eq!(DesiredState::parse(&written).ok().as_ref(), Some(document));
    }
    let fleet = FleetState::parse(bytes).ok();
    if let Some(document) = &fleet {
        let written = serde_json::to_vec(document).expect("JSON");
        assert_eq!(FleetState::parse(&written).ok().as_ref(), Some(document));
    }
    node.is_some() || fleet.is_some()
}

/// Reads the problem document with which a server refuses a request.
fn problem(bytes: &[u8]) -> bool {
    let Ok(problem) = serde_json::from_slice::<mvm_api::Problem>(bytes) else { return false };
    let written = serde_json::to_vec(&problem).expect("JSON");
    assert_eq!(serde_json::from_slice(&written).ok(), Some(problem));
    true
}
