//! A folder changes while it is packed: the archive has only complete entries.

use super::{entries, length, others, unpacked};
use crate::pack::Step;
use crate::{Kind, Notes, Packer};
use proptest::prelude::*;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Packs a folder; `change` is called at each step.
fn pack_with(
    source: &Path,
    change: impl FnMut(Step) + 'static,
) -> std::io::Result<(Vec<u8>, Notes)> {
    let mut packer = Packer::new(Vec::new());
    packer.hook = Some(Box::new(change));
    packer.add(source, b"tree")?;
    packer.finish()
}

/// Checks that the archive consists of complete entries, for the tar crate as well, and can be
/// unpacked.
fn check(archive: &[u8]) {
    let found = entries(archive);
    for (entry, bytes) in &found {
        if let Kind::File { data, .. } = &entry.kind {
            let stored: u64 = data.iter().map(|extent| extent.length).sum();
            assert_eq!(bytes.len() as u64, stored);
        }
    }
    let ours: Vec<_> = found.iter().map(|(e, _)| (e.name.clone(), length(&e.kind))).collect();
    assert_eq!(others(archive), ours);
    let out = tempfile::tempdir().expect("dir");
    unpacked(archive, out.path()).expect("unpack");
}

fn once(step: Step, change: impl FnOnce() + 'static) -> impl FnMut(Step) + 'static {
    let mut change = Some(change);
    move |at| {
        if at == step
            && let Some(change) = change.take()
        {
            change();
        }
    }
}

fn tree() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("dir");
    let log = dir.path().join("log");
    std::fs::write(&log, [b'x'; 1000]).expect("file");
    (dir, log)
}

#[test]
fn a_file_that_grows_is_cut_at_what_was_announced() {
    let (dir, log) = tree();
    let grow = || {
        let mut log = OpenOptions::new().append(true).open(log).expect("log");
        log.write_all(&[b'y'; 5000]).expect("grow");
    };
    let (archive, notes) = pack_with(dir.path(), once(Step::Opened, grow)).expect("pack");
    check(&archive);
    assert_eq!(entries(&archive)[1].1, [b'x'; 1000]);
    let wanted = format!(
        "{}/log grew while it was copied: the copy has its first 1000 bytes",
        dir.path().display()
    );
    assert_eq!(notes.lines(), [wanted]);
}

#[test]
fn a_file_that_shrinks_is_filled_with_zeros() {
    for rest in [0, 300, 999] {
        let (dir, log) = tree();
        let shrink = move || {
            OpenOptions::new().write(true).open(log).expect("log").set_len(rest).expect("shrink");
        };
        let (archive, notes) = pack_with(dir.path(), once(Step::Opened, shrink)).expect("pack");
        check(&archive);
        let mut wanted = vec![b'x'; rest as usize];
        wanted.resize(1000, 0);
        assert_eq!(entries(&archive)[1].1, wanted);
        let missing = 1000 - rest;
        let line = format!(
            "{}/log shrank while it was copied: {missing} of its 1000 bytes are zeros in the copy",
            dir.path().display()
        );
        assert_eq!(notes.lines(), [line]);
    }
}

#[test]
fn what_vanishes_is_no_error() {
    // The folder is opened before the file in it.
    let (dir, log) = tree();
    std::fs::write(dir.path().join("a"), b"first").expect("file");
    let mut steps = 0;
    let vanish = move |_| {
        steps += 1;
        if steps == 3 {
            std::fs::remove_file(&log).expect("vanish");
        }
    };
    let (archive, notes) = pack_with(dir.path(), vanish).expect("pack");
    check(&archive);
    assert!(notes.is_empty());
    let names: Vec<_> = entries(&archive).into_iter().map(|(entry, _)| entry.name).collect();
    assert_eq!(names, [&b"tree"[..], b"tree/a"]);
}

