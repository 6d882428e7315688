//! The files of the audit logs. Records are appended; the files are synced by another thread, and
//! never changed.
//!
//! The files are `audit/LOG/NNNNNNNNNNNN.log`, named by the number of their first record. A record
//! is written while its log is locked. One thread syncs all logs that wait at the same time.

mod prune;

use crate::Result;
use crate::error::{InternalError, io};
use crate::locks::locked;
use crate::state_dir::make_dir;
use mvm_api::audit::AuditLogView;
use mvm_clock::Clock;
use mvm_model::Timestamp;
use mvm_model::audit::{self, AGENT, Chain, Entry, NODE_LOG, OK};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex as Lock, PoisonError};
use tokio::sync::watch;

/// A file that has grown to this size, in bytes, is followed by another.
const FILE_BYTES: u64 = 16 << 20;
/// The space, in bytes, allocated beyond a file's end, so that the operations that free a full disk
/// can be logged: a few hundred records.
const SET_ASIDE: u64 = 256 << 10;
/// Separates the name of a destroyed tenant from the time of its end. No tenant's name contains it.
const GONE: char = '@';
/// The extension of a file that is to replace another.
const REST: &str = "rest";

/// All audit logs of the node.
pub struct Logs {
    dir: PathBuf,
    clock: Clock,
    open: Lock<HashMap<String, LogFile>>,
    /// Held while the beginning of a log is removed.
    pruning: Lock<()>,
    syncer: Arc<Syncer>,
}

/// A log that is open for writing.
struct LogFile {
    dir: PathBuf,
    clock: Clock,
    chain: Chain,
    file: Arc<File>,
    bytes: u64,
    set_aside: u64,
}

/// A written record, which may not be durable yet.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// The record's number.
    pub number: u64,
    /// The turn that the syncer must reach before the record is durable.
    turn: u64,
}

impl Logs {
    /// Opens the logs in this directory, for records with this clock's times. Each file is opened when
    /// it is first written to.
    pub fn open(dir: PathBuf, clock: Clock) -> Result<Logs> {
        make_dir(&dir, 0o700)?;
        let (open, pruning) = (Lock::default(), Lock::default());
        Ok(Logs { dir, clock, open, pruning, syncer: Syncer::start()? })
    }

    /// Appends a record. After an error the log is unchanged.
    pub fn append(&self, log: &str, entry: Entry) -> Result<Written> {
        let mut open = locked(&self.open);
        let log = open_log(&mut open, &self.dir, &self.clock, log)?;
        let number = log.append(entry)?;
        Ok(Written { number, turn: self.syncer.want(log.file.clone()) })
    }

    /// Waits until a record is durable. A failure is logged only, since the recorded operation has
    /// happened.
    pub async fn synced(&self, written: Written) {
        let mut reached = self.syncer.reached.subscribe();
        // The wait also ends if the syncer ends.
        let _ = reached.wait_for(|turn| *turn >= written.turn).await;
    }

    /// Renames the log of a destroyed tenant.
    pub fn retire(&self, tenant: &str) -> Result<()> {
        let mut open = locked(&self.open);
        let from = self.dir.join(tenant);
        if !from.exists() {
            return Ok(());
        }
        let to = self.dir.join(format!("{tenant}{GONE}{}", self.clock.wall().as_millis()));
        std::fs::rename(&from, &to)
            .and_then(|()| File::open(&self.dir)?.sync_all())
            .map_err(|e| io(format!("put aside {}", from.display()), e))?;
        open.remove(tenant);
        Ok(())
    }

    /// At start: renames the logs of destroyed tenants that the last agent did not get to.
    pub fn retire_all_but(&self, lives: impl Fn(&str) -> bool) -> Result<()> {
        for log in self.list() {
            if log.gone_at.is_none() && log.log != NODE_LOG && !lives(&log.log) {
                self.retire(&log.log)?;
            }
        }
        Ok(())
    }

    /// Lists all logs by name, those of destroyed tenants included.
    pub fn list(&self) -> Vec<AuditLogView> {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut logs: Vec<AuditLogView> = names.map(|name| self.view(name)).collect();
        logs.sort_by(|a, b| a.log.cmp(&b.log));
        logs
    }

