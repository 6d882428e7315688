//! The agent's socket: made, and made anew where somebody has removed its file.

use crate::{Result, api};
use axum::Router;
use mvm_api::Problem;
use mvm_model::Code;
use prometheus_client::metrics::counter::Counter;
use std::fs::Permissions;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixListener;

/// How often it is looked whether the file is there.
const LOOK: Duration = Duration::from_secs(1);

/// Binds the socket. The store's lock says that no other agent serves this root: a socket that is
/// there was left by one that was killed.
pub(crate) fn listen(socket: &Path) -> Result<UnixListener> {
    let bind = || -> std::io::Result<UnixListener> {
        match std::fs::remove_file(socket) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // Bound under another name and then renamed, so that nobody finds it with a wider mode.
        let early = socket.with_extension("new");
        let _ = std::fs::remove_file(&early);
        let listener = UnixListener::bind(&early)?;
        std::fs::set_permissions(&early, Permissions::from_mode(0o600))?;
        std::fs::rename(&early, socket)?;
        Ok(listener)
    };
    bind().map_err(|e| {
        Problem::new(Code::Socket, format!("cannot listen on {}: {e}", socket.display()))
    })
}

/// Serves `app` there for ever. Connections that are open when the file goes stay; `restored` counts how
/// often it went.
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
        // What is there and takes connections is another agent's: the lock's file was removed as well.
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
            Err(problem) if !told => {
                tracing::error!("nobody reaches this agent: {problem}");
                told = true;
            }
            Err(_) => {}
        }
    }
}

/// Which file it is.
fn identity(socket: &Path) -> Option<(u64, u64)> {
    socket.symlink_metadata().ok().map(|meta| (meta.dev(), meta.ino()))
}
