//! The embedded engine: one SQLite file in WAL mode, owned by one thread.
//!
//! `synchronous=NORMAL`: a killed process loses nothing; a power cut may lose the last commits but
//! never damages the file. That is enough: a power cut also ends the machines that the records
//! describe, and recovery compares the records with the machines that exist.

use crate::history::History;
use crate::{
    Change, Error, Expect, Listing, Range, Record, Result, SessionId, Store, Watch, Write,
};
use async_trait::async_trait;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, params};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The newest schema that this code reads and writes.
const SCHEMA: u32 = 2;

/// How long until the end of a session is tried again after it failed.
const RETRY: Duration = Duration::from_secs(1);
/// How long to wait for the lock of a process that has ended: a child that it was just starting
/// holds the lock (flock(2)) until its execve(2).
const INHERITED: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce(&mut Engine) + Send>;

/// A store in one file. Cheap to share behind an `Arc`.
pub struct SqliteStore {
    jobs: Sender<Job>,
    path: String,
}

struct Engine {
    connection: Connection,
    path: String,
    history: History,
    /// How long each session lives, and when it ends. The ends are not in the file: when the store
    /// is opened again, every session gets its whole time, since nobody could keep it alive
    /// meanwhile.
    sessions: BTreeMap<SessionId, (Duration, Instant)>,
    _lock: Option<File>,
}

impl SqliteStore {
    /// Opens or makes the file at `path` and locks it against other processes, by a file with the
    /// extension `.lock`. Errors: `store_locked`, `store_too_new`, `store_damaged`, `store_failed`.
    pub fn open(path: &Path) -> Result<SqliteStore> {
        let lock = lock(&path.with_extension("lock"))?;
        let shown = path.display().to_string();
        // The file is made here, since SQLite would let others read it; -wal and -shm take over its
        // mode.
        own_file()
            .open(path)
            .map_err(|e| Error::Engine { path: shown.clone(), cause: e.to_string() })?;
        let connection = Connection::open(path).map_err(|e| engine_error(&shown, e))?;
        Self::start(connection, shown, Some(lock))
    }

    /// Makes a store in memory only.
    pub fn in_memory() -> Result<SqliteStore> {
        let path = "memory".to_owned();
        let connection = Connection::open_in_memory().map_err(|e| engine_error(&path, e))?;
        Self::start(connection, path, None)
    }

    fn start(connection: Connection, path: String, lock: Option<File>) -> Result<SqliteStore> {
        migrate(&connection, &path)?;
        let failed = |e| engine_error(&path, e);
        let history = History::new(revision(&connection).map_err(failed)?);
        let sessions = sessions(&connection).map_err(failed)?;
        let mut engine = Engine { connection, path: path.clone(), history, sessions, _lock: lock };
        let (jobs, work) = std::sync::mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("mvm-store".to_owned())
            .spawn(move || engine.serve(&work))
            .map_err(|e| Error::Engine { path: path.clone(), cause: e.to_string() })?;
        Ok(SqliteStore { jobs, path })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Engine) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, result) = oneshot::channel();
        let job: Job = Box::new(move |engine| {
            let _ = answer.send(work(engine));
        });
        let gone =
            || Error::Engine { path: self.path.clone(), cause: "its thread has ended".to_owned() };
        self.jobs.send(job).map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn get(&self, key: &str) -> Result<Option<Record>> {
        let key = key.to_owned();
        self.run(move |engine| engine.get(&key)).await
    }

    async fn range(&self, range: Range) -> Result<Listing> {
        self.run(move |engine| engine.range(&range)).await
    }

    async fn last(&self, prefix: &str) -> Result<Option<Record>> {
        let (from, end) = (prefix.to_owned(), end_of(prefix));
        self.run(move |engine| engine.last(&from, &end)).await
    }

    async fn revision(&self) -> Result<u64> {
        self.run(|engine| engine.revision()).await
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<u64> {
        self.run(move |engine| engine.commit(&writes)).await
    }

    async fn watch(&self, prefix: &str, after: u64) -> Result<Watch> {
        let prefix = prefix.to_owned();
        self.run(move |engine| Ok(engine.history.watch(&prefix, after))).await
    }

    async fn open_session(&self, ttl: Duration) -> Result<SessionId> {
        self.run(move |engine| engine.open_session(ttl)).await
    }

    async fn keep_session(&self, session: SessionId) -> Result<()> {
        self.run(move |engine| engine.keep_session(session)).await
    }

    async fn end_session(&self, session: SessionId) -> Result<()> {
        self.run(move |engine| engine.end_session(session)).await
    }

    async fn scrub(&self) -> Result<()> {
        self.run(|engine| engine.scrub()).await
    }
}

