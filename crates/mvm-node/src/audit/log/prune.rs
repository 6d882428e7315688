//! Removes the beginning of a log, so that the rest still verifies.
//!
//! The oldest file goes first: a durable record at the log's end says what is removed. Then the
//! file is removed, or replaced in one step by the part of it that stays. If the agent is killed at
//! any point, the log begins where one of its records says, or its beginning is still there; the
//! next pruning continues.

use super::{GONE, Logs, REST, files_in, open_log};
use crate::error::{NodeError, io};
use crate::locks::locked;
use crate::{Error, Result};
use mvm_api::audit::PrunedView;
use mvm_model::Timestamp;
use mvm_model::audit::{Entry, Expected, Flaw, OK, Pruned, Pruning, Verifier, read};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The part of a file's beginning that is removed.
struct RemovedPart {
    path: PathBuf,
    inode: u64,
    /// The offset of the part that stays.
    from: u64,
    /// Whether a part stays.
    rest: bool,
    pruned: Pruned,
}

impl Logs {
    /// Removes the records at the beginning of a log that were written before `before`, on behalf
    /// of this entry's actor. `at` is called before each step, and can refuse it.
    pub fn prune(
        &self,
        log: &str,
        before: Timestamp,
        entry: &Entry,
        mut at: impl FnMut(&str) -> Result<()>,
    ) -> Result<PrunedView> {
        // One pruning at a time reads the files, without blocking writers.
        let _turn = locked(&self.pruning);
        let mut view = PrunedView { log: log.to_owned(), ..PrunedView::default() };
        self.verify(log)?;
        let dir = self.dir.join(log);
        for path in self.closed(log, before, &mut at)? {
            let Some(cut) = find_removed_part(&path, before)? else { break };
            let stays = cut.rest.then(|| copy_rest(&cut)).transpose()?;
            at("the rest is copied")?;
            self.anchor_and_remove(log, &cut, stays.as_deref(), entry, &mut at)?;
            sync_dir(&dir)?;
            at("the removal is durable")?;
            view.records += cut.pruned.count;
            view.bytes += cut.from;
            view.last = Some(cut.pruned.last);
            view.head = Some(cut.pruned.head);
            if cut.rest {
                break;
            }
        }
        Ok(view)
    }

    /// Returns the files with records to remove, oldest first. If the file that is being written
    /// has some, another is begun first.
    fn closed(
        &self,
        log: &str,
        before: Timestamp,
        at: &mut impl FnMut(&str) -> Result<()>,
    ) -> Result<Vec<PathBuf>> {
        let mut open = locked(&self.open);
        let file = open_log(&mut open, &self.dir, &self.clock, log)?;
        let mut files = files_in(&self.dir.join(log));
        let last = files.last().filter(|path| begins_before(path, before));
        if last.is_some() {
            at("another file is begun")?;
            file.roll()?;
        } else {
            files.pop();
        }
        Ok(files)
    }

    /// Writes a durable record of the removal, then removes. No other record comes in between.
    fn anchor_and_remove(
        &self,
        log: &str,
        cut: &RemovedPart,
        stays: Option<&Path>,
        entry: &Entry,
        at: &mut impl FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        let mut open = locked(&self.open);
        let file = open_log(&mut open, &self.dir, &self.clock, log)?;
        let same = std::fs::metadata(&cut.path).is_ok_and(|found| found.ino() == cut.inode);
        if !same {
            return Err(NodeError::LogPutAside { log: log.to_owned() }.into());
        }
        at("its record is written")?;
        let pruned = Some(cut.pruned.clone());
        let target = format!("{log}: {} records", cut.pruned.count);
        let (verb, outcome) = ("log.prune".to_owned(), Some(OK.to_owned()));
        file.append(Entry { verb, target, outcome, pruned, ..entry.clone() })?;
        at("its record is durable")?;
        file.sync()?;
        at("it is removed")?;
        match stays {
            Some(stays) => std::fs::rename(stays, &cut.path),
            None => std::fs::remove_file(&cut.path),
        }
        .map_err(|e| io(format!("prune {}", cut.path.display()), e))
    }

    /// A log that does not verify is evidence, so it is not pruned.
    fn verify(&self, log: &str) -> Result<()> {
        let of = log.split(GONE).next().map(str::to_owned);
        let mut verifier = Verifier::new(Expected { log: of, ..Expected::default() });
        let failed = |e| io(format!("read the audit log {log}"), e);
        for (_, file) in self.open_files(log).map_err(failed)? {
            let mut reader = BufReader::with_capacity(1 << 20, file);
            loop {
                let bytes = reader.fill_buf().map_err(failed)?;
                if bytes.is_empty() {
                    break;
                }
                let count = bytes.len();
                verifier.feed(bytes, drop).map_err(|flaw| not_whole(log, flaw))?;
                reader.consume(count);
            }
        }
        verifier.end().map(drop).map_err(|flaw| not_whole(log, flaw))
    }
}

