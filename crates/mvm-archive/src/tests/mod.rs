//! Tests of folders that go into an archive and come out of it.

mod change;
mod hostile;
mod round;

use crate::{Entry, Kind, Notes, Packer, Reader, Trust, unpack};
use std::path::Path;

/// Packs one file or folder under its own name.
fn pack(source: &Path) -> (Vec<u8>, Notes) {
    let mut packer = Packer::new(Vec::new());
    packer.add(source, &crate::name_of(source)).expect("pack");
    packer.finish().expect("finish")
}

/// Returns every entry of an archive with its bytes.
fn entries(archive: &[u8]) -> Vec<(Entry, Vec<u8>)> {
    let mut reader = Reader::new(archive);
    let mut found = Vec::new();
    while let Some(entry) = reader.entry().expect("a whole archive") {
        let (mut bytes, mut piece) = (Vec::new(), [0; 1000]);
        loop {
            match reader.data(&mut piece).expect("a whole entry") {
                0 => break,
                count => bytes.extend_from_slice(&piece[..count]),
            }
        }
        found.push((entry, bytes));
    }
    let rest = reader.finish().expect("the end");
    assert!(rest.is_empty());
    found
}

/// Returns what the tar crate, which others use, finds in the archive: names and lengths.
fn others(archive: &[u8]) -> Vec<(Vec<u8>, u64)> {
    let mut archive = tar::Archive::new(archive);
    let all = archive.entries().expect("entries").map(|entry| {
        let mut entry = entry.expect("entry");
        let size = std::io::copy(&mut entry, &mut std::io::sink()).expect("bytes");
        let name = entry.path_bytes().into_owned();
        (name.strip_suffix(b"/").unwrap_or(&name).to_vec(), size)
    });
    all.collect()
}

fn unpacked(archive: &[u8], target: &Path) -> std::io::Result<Notes> {
    std::fs::create_dir_all(target).expect("target");
    unpack(archive, target, Trust::Full)
}

fn length(kind: &Kind) -> u64 {
    match kind {
        Kind::File { size, .. } => *size,
        _ => 0,
    }
}
