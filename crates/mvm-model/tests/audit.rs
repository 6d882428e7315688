//! The audit log: every change of it is found.

use mvm_model::Timestamp;
use mvm_model::audit::{
    Chain, Entry, Expected, Flaw, OK, Pruned, Pruning, Verdict, Verifier, bounded, ending, read,
};
use proptest::prelude::*;

fn time(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn entry(verb: &str) -> Entry {
    Entry { actor: "uid:0".into(), verb: verb.into(), target: "ci".into(), ..Entry::default() }
}

/// Returns a log of these verbs, one line each.
fn log_of(verbs: &[String]) -> Vec<String> {
    let mut chain = Chain::new("ci");
    let mut lines = Vec::new();
    for (at, verb) in verbs.iter().enumerate() {
        let (line, next) = chain.line(entry(verb), time(at as u64));
        lines.push(line);
        chain = next;
    }
    lines
}

fn verify(text: &[u8], expected: Expected) -> Result<Verdict, Flaw> {
    let mut verifier = Verifier::new(expected);
    verifier.feed(text, |_| {})?;
    verifier.end()
}

fn whole(text: &[u8]) -> Result<Verdict, Flaw> {
    verify(text, Expected::default())
}

fn head(line: &str) -> String {
    line[..64].to_owned()
}

fn verbs(least: usize) -> impl Strategy<Value = Vec<String>> {
    proptest::collection::vec(".{0,20}", least..8)
}

#[test]
fn a_flaw_names_the_first_bad_record() {
    let lines = log_of(&["a", "b", "c", "d"].map(str::to_owned));
    let flaw = |lines: &[&String]| {
        whole(lines.iter().map(|s| s.as_str()).collect::<String>().as_bytes()).unwrap_err()
    };
    let [a, b, c, d] = [0, 1, 2, 3].map(|at| &lines[at]);
    assert_eq!(flaw(&[a, c, d]), Flaw::OutOfOrder { line: 2, number: 3, expected: 2 });
    assert_eq!(flaw(&[b, c, d]), Flaw::OutOfOrder { line: 1, number: 2, expected: 1 });
    assert_eq!(flaw(&[a, b, b]), Flaw::OutOfOrder { line: 3, number: 2, expected: 3 });
    let edited = b.replace("\"b\"", "\"x\"");
    assert_eq!(flaw(&[a, &edited, c]), Flaw::Edited { line: 2, number: 2 });
    // A rewritten beginning does not lead to the records that follow it.
    let other = log_of(&["a", "x"].map(str::to_owned));
    assert_eq!(flaw(&[a, &other[1], c]), Flaw::Unchained { line: 3, number: 3 });
    let of_ci = Expected { log: Some("prod".into()), ..Expected::default() };
    let foreign = verify(a.as_bytes(), of_ci).unwrap_err();
    assert!(matches!(foreign, Flaw::Foreign { line: 1, .. }), "{foreign}");
    let endless = vec![b'x'; 200_000];
    assert_eq!(whole(&endless).unwrap_err(), Flaw::Unreadable { line: 1 });
}

#[test]
fn a_kept_digest_shows_what_was_cut_off_and_what_a_part_follows() {
    let lines = log_of(&["a", "b", "c"].map(str::to_owned));
    let kept = |at: usize| Expected { head: Some(head(&lines[at])), ..Expected::default() };
    let two = lines[..2].concat();
    assert!(verify(two.as_bytes(), kept(1)).is_ok());
    assert!(verify(lines.concat().as_bytes(), kept(1)).is_ok(), "it may have grown since");
    let gone = Flaw::CutOff { last: 2, head: head(&lines[2]) };
    assert_eq!(verify(two.as_bytes(), kept(2)), Err(gone));
    let after = |at: usize| Expected { after: Some(head(&lines[at])), ..Expected::default() };
    let verdict = verify(lines[1..].concat().as_bytes(), after(0)).unwrap();
    assert_eq!((verdict.first, verdict.last), (2, 3));
    assert!(verify(lines[2..].concat().as_bytes(), after(0)).is_err());
    assert_eq!(whole(b"").unwrap().last, 0);
}

#[test]
fn a_record_holds_what_it_was_given_and_no_more_text_than_it_may() {
    let given = Entry {
        outcome: Some(OK.into()),
        of: Some(7),
        lease: Some("l-1".into()),
        program: Some("make".into()),
        ..entry("session.exec")
    };
    let (line, _) = Chain::new("ci").line(given.clone(), time(5));
    let read = read(line.trim_end().as_bytes()).expect("a record");
    assert_eq!((read.record.entry, read.record.number, read.record.at), (given, 1, time(5)));
    assert_eq!(bounded(&"é".repeat(1000)).chars().count(), 200);
}

/// Returns a log of `count` records, and one that says that those up to `through` were pruned. All
/// of them are still there.
fn anchored(count: usize, through: usize) -> Vec<String> {
    let verbs: Vec<String> = (0..count).map(|at| format!("v{at}")).collect();
    let mut lines = log_of(&verbs);
    let mut pruning = Pruning::new(time(through as u64));
    for line in &lines {
        pruning.takes(&read(line.trim_end().as_bytes()).expect("record"));
    }
    let ends = ending(lines.concat().as_bytes(), Chain::new("ci"));
    let pruned = pruning.found();
    lines.push(ends.chain.line(Entry { pruned, ..entry("log.prune") }, time(99)).0);
    lines
}

#[test]
fn a_log_whose_beginning_was_pruned_is_whole_only_with_the_record_that_tells_of_it() {
    let lines = anchored(5, 3);
    assert!(whole(lines.concat().as_bytes()).expect("not removed yet").pruned.is_none());
    let verdict = whole(lines[3..].concat().as_bytes()).expect("pruned");
    let pruned = Pruned { count: 3, last: 3, head: head(&lines[2]), at: time(2) };
    assert_eq!((verdict.first, verdict.last, verdict.pruned), (4, 6, Some(pruned)));
    assert_eq!(verdict.pruned_by.as_deref(), Some("uid:0"));
    // The record of the pruning counts one record more or fewer than there are, is missing, or was
    // changed.
    let late = Err(Flaw::OutOfOrder { line: 1, number: 5, expected: 1 });
    assert_eq!(whole(lines[4..].concat().as_bytes()), late);
    assert!(whole(lines[2..].concat().as_bytes()).is_err());
    let late = Err(Flaw::OutOfOrder { line: 1, number: 4, expected: 1 });
    assert_eq!(whole(lines[3..5].concat().as_bytes()), late);
    for (from, to) in [("\"count\":3", "\"count\":2"), ("\"uid:0\"", "\"uid:1\"")] {
        let edited = lines[5].replace(from, to);
        assert_ne!(edited, lines[5]);
        let text = [&lines[3..5].concat(), edited.as_str()].concat();
        assert_eq!(whole(text.as_bytes()), Err(Flaw::Edited { line: 3, number: 6 }));
    }
    // The records before the first one were replaced: it does not match the pruned part.
    let mut other = Chain::new("ci");
    for _ in 0..3 {
        other = other.line(entry("other"), time(0)).1;
    }
    let (line, next) = other.line(entry("forged"), time(3));
    let (anchor, _) =
        next.line(read(lines[5].trim_end().as_bytes()).unwrap().record.entry, time(99));
    assert!(whole((line + &anchor).as_bytes()).is_err());
    // Digests from elsewhere: of a record in the log, of the last pruned one, of one before that.
    let kept = |digest: String| {
        let expected = Expected { head: Some(digest), ..Expected::default() };
        verify(lines[3..].concat().as_bytes(), expected)
    };
    assert!(kept(head(&lines[4])).is_ok() && kept(head(&lines[2])).is_ok());
    let lost = Flaw::PrunedOrCutOff { pruned: 3, head: head(&lines[1]) };
    assert_eq!(kept(head(&lines[1])), Err(lost));
}

#[test]
fn the_first_record_that_is_young_enough_keeps_all_after_it() {
    let mut pruning = Pruning::new(time(10));
    let mut chain = Chain::new("ci");
    let mut takes = Vec::new();
    for at in [3, 9, 10, 4] {
        let (line, next) = chain.line(entry("a"), time(at));
        takes.push(pruning.takes(&read(line.trim_end().as_bytes()).expect("record")));
        chain = next;
    }
    assert_eq!(takes, [true, true, false, false]);
    assert!(pruning.has_ended());
    assert_eq!(
        pruning.found().map(|found| (found.count, found.last, found.at)),
        Some((2, 2, time(9)))
    );
    assert_eq!(Pruning::new(time(0)).found(), None);
}

proptest! {
    #[test]
    fn every_edit_of_a_pruned_log_is_found(
        count in 2usize..8, through in 1usize..8, at in any::<prop::sample::Index>(), change in 1u8..,
    ) {
        let through = through.min(count - 1);
        let text = anchored(count, through)[through..].concat().into_bytes();
        prop_assert!(whole(&text).is_ok());
        let at = at.index(text.len());
        let mut edited = text.clone();
        edited[at] ^= change;
        // Without its newline the record of the pruning is torn, so nothing explains the missing
        // beginning.
        prop_assert!(whole(&edited).is_err());
    }

    #[test]
    fn what_is_written_is_whole_however_it_is_cut_into_pieces(verbs in verbs(0), step in 1usize..99) {
        let lines = log_of(&verbs);
        let text = lines.concat();
        let mut verifier = Verifier::new(Expected::default());
        let mut told = Vec::new();
        for piece in text.as_bytes().chunks(step) {
            verifier.feed(piece, |sealed| told.push(sealed.record.entry.verb)).unwrap();
        }
        let verdict = verifier.end().unwrap();
        prop_assert_eq!(&told, &verbs);
        prop_assert_eq!(verdict.last, verbs.len() as u64);
        prop_assert_eq!(verdict.head, lines.last().map_or(String::new(), |line| head(line)));
        prop_assert_eq!(verdict.torn_bytes, 0);
    }

    #[test]
    fn every_edit_of_one_byte_is_found(
        verbs in verbs(1), at in any::<prop::sample::Index>(), change in 1u8..,
    ) {
        let text = log_of(&verbs).concat().into_bytes();
        let at = at.index(text.len());
        let mut edited = text.clone();
        edited[at] ^= change;
        match whole(&edited) {
            Err(_) => {}
            // The last newline acknowledges the last record.
            Ok(verdict) => {
                prop_assert_eq!(at, text.len() - 1);
                prop_assert_eq!(verdict.last, verbs.len() as u64 - 1);
                prop_assert!(verdict.torn_bytes > 0);
            }
        }
    }

    #[test]
    fn every_record_removed_doubled_or_swapped_is_found(
        verbs in verbs(2), i in any::<prop::sample::Index>(), j in any::<prop::sample::Index>(),
    ) {
        let lines = log_of(&verbs);
        let (i, j) = (i.index(lines.len()), j.index(lines.len()));
        let mut removed = lines.clone();
        removed.remove(i);
        let verdict = whole(removed.concat().as_bytes());
        // Only a missing end leaves no trace in the log; a digest from elsewhere shows it.
        prop_assert_eq!(verdict.is_ok(), i == lines.len() - 1);
        let kept = Expected { head: Some(head(&lines[lines.len() - 1])), ..Expected::default() };
        prop_assert!(verify(removed.concat().as_bytes(), kept).is_err());
        let mut doubled = lines.clone();
        doubled.insert(j, lines[i].clone());
        prop_assert!(whole(doubled.concat().as_bytes()).is_err());
        let mut swapped = lines.clone();
        swapped.swap(i, j);
        prop_assert_eq!(whole(swapped.concat().as_bytes()).is_ok(), i == j);
    }

    #[test]
    fn a_torn_end_is_mended_and_the_chain_goes_on(
        verbs in verbs(1), cut in any::<prop::sample::Index>(),
    ) {
        let lines = log_of(&verbs);
        let text = lines.concat().into_bytes();
        let torn = &text[..cut.index(text.len())];
        let ends = ending(torn, Chain::new("ci"));
        prop_assert!(ends.sound, "a crash is no tampering");
        let mut mended = torn[..ends.whole_bytes as usize].to_vec();
        prop_assert_eq!(whole(torn).unwrap().torn_bytes, (torn.len() - mended.len()) as u64);
        let (line, next) = ends.chain.line(entry("next"), time(9));
        mended.extend_from_slice(line.as_bytes());
        let verdict = whole(&mended).unwrap();
        prop_assert_eq!((verdict.last, verdict.head.as_str()), (next.last(), next.head()));
    }

    #[test]
    fn a_tampered_end_is_no_torn_one(verbs in verbs(2), change in 1u8..) {
        let lines = log_of(&verbs);
        let mut text = lines.concat().into_bytes();
        let at = text.len() - 3;
        text[at] ^= change;
        let ends = ending(&text, Chain::new("ci"));
        prop_assert!(!ends.sound || text[at] == b'\n');
        prop_assert!(whole(&text).is_err());
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = whole(&bytes);
        let _ = read(&bytes);
        let _ = ending(&bytes, Chain::new("ci"));
    }
}
