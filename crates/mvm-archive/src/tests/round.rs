//! What is packed is what comes out.

use super::{entries, others, pack, unpacked};
use crate::{Kind, Notes, Packer, Rules, Trust, unpack};
use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, Mode, XattrFlags, mknodat, setxattr};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Everything that can be seen of a file, except its path.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    modified: (i64, i64),
    links: u64,
    bytes: Vec<u8>,
    target: Option<PathBuf>,
    mark: Option<Vec<u8>>,
}

fn look(folder: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut found = BTreeMap::new();
    let mut left = vec![folder.to_owned()];
    while let Some(path) = left.pop() {
        let meta = std::fs::symlink_metadata(&path).expect("there");
        let mut mark = [0; 100];
        let has = rustix::fs::lgetxattr(&path, "user.mark", &mut mark[..]);
        let seen = Seen {
            mode: meta.mode(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            links: if meta.is_dir() { 0 } else { meta.nlink() },
            bytes: if meta.is_file() { std::fs::read(&path).expect("file") } else { Vec::new() },
            target: meta.is_symlink().then(|| std::fs::read_link(&path).expect("link")),
            mark: has.ok().map(|count| mark[..count].to_vec()),
        };
        if meta.is_dir() {
            left.extend(std::fs::read_dir(&path).expect("folder").map(|e| e.expect("e").path()));
        }
        found.insert(path.strip_prefix(folder).expect("below").to_owned(), seen);
    }
    found
}

fn at(path: &Path, seconds: i64, nanos: i64) {
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("times");
}

/// Makes a folder with everything that is preserved.
fn all_kinds(tree: &Path) {
    let file = |name: &OsStr, bytes: &[u8]| {
        std::fs::write(tree.join(name), bytes).expect("file");
        tree.join(name)
    };
    std::fs::create_dir_all(tree.join("empty/within")).expect("folder");
    std::fs::create_dir(tree.join("closed")).expect("folder");
    file(OsStr::new("none"), b"");
    let one = file(OsStr::new("one"), &[7; 70_001]);
    file(OsStr::from_bytes(b"\xff\xfe bytes\n17 path=evil\n"), b"of any kind");
    file(OsStr::new(&"long".repeat(50)), b"name");
    let deep = tree.join("deep/".repeat(60));
    std::fs::create_dir_all(&deep).expect("deep");
    std::fs::write(deep.join("down"), b"there").expect("file");
    std::fs::hard_link(&one, tree.join("closed/other name")).expect("hard link");
    for (name, target) in
        [("root", "/"), ("odd", "./d//e"), ("up", "../.."), ("back", "a\\b/."), ("dir", "x/")]
    {
        symlink(target, tree.join(name)).expect("link");
    }
    symlink("t".repeat(3000), tree.join("far")).expect("link");
    symlink(OsStr::from_bytes(b"\xf0\xff"), tree.join("bytes")).expect("link");
    for (name, mode) in [("one", 0o4751), ("none", 0o000), ("closed", 0o2555), ("empty", 0o1777)] {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(tree.join(name), mode).expect("mode");
    }
    let value = b"v\n30 path=/etc/passwd\n\0\xff";
    for name in ["one", "empty"] {
        setxattr(tree.join(name), "user.mark", value, XattrFlags::empty()).expect("xattr");
    }
    at(&tree.join("none"), -5, 999_999_999);
    at(&tree.join("odd"), 1_000_000_000, 123_456_789);
    at(&tree.join("empty"), 1_000_000_000, 1);
    at(&tree.join("closed"), 1, 0);
}

#[test]
fn everything_comes_out_as_it_went_in() {
    let dir = tempfile::tempdir().expect("dir");
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).expect("tree");
    all_kinds(&tree);
    let (archive, notes) = pack(&tree);
    assert_eq!(notes, Notes::default());
    assert_eq!(unpacked(&archive, &dir.path().join("out")).expect("unpack"), Notes::default());
    assert_eq!(look(&dir.path().join("out/tree")), look(&tree));
    // A second time, over the existing files.
    unpacked(&archive, &dir.path().join("out")).expect("again");
    assert_eq!(look(&dir.path().join("out/tree")), look(&tree));
    // The same folder gives the same archive.
    assert!(pack(&dir.path().join("out/tree")).0 == archive);
}

