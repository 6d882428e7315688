//! Archives that want to do harm.

use super::{pack, unpacked};
use crate::{Entry, Kind, Reader, Time, Trust, Writer, unpack};
use proptest::prelude::*;
use std::os::unix::fs::symlink;
use std::path::Path;

fn archive(all: &[(&str, Kind, &[u8])]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (name, kind, bytes) in all {
        let (name, kind) = (name.as_bytes().to_vec(), kind.clone());
        let modified = Time::default();
        writer.entry(&Entry { name, kind, mode: 0o755, modified, xattrs: vec![] }).expect("entry");
        writer.data(bytes).expect("data");
    }
    writer.finish().expect("archive")
}

fn file(length: u64) -> Kind {
    Kind::file(length)
}

fn link(to: &str) -> Kind {
    Kind::Symlink(to.into())
}

/// Unpacks into `dir/out`, beside `dir/kept`, and checks that nothing else was made or changed.
fn harmless(dir: &Path, archive: &[u8]) -> std::io::Result<crate::Notes> {
    std::fs::create_dir_all(dir.join("out")).expect("target");
    std::fs::write(dir.join("kept"), b"kept").expect("file");
    let outcome = unpack(archive, &dir.join("out"), Trust::Stranger);
    assert_eq!(std::fs::read(dir.join("kept")).expect("kept"), b"kept");
    let mut names: Vec<_> =
        std::fs::read_dir(dir).expect("dir").map(|e| e.expect("e").file_name()).collect();
    names.sort();
    assert_eq!(names, ["kept", "out"]);
    outcome
}

#[test]
fn no_name_leads_out_of_the_target() {
    let dir = tempfile::tempdir().expect("dir");
    for name in ["../evil", "a/../../evil", "a/..", ".."] {
        let error = harmless(dir.path(), &archive(&[(name, file(1), b"x")])).expect_err(name);
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{name}");
    }
    // An absolute name is one below the target.
    harmless(dir.path(), &archive(&[("//abs/./evil", file(1), b"x")])).expect("below");
    assert!(dir.path().join("out/abs/evil").exists());
}

#[test]
fn nothing_goes_through_a_link_that_the_archive_made() {
    for target in ["..", "/tmp", "inside", "/", "."] {
        let dir = tempfile::tempdir().expect("dir");
        let steps = [
            ("inside", Kind::Folder, &b""[..]),
            ("link", link(target), b""),
            ("link/kept", file(4), b"evil"),
        ];
        let error = harmless(dir.path(), &archive(&steps)).expect_err(target);
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{target}: {error}");
        // Nor by another name, nor as a folder of that name.
        for last in [("link", Kind::Folder, &b""[..]), ("link/new", Kind::Folder, &b""[..])] {
            harmless(dir.path(), &archive(&[steps[1].clone(), last])).expect_err(target);
        }
    }
}

#[test]
fn a_link_that_was_there_is_followed_only_within_the_target() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("out");
    std::fs::create_dir_all(out.join("real")).expect("folder");
    symlink("real", out.join("inner")).expect("link");
    symlink("..", out.join("outer")).expect("link");
    harmless(dir.path(), &archive(&[("inner/f", file(1), b"x")])).expect("inside");
    assert!(out.join("real/f").exists());
    let error = harmless(dir.path(), &archive(&[("outer/kept", file(1), b"x")]));
    assert_eq!(error.expect_err("outside").kind(), std::io::ErrorKind::PermissionDenied);
}

#[test]
fn a_file_in_the_way_is_replaced_and_not_written_to() {
    let dir = tempfile::tempdir().expect("dir");
    std::fs::create_dir(dir.path().join("out")).expect("out");
    let out = dir.path().join("out");
    symlink("../kept", out.join("link")).expect("link");
    std::fs::write(out.join("first"), b"first").expect("file");
    std::fs::hard_link(out.join("first"), out.join("second")).expect("link");
    let all = [("link", file(4), &b"evil"[..]), ("second", file(4), b"evil")];
    harmless(dir.path(), &archive(&all)).expect("unpack");
    assert_eq!(std::fs::read(out.join("first")).expect("first"), b"first");
    assert!(!out.join("link").is_symlink());
}

#[test]
fn a_hard_link_leads_nowhere_else() {
    for first in ["../kept", "/kept", "link/kept", "none", ""] {
        let dir = tempfile::tempdir().expect("dir");
        let all = [("link", link(".."), &b""[..]), ("h", Kind::HardLink(first.into()), b"")];
        harmless(dir.path(), &archive(&all)).expect_err(first);
    }
}

#[test]
fn half_an_archive_is_never_taken_for_a_whole_one() {
    let dir = tempfile::tempdir().expect("dir");
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).expect("tree");
    std::fs::write(tree.join("a"), [1; 700]).expect("file");
    std::fs::write(tree.join("n".repeat(200)), [2; 10]).expect("file");
    let (archive, _) = pack(&tree);
    // The second of the two blocks at the end is there for the form.
    for cut in 1..archive.len() - 1023 {
        let out = tempfile::tempdir().expect("dir");
        unpacked(&archive[..cut], out.path()).expect_err("cut");
    }
    unpacked(&[], &dir.path().join("none")).expect("nothing is an archive of nothing");
}

proptest! {
    #[test]
    fn garbage_never_panics_and_never_leads_out(
        bytes in prop::collection::vec(any::<u8>(), 0..3000),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
        sums in any::<bool>(),
    ) {
        let mut whole = archive(&[
            ("a", Kind::Folder, b""),
            ("a/s", Kind::File { size: 9000, data: vec![crate::Extent { offset: 512, length: 3 }] }, b"abc"),
            (&"n".repeat(130), link(&"t".repeat(130)), b""),
            ("a/f", file(600), &[7; 600]),
            ("a/h", Kind::HardLink(b"a/f".to_vec()), b""),
        ]);
        for (index, byte) in flips {
            let at = index.index(whole.len());
            whole[at] = byte;
        }
        if sums {
            for block in whole.chunks_exact_mut(512) {
                let header: &mut [u8; 512] = block.try_into().expect("a block");
                let mut fixed = tar::Header::from_byte_slice(&header[..]).clone();
                if fixed.as_ustar().is_some() || fixed.as_gnu().is_some() {
                    fixed.set_cksum();
                    header.copy_from_slice(fixed.as_bytes());
                }
            }
        }
        for bytes in [&bytes, &whole] {
            let dir = tempfile::tempdir().expect("dir");
            let _ = harmless(dir.path(), bytes);
            let mut reader = Reader::new(&bytes[..]);
            while let Ok(Some(_)) = reader.entry() {}
        }
    }
}
