//! Archives that try to do harm.

use super::{pack, unpacked};
use crate::{Entry, Kind, Links, Reader, Refusal, Rules, Time, Trust, Writer, unpack};
use mvm_code::Code;
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

fn ruled(links: Links) -> Trust {
    Trust::Stranger(Rules { links, ..Rules::default() })
}

/// Unpacks into `dir/out`, as [`harmless_by`] does, by the default rules.
fn harmless(dir: &Path, archive: &[u8]) -> std::io::Result<crate::Notes> {
    harmless_by(ruled(Links::Skip), dir, archive)
}

/// Unpacks into `dir/out`, next to `dir/kept`, and checks that nothing else was made or changed.
fn harmless_by(trust: Trust, dir: &Path, archive: &[u8]) -> std::io::Result<crate::Notes> {
    std::fs::create_dir_all(dir.join("out")).expect("target");
    std::fs::write(dir.join("kept"), b"kept").expect("file");
    let outcome = unpack(archive, &dir.join("out"), trust);
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
    // An absolute name is taken as one below the target.
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
        for trust in [ruled(Links::Keep), Trust::Full] {
            let error = harmless_by(trust, dir.path(), &archive(&steps)).expect_err(target);
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{target}: {error}");
        }
        for links in [Links::Skip, Links::Refuse] {
            let dir = tempfile::tempdir().expect("dir");
            let _ = harmless_by(ruled(links), dir.path(), &archive(&steps));
        }
        // Neither another name nor a folder of that name leads through the link.
        for last in [("link", Kind::Folder, &b""[..]), ("link/new", Kind::Folder, &b""[..])] {
            let steps = archive(&[steps[1].clone(), last]);
            harmless_by(ruled(Links::Keep), dir.path(), &steps).expect_err(target);
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
    let [inner, outer] = ["inner/f", "outer/kept"].map(|name| archive(&[(name, file(1), b"x")]));
    // A host follows no link of a guest, not even one from an earlier copy.
    for archive in [&inner, &outer] {
        let error = harmless(dir.path(), archive).expect_err("a link");
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("a symbolic link is in the way"), "{error}");
    }
    assert!(!out.join("real/f").exists());
    harmless_by(Trust::Full, dir.path(), &inner).expect("inside");
    assert!(out.join("real/f").exists());
    let error = harmless_by(Trust::Full, dir.path(), &outer).expect_err("outside");
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
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
        let all = archive(&all);
        harmless_by(Trust::Full, dir.path(), &all).expect_err(first);
        for links in [Links::Skip, Links::Keep] {
            let notes = harmless_by(ruled(links), dir.path(), &all).expect("the rest").lines();
            let said = notes.last().expect("a note");
            assert!(said.contains("hard link h leads out"), "{first}: {said}");
            assert!(!dir.path().join("out/h").exists(), "{first}");
        }
        let error = harmless_by(ruled(Links::Refuse), dir.path(), &all).expect_err(first);
        assert_eq!(Refusal::of(&error).map(Refusal::code), Some(Code::LinkRefused), "{first}");
    }
    // Nor may a hard link lead to a file that existed before: its owner would write to the guest's
    // name, or the guest to the file.
    let dir = tempfile::tempdir().expect("dir");
    std::fs::create_dir_all(dir.path().join("out")).expect("out");
    std::fs::write(dir.path().join("out/mine"), b"mine").expect("file");
    let all = archive(&[("h", Kind::HardLink(b"mine".to_vec()), b"")]);
    assert!(!harmless(dir.path(), &all).expect("the rest").is_empty());
    assert!(!dir.path().join("out/h").exists());
    // A hard link to a file of the archive itself is made.
    let all = [("a", file(1), &b"x"[..]), ("b", Kind::HardLink(b"a".to_vec()), b"")];
    assert!(harmless(dir.path(), &archive(&all)).expect("both").is_empty());
    assert!(dir.path().join("out/b").exists());
}

#[test]
fn symbolic_links_are_kept_skipped_or_refused() {
    let links = [("in/up", "../file", true), ("at", "file", true), ("abs", "/etc/passwd", false)];
    let links = links.into_iter().chain([("up", "../kept", false), ("in/on", "a/../../..", false)]);
    for (name, target, stays) in links {
        let all = archive(&[("in", Kind::Folder, b""), (name, link(target), b"")]);
        for how in [Links::Keep, Links::Skip, Links::Refuse] {
            let dir = tempfile::tempdir().expect("dir");
            let outcome = harmless_by(ruled(how), dir.path(), &all);
            let made = dir.path().join("out").join(name).is_symlink();
            assert_eq!(made, stays || how == Links::Keep, "{name} {how:?}");
            match (stays || how == Links::Keep, how, outcome) {
                (true, _, Ok(notes)) => assert!(notes.is_empty(), "{name} {how:?}"),
                (false, Links::Skip, Ok(notes)) => {
                    let said = format!("symbolic link {name} leads out of the folder");
                    assert!(notes.lines()[0].contains(&said), "{:?}", notes.lines());
                }
                (false, Links::Refuse, Err(error)) => {
                    assert_eq!(Refusal::of(&error).map(Refusal::code), Some(Code::LinkRefused));
                }
                (_, _, outcome) => panic!("{name} {how:?}: {outcome:?}"),
            }
        }
    }
}

