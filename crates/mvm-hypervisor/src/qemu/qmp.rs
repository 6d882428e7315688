//! QMP (docs/interop/qmp-spec of QEMU): few commands, each with a deadline.

use crate::{Error, Result};
use qapi::futures::{QapiService, QmpStreamTokio};
use qapi::qmp::{
    MigrationCapability, MigrationCapabilityStatus, QmpCommand, StatusInfo, cont, migrate,
    migrate_set_capabilities, query_status, quit, stop,
};
use serde::Serialize;
use std::os::fd::RawFd;
use std::path::Path;
use std::time::Duration;
use tokio::io::WriteHalf;
use tokio::net::UnixStream;

/// How long a command may take. All of them answer in well under a millisecond on an idle host.
const DEADLINE: Duration = Duration::from_secs(10);

/// An open monitor.
pub struct Qmp {
    id: String,
    service: QapiService<QmpStreamTokio<WriteHalf<UnixStream>>>,
}

impl Qmp {
    /// Connects and negotiates; within `deadline`, since a process that has just been started
    /// answers only when it has set its machine up.
    pub async fn connect(id: &str, socket: &Path, deadline: Duration) -> Result<Qmp> {
        let open = async {
            let stream = QmpStreamTokio::open_uds(socket).await?.negotiate().await?;
            Ok::<_, std::io::Error>(stream.spawn_tokio().0)
        };
        match tokio::time::timeout(deadline, open).await {
            Ok(Ok(service)) => Ok(Qmp { id: id.to_owned(), service }),
            Ok(Err(cause)) => Err(Error::QmpFailed {
                id: id.to_owned(),
                command: "connect".to_owned(),
                reason: cause.to_string(),
            }),
            Err(_) => Err(Error::QmpTimeout {
                id: id.to_owned(),
                command: "connect".to_owned(),
                after: deadline,
            }),
        }
    }

    async fn execute<C: QmpCommand>(&self, command: C) -> Result<C::Ok> {
        match tokio::time::timeout(DEADLINE, self.service.execute(command)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(cause)) => Err(Error::QmpFailed {
                id: self.id.clone(),
                command: C::NAME.to_owned(),
                reason: cause.to_string(),
            }),
            Err(_) => Err(Error::QmpTimeout {
                id: self.id.clone(),
                command: C::NAME.to_owned(),
                after: DEADLINE,
            }),
        }
    }

    /// Stops the vCPUs.
    pub async fn stop(&self) -> Result<()> {
        self.execute(stop {}).await.map(|_| ())
    }

    /// Lets the vCPUs run.
    pub async fn cont(&self) -> Result<()> {
        self.execute(cont {}).await.map(|_| ())
    }

    /// Ends the process; it may be gone before it answers.
    pub async fn quit(&self) -> Result<()> {
        self.execute(quit {}).await.map(|_| ())
    }

    /// Whether vCPUs run, and which state exactly.
    pub async fn status(&self) -> Result<StatusInfo> {
        self.execute(query_status {}).await
    }

    /// Memory that is mapped shared stays where it is: only devices go into a snapshot.
    pub async fn ignore_shared(&self) -> Result<()> {
        let capability = MigrationCapabilityStatus {
            capability: MigrationCapability::x_ignore_shared,
            state: true,
        };
        self.execute(migrate_set_capabilities { capabilities: vec![capability] }).await.map(|_| ())
    }

    /// Begins to load the device state from the inherited descriptor `fd`.
    pub async fn incoming(&self, fd: RawFd) -> Result<()> {
        self.execute(MigrateIncoming { uri: format!("fd:{fd}") }).await.map(|_| ())
    }

    /// Begins to send the device state to `uri`.
    pub async fn migrate(&self, uri: String) -> Result<()> {
        self.ignore_shared().await?;
        let command = migrate { uri: Some(uri), channels: None, detach: None, resume: None };
        self.execute(command).await.map(|_| ())
    }

    /// How far the sending is: QEMU's own word, and its error.
    pub async fn migration(&self) -> Result<(String, String)> {
        let value = self.execute(QueryMigrate {}).await?;
        let field =
            |name: &str| value.get(name).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        Ok((field("status"), field("error-desc")))
    }

    /// Gives up sending.
    pub async fn cancel_migration(&self) -> Result<()> {
        self.execute(CancelMigration {}).await.map(|_| ())
    }
}

/// `query-migrate` with whatever this version of QEMU answers: its fields differ from version to
/// version, and two of them are all that is wanted.
#[derive(Debug, Serialize)]
struct QueryMigrate {}

impl QmpCommand for QueryMigrate {}
impl qapi::Command for QueryMigrate {
    type Ok = serde_json::Value;
    const NAME: &'static str = "query-migrate";
    const ALLOW_OOB: bool = false;
}

/// `migrate-incoming` as QEMU 7.2 knows it: later versions' arguments are optional.
#[derive(Debug, Serialize)]
struct MigrateIncoming {
    uri: String,
}

impl QmpCommand for MigrateIncoming {}
impl qapi::Command for MigrateIncoming {
    type Ok = serde_json::Value;
    const NAME: &'static str = "migrate-incoming";
    const ALLOW_OOB: bool = false;
}

#[derive(Debug, Serialize)]
struct CancelMigration {}

impl QmpCommand for CancelMigration {}
impl qapi::Command for CancelMigration {
    type Ok = serde_json::Value;
    const NAME: &'static str = "migrate_cancel";
    const ALLOW_OOB: bool = false;
}