    fn view(&self, log: String) -> AuditLogView {
        let sizes =
            self.files(&log).into_iter().filter_map(|file| Some(file.metadata().ok()?.len()));
        let bytes = sizes.sum();
        let gone_at = gone(&log).and_then(|(_, at)| at.parse().ok()).map(Timestamp::from_millis);
        AuditLogView { log, gone_at, bytes }
    }

    /// Returns the files of a log, oldest first; none where the log does not exist.
    pub fn files(&self, log: &str) -> Vec<PathBuf> {
        // The name comes from a request, so it must not lead out of the directory.
        let name = log.split(GONE).next().unwrap_or_default();
        let known = name == NODE_LOG || name.parse::<mvm_model::Name>().is_ok();
        match known && !log.contains(['/', '\0']) {
            true => files_in(&self.dir.join(log)),
            false => Vec::new(),
        }
    }
}

impl Logs {
    /// Opens the files of a log together. A file that is pruned meanwhile can still be read.
    pub fn open_files(&self, log: &str) -> std::io::Result<Vec<(PathBuf, File)>> {
        let _held = locked(&self.open);
        let files = self.files(log).into_iter();
        files.map(|path| File::open(&path).map(|file| (path, file))).collect()
    }
}

fn open_log<'a>(
    open: &'a mut HashMap<String, LogFile>,
    dir: &Path,
    clock: &Clock,
    log: &str,
) -> Result<&'a mut LogFile> {
    if !open.contains_key(log) {
        // A renamed log still has the tenant's name in its records.
        let name = gone(log).map_or(log, |(name, _)| name);
        open.insert(log.to_owned(), LogFile::open(&dir.join(log), name, clock)?);
    }
    open.get_mut(log).ok_or_else(|| InternalError::LogNotOpen.into())
}

/// Splits the name of a renamed log into the tenant's name and the time.
fn gone(log: &str) -> Option<(&str, &str)> {
    log.split_once(GONE)
}

fn files_in(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "log"))
        .collect();
    // The names are numbers of the same width, so this is their order.
    files.sort();
    files
}

/// Removes the files of an unfinished pruning.
fn remove_unfinished(dir: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
    let paths = entries.flatten().map(|entry| entry.path());
    let mut rests = paths.filter(|path| path.extension().is_some_and(|e| e == REST));
    rests.try_for_each(|path| crate::state_dir::remove_file(&path))
}

impl LogFile {
    fn open(dir: &Path, log: &str, clock: &Clock) -> Result<LogFile> {
        make_dir(dir, 0o700)?;
        remove_unfinished(dir)?;
        let files = files_in(dir);
        let mut chain = Chain::new(log);
        let Some(last) = files.last() else { return LogFile::begin(dir, clock, chain) };
        // If the last file is empty, the chain continues from the file before it.
        for path in &files[files.len().saturating_sub(2)..files.len() - 1] {
            let text =
                std::fs::read(path).map_err(|e| io(format!("read {}", path.display()), e))?;
            chain = audit::ending(&text, chain).chain;
        }
        let text = std::fs::read(last).map_err(|e| io(format!("read {}", last.display()), e))?;
        let ending = audit::ending(&text, chain);
        let file = OpenOptions::new().read(true).write(true).open(last);
        let file = Arc::new(file.map_err(|e| io(format!("open {}", last.display()), e))?);
        let torn = text.len() as u64 - ending.whole_bytes;
        if !ending.sound {
            let log = last.display();
            tracing::error!("{log} was tampered with: see `mvm audit verify`; it is left as it is");
        }
        let (dir, clock, bytes) = (dir.to_owned(), clock.clone(), ending.whole_bytes);
        let mut open = LogFile { dir, clock, chain: ending.chain, file, bytes, set_aside: bytes };
        if torn > 0 {
            open.cut().map_err(|e| io(format!("mend {}", last.display()), e))?;
            tracing::warn!("{} ended in {torn} bytes of a torn record", last.display());
            let (actor, verb, target) = (AGENT, "log.mend", format!("{torn} bytes"));
            let (actor, verb) = (actor.to_owned(), verb.to_owned());
            let outcome = Some(OK.to_owned());
            open.append(Entry { actor, verb, target, outcome, ..Entry::default() })?;
        }
        Ok(open)
    }