/// What the first copy leaves must not lead the second one elsewhere.
#[test]
fn a_second_copy_never_writes_through_a_link_of_the_first() {
    for how in [Links::Keep, Links::Skip] {
        let dir = tempfile::tempdir().expect("dir");
        let first = [
            ("file", link("../kept"), &b""[..]),
            ("folder", link(".."), b""),
            ("sub", Kind::Folder, b""),
            ("near", link("sub"), b""),
        ];
        harmless_by(ruled(how), dir.path(), &archive(&first)).expect("the first");
        for name in ["file", "folder/kept", "near/kept", "folder/new"] {
            let _ = harmless_by(ruled(how), dir.path(), &archive(&[(name, file(4), b"evil")]));
        }
        assert!(!dir.path().join("out/sub/kept").exists());
    }
}

#[test]
fn a_stranger_sends_no_more_than_the_rules_allow() {
    let dir = tempfile::tempdir().expect("dir");
    let few = Rules { most_entries: 3, ..Rules::default() };
    let small = Rules { most_bytes: 3000, ..Rules::default() };
    let files =
        [("a", file(1000), &[1; 1000][..]), ("b", file(1000), &[1; 1000]), ("c", file(0), b"")];
    let all = archive(&files);
    for rules in [few, small] {
        harmless_by(Trust::Stranger(rules), dir.path(), &all).expect("as much as may be");
    }
    let more = archive(&[&files[..], &[("d", file(1000), &[1; 1000])]].concat());
    for rules in [few, small] {
        let error = harmless_by(Trust::Stranger(rules), dir.path(), &more).expect_err("too much");
        assert_eq!(Refusal::of(&error).map(Refusal::code), Some(Code::CopyTooLarge), "{error}");
    }
    harmless_by(Trust::Full, dir.path(), &more).expect("a guest takes all");
}

#[test]
fn half_an_archive_is_never_taken_for_a_whole_one() {
    let dir = tempfile::tempdir().expect("dir");
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).expect("tree");
    std::fs::write(tree.join("a"), [1; 700]).expect("file");
    std::fs::write(tree.join("n".repeat(200)), [2; 10]).expect("file");
    let (archive, _) = pack(&tree);
    // The second of the two blocks at the end is a formality.
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

/// Bytes that never end.
struct Endless(std::iter::Cycle<std::vec::IntoIter<u8>>);

impl Endless {
    fn of(bytes: Vec<u8>) -> Endless {
        Endless(bytes.into_iter().cycle())
    }
}

impl std::io::Read for Endless {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        to.iter_mut().zip(&mut self.0).for_each(|(to, byte)| *to = byte);
        Ok(to.len())
    }
}

fn header(kind: tar::EntryType, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_path("x").expect("a name");
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

#[test]
fn a_copy_from_a_source_that_never_ends_ends() {
    let records = |key: &str| {
        let mut bytes = header(tar::EntryType::XHeader, 512);
        let record = format!("512 {key}={}\n", "v".repeat(512 - 6 - key.len()));
        bytes.extend(record.as_bytes());
        bytes
    };
    let ends = [
        ("headers of nothing", header(tar::EntryType::XGlobalHeader, 0)),
        ("long names of nothing", header(tar::EntryType::GNULongName, 0)),
        ("attributes", records("SCHILY.xattr.user.a")),
        ("unknown records", records("comment")),
    ];
    for (what, bytes) in ends {
        let dir = tempfile::tempdir().expect("dir");
        let error = unpack(Endless::of(bytes), dir.path(), ruled(Links::Skip)).expect_err(what);
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{what}: {error}");
    }
    // Nor is one read for ever that has ended and goes on.
    let whole = std::io::Cursor::new(archive(&[("file", file(1), b"x")]));
    let dir = tempfile::tempdir().expect("dir");
    let on = std::io::Read::chain(whole, Endless::of(vec![0]));
    let error = unpack(on, dir.path(), ruled(Links::Skip)).expect_err("the end");
    assert!(error.to_string().contains("bytes after its end"), "{error}");
}

#[test]
fn what_follows_the_header_of_any_entry_counts() {
    let rules = Rules { most_bytes: 1000, ..Rules::default() };
    for kind in [tar::EntryType::Fifo, tar::EntryType::Directory, tar::EntryType::Symlink] {
        let dir = tempfile::tempdir().expect("dir");
        let mut bytes = header(kind, 2048);
        bytes.extend([0; 2048 + 1024]);
        let error = unpack(&bytes[..], dir.path(), Trust::Stranger(rules)).expect_err("too large");
        assert_eq!(Refusal::of(&error), Some(&Refusal::TooLarge(1000)), "{kind:?}: {error}");
    }
}

#[test]
fn a_name_leads_through_a_bounded_number_of_folders() {
    let dir = tempfile::tempdir().expect("dir");
    let deep = "d/".repeat(5000) + "file";
    let error = harmless(dir.path(), &archive(&[(&deep, file(1), b"x")])).expect_err("too deep");
    assert!(error.to_string().contains("more than 256 folders"), "{error}");
    let deep = "d/".repeat(200) + "file";
    harmless(dir.path(), &archive(&[(&deep, file(1), b"x")])).expect("deep");
}