/// Guests may be older than their host, and the other way round: both used to use only the tar
/// crate.
#[test]
fn archives_of_the_tar_crate_are_understood_and_it_understands_ours() {
    let dir = tempfile::tempdir().expect("dir");
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).expect("tree");
    all_kinds(&tree);
    holes(&tree.join("holes"), 40);
    let (archive, _) = pack(&tree);
    let ours: Vec<_> =
        entries(&archive).iter().map(|(e, _)| (e.name.clone(), super::length(&e.kind))).collect();
    assert_eq!(others(&archive), ours);
    tar::Archive::new(&archive[..]).unpack(dir.path().join("theirs")).expect("theirs");
    let file = |root: &str, name: &str| std::fs::read(dir.path().join(root).join(name));
    for name in ["one", "holes", "none"] {
        let (theirs, ours) = (file("theirs/tree", name), file("tree", name));
        assert!(theirs.expect(name) == ours.expect(name));
    }
    let mut builder = tar::Builder::new(Vec::new());
    builder.follow_symlinks(false);
    builder.append_dir_all("tree", &tree).expect("pack");
    let archive = builder.into_inner().expect("archive");
    unpacked(&archive, &dir.path().join("out")).expect("unpack");
    let (mut ours, mut theirs) = (look(&tree), look(&dir.path().join("out/tree")));
    // The older archives cannot hold these.
    for seen in ours.values_mut().chain(theirs.values_mut()) {
        (seen.modified.1, seen.links, seen.mark, seen.target) = (0, 0, None, None);
    }
    let negative = Path::new("none");
    ours.remove(negative);
    theirs.remove(negative);
    assert_eq!(ours, theirs);
}

/// Makes a file with data in every other block of 64 KiB, and a hole at its end.
fn holes(path: &Path, count: u64) {
    let file = std::fs::File::create(path).expect("file");
    for index in 0..count {
        file.write_all_at(&[index as u8 + 1; 5000], index * 131_072).expect("write");
    }
    file.set_len(count * 131_072 + 100_000_000).expect("length");
}

#[test]
fn holes_stay_holes_and_are_not_sent() {
    let dir = tempfile::tempdir().expect("dir");
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).expect("tree");
    for count in [0, 1, 4, 5, 100] {
        holes(&tree.join(count.to_string()), count);
    }
    let (archive, notes) = pack(&tree);
    assert!(notes.is_empty());
    assert!(archive.len() < 2_000_000, "{}", archive.len());
    unpacked(&archive, dir.path()).expect("over itself");
    unpacked(&archive, &dir.path().join("out")).expect("unpack");
    for count in [0, 1, 4, 5, 100] {
        let of = |root: &str| dir.path().join(root).join(count.to_string());
        let (from, to) = (of("tree"), of("out/tree"));
        assert!(std::fs::read(&from).expect("from") == std::fs::read(&to).expect("to"), "{count}");
        let blocks = std::fs::metadata(&to).expect("to").blocks();
        assert!(blocks * 512 <= count * 16_384, "{count}: {blocks}");
    }
}

#[test]
fn what_cannot_be_copied_is_left_out_with_a_word() {
    let dir = tempfile::tempdir().expect("dir");
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).expect("tree");
    let _socket = UnixListener::bind(tree.join("socket")).expect("socket");
    mknodat(CWD, tree.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("fifo");
    std::fs::write(tree.join("file"), b"there").expect("file");
    let (archive, notes) = pack(&tree);
    let names: Vec<_> = entries(&archive).into_iter().map(|(entry, _)| entry.name).collect();
    assert_eq!(names, [&b"tree"[..], b"tree/file"]);
    let pipe = format!("{} was left out: it is a FIFO", tree.join("pipe").display());
    let socket = format!("{} was left out: it is a socket", tree.join("socket").display());
    assert_eq!(notes.lines(), [pipe, socket]);
    // A sparse archive that another program has made is unpacked, too.
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Fifo);
    header.set_mode(0o600);
    header.set_size(0);
    builder.append_data(&mut header, "p", &b""[..]).expect("fifo");
    let archive = builder.into_inner().expect("archive");
    let notes = unpacked(&archive, &dir.path().join("out")).expect("unpack");
    assert_eq!(notes.lines(), ["p was left out: it is a FIFO"]);
    assert!(!dir.path().join("out/p").exists());
}

