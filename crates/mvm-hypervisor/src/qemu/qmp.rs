//! QMP (QEMU's docs/interop/qmp-spec): few commands, each with a deadline, over a connection that
//! is reopened when it breaks.

use super::heard::{self, Heard};
use crate::{Error, Halt, Result};
use futures::StreamExt;
use qapi::ExecuteError;
use qapi::futures::{QapiService, QmpStreamTokio};
use qapi::qmp::{
    MigrationCapability, MigrationCapabilityStatus, QmpCommand, RunState, cont,
    migrate_set_capabilities, query_status, quit, stop,
};
use serde::Serialize;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::WriteHalf;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

/// How long a command may take. On an idle host all answer within a millisecond.
const COMMAND: Duration = Duration::from_secs(10);
/// How long a monitor that has answered before may take to greet again.
const RECONNECT: Duration = Duration::from_secs(5);

/// The monitor of one machine. Commands run one at a time.
#[derive(Debug)]
pub(super) struct Qmp {
    id: String,
    socket: PathBuf,
    connection: Mutex<Option<Connection>>,
    heard: Arc<Heard>,
}

struct Connection {
    service: QapiService<QmpStreamTokio<WriteHalf<UnixStream>>>,
    /// The task that reads answers and events for as long as the connection lives, also between
    /// commands.
    reader: JoinHandle<()>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // QEMU serves one client at a time: the socket must close for the next one.
        self.reader.abort();
    }
}

impl Connection {
    async fn open(socket: &Path, heard: Arc<Heard>) -> std::io::Result<Self> {
        let stream = QmpStreamTokio::open_uds(socket).await?.negotiate().await?;
        let (service, mut events) = stream.into_parts();
        let reader = tokio::spawn(async move {
            while let Some(item) = events.next().await {
                match item {
                    Ok(event) => {
                        tracing::trace!(?event, "QMP event");
                        heard.note(&event);
                    }
                    // For example an answer that came after its deadline; a broken stream ends the
                    // loop by itself.
                    Err(error) => tracing::debug!(%error, "QMP message dropped"),
                }
            }
            // Events are missed until the next connection.
            heard.changed.notify_one();
        });
        Ok(Self { service, reader })
    }
}

/// Whether a command whose answer was lost may be sent once more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Yes,
    No,
}

impl Qmp {
    /// Connects and negotiates within `deadline`: a process that has just been started
    /// greets only when it has set its machine up.
    pub(super) async fn connect(id: &str, socket: &Path, deadline: Duration) -> Result<Self> {
        let (connection, heard) = (Mutex::new(None), Arc::default());
        let qmp = Self { id: id.to_owned(), socket: socket.to_owned(), connection, heard };
        let connection = qmp.open(deadline).await?;
        *qmp.connection.lock().await = Some(connection);
        Ok(qmp)
    }

    /// Returns what the monitor has reported in events.
    pub(super) fn heard(&self) -> &Arc<Heard> {
        &self.heard
    }