impl Engine {
    /// Runs jobs, and ends sessions in time, until the last sender of jobs is dropped.
    fn serve(&mut self, work: &Receiver<Job>) {
        loop {
            let now = Instant::now();
            let ended: Vec<SessionId> = self.ended(now);
            for session in ended {
                if let Err(error) = self.end_session(session) {
                    tracing::warn!(%session, %error, "a session could not be ended; trying again");
                    if let Some((_, end)) = self.sessions.get_mut(&session) {
                        *end = now + RETRY;
                    }
                }
            }
            let next = self.sessions.values().map(|(_, end)| *end).min();
            let job = match next {
                Some(end) => work.recv_timeout(end.saturating_duration_since(Instant::now())),
                None => work.recv().map_err(RecvTimeoutError::from),
            };
            match job {
                Ok(job) => job(self),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn ended(&self, now: Instant) -> Vec<SessionId> {
        let ended = self.sessions.iter().filter(|(_, (_, end))| *end <= now);
        ended.map(|(session, _)| *session).collect()
    }

    fn get(&self, key: &str) -> Result<Option<Record>> {
        self.connection
            .prepare_cached("SELECT key, value, revision, session FROM records WHERE key = ?1")
            .and_then(|mut query| query.query_row([key], record).optional())
            .map_err(|e| engine_error(&self.path, e))
    }

    fn range(&self, range: &Range) -> Result<Listing> {
        let query = "SELECT key, value, revision, session FROM records \
                     WHERE key >= ?1 AND key < ?2 ORDER BY key LIMIT ?3";
        // One record more than requested tells whether there are more; -1 means no limit.
        let limit = range.limit.map_or(-1, |limit| limit.saturating_add(1) as i64);
        let mut records: Vec<Record> = self
            .connection
            .prepare_cached(query)
            .and_then(|mut query| {
                query
                    .query_map(params![range.start(), end_of(&range.prefix), limit], record)?
                    .collect()
            })
            .map_err(|e| engine_error(&self.path, e))?;
        let mut next = None;
        if let Some(limit) = range.limit.filter(|limit| records.len() > *limit) {
            next = records.drain(limit..).next().map(|record| record.key);
        }
        Ok(Listing { records, revision: self.revision()?, next })
    }

    fn last(&self, from: &str, end: &str) -> Result<Option<Record>> {
        let query = "SELECT key, value, revision, session FROM records \
                     WHERE key >= ?1 AND key < ?2 ORDER BY key DESC LIMIT 1";
        self.connection
            .prepare_cached(query)
            .and_then(|mut query| query.query_row([from, end], record).optional())
            .map_err(|e| engine_error(&self.path, e))
    }

    fn revision(&self) -> Result<u64> {
        revision(&self.connection).map_err(|e| engine_error(&self.path, e))
    }

    fn commit(&mut self, writes: &[Write]) -> Result<u64> {
        let failed = |e| engine_error(&self.path, e);
        let transaction = self.connection.transaction().map_err(failed)?;
        for (key, expect) in writes.iter().map(Write::condition) {
            check(&transaction, key, expect).map_err(|e| e.unwrap_or_else(failed))?;
        }
        for write in writes {
            match write {
                Write::Hold { session, .. } if !self.sessions.contains_key(session) => {
                    return Err(Error::SessionEnded(*session));
                }
                _ => {}
            }
        }
        let revision = revision(&transaction).map_err(failed)? + 1;
        let mut changes = Vec::new();
        for write in Write::effects(writes) {
            changes.extend(apply(&transaction, write, revision).map_err(failed)?);
        }
        if changes.is_empty() {
            return Ok(revision - 1);
        }
        finish(transaction, revision).map_err(failed)?;
        self.history.add(changes);
        Ok(revision)
    }

    fn scrub(&mut self) -> Result<()> {
        // Pages are written to the log first, and from there over the old ones.
        let all = "VACUUM; PRAGMA wal_checkpoint(TRUNCATE);";
        self.connection.execute_batch(all).map_err(|e| engine_error(&self.path, e))
    }

    fn open_session(&mut self, ttl: Duration) -> Result<SessionId> {
        let milliseconds = ttl.as_millis() as u64;
        let id = self
            .connection
            .prepare_cached("INSERT INTO sessions (ttl_ms) VALUES (?1) RETURNING id")
            .and_then(|mut query| query.query_row([milliseconds], |row| row.get(0)))
            .map_err(|e| engine_error(&self.path, e))?;
        self.sessions.insert(SessionId(id), (ttl, Instant::now() + ttl));
        Ok(SessionId(id))
    }

    fn keep_session(&mut self, session: SessionId) -> Result<()> {
        let (ttl, end) = self.sessions.get_mut(&session).ok_or(Error::SessionEnded(session))?;
        *end = Instant::now() + *ttl;
        Ok(())
    }

    fn end_session(&mut self, session: SessionId) -> Result<()> {
        let failed = |e| engine_error(&self.path, e);
        let transaction = self.connection.transaction().map_err(failed)?;
        let revision = revision(&transaction).map_err(failed)? + 1;
        let keys: Vec<String> = transaction
            .prepare_cached("DELETE FROM records WHERE session = ?1 RETURNING key")
            .and_then(|mut query| query.query_map([session.0], |row| row.get(0))?.collect())
            .map_err(failed)?;
        transaction.execute("DELETE FROM sessions WHERE id = ?1", [session.0]).map_err(failed)?;
        finish(transaction, revision).map_err(failed)?;
        self.sessions.remove(&session);
        let gone = |key| Change { key, value: None, revision };
        self.history.add(keys.into_iter().map(gone).collect());
        Ok(())
    }
}

fn revision(connection: &Connection) -> rusqlite::Result<u64> {
    connection
        .prepare_cached("SELECT revision FROM store")
        .and_then(|mut query| query.query_row([], |row| row.get(0)))
}

fn sessions(connection: &Connection) -> rusqlite::Result<BTreeMap<SessionId, (Duration, Instant)>> {
    let now = Instant::now();
    let mut query = connection.prepare("SELECT id, ttl_ms FROM sessions")?;
    let rows = query.query_map([], |row| {
        let ttl = Duration::from_millis(row.get(1)?);
        Ok((SessionId(row.get(0)?), (ttl, now + ttl)))
    })?;
    rows.collect()
}

/// Carries a write out and returns the change; `None` if there was nothing to remove.
fn apply(
    transaction: &Transaction<'_>,
    write: &Write,
    revision: u64,
) -> rusqlite::Result<Option<Change>> {
    let put = |key: &str, value: &[u8], session: Option<u64>| {
        transaction
            .prepare_cached("INSERT OR REPLACE INTO records VALUES (?1, ?2, ?3, ?4)")
            .and_then(|mut query| query.execute(params![key, value, revision, session]))
            .map(|_| Some(Change { key: key.to_owned(), value: Some(value.to_vec()), revision }))
    };
    match write {
        Write::Put { key, value, .. } => put(key, value, None),
        Write::Hold { key, value, session, .. } => put(key, value, Some(session.0)),
        Write::Delete { key, .. } => transaction
            .prepare_cached("DELETE FROM records WHERE key = ?1")
            .and_then(|mut query| query.execute([key]))
            .map(|gone| (gone > 0).then(|| Change { key: key.clone(), value: None, revision })),
        Write::Check { .. } => Ok(None),
    }
}

fn finish(transaction: Transaction<'_>, revision: u64) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("UPDATE store SET revision = ?1")
        .and_then(|mut query| query.execute([revision]))?;
    transaction.commit()
}

/// Returns the end of the range of keys that begin with the prefix: keys are text without U+10FFFF.
fn end_of(prefix: &str) -> String {
    format!("{prefix}\u{10FFFF}")
}

/// Why a condition was not met: a conflict, or an error of SQLite that lacks the path.
enum Refused {
    Conflict(Error),
    Engine(rusqlite::Error),
}

impl Refused {
    fn unwrap_or_else(self, name: impl FnOnce(rusqlite::Error) -> Error) -> Error {
        match self {
            Refused::Conflict(error) => error,
            Refused::Engine(error) => name(error),
        }
    }
}

fn check(connection: &Connection, key: &str, expected: Expect) -> std::result::Result<(), Refused> {
    let wanted = match expected {
        Expect::Any => return Ok(()),
        Expect::Absent => 0,
        Expect::Revision(revision) => revision,
    };
    let found: u64 = connection
        .prepare_cached("SELECT revision FROM records WHERE key = ?1")
        .and_then(|mut query| query.query_row([key], |row| row.get(0)).optional())
        .map_err(Refused::Engine)?
        .unwrap_or(0);
    if found == wanted {
        return Ok(());
    }
    Err(Refused::Conflict(Error::Conflict { key: key.to_owned(), expected, found }))
}

fn record(row: &rusqlite::Row<'_>) -> rusqlite::Result<Record> {
    let session: Option<u64> = row.get(3)?;
    Ok(Record {
        key: row.get(0)?,
        value: row.get(1)?,
        revision: row.get(2)?,
        session: session.map(SessionId),
    })
}

fn migrate(connection: &Connection, path: &str) -> Result<()> {
    let failed = |e| engine_error(path, e);
    let found: u32 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    if found > SCHEMA {
        return Err(Error::TooNew { path: path.to_owned(), found, known: SCHEMA });
    }
    let tables = "PRAGMA journal_mode = WAL;
         PRAGMA synchronous = NORMAL;
         PRAGMA secure_delete = ON;
         PRAGMA busy_timeout = 5000;
         BEGIN;
         CREATE TABLE IF NOT EXISTS records (
             key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL
         ) WITHOUT ROWID;
         CREATE TABLE IF NOT EXISTS store (
             one INTEGER PRIMARY KEY CHECK (one = 1), revision INTEGER NOT NULL
         );
         INSERT OR IGNORE INTO store VALUES (1, 0);";
    let sessions = "ALTER TABLE records ADD COLUMN session INTEGER;
         CREATE INDEX held ON records (session) WHERE session IS NOT NULL;
         CREATE TABLE sessions (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_ms INTEGER NOT NULL);
         PRAGMA user_version = 2;";
    let steps = [tables, if found < 2 { sessions } else { "" }, "COMMIT;"];
    connection.execute_batch(&steps.concat()).map_err(failed)
}

/// Options for a file that only the agent's user can read and write if it is new.
fn own_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true).mode(0o600);
    options
}

fn lock(path: &Path) -> Result<File> {
    let shown = path.display().to_string();
    let failed = |e: std::io::Error| Error::Engine { path: shown.clone(), cause: e.to_string() };
    let mut file = own_file().open(path).map_err(failed)?;
    let until = Instant::now() + INHERITED;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(e)) => return Err(failed(e)),
            Err(TryLockError::WouldBlock) => {}
        }
        let mut holder = String::new();
        let _ = file.rewind().and_then(|()| file.read_to_string(&mut holder));
        let holder = holder.trim();
        if Instant::now() >= until || !has_ended(holder) {
            let pid = if holder.is_empty() { String::new() } else { format!(" (pid {holder})") };
            return Err(Error::Locked { path: shown, holder: pid });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
    write!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

/// Returns whether a process is gone or a zombie (proc_pid_stat(5)); false for an empty text.
fn has_ended(pid: &str) -> bool {
    if pid.is_empty() {
        return false;
    }
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_none_or(|state| matches!(state, 'Z' | 'X'))
}

fn engine_error(path: &str, error: rusqlite::Error) -> Error {
    let (path, cause) = (path.to_owned(), error.to_string());
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Error::NoSpace { path },
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            Error::Damaged { path, cause }
        }
        _ => Error::Engine { path, cause },
    }
}
