//! The image's own SSH server, where it has one.

use super::guest_error;
use crate::Result;
use crate::protocol::SshIdentity;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;
use tokio::task::AbortHandle;

const DIR: &str = "/run/mvm/ssh";

/// The server's supervisor.
#[derive(Default)]
pub struct Server {
    running: Mutex<Option<AbortHandle>>,
}

impl Server {
    /// Takes the identity on and (re)starts the server with it.
    pub fn start(&self, identity: &SshIdentity) -> Result<()> {
        let write = |name: &str, text: &str| {
            let path = Path::new(DIR).join(name);
            std::fs::write(&path, text)
                .and_then(|()| {
                    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
                })
                .map_err(|e| guest_error(&format!("write {}", path.display()), &e))
        };
        std::fs::create_dir_all(DIR).map_err(|e| guest_error(&format!("make {DIR}"), &e))?;
        write("host_key", &identity.host_key)?;
        write("authorized_keys", &(identity.authorized_keys.join("\n") + "\n"))?;
        write("sshd_config", &config(identity.port))?;
        let Some(sshd) = find() else { return Ok(()) };
        let task = tokio::spawn(supervise(sshd));
        let mut running = self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(old) = running.replace(task.abort_handle()) {
            old.abort();
        }
        Ok(())
    }
}

/// sshd_config(5)
fn config(port: u16) -> String {
    format!(
        "Port {port}\nHostKey {DIR}/host_key\nAuthorizedKeysFile {DIR}/authorized_keys\n\
         PidFile none\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n\
         KbdInteractiveAuthentication no\nStrictModes no\nUseDNS no\nPrintMotd no\n\
         AcceptEnv LANG LC_*\nSubsystem sftp internal-sftp\n"
    )
}

/// sshd must be started by its absolute path (sshd(8)).
fn find() -> Option<PathBuf> {
    ["/usr/sbin/sshd", "/sbin/sshd", "/usr/bin/sshd", "/bin/sshd"]
        .iter()
        .map(Path::new)
        .find(|path| path.exists())
        .and_then(|path| path.canonicalize().ok())
}

/// Keeps the server running. Dropping the task ends it.
async fn supervise(sshd: PathBuf) {
    let mut pause = Duration::from_millis(200);
    loop {
        let log =
            std::fs::File::create("/run/mvm/ssh/log").map_or_else(|_| Stdio::null(), Stdio::from);
        let child = tokio::process::Command::new(&sshd)
            .args(["-D", "-e", "-f", "/run/mvm/ssh/sshd_config"])
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn();
        match child {
            Ok(mut child) => drop(child.wait().await),
            Err(error) => eprintln!("mvm-guest: cannot start {}: {error}", sshd.display()),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(30));
    }
}
