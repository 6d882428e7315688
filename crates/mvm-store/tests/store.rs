//! The store against a model, across reopening, and with damaged files.

use mvm_model::Code;
use mvm_store::{Error, Expect, SqliteStore, Store, Write};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn block<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("runtime").block_on(work)
}

/// Opens the store again once the thread of a dropped one has released the lock.
fn reopen(path: &std::path::Path) -> SqliteStore {
    for _ in 0..200 {
        match SqliteStore::open(path) {
            Err(Error::Locked { .. }) => std::thread::sleep(std::time::Duration::from_millis(5)),
            other => return other.expect("open"),
        }
    }
    panic!("the lock is never released");
}

fn put(key: &str, value: &[u8], expect: Expect) -> Write {
    Write::Put { key: key.to_owned(), value: value.to_vec(), expect }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn behaves_like_a_map(steps in prop::collection::vec((0..6u8, 0..4u8, any::<u8>()), 1..60)) {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("node.db");
        let mut store = reopen(&path);
        let mut model: BTreeMap<String, (Vec<u8>, u64)> = BTreeMap::new();
        let mut last = 0;
        for (kind, key, value) in steps {
            let key = format!("k/{key}");
            let found = model.get(&key).map_or(0, |(_, revision)| *revision);
            let (write, fits) = match kind {
                0 => (put(&key, &[value], Expect::Any), true),
                1 => (put(&key, &[value], Expect::Absent), found == 0),
                2 => (put(&key, &[value], Expect::Revision(found.max(1))), found != 0),
                3 => (put(&key, &[value], Expect::Revision(last + 7)), false),
                4 => (Write::Delete { key: key.clone(), expect: Expect::Any }, true),
                _ => {
                    drop(store);
                    store = reopen(&path);
                    continue;
                }
            };
            // A second write, which always fits, must not survive a conflict of the first.
            let other = put("other", &[value], Expect::Any);
            match block(store.commit(vec![other, write.clone()])) {
                Ok(revision) => {
                    prop_assert!(fits && revision > last);
                    last = revision;
                    model.insert("other".to_owned(), (vec![value], revision));
                    match write {
                        Write::Put { key, value, .. } => { model.insert(key, (value, revision)); }
                        other => { model.remove(other.condition().0); }
                    }
                }
                Err(Error::Conflict { .. }) => prop_assert!(!fits),
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            }
            let listed: BTreeMap<_, _> = block(store.list("")).expect("list").into_iter()
                .map(|r| (r.key, (r.value, r.revision))).collect();
            prop_assert_eq!(&listed, &model);
            for prefix in ["", "k/", "other", "z"] {
                let of_prefix = || model.keys().filter(|key| key.starts_with(prefix));
                let last = block(store.last(prefix)).expect("last").map(|r| r.key);
                prop_assert_eq!(last.as_ref(), of_prefix().next_back());
                let from = format!("k/{}", value % 5);
                let rest = block(store.list_from(prefix, &from)).expect("list");
                let rest: Vec<&String> = rest.iter().map(|r| &r.key).collect();
                prop_assert_eq!(rest, of_prefix().filter(|key| **key >= from).collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn a_second_opener_is_told_who_holds_it() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("node.db");
    let _store = SqliteStore::open(&path).expect("open");
    let error = SqliteStore::open(&path).err().expect("locked");
    assert_eq!(error.code(), Code::StoreLocked);
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
}

#[test]
fn the_lock_of_a_process_that_has_ended_is_waited_for() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("node.db");
    let mut ended = std::process::Command::new("true").spawn().expect("true");
    ended.wait().expect("wait");
    // Held as by a killed process's child that has not executed another program yet.
    let file = std::fs::File::create(path.with_extension("lock")).expect("create");
    file.lock().expect("lock");
    std::fs::write(path.with_extension("lock"), ended.id().to_string()).expect("write");
    let opened = std::thread::spawn(move || SqliteStore::open(&path).map(drop));
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(!opened.is_finished(), "it waits");
    drop(file);
    opened.join().expect("thread").expect("open");
}

#[test]
fn bad_files_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("dir");
    let garbage = dir.path().join("garbage.db");
    std::fs::write(&garbage, vec![b'x'; 8192]).expect("write");
    assert_eq!(SqliteStore::open(&garbage).err().expect("damaged").code(), Code::StoreDamaged);
    assert_eq!(std::fs::read(&garbage).expect("read"), vec![b'x'; 8192]);
    let newer = dir.path().join("newer.db");
    rusqlite::Connection::open(&newer)
        .and_then(|c| c.pragma_update(None, "user_version", 9))
        .expect("make");
    assert_eq!(SqliteStore::open(&newer).err().expect("newer").code(), Code::StoreTooNew);
}

#[test]
fn a_file_of_the_first_schema_is_taken_over() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("node.db");
    rusqlite::Connection::open(&path)
        .and_then(|c| {
            c.execute_batch(
                "CREATE TABLE records (key TEXT PRIMARY KEY, value BLOB NOT NULL,
                     revision INTEGER NOT NULL) WITHOUT ROWID;
                 CREATE TABLE store (one INTEGER PRIMARY KEY CHECK (one = 1),
                     revision INTEGER NOT NULL);
                 INSERT INTO store VALUES (1, 7);
                 INSERT INTO records VALUES ('pools/ci/runners', x'78', 7);
                 PRAGMA user_version = 1;",
            )
        })
        .expect("make");
    for _ in 0..2 {
        let store = reopen(&path);
        let record = block(store.get("pools/ci/runners")).expect("get").expect("there");
        assert_eq!(
            (record.value.as_slice(), record.revision, record.session),
            (&b"x"[..], 7, None)
        );
    }
}

