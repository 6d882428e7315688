//! The image's own SSH server, where it has one.

use super::{PATH, guest_error};
use crate::Result;
use crate::protocol::SshIdentity;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Shortest and longest pause before a server that died is started again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
const DIR: &str = "/run/mvm/ssh";

/// The server's supervisor.
#[derive(Default)]
pub struct Server {
    running: tokio::sync::Mutex<Option<Running>>,
}

struct Running {
    /// What the server was started with: if that is the same, it goes on.
    host_key: String,
    port: u16,
    task: JoinHandle<()>,
    stop: Arc<Notify>,
}

impl Server {
    /// Starts the server that an agent before this one had, and that ended with it.
    pub async fn resume(&self) {
        let kept = fs::read(Path::new(DIR).join("identity")).unwrap_or_default();
        if let Ok(identity) = serde_json::from_slice(&kept)
            && let Err(error) = self.start(&identity).await
        {
            eprintln!("mvm-guest: cannot start sshd again: {error}");
        }
    }

    /// Takes the identity on. The server is started, or started again when its key or port has
    /// changed; new authorized keys count from the next login on. Sessions that are open stay.
    pub async fn start(&self, identity: &SshIdentity) -> Result<()> {
        fs::create_dir_all(DIR).map_err(|e| guest_error(&format!("make {DIR}"), &e))?;
        write("host_key", &identity.host_key)?;
        write("authorized_keys", &(identity.authorized_keys.join("\n") + "\n"))?;
        write("sshd_config", &config(identity.port))?;
        let kept = serde_json::to_string(identity).unwrap_or_default();
        write("identity", &kept)?;
        let Some(sshd) = find() else { return Ok(()) };
        let mut running = self.running.lock().await;
        if let Some(old) = running.take() {
            if old.host_key == identity.host_key && old.port == identity.port {
                *running = Some(old);
                return Ok(());
            }
            // The port must be free before the next server wants it.
            old.stop.notify_one();
            let _ = old.task.await;
        }
        let stop = Arc::new(Notify::new());
        let task = tokio::spawn(supervise(sshd, stop.clone()));
        let host_key = identity.host_key.clone();
        *running = Some(Running { host_key, port: identity.port, task, stop });
        Ok(())
    }
}

/// Only root may read any of it, from the first byte on; a reader never sees half a file.
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

/// sshd_config(5)
fn config(port: u16) -> String {
    format!(
        "Port {port}\nHostKey {DIR}/host_key\nAuthorizedKeysFile {DIR}/authorized_keys\n\
         PidFile none\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n\
         KbdInteractiveAuthentication no\nStrictModes no\nUseDNS no\nPrintMotd no\n\
         AcceptEnv LANG LC_*\nSetEnv PATH={PATH}\nSubsystem sftp internal-sftp\n"
    )
}

/// sshd must be started by its absolute path (sshd(8)).
fn find() -> Option<PathBuf> {
    PATH.split(':')
        .map(|dir| Path::new(dir).join("sshd"))
        .find(|path| path.exists())
        .and_then(|path| path.canonicalize().ok())
}

/// Keeps the server running until it is told to stop.
async fn supervise(sshd: PathBuf, stop: Arc<Notify>) {
    let mut pause = PAUSES.0;
    loop {
        let log = fs::File::create("/run/mvm/ssh/log").map_or_else(|_| Stdio::null(), Stdio::from);
        let started = Instant::now();
        let mut command = tokio::process::Command::new(&sshd);
        // SAFETY: prctl(2) is async-signal-safe and touches no memory. An agent that is killed
        // must not leave a server behind that holds the port.
        unsafe {
            command.pre_exec(|| {
                rustix::process::set_parent_process_death_signal(Some(
                    rustix::process::Signal::TERM,
                ))?;
                Ok(())
            });
        }
        let child = command
            .args(["-D", "-e", "-f", "/run/mvm/ssh/sshd_config"])
            .env_clear()
            .env("PATH", PATH)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn();
        match child {
            Ok(mut child) => tokio::select! {
                _ = child.wait() => {}
                () = stop.notified() => {
                    let _ = child.kill().await;
                    return;
                }
            },
            Err(error) => eprintln!("mvm-guest: cannot start {}: {error}", sshd.display()),
        }
        // One that has served for a while is no failure that needs patience.
        pause = if started.elapsed() > PAUSES.1 { PAUSES.0 } else { (pause * 2).min(PAUSES.1) };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.notified() => return,
        }
    }
}
