//! Runs every target with its corpus, and with random changes of the corpus for a while.
//!
//! `MVM_FUZZ_SECONDS` is how long each target gets random input (default 2). The tests run at a low
//! priority, and so may get only a part of a processor's time: each gets a quarter of this time at
//! least.

use mvm_fuzz::{TARGETS, Target};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// One change of an input. Positions are fractions of its length, so that they stay valid when it
/// shrinks.
#[derive(Clone, Debug)]
enum Change {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Remove(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    /// Repeats a piece elsewhere.
    Copy(prop::sample::Index, prop::sample::Index, u8),
    /// Writes a number as headers contain it.
    Number(prop::sample::Index, u64, bool),
}

impl Change {
    fn make(&self, bytes: &mut Vec<u8>) {
        let length = bytes.len();
        let at = |index: &prop::sample::Index| index.index(length + 1);
        let piece = |from: usize, count: u8| from..(from + usize::from(count)).min(length);
        match self {
            Change::Set(index, byte) => {
                bytes.iter_mut().skip(at(index)).take(1).for_each(|b| *b = *byte)
            }
            Change::Flip(index, bit) => {
                bytes.iter_mut().skip(at(index)).take(1).for_each(|b| *b ^= 1 << (bit % 8));
            }
            Change::Cut(index) => bytes.truncate(at(index)),
            Change::Remove(index, count) => drop(bytes.drain(piece(at(index), *count))),
            Change::Insert(index, new) => drop(bytes.splice(at(index)..at(index), new.clone())),
            Change::Copy(from, to, count) => {
                let new = bytes[piece(at(from), *count)].to_vec();
                drop(bytes.splice(at(to)..at(to), new));
            }
            Change::Number(index, number, big) => {
                let new = if *big { number.to_be_bytes() } else { number.to_le_bytes() };
                let over = piece(at(index), 8);
                bytes[over.clone()].copy_from_slice(&new[..over.len()]);
            }
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    let place = any::<prop::sample::Index>;
    let number = prop_oneof![
        Just(0),
        Just(u64::MAX),
        Just(1 << 63),
        (0u32..64).prop_map(|b| 1 << b),
        any::<u64>()
    ];
    prop_oneof![
        (place(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        (place(), any::<u8>()).prop_map(|(at, bit)| Change::Flip(at, bit)),
        place().prop_map(Change::Cut),
        (place(), any::<u8>()).prop_map(|(at, count)| Change::Remove(at, count)),
        (place(), prop::collection::vec(any::<u8>(), 0..16))
            .prop_map(|(at, new)| Change::Insert(at, new)),
        (place(), place(), any::<u8>()).prop_map(|(from, to, count)| Change::Copy(from, to, count)),
        (place(), number, any::<bool>())
            .prop_map(|(at, number, big)| Change::Number(at, number, big)),
    ]
}

/// Returns the inputs with their names.
fn corpus(target: Target) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let read = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (name, std::fs::read(file).expect("a file"))
    };
    files.iter().map(read).collect()
}

fn seconds() -> Duration {
    let given = std::env::var("MVM_FUZZ_SECONDS").ok();
    Duration::from_secs(given.map_or(2, |text| text.parse().expect("MVM_FUZZ_SECONDS: a number")))
}

/// Returns the processor time of this thread, which runs one test.
fn worked() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.try_into().expect("a duration")
}

fn fuzz(target: Target) {
    rustix::process::nice(10).expect("a lower priority");
    let corpus = corpus(target);
    assert!(!corpus.is_empty(), "{} has no corpus", target.name);
    for (name, bytes) in &corpus {
        // An input that once broke a reader need not be valid.
        let odd = ["crash", "refuse"].iter().any(|prefix| name.starts_with(prefix));
        assert!((target.read)(bytes) || odd, "{} reads {name}", target.name);
    }
    let input = (any::<prop::sample::Index>(), prop::collection::vec(change(), 0..12));
    let input = input.prop_map(|(one, changes)| {
        let mut bytes = one.get(&corpus).1.clone();
        changes.iter().for_each(|change| change.make(&mut bytes));
        bytes
    });
    let (began, limit) = (Instant::now(), seconds());
    let config = Config { cases: 64, failure_persistence: None, ..Config::default() };
    while began.elapsed() < limit || worked() < limit / 4 {
        let mut runner = TestRunner::new(config.clone());
        let found = runner.run(&input, |bytes| {
            let _ = (target.read)(&bytes);
            Ok(())
        });
        found.unwrap_or_else(|e| {
            panic!("{}: {e}\nkeep the input as fuzz/corpus/{0}/crash-NAME", target.name)
        });
    }
}

macro_rules! targets {
    ($($test:ident = $name:literal),* $(,)?) => {
        $(#[test]
        fn $test() {
            fuzz(TARGETS.into_iter().find(|target| target.name == $name).expect("a target"));
        })*

        #[test]
        fn every_target_is_tried() {
            let tried = [$($name),*];
            assert_eq!(TARGETS.map(|target| target.name), tried);
        }
    };
}

targets! {
    frames = "frames",
    packets = "packets",
    windows = "window",
    archives = "archive",
    migration_streams = "migration-stream",
    snapshot_headers = "snapshot-header",
    kernels = "kernel",
    image_manifests = "image-manifest",
    join_tokens = "join-token",
    pages = "page",
    documents = "documents",
    problems = "problem",
}