    async fn open(&self, deadline: Duration) -> Result<Connection> {
        let opening = Connection::open(&self.socket, Arc::clone(&self.heard));
        match tokio::time::timeout(deadline, opening).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(cause)) => Err(self.failed("connect", &cause)),
            Err(_) => Err(self.late("connect", deadline)),
        }
    }

    /// Carries a command out. The wait for its turn counts towards the deadline: with a hanging
    /// monitor, a command would otherwise wait for the deadlines of all commands before it.
    async fn execute<C: QmpCommand>(&self, command: &C, repeat: Repeat) -> Result<C::Ok> {
        let within = COMMAND + RECONNECT;
        let done = tokio::time::timeout(within, self.carry_out(command, repeat)).await;
        done.unwrap_or_else(|_| Err(self.late(C::NAME, within)))
    }

    async fn carry_out<C: QmpCommand>(&self, command: &C, repeat: Repeat) -> Result<C::Ok> {
        let mut slot = self.connection.lock().await;
        let mut fresh = slot.is_none();
        loop {
            // The connection is taken out of the slot for the duration of the command: if this
            // future is dropped half-way, the connection goes with it, and the next command opens a
            // clean one.
            let connection = match slot.take() {
                Some(connection) => connection,
                None => {
                    let connection = self.open(RECONNECT).await?;
                    // Events between the two connections were missed.
                    self.heard.changed.notify_one();
                    connection
                }
            };
            let answer = tokio::time::timeout(COMMAND, connection.service.execute(command)).await;
            match answer {
                Ok(Ok(value)) => {
                    *slot = Some(connection);
                    return Ok(value);
                }
                Ok(Err(ExecuteError::Qapi(refusal))) => {
                    *slot = Some(connection);
                    return Err(self.failed(C::NAME, &refusal));
                }
                Ok(Err(ExecuteError::Io(_))) if !fresh && repeat == Repeat::Yes => fresh = true,
                Ok(Err(ExecuteError::Io(cause))) => return Err(self.failed(C::NAME, &cause)),
                Err(_) => return Err(self.late(C::NAME, COMMAND)),
            }
        }
    }

    fn failed(&self, command: &str, cause: &dyn std::fmt::Display) -> Error {
        let (id, command) = (self.id.clone(), command.to_owned());
        Error::QmpFailed { id, command, reason: cause.to_string() }
    }

    fn late(&self, command: &str, after: Duration) -> Error {
        Error::QmpTimeout { id: self.id.clone(), command: command.to_owned(), after }
    }

    /// Stops the vCPUs.
    pub(super) async fn stop(&self) -> Result<()> {
        self.execute(&stop {}, Repeat::Yes).await.map(drop)
    }

    /// Lets the vCPUs run.
    pub(super) async fn cont(&self) -> Result<()> {
        self.execute(&cont {}, Repeat::Yes).await.map(drop)
    }

    /// Tells QEMU to quit; the process may be gone before it answers.
    pub(super) async fn quit(&self) -> Result<()> {
        self.execute(&quit {}, Repeat::No).await.map(drop)
    }

    /// Asks whether the machine runs, is paused, or was halted.
    pub(super) async fn status(&self) -> Result<RunState> {
        self.execute(&query_status {}, Repeat::Yes).await.map(|info| info.status)
    }

    /// Asks which disk stopped the machine.
    pub(super) async fn culprit(&self) -> Result<Halt> {
        Ok(heard::culprit(&self.execute(&QueryBlock {}, Repeat::Yes).await?))
    }

    /// Sets whether memory that is mapped shared is left out of the state that is sent or loaded.
    pub(super) async fn ignore_shared(&self, state: bool) -> Result<()> {
        let capability = MigrationCapability::x_ignore_shared;
        let capabilities = vec![MigrationCapabilityStatus { capability, state }];
        self.execute(&migrate_set_capabilities { capabilities }, Repeat::Yes).await.map(drop)
    }

    /// Lifts QEMU's limit of 1 Gbit/s on sending memory.
    pub(super) async fn send_at_full_speed(&self) -> Result<()> {
        let fast = MigrateSetParameters { max_bandwidth: 1 << 40 };
        self.execute(&fast, Repeat::Yes).await.map(drop)
    }

    /// Begins to load the state from a descriptor that the process inherited.
    pub(super) async fn incoming(&self, fd: RawFd) -> Result<()> {
        self.execute(&MigrateIncoming { uri: format!("fd:{fd}") }, Repeat::No).await.map(drop)
    }

    /// Writes the state of the devices, without memory, to an existing file, named by its path as
    /// the process sees it. The disks stay attached to the machine.
    pub(super) async fn save_devices(&self, to: &Path) -> Result<()> {
        let save = SaveDevices { filename: to.display().to_string(), live: false };
        self.execute(&save, Repeat::Yes).await.map(drop)
    }

    /// Begins to send the state to a Unix socket, by its path as the process sees it.
    pub(super) async fn migrate(&self, to: &Path) -> Result<()> {
        let uri = format!("unix:{}", to.display());
        self.execute(&Migrate { uri }, Repeat::No).await.map(drop)
    }

    /// Asks how far the sending is; returns QEMU's status and its error, empty if there is none.
    pub(super) async fn migration(&self) -> Result<(String, String)> {
        let value = self.execute(&QueryMigrate {}, Repeat::Yes).await?;
        let field = |name| value.get(name).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        Ok((field("status"), field("error-desc")))
    }

    /// Cancels the sending of the state.
    pub(super) async fn cancel_migration(&self) -> Result<()> {
        self.execute(&CancelMigration {}, Repeat::Yes).await.map(drop)
    }
}

/// Defines a command whose arguments or answers differ between versions of QEMU, with the part that
/// all of them share.
macro_rules! command {
    ($name:ident { $($field:ident: $type:ty),* }, $word:literal) => {
        #[derive(Debug, Serialize)]
        #[serde(rename_all = "kebab-case")]
        struct $name { $($field: $type),* }
        impl QmpCommand for $name {}
        impl qapi::Command for $name {
            type Ok = serde_json::Value;
            const NAME: &'static str = $word;
            const ALLOW_OOB: bool = false;
        }
    };
}
command!(Migrate { uri: String }, "migrate");
command!(MigrateIncoming { uri: String }, "migrate-incoming");
command!(MigrateSetParameters { max_bandwidth: u64 }, "migrate-set-parameters");
command!(SaveDevices { filename: String, live: bool }, "xen-save-devices-state");
command!(QueryBlock {}, "query-block");
command!(QueryMigrate {}, "query-migrate");
command!(CancelMigration {}, "migrate_cancel");
