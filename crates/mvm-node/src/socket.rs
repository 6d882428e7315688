//! The agent's socket, which is made again if its file was removed.

use crate::error::NodeError;
use crate::{Result, api};
use axum::Router;
use prometheus_client::metrics::counter::Counter;
use std::fs::Permissions;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixListener;

/// The period at which the file is checked.
const LOOK: Duration = Duration::from_secs(1);

/// Binds the socket. The store's lock guarantees that no other agent serves this root, so an
/// existing socket was left by a killed agent.
pub(crate) fn listen(socket: &Path) -> Result<UnixListener> {
    let bind = || -> std::io::Result<UnixListener> {
        match std::fs::remove_file(socket) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // Bound under another name and then renamed, so that nobody can connect before the mode is
        // narrow.
        let early = socket.with_extension("new");
        let _ = std::fs::remove_file(&early);
        let listener = UnixListener::bind(&early)?;
        std::fs::set_permissions(&early, Permissions::from_mode(0o600))?;
        std::fs::rename(&early, socket)?;
        Ok(listener)
    };
    bind().map_err(|source| NodeError::Socket { socket: socket.to_owned(), source }.into())
}

/// Serves `app` on the socket forever. Open connections survive if the file is removed; `restored`
/// counts how often that happens.
pub(crate) async fn serve(
    socket: &Path,
    listener: UnixListener,
    app: Router,
    restored: &Counter,
) -> std::io::Result<()> {
    let mut file = identity(socket);
    let mut told = false;
    let mut serving = tokio::spawn(api::serve(listener, app.clone()));
    loop {
        tokio::select! {
            ended = &mut serving => return ended.unwrap_or_else(|e| Err(Error::other(e))),
            () = tokio::time::sleep(LOOK) => {}
        }
        // A socket that accepts connections is another agent's: the file of the lock was removed as
        // well.
        if file.is_some() && identity(socket) == file || UnixStream::connect(socket).is_ok() {
            continue;
        }
        match listen(socket) {
            Ok(listener) => {
                tracing::error!(socket = %socket.display(), "somebody has removed it; it is there again");
                restored.inc();
                serving.abort();
                serving = tokio::spawn(api::serve(listener, app.clone()));
                (file, told) = (identity(socket), false);
            }
            Err(error) if !told => {
                tracing::error!("nobody reaches this agent: {error}");
                told = true;
            }
            Err(_) => {}
        }
    }
}

/// Returns the device and inode numbers of the socket's file.
fn identity(socket: &Path) -> Option<(u64, u64)> {
    socket.symlink_metadata().ok().map(|meta| (meta.dev(), meta.ino()))
}