    /// Begins the next file of the log.
    fn begin(dir: &Path, clock: &Clock, chain: Chain) -> Result<LogFile> {
        let path = dir.join(format!("{:012}.log", chain.last() + 1));
        let make = || {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
            // The file's name must be durable before its records count as durable.
            File::open(dir)?.sync_all()?;
            File::open(dir.parent().unwrap_or(Path::new("/")))?.sync_all()?;
            Ok(Arc::new(file))
        };
        let file = make().map_err(|e| io(format!("make {}", path.display()), e))?;
        let (dir, clock) = (dir.to_owned(), clock.clone());
        Ok(LogFile { dir, clock, chain, file, bytes: 0, set_aside: 0 })
    }

    /// Continues in another file.
    fn roll(&mut self) -> Result<()> {
        *self = LogFile::begin(&self.dir, &self.clock, self.chain.clone())?;
        Ok(())
    }

    /// Waits until everything written is durable.
    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| io(format!("sync {}", self.dir.display()), e))
    }

    fn append(&mut self, entry: Entry) -> Result<u64> {
        if self.bytes >= FILE_BYTES {
            self.roll()?;
        }
        let (line, next) = self.chain.line(entry, self.clock.wall());
        self.make_room(line.len() as u64);
        if let Err(error) = self.file.write_all_at(line.as_bytes(), self.bytes) {
            // A partial record must not stay.
            let _ = self.cut();
            return Err(io(format!("write the audit log {}", self.dir.display()), error));
        }
        self.bytes += line.len() as u64;
        self.chain = next;
        Ok(self.chain.last())
    }

    /// Allocates more space where little is left. If there is none, the write itself fails.
    fn make_room(&mut self, wanted: u64) {
        if self.bytes + wanted + SET_ASIDE / 2 > self.set_aside {
            let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
            if rustix::fs::fallocate(&*self.file, flags, self.bytes, SET_ASIDE).is_ok() {
                self.set_aside = self.bytes + SET_ASIDE;
            }
        }
    }

    /// Removes what follows the last whole line.
    fn cut(&self) -> std::io::Result<()> {
        self.file.set_len(self.bytes)?;
        self.file.sync_all()
    }
}

/// A thread that syncs files: one call covers many records.
struct Syncer {
    wanted: Lock<Wanted>,
    more: Condvar,
    reached: watch::Sender<u64>,
}

#[derive(Default)]
struct Wanted {
    files: Vec<Arc<File>>,
    /// The number of records written.
    turn: u64,
    ended: bool,
}

impl Syncer {
    fn start() -> Result<Arc<Syncer>> {
        let (wanted, more) = (Lock::default(), Condvar::new());
        let syncer = Arc::new(Syncer { wanted, more, reached: watch::channel(0).0 });
        let ours = syncer.clone();
        let thread = std::thread::Builder::new().name("audit-sync".to_owned());
        thread.spawn(move || ours.run()).map_err(|e| io("start a thread for the audit log", e))?;
        Ok(syncer)
    }

    /// Requests the sync of a file; returns the turn to wait for.
    fn want(&self, file: Arc<File>) -> u64 {
        let mut wanted = locked(&self.wanted);
        wanted.turn += 1;
        if !wanted.files.iter().any(|known| Arc::ptr_eq(known, &file)) {
            wanted.files.push(file);
        }
        self.more.notify_one();
        wanted.turn
    }