fn not_whole(log: &str, flaw: Flaw) -> Error {
    NodeError::LogBroken { log: log.to_owned(), flaw }.into()
}

/// Returns whether the first record of a file was written before this time.
fn begins_before(path: &Path, before: Timestamp) -> bool {
    let mut line = Vec::new();
    let first = File::open(path).and_then(|f| BufReader::new(f).read_until(b'\n', &mut line));
    let sealed = first.ok().and_then(|_| read(line.strip_suffix(b"\n")?));
    sealed.is_some_and(|sealed| sealed.record.at < before)
}

/// Finds the part to remove of a file that is no longer written; `None` where its first record
/// stays.
fn find_removed_part(path: &Path, before: Timestamp) -> Result<Option<RemovedPart>> {
    let failed = |e| io(format!("read {}", path.display()), e);
    let file = File::open(path).map_err(failed)?;
    let inode = file.metadata().map_err(failed)?.ino();
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let (mut pruning, mut from, mut line) = (Pruning::new(before), 0, Vec::new());
    loop {
        line.clear();
        let count = reader.read_until(b'\n', &mut line).map_err(failed)?;
        let sealed = line.strip_suffix(b"\n").and_then(read);
        // The file has been verified, so an invalid record can only be at its end.
        let Some(sealed) = sealed else { break };
        if !pruning.takes(&sealed) {
            break;
        }
        from += count as u64;
    }
    let rest = pruning.has_ended();
    let path = path.to_owned();
    Ok(pruning.found().map(|pruned| RemovedPart { path, inode, from, rest, pruned }))
}

/// Copies the part that stays to a durable file beside the original, under a name that no log has.
fn copy_rest(cut: &RemovedPart) -> Result<PathBuf> {
    let beside = cut.path.with_extension(REST);
    let copy = || {
        let mut from = File::open(&cut.path)?;
        from.seek(SeekFrom::Start(cut.from))?;
        let mut options = OpenOptions::new();
        let mut to = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        std::io::copy(&mut from, &mut to)?;
        to.sync_all()
    };
    copy().map_err(|e| io(format!("write {}", beside.display()), e))?;
    Ok(beside)
}