/// A name becomes something else between the listing and the next look at it.
#[test]
fn what_becomes_something_else_is_taken_as_what_it_is() {
    let kinds: [fn(&Path); 4] = [
        |path| std::fs::create_dir(path).expect("folder"),
        |path| symlink("/etc/passwd", path).expect("link"),
        |path| drop(UnixListener::bind(path).expect("socket")),
        |path| std::fs::write(path, b"another").expect("file"),
    ];
    for (from, first) in kinds.into_iter().enumerate() {
        for (to, second) in kinds.into_iter().enumerate() {
            let dir = tempfile::tempdir().expect("dir");
            let (path, changing) = (dir.path().join("it"), dir.path().join("it"));
            first(&path);
            let mut steps = 0;
            let change = move |step| {
                steps += usize::from(step == Step::Listed);
                if steps == 2 && step == Step::Listed {
                    let gone = std::fs::remove_file(&changing);
                    gone.or_else(|_| std::fs::remove_dir(&changing)).expect("gone");
                    second(&changing);
                }
            };
            let (archive, _) = pack_with(dir.path(), change).expect("pack");
            check(&archive);
            let kinds: Vec<_> =
                entries(&archive).into_iter().map(|(entry, _)| entry.kind).collect();
            let right = match (to, kinds.get(1)) {
                (0, Some(Kind::Folder)) | (2, None) => true,
                (1, Some(Kind::Symlink(target))) => target == b"/etc/passwd",
                (3, Some(kind)) => *kind == Kind::file(7),
                _ => false,
            };
            assert!(right, "{from} {to}: {kinds:?}");
        }
    }
}

/// One change of a folder.
#[derive(Clone, Debug)]
enum Change {
    Write(usize, usize),
    Append(usize, usize),
    Shrink(usize, u64),
    Remove(usize),
    Folder(usize),
    Link(usize, usize),
    HardLink(usize, usize),
}

fn changes() -> impl Strategy<Value = Change> {
    let name = || 0..6usize;
    prop_oneof![
        (name(), 0..9000usize).prop_map(|(name, length)| Change::Write(name, length)),
        (name(), 1..600_000usize).prop_map(|(name, length)| Change::Append(name, length)),
        (name(), 0..9000u64).prop_map(|(name, length)| Change::Shrink(name, length)),
        name().prop_map(Change::Remove),
        name().prop_map(Change::Folder),
        (name(), name()).prop_map(|(name, to)| Change::Link(name, to)),
        (name(), name()).prop_map(|(name, to)| Change::HardLink(name, to)),
    ]
}

/// Makes a change. One that other changes prevent is skipped.
fn apply(dir: &Path, change: &Change) {
    const NAMES: [&str; 6] = ["a", "b", "c/a", "c/b", "c/c/a", "d"];
    let path = |name: &usize| dir.join(NAMES[*name]);
    let open = |path: PathBuf| OpenOptions::new().append(true).open(path);
    let _ = match change {
        Change::Write(name, length) => std::fs::write(path(name), vec![b'w'; *length]),
        Change::Append(name, length) => {
            open(path(name)).and_then(|mut file| file.write_all(&vec![b'a'; *length]))
        }
        Change::Shrink(name, length) => {
            OpenOptions::new().write(true).open(path(name)).and_then(|file| file.set_len(*length))
        }
        Change::Remove(name) => {
            std::fs::remove_file(path(name)).or_else(|_| std::fs::remove_dir_all(path(name)))
        }
        Change::Folder(name) => std::fs::create_dir_all(path(name)),
        Change::Link(name, to) => symlink(path(to), path(name)),
        Change::HardLink(name, to) => std::fs::hard_link(path(to), path(name)),
    };
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn any_changes_at_any_steps_leave_whole_entries(
        before in prop::collection::vec(changes(), 0..12),
        during in prop::collection::vec(prop::collection::vec(changes(), 0..4), 0..25),
    ) {
        let dir = tempfile::tempdir().expect("dir");
        let root = dir.path().to_owned();
        before.iter().for_each(|change| apply(&root, change));
        let mut during = during.into_iter();
        let change = move |_| during.next().iter().flatten().for_each(|change| apply(&root, change));
        let (archive, _) = pack_with(dir.path(), change).expect("pack");
        check(&archive);
    }
}

/// Like the test before, from another thread as fast as it can.
#[test]
fn a_folder_in_uproar_gives_whole_entries() {
    use proptest::strategy::ValueTree;
    let dir = tempfile::tempdir().expect("dir");
    let stop = AtomicBool::new(false);
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let course: Vec<Change> =
        (0..2000).map(|_| changes().new_tree(&mut runner).expect("a change").current()).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for change in course.iter().cycle() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                apply(dir.path(), change);
            }
        });
        let packed: Vec<_> = (0..150)
            .map(|_| {
                let mut packer = Packer::new(Vec::new());
                let added = packer.add(dir.path(), b"tree");
                added.and_then(|()| packer.finish())
            })
            .collect();
        // Set before the checks, so that a failed check ends the thread, too.
        stop.store(true, Ordering::Relaxed);
        packed.into_iter().for_each(|archive| check(&archive.expect("pack").0));
    });
}