/// Records are rewritten and removed in all sizes: no file contains their former values.
#[test]
fn what_was_changed_is_not_in_the_file_once_it_is_scrubbed() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("dir");
    let store = SqliteStore::open(&dir.path().join("node.db")).expect("open");
    for number in 0..300u32 {
        let value = format!("a secret {}", "x".repeat((number as usize * 37) % 6000)).into_bytes();
        block(store.commit(vec![put(&format!("jobs/{number}"), &value, Expect::Any)]))
            .expect("put");
    }
    for number in 0..300u32 {
        let key = format!("jobs/{number}");
        let write = match number % 3 {
            0 => Write::Delete { key, expect: Expect::Any },
            _ => put(&key, b"no more", Expect::Any),
        };
        block(store.commit(vec![write])).expect("change");
    }
    block(store.scrub()).expect("scrub");
    for entry in std::fs::read_dir(dir.path()).expect("files") {
        let entry = entry.expect("file");
        let bytes = std::fs::read(entry.path()).expect("bytes");
        assert!(!bytes.windows(8).any(|window| window == b"a secret"), "{entry:?}");
        let mode = entry.metadata().expect("mode").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{entry:?}");
    }
    assert_eq!(block(store.list("jobs/")).expect("list").len(), 200);
}

/// The child of the next test: commits until it is killed, and prints each number that it
/// committed.
#[test]
#[ignore = "the child process of a_killed_writer_loses_nothing"]
fn child_that_commits() {
    let Ok(path) = std::env::var("MVM_STORE_CHILD") else { return };
    let store = SqliteStore::open(path.as_ref()).expect("open");
    for number in 0u64.. {
        let value = number.to_string().into_bytes();
        block(store.commit(vec![put("a", &value, Expect::Any), put("b", &value, Expect::Any)]))
            .expect("commit");
        println!("committed {number}");
    }
}

#[test]
fn a_killed_writer_loses_nothing() {
    use std::io::BufRead;
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("node.db");
    let mut child = std::process::Command::new(std::env::current_exe().expect("exe"))
        .args(["child_that_commits", "--ignored", "--exact", "--nocapture"])
        .env("MVM_STORE_CHILD", &path)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("spawn");
    let mut lines = std::io::BufReader::new(child.stdout.take().expect("stdout")).lines();
    let mut acknowledged = 0u64;
    while acknowledged < 50 {
        let line = lines.next().expect("more").expect("text");
        if let Some(number) = line.strip_prefix("committed ") {
            acknowledged = number.parse().expect("number");
        }
    }
    child.kill().expect("kill");
    child.wait().expect("wait");
    let store = reopen(&path);
    let number = |key: &str| -> u64 {
        let record = block(store.get(key)).expect("get").expect("there");
        String::from_utf8(record.value).expect("text").parse().expect("number")
    };
    assert_eq!(number("a"), number("b"));
    assert!(number("a") >= acknowledged);
}
