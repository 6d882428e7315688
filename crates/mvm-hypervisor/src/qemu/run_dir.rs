//! A machine's directory: its sockets, its lock, its memory file, and who may touch them.

use super::{CONSOLE_LOG, QEMU_LOG};
use crate::{Error, Result, VmSpec};
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

const QMP_SOCKET: &str = "qmp.sock";
const CHANNEL_SOCKET: &str = "channel.sock";
const STATE_SOCKET: &str = "state.sock";
const DEVICES: &str = "devices.state";
const LOCK: &str = "machine.lock";

pub(super) fn qmp_socket(dir: &Path) -> PathBuf {
    dir.join(QMP_SOCKET)
}

pub(super) fn channel_socket(dir: &Path) -> PathBuf {
    dir.join(CHANNEL_SOCKET)
}

/// What a new process inherits besides its logs.
#[derive(Debug)]
pub(super) struct Inherited {
    /// Listening socket for QMP.
    pub(super) qmp: UnixListener,
    /// Listening socket for the guest channel.
    pub(super) channel: UnixListener,
    /// Locked for as long as any process holds it: it shows whether the machine lives.
    pub(super) lock: File,
    /// `qemu.log`, empty.
    pub(super) log: File,
}

/// Makes the directory ready for a new process. Error: `already_running` if one lives in it. A
/// `fresh` machine has its console emptied; a restored one goes on with its own.
pub(super) fn prepare(spec: &VmSpec, fresh: bool) -> Result<Inherited> {
    let failed = |path: &Path| {
        let (id, path) = (spec.id.clone(), path.to_owned());
        move |source: io::Error| spawn_failed(id, &path, source)
    };
    let lock_path = spec.dir.join(LOCK);
    let lock = own_file().open(&lock_path).map_err(failed(&lock_path))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            return Err(Error::AlreadyRunning { id: spec.id.clone(), dir: spec.dir.clone() });
        }
        Err(e) => return Err(failed(&lock_path)(e.into())),
    }
    if let Some(confine) = spec.confine {
        // The process may enter its root directory, but neither list nor write to it, so that it
        // cannot swap anything that the driver opens there.
        chown(&spec.dir, Some(0), Some(confine.gid))
            .and_then(|()| std::fs::set_permissions(&spec.dir, Permissions::from_mode(0o710)))
            .map_err(failed(&spec.dir))?;
    }
    let console = spec.dir.join(CONSOLE_LOG);
    let opened = own_file().open(&console).map_err(failed(&console))?;
    if fresh {
        opened.set_len(0).map_err(failed(&console))?;
    }
    let log_path = spec.dir.join(QEMU_LOG);
    let log = own_file().open(&log_path).map_err(failed(&log_path))?;
    log.set_len(0).map_err(failed(&log_path))?;
    let listen = |path: PathBuf| {
        remove(&path).and_then(|()| UnixListener::bind(&path)).map_err(failed(&path))
    };
    let (qmp, channel) = (listen(qmp_socket(&spec.dir))?, listen(channel_socket(&spec.dir))?);
    Ok(Inherited { qmp, channel, lock, log })
}

/// Takes the lock of a machine's directory; `None` if a process holds it, or no machine ever ran
/// there.
pub(super) fn lock_if_free(spec: &VmSpec) -> io::Result<Option<File>> {
    let lock = match own_file().create(false).open(spec.dir.join(LOCK)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        lock => lock?,
    };
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(lock)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Makes a socket to which the machine delivers its state; the second value is the socket's path as
/// the machine sees it.
pub(super) fn state_listener(spec: &VmSpec) -> io::Result<(StateSocket, PathBuf)> {
    let path = spec.dir.join(STATE_SOCKET);
    remove(&path)?;
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    let seen = match spec.confine {
        Some(confine) => {
            chown(&path, Some(confine.uid), Some(confine.gid))?;
            Path::new("/").join(STATE_SOCKET)
        }
        None => path.clone(),
    };
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    Ok((StateSocket { listener, path }, seen))
}

/// The listening socket for a machine's state; its file is removed when dropped.
#[derive(Debug)]
pub(super) struct StateSocket {
    pub(super) listener: tokio::net::UnixListener,
    path: PathBuf,
}

impl Drop for StateSocket {
    fn drop(&mut self) {
        let _ = remove(&self.path);
    }
}

/// Makes an empty file that the machine can write to; the second value is its path as the machine
/// sees it.
pub(super) fn devices_file(spec: &VmSpec) -> io::Result<(DevicesFile, PathBuf)> {
    let path = spec.dir.join(DEVICES);
    remove(&path)?;
    let file = own_file().create_new(true).open(&path)?;
    let made = DevicesFile { file, path };
    let seen = match spec.confine {
        Some(confine) => {
            chown(&made.path, Some(confine.uid), Some(confine.gid))?;
            Path::new("/").join(DEVICES)
        }
        None => made.path.clone(),
    };
    Ok((made, seen))
}

/// The file for a machine's device state; removed when dropped.
#[derive(Debug)]
pub(super) struct DevicesFile {
    file: File,
    path: PathBuf,
}

impl DevicesFile {
    /// Reads everything that the machine has written.
    pub(super) fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut state = Vec::new();
        self.file.read_to_end(&mut state).map(|_| state)
    }
}

impl Drop for DevicesFile {
    fn drop(&mut self) {
        let _ = remove(&self.path);
    }
}

/// Removes the files of an ended machine, except the lock: a file that is locked by name must not
/// be replaced while somebody waits for it.
pub(super) fn clear(dir: &Path) {
    for name in [QMP_SOCKET, CHANNEL_SOCKET, STATE_SOCKET, DEVICES] {
        if let Err(error) = remove(&dir.join(name)) {
            tracing::warn!(%error, socket = name, "cannot remove a machine's socket");
        }
    }
}

/// Removes a file; a missing one is no error.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Returns whether the file system is full or the quota is used up, which is reported as
/// `no_space`.
pub(super) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

pub(super) fn spawn_failed(id: String, path: &Path, source: io::Error) -> Error {
    if is_no_space(&source) {
        return Error::NoSpace { id, path: path.to_owned() };
    }
    Error::SpawnFailed { id, what: path.display().to_string(), source }
}

/// Options for a file that only the agent's user can read and write: for appending, created if
/// missing, never a link.
pub(super) fn own_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options
}
