//! The embedded engine: one SQLite file in WAL mode, owned by one thread.
//!
//! `synchronous=NORMAL`: a killed process loses nothing; a power cut may lose the last commits but
//! never damages the file. The machines that the records speak of are gone after a power cut too,
//! and recovery compares the records with what is really there.

use crate::{Change, Error, Expect, Record, Result, Store, Write};
use async_trait::async_trait;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write as _};
use std::path::Path;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

/// The newest schema that this code reads and writes.
const SCHEMA: u32 = 1;

type Job = Box<dyn FnOnce(&mut Engine) + Send>;

/// A store in one file. Cheap to share behind an `Arc`.
pub struct SqliteStore {
    jobs: std::sync::mpsc::Sender<Job>,
    path: String,
}

struct Engine {
    connection: Connection,
    path: String,
    watches: Vec<(String, UnboundedSender<Change>)>,
    _lock: Option<File>,
}

impl SqliteStore {
    /// Opens or makes the file at `path` and locks it (`path` with `.lock` behind) against others.
    pub fn open(path: &Path) -> Result<SqliteStore> {
        let lock = lock(&path.with_extension("lock"))?;
        let shown = path.display().to_string();
        let connection = Connection::open(path).map_err(|e| engine_error(&shown, e))?;
        Self::start(connection, shown, Some(lock))
    }

    /// A store in memory only.
    pub fn in_memory() -> Result<SqliteStore> {
        let path = "memory".to_owned();
        let connection = Connection::open_in_memory().map_err(|e| engine_error(&path, e))?;
        Self::start(connection, path, None)
    }

    fn start(connection: Connection, path: String, lock: Option<File>) -> Result<SqliteStore> {
        migrate(&connection, &path)?;
        let mut engine =
            Engine { connection, path: path.clone(), watches: Vec::new(), _lock: lock };
        let (jobs, work) = std::sync::mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("mvm-store".to_owned())
            .spawn(move || {
                for job in work {
                    job(&mut engine);
                }
            })
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

    async fn list_from(&self, prefix: &str, from: &str) -> Result<Vec<Record>> {
        let (from, end) = (prefix.max(from).to_owned(), end_of(prefix));
        self.run(move |engine| engine.list(&from, &end)).await
    }

    async fn last(&self, prefix: &str) -> Result<Option<Record>> {
        let (from, end) = (prefix.to_owned(), end_of(prefix));
        self.run(move |engine| engine.last(&from, &end)).await
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<u64> {
        self.run(move |engine| engine.commit(&writes)).await
    }

    async fn watch(&self, prefix: &str) -> Result<UnboundedReceiver<Change>> {
        let prefix = prefix.to_owned();
        self.run(move |engine| {
            let (to, from) = unbounded_channel();
            engine.watches.push((prefix, to));
            Ok(from)
        })
        .await
    }
}

impl Engine {
    fn get(&self, key: &str) -> Result<Option<Record>> {
        self.connection
            .prepare_cached("SELECT key, value, revision FROM records WHERE key = ?1")
            .and_then(|mut query| query.query_row([key], record).optional())
            .map_err(|e| engine_error(&self.path, e))
    }

    fn list(&self, from: &str, end: &str) -> Result<Vec<Record>> {
        let query =
            "SELECT key, value, revision FROM records WHERE key >= ?1 AND key < ?2 ORDER BY key";
        self.connection
            .prepare_cached(query)
            .and_then(|mut query| query.query_map([from, end], record)?.collect())
            .map_err(|e| engine_error(&self.path, e))
    }

    fn last(&self, from: &str, end: &str) -> Result<Option<Record>> {
        let query = "SELECT key, value, revision FROM records WHERE key >= ?1 AND key < ?2 \
                     ORDER BY key DESC LIMIT 1";
        self.connection
            .prepare_cached(query)
            .and_then(|mut query| query.query_row([from, end], record).optional())
            .map_err(|e| engine_error(&self.path, e))
    }

    fn commit(&mut self, writes: &[Write]) -> Result<u64> {
        let path = self.path.clone();
        let failed = |e| engine_error(&path, e);
        let transaction = self.connection.transaction().map_err(failed)?;
        let revision: u64 = transaction
            .query_row("UPDATE store SET revision = revision + 1 RETURNING revision", [], |row| {
                row.get(0)
            })
            .map_err(failed)?;
        for write in writes {
            let (key, expect) = match write {
                Write::Put { key, expect, .. } | Write::Delete { key, expect } => (key, *expect),
            };
            check(&transaction, key, expect).map_err(|e| e.unwrap_or_else(failed))?;
            match write {
                Write::Put { key, value, .. } => transaction
                    .prepare_cached("INSERT OR REPLACE INTO records VALUES (?1, ?2, ?3)")
                    .and_then(|mut query| query.execute(params![key, value, revision])),
                Write::Delete { key, .. } => transaction
                    .prepare_cached("DELETE FROM records WHERE key = ?1")
                    .and_then(|mut query| query.execute([key])),
            }
            .map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
        self.report(writes, revision);
        Ok(revision)
    }

    fn report(&mut self, writes: &[Write], revision: u64) {
        for write in writes {
            let (key, value) = match write {
                Write::Put { key, value, .. } => (key, Some(value)),
                Write::Delete { key, .. } => (key, None),
            };
            self.watches.retain(|(prefix, to)| {
                let change = || Change { key: key.clone(), value: value.cloned(), revision };
                !key.starts_with(prefix) || to.send(change()).is_ok()
            });
        }
    }
}

/// Keys are text without U+10FFFF: it ends the range of all that begin with the prefix.
fn end_of(prefix: &str) -> String {
    format!("{prefix}\u{10FFFF}")
}

/// Either a conflict, or an error of SQLite still to be named.
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
    Ok(Record { key: row.get(0)?, value: row.get(1)?, revision: row.get(2)? })
}

fn migrate(connection: &Connection, path: &str) -> Result<()> {
    let failed = |e| engine_error(path, e);
    let found: u32 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    if found > SCHEMA {
        return Err(Error::TooNew { path: path.to_owned(), found, known: SCHEMA });
    }
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL;
             PRAGMA synchronous = NORMAL;
             PRAGMA busy_timeout = 5000;
             BEGIN;
             CREATE TABLE IF NOT EXISTS records (
                 key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL
             ) WITHOUT ROWID;
             CREATE TABLE IF NOT EXISTS store (
                 one INTEGER PRIMARY KEY CHECK (one = 1), revision INTEGER NOT NULL
             );
             INSERT OR IGNORE INTO store VALUES (1, 0);
             PRAGMA user_version = 1;
             COMMIT;",
        )
        .map_err(failed)
}

fn lock(path: &Path) -> Result<File> {
    let shown = path.display().to_string();
    let failed = |e: std::io::Error| Error::Engine { path: shown.clone(), cause: e.to_string() };
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => String::new(),
                pid => format!(" (pid {pid})"),
            };
            return Err(Error::Locked { path: shown, holder });
        }
        Err(TryLockError::Error(e)) => return Err(failed(e)),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
    write!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
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
