//! Serves SSH with the image's own server, if it has one.

use super::common::{PATH, guest_error};
use super::protect::Ordinary;
use crate::Result;
use crate::protocol::SshIdentity;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Pause before a port that another program holds is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// How many connections may be open at once; more wait. sshd itself ends one that does not log in
/// after two minutes.
const CONNECTIONS: usize = 128;
/// The log is emptied when it exceeds this size, in bytes.
const LOG_BYTES: u64 = 256 << 10;
const DIR: &str = "/run/mvm/ssh";

/// Listens for SSH and starts the image's server for each connection, as inetd(8) does: a clone
/// that nobody logs in to pays nothing for it. Under emulation, starting sshd takes more time and
/// memory than everything else that a clone does.
#[derive(Default)]
pub struct Server {
    listening: tokio::sync::Mutex<Option<Listening>>,
}

struct Listening {
    port: u16,
    task: JoinHandle<()>,
}

impl Server {
    /// Listens again if an earlier agent did before it ended.
    pub async fn resume(&self) {
        let kept = fs::read(Path::new(DIR).join("identity")).unwrap_or_default();
        if let Ok(identity) = serde_json::from_slice(&kept)
            && let Err(error) = self.start(&identity).await
        {
            eprintln!("mvm-guest: cannot serve SSH again: {error}");
        }
    }

    /// Takes on the identity: keys apply from the next connection on. Open sessions stay.
    pub async fn start(&self, identity: &SshIdentity) -> Result<()> {
        fs::create_dir_all(DIR).map_err(|e| guest_error(&format!("make {DIR}"), &e))?;
        write("host_key", &identity.host_key)?;
        write("authorized_keys", &(identity.authorized_keys.join("\n") + "\n"))?;
        write("sshd_config", &config(identity.port))?;
        let kept = serde_json::to_string(identity).unwrap_or_default();
        write("identity", &kept)?;
        let Some(sshd) = find() else { return Ok(()) };
        let mut listening = self.listening.lock().await;
        let port = identity.port;
        if listening.as_ref().is_some_and(|old| old.port == port && !old.task.is_finished()) {
            return Ok(());
        }
        if let Some(old) = listening.take() {
            old.task.abort();
            let _ = old.task.await;
        }
        // The port is bound at once, so that nobody who connects when the guest is ready is
        // refused.
        let listener = listen(port).await;
        *listening = Some(Listening { port, task: tokio::spawn(serve(sshd, port, listener)) });
        Ok(())
    }
}

/// Listens on IPv6 and IPv4 if the guest has both.
async fn listen(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
}

async fn serve(sshd: PathBuf, port: u16, mut listener: std::io::Result<TcpListener>) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = match &listener {
            Ok(listener) => {
                let Ok(permit) = free.clone().acquire_owned().await else { return };
                listener.accept().await.map(|(stream, _)| (stream, permit))
            }
            Err(_) => {
                tokio::time::sleep(PAUSE).await;
                listener = listen(port).await;
                continue;
            }
        };
        // For example, descriptors have run out; they become free again.
        let Ok((stream, permit)) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        match session(&sshd, stream) {
            Ok(mut child) => {
                tokio::spawn(async move {
                    let _ = child.wait().await;
                    drop(permit);
                });
            }
            Err(error) => eprintln!("mvm-guest: cannot start {}: {error}", sshd.display()),
        }
    }
}

/// Starts a server for one connection. It outlives the agent.
fn session(sshd: &Path, stream: TcpStream) -> std::io::Result<tokio::process::Child> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let input = OwnedFd::from(stream);
    let output = input.try_clone()?;
    let _ordinary = Ordinary::begin();
    tokio::process::Command::new(sshd)
        .args(["-i", "-e", "-f", "/run/mvm/ssh/sshd_config"])
        .env_clear()
        .env("PATH", PATH)
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output))
        .stderr(log().map_or_else(|_| Stdio::null(), Stdio::from))
        .spawn()
}

/// Opens the log that all servers share.
fn log() -> std::io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    let log = options.append(true).create(true).mode(0o600).open("/run/mvm/ssh/log")?;
    if log.metadata()?.len() > LOG_BYTES {
        log.set_len(0)?;
    }
    Ok(log)
}

/// Writes a file that only root can ever read; a reader never sees half of it.
fn write(name: &str, text: &str) -> Result<()> {
    let path = Path::new(DIR).join(name);
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&new, &path))
        .map_err(|e| guest_error(&format!("write {}", path.display()), &e))
}

/// Returns the server's configuration, see sshd_config(5).
fn config(port: u16) -> String {
    format!(
        "Port {port}\nHostKey {DIR}/host_key\nAuthorizedKeysFile {DIR}/authorized_keys\n\
         PidFile none\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n\
         KbdInteractiveAuthentication no\nStrictModes no\nUseDNS no\nPrintMotd no\n\
         AcceptEnv LANG LC_*\nSetEnv PATH={PATH}\nSubsystem sftp internal-sftp\n"
    )
}

/// Returns the absolute path of sshd, by which it must be started (sshd(8)); `None` if the image
/// has none.
fn find() -> Option<PathBuf> {
    PATH.split(':')
        .map(|dir| Path::new(dir).join("sshd"))
        .find(|path| path.exists())
        .and_then(|path| path.canonicalize().ok())
}