    fn run(&self) {
        loop {
            let mut wanted = locked(&self.wanted);
            while wanted.files.is_empty() {
                if wanted.ended {
                    return;
                }
                wanted = self.more.wait(wanted).unwrap_or_else(PoisonError::into_inner);
            }
            let (files, turn) = (std::mem::take(&mut wanted.files), wanted.turn);
            drop(wanted);
            for file in files {
                if let Err(error) = file.sync_data() {
                    tracing::error!("an audit log cannot be made durable: {error}");
                }
            }
            self.reached.send_replace(turn);
        }
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        locked(&self.syncer.wanted).ended = true;
        self.syncer.more.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_model::audit::{Expected, Verdict, Verifier};

    fn entry(verb: &str) -> Entry {
        Entry { actor: "uid:0".into(), verb: verb.into(), ..Entry::default() }
    }

    fn verify(logs: &Logs, log: &str) -> std::result::Result<Verdict, mvm_model::audit::Flaw> {
        let mut verifier = Verifier::new(Expected::default());
        for file in logs.files(log) {
            verifier.feed(&std::fs::read(file).expect("log"), drop)?;
        }
        verifier.end()
    }

    #[tokio::test]
    async fn a_log_goes_on_over_agents_torn_ends_and_files() {
        let dir = tempfile::tempdir().expect("directory");
        let open = || Logs::open(dir.path().join("audit"), Clock::system()).expect("logs");
        let logs = open();
        logs.append("ci", entry("a")).expect("append");
        logs.synced(logs.append("ci", entry("b")).expect("append")).await;
        logs.append(NODE_LOG, entry("a")).expect("append");
        let path = logs.files("ci").remove(0);
        drop(logs);
        // Half a record, as a power failure leaves it.
        let mut text = std::fs::read(&path).expect("log");
        text.extend(b"0123 {\"number\":3,");
        std::fs::write(&path, &text).expect("tear");
        let logs = open();
        assert_eq!(verify(&logs, "ci").expect("whole").torn_bytes, 17);
        assert_eq!(logs.append("ci", entry("c")).expect("append").number, 4, "after log.mend");
        // Makes the file count as full.
        locked(&logs.open).get_mut("ci").expect("log").bytes = FILE_BYTES;
        let before = std::fs::metadata(&path).expect("log").len();
        logs.append("ci", entry("d")).expect("append");
        assert_eq!(logs.files("ci").len(), 2);
        assert_eq!(std::fs::metadata(&path).expect("log").len(), before);
        drop(logs);
        let logs = open();
        assert_eq!(logs.append("ci", entry("e")).expect("append").number, 6);
        let verdict = verify(&logs, "ci").expect("whole");
        assert_eq!((verdict.first, verdict.last, verdict.torn_bytes), (1, 6, 0));
        assert_eq!(verify(&logs, NODE_LOG).expect("whole").last, 1);
        // An empty file is continued.
        let number = 7;
        std::fs::write(path.with_file_name(format!("{number:012}.log")), b"").expect("file");
        drop(logs);
        let logs = open();
        assert_eq!(logs.append("ci", entry("f")).expect("append").number, number);
        assert_eq!(verify(&logs, "ci").expect("whole").last, number);
    }

    #[test]
    fn the_log_of_a_tenant_that_is_gone_is_put_aside_and_a_new_one_begins() {
        let dir = tempfile::tempdir().expect("directory");
        let logs = Logs::open(dir.path().join("audit"), Clock::system()).expect("logs");
        for log in ["ci", "prod", NODE_LOG] {
            logs.append(log, entry("a")).expect("append");
        }
        logs.retire("ci").expect("aside");
        logs.retire("none").expect("nothing there");
        assert_eq!(logs.append("ci", entry("b")).expect("append").number, 1);
        logs.retire_all_but(|log| log == "ci").expect("aside");
        let all = logs.list();
        let names: Vec<&str> =
            all.iter().map(|log| log.log.split('@').next().expect("name")).collect();
        assert_eq!(names, ["_node", "ci", "ci", "prod"]);
        let gone: Vec<bool> = all.iter().map(|log| log.gone_at.is_some()).collect();
        assert_eq!(gone, [false, false, true, true]);
        for log in &all {
            assert_eq!(verify(&logs, &log.log).expect("whole").last, 1, "{log:?}");
        }
        for name in ["../audit/ci", "ci/..", "", "@", "ci@/../../x", "CI"] {
            assert!(logs.files(name).is_empty(), "{name}");
        }
    }

    #[test]
    fn a_tampered_end_is_left_as_it_is_and_found() {
        let dir = tempfile::tempdir().expect("directory");
        let open = || Logs::open(dir.path().join("audit"), Clock::system()).expect("logs");
        let logs = open();
        for verb in ["a", "b"] {
            logs.append("ci", entry(verb)).expect("append");
        }
        let path = logs.files("ci").remove(0);
        drop(logs);
        let text = std::fs::read_to_string(&path).expect("log").replace("\"b\"", "\"x\"");
        std::fs::write(&path, text).expect("edit");
        let logs = open();
        logs.append("ci", entry("c")).expect("append");
        let flaw = verify(&logs, "ci").expect_err("found");
        assert!(flaw.to_string().contains("line 2, record 2"), "{flaw}");
    }
}