fn sync_dir(dir: &Path) -> Result<()> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|e| io(format!("sync {}", dir.display()), e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_clock::Clock;
    use mvm_model::Code;
    use mvm_model::audit::Verdict;

    fn entry(verb: &str) -> Entry {
        Entry { actor: "uid:0".into(), verb: verb.into(), ..Entry::default() }
    }

    fn verify(dir: &Path) -> std::result::Result<Verdict, Flaw> {
        let mut verifier = Verifier::new(Expected::default());
        for file in files_in(dir) {
            verifier.feed(&std::fs::read(file).expect("log"), drop)?;
        }
        verifier.end()
    }

    fn time(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    /// Writes three files of two records each, with times 1 to 6. The last one is open.
    fn written(dir: &Path) -> Logs {
        let logs = Logs::open(dir.join("audit"), Clock::system()).expect("logs");
        let folder = dir.join("audit/ci");
        std::fs::create_dir(&folder).expect("folder");
        let mut chain = mvm_model::audit::Chain::new("ci");
        for first in [1, 3, 5] {
            let mut text = String::new();
            for at in [first, first + 1] {
                let (line, next) = chain.line(entry("a"), time(at));
                (text, chain) = (text + &line, next);
            }
            std::fs::write(folder.join(format!("{first:012}.log")), text).expect("file");
        }
        logs
    }

    fn all(_: &str) -> Result<()> {
        Ok(())
    }

    #[test]
    fn what_is_older_goes_and_the_rest_still_verifies() {
        for before in 0u64..9 {
            let dir = tempfile::tempdir().expect("directory");
            let logs = written(dir.path());
            let folder = dir.path().join("audit/ci");
            let view = logs.prune("ci", time(before), &entry(""), all).expect("prune");
            let gone = before.saturating_sub(1).min(6);
            assert_eq!((view.records, view.last), (gone, (gone > 0).then_some(gone)), "{before}");
            let verdict = verify(&folder).expect("whole");
            assert_eq!(verdict.first, gone + 1);
            assert_eq!(verdict.pruned.map(|pruned| pruned.last), view.last);
            assert_eq!(verdict.pruned_by.is_some(), gone > 0);
            // The log goes on in this agent and the next, and can be pruned again.
            logs.append("ci", entry("b")).expect("append");
            drop(logs);
            let logs = Logs::open(dir.path().join("audit"), Clock::system()).expect("logs");
            logs.append("ci", entry("c")).expect("append");
            verify(&folder).expect("whole");
            let late = Timestamp::MAX;
            logs.prune("ci", late, &entry(""), all).expect("prune");
            let verdict = verify(&folder).expect("whole");
            assert!(verdict.pruned.is_some_and(|pruned| pruned.last > gone));
        }
    }

    #[test]
    fn a_log_pruned_by_an_agent_that_is_killed_at_any_step_verifies_and_is_pruned_on() {
        for before in [4u64, 6, 9] {
            let mut steps = 0;
            let dir = tempfile::tempdir().expect("directory");
            let count = |_: &str| {
                steps += 1;
                Ok(())
            };
            written(dir.path()).prune("ci", time(before), &entry(""), count).expect("prune");
            assert!(steps > 8, "{steps}");
            for kill in 1..=steps {
                let dir = tempfile::tempdir().expect("directory");
                let folder = dir.path().join("audit/ci");
                let (mut step, mut last) = (0, String::new());
                let killed = |what: &str| {
                    step += 1;
                    last = what.to_owned();
                    match step == kill {
                        true => Err(io("go on", std::io::Error::other("killed"))),
                        false => Ok(()),
                    }
                };
                let logs = written(dir.path());
                logs.prune("ci", time(before), &entry(""), killed).expect_err("killed");
                drop(logs);
                // A power failure may tear the last record at any byte. The record is durable
                // before the removal.
                if last == "its record is durable" {
                    every_torn_end(&folder);
                }
                verify(&folder).unwrap_or_else(|flaw| panic!("{before}, before {last}: {flaw}"));
                let logs = Logs::open(dir.path().join("audit"), Clock::system()).expect("logs");
                logs.append("ci", entry("next")).expect("append");
                verify(&folder).unwrap_or_else(|flaw| panic!("{before}, after {last}: {flaw}"));
                logs.prune("ci", time(before), &entry(""), all).expect("prune");
                let verdict = verify(&folder).expect("whole");
                assert_eq!(verdict.first, before.min(7), "before {last}");
                let rests = std::fs::read_dir(&folder).expect("folder").flatten();
                let left = rests.filter(|e| e.path().extension().is_some_and(|x| x == REST));
                assert_eq!(left.count(), 0);
            }
        }
    }

    fn every_torn_end(folder: &Path) {
        let path = files_in(folder).pop().expect("file");
        let text = std::fs::read(&path).expect("log");
        let lines = text[..text.len() - 1].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        for end in lines..text.len() {
            std::fs::write(&path, &text[..end]).expect("tear");
            verify(folder).unwrap_or_else(|flaw| panic!("torn at {end}: {flaw}"));
        }
        std::fs::write(&path, text).expect("mend");
    }

    #[test]
    fn what_does_not_verify_is_left_as_it_is() {
        let dir = tempfile::tempdir().expect("directory");
        let logs = written(dir.path());
        let path = dir.path().join("audit/ci/000000000003.log");
        let text = std::fs::read_to_string(&path).expect("log").replacen("uid:0", "uid:1", 1);
        std::fs::write(&path, &text).expect("edit");
        let refused = logs.prune("ci", time(3), &entry(""), all).expect_err("evidence");
        assert_eq!(refused.code(), Code::AuditBroken);
        assert_eq!(files_in(&dir.path().join("audit/ci")).len(), 3);
        // A log whose beginning was removed by somebody else does not verify, either.
        std::fs::write(&path, text.replacen("uid:1", "uid:0", 1)).expect("undo");
        std::fs::remove_file(dir.path().join("audit/ci/000000000001.log")).expect("remove");
        assert_eq!(
            logs.prune("ci", time(9), &entry(""), all).expect_err("cut").code(),
            Code::AuditBroken
        );
    }

    #[test]
    fn a_reader_that_was_there_before_reads_what_was_there() {
        let dir = tempfile::tempdir().expect("directory");
        let logs = written(dir.path());
        let files = logs.open_files("ci").expect("files");
        logs.prune("ci", time(4), &entry(""), all).expect("prune");
        let mut verifier = Verifier::new(Expected::default());
        for (_, mut file) in files {
            let mut text = Vec::new();
            std::io::Read::read_to_end(&mut file, &mut text).expect("log");
            verifier.feed(&text, drop).expect("whole");
        }
        assert_eq!(verifier.end().expect("whole").first, 1);
    }
}