#[test]
fn what_is_not_there_or_cannot_be_read_is_an_error_with_its_name() {
    let dir = tempfile::tempdir().expect("dir");
    let error = Packer::new(Vec::new()).add(&dir.path().join("none"), b"x").expect_err("none");
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    assert!(error.to_string().contains("/none: "), "{error}");
    std::fs::write(dir.path().join("f"), [1; 1000]).expect("file");
    let (archive, _) = pack(&dir.path().join("f"));
    std::fs::create_dir_all(dir.path().join("out/f/in the way")).expect("folder");
    let error = unpacked(&archive, &dir.path().join("out")).expect_err("in the way");
    assert!(error.to_string().starts_with("f: "), "{error}");
}

/// A guest's file must not give its rights to a user who runs it on the host, nor let others write
/// to it.
#[test]
fn a_strangers_file_gives_no_rights() {
    let dir = tempfile::tempdir().expect("dir");
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("shared")).expect("tree");
    std::fs::create_dir_all(tree.join("tmp")).expect("tree");
    let modes = [("tool", 0o6777, 0o755), ("secret", 0o600, 0o600), ("open", 0o666, 0o644)];
    let folders = [("shared", 0o2775, 0o755), ("tmp", 0o1777, 0o755)];
    let text = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff";
    for (name, mode, _) in modes.iter().chain(&folders) {
        let path = tree.join(name);
        if !path.is_dir() {
            std::fs::write(&path, b"#!").expect("file");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode)).expect("mode");
    }
    let mut packer = crate::Writer::new(Vec::new());
    let xattrs =
        vec![crate::Xattr { name: b"system.posix_acl_access".to_vec(), value: text.to_vec() }];
    let (name, kind) = (b"acl".to_vec(), Kind::file(0));
    let modified = crate::Time::default();
    packer.entry(&crate::Entry { name, kind, mode: 0o600, modified, xattrs }).expect("entry");
    let with_list = packer.finish().expect("archive");
    let (archive, _) = pack(&tree);
    let trust = Trust::Stranger(Rules::default());
    let notes = unpack(&archive[..], dir.path(), trust).expect("unpack").lines();
    assert_eq!(notes.len(), 3, "{notes:?}");
    assert!(notes.contains(&"tree/tool was copied without these bits: setuid, setgid".to_owned()));
    let seen = look(&tree);
    for (name, _, mode) in modes.iter().chain(&folders) {
        assert_eq!(seen[Path::new(name)].mode & 0o7777, *mode, "{name}");
    }
    let notes = unpack(&with_list[..], dir.path(), trust).expect("unpack");
    let said = "acl was copied without system.posix_acl_access: it gives rights";
    assert_eq!(notes.lines(), [said]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_bytes_at_any_offsets_come_out(
        pieces in prop::collection::vec((0u64..400_000, prop::collection::vec(any::<u8>(), 1..9000)), 0..30),
        length in 0u64..500_000,
        name in prop::collection::vec(1u8..=255, 1..250),
    ) {
        let dir = tempfile::tempdir().expect("dir");
        let name: Vec<u8> = name.into_iter().map(|b| if b == b'/' { b'_' } else { b }).collect();
        prop_assume!(name != b"." && name != b"..");
        let path = dir.path().join(OsStr::from_bytes(&name));
        let file = std::fs::File::create(&path).expect("file");
        for (offset, bytes) in &pieces {
            file.write_all_at(bytes, *offset).expect("write");
        }
        file.set_len(length).expect("length");
        let (archive, notes) = pack(&path);
        prop_assert!(notes.is_empty());
        prop_assert_eq!(others(&archive), vec![(name.clone(), length)]);
        let out = tempfile::tempdir().expect("dir");
        unpacked(&archive, out.path()).expect("unpack");
        let found = std::fs::read(out.path().join(OsStr::from_bytes(&name))).expect("file");
        prop_assert!(found == std::fs::read(&path).expect("file"));
    }
}

#[test]
fn what_was_named_and_cannot_be_archived_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().expect("directory");
    let socket = dir.path().join("socket");
    let _listens = UnixListener::bind(&socket).expect("socket");
    let pipe = dir.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("fifo");
    let null = std::path::PathBuf::from("/dev/null");
    for (path, what) in [(socket, "a socket"), (pipe, "a FIFO"), (null, "a device")] {
        let mut packer = Packer::new(Vec::new());
        let error = packer.add(&path, b"it").expect_err(what).to_string();
        let told = format!("cannot read {}: it is {what}", path.display());
        assert!(error.starts_with(&told), "{error}");
    }
}
