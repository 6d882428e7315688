//! `mvm instance ssh`: OpenSSH through the guest channel, with the tenant's key, and with the
//! instance's host key pinned.

use super::context::Context;
use crate::error::CliError;
use crate::output::Outcome;
use mvm_api::paths;
use mvm_api::types::{SshAccess, SshFiles};
use mvm_identity::files::{io, write_atomically};
use mvm_model::{Code, InstanceRef};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

/// Opens a session, or runs a command.
pub async fn run(
    context: &Context,
    instance: &InstanceRef,
    lease_s: Option<u64>,
    command: &[String],
) -> Outcome {
    let access: SshAccess = context.client()?.get(&paths::instance_part(instance, "ssh")).await?;
    let proxy = proxy(context, instance, lease_s)?;
    let Some(files) = &access.files else {
        // This process becomes ssh(1).
        return Err(missing(ssh(&access, proxy, command).exec()));
    };
    let (_folder, access) = written(files, &access)?;
    attended(ssh(&access, proxy, command)).await
}

/// Writes the key and the pinned host key into a temporary folder for ssh. The folder is removed
/// when the returned handle is dropped.
fn written(files: &SshFiles, access: &SshAccess) -> Result<(TempDir, SshAccess), CliError> {
    let folder = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, Into::into);
    let folder = tempfile::Builder::new()
        .prefix("mvm-ssh-")
        .tempdir_in(&folder)
        .map_err(|e| io(format!("make a directory in {}", folder.display()), e))?;
    let (identity, known_hosts) = (folder.path().join("key"), folder.path().join("known_hosts"));
    write_atomically(&identity, files.identity.as_bytes(), 0o600)?;
    write_atomically(&known_hosts, files.known_hosts.as_bytes(), 0o600)?;
    let access = SshAccess {
        identity_file: identity.display().to_string(),
        known_hosts_file: known_hosts.display().to_string(),
        ..access.clone()
    };
    Ok((folder, access))
}

/// Runs ssh and returns its exit status. This process ignores signals that would end it before it
/// has cleaned up.
async fn attended(command: Command) -> Outcome {
    let watch = |kind| signal(kind).map_err(|e| io("watch signals", e));
    let mut interrupts = watch(SignalKind::interrupt())?;
    let (mut ends, mut hangups) = (watch(SignalKind::terminate())?, watch(SignalKind::hangup())?);
    let mut child = tokio::process::Command::from(command).spawn().map_err(missing)?;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.map_err(|e| io("wait for ssh", e))?,
            // The terminal sends the interrupt to ssh, too.
            _ = interrupts.recv() => {}
            _ = ends.recv() => drop(child.start_kill()),
            _ = hangups.recv() => drop(child.start_kill()),
        }
    };
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(u8::try_from(code).unwrap_or(255))
}

/// Returns the command with which ssh reaches the instance: another `mvm`.
fn proxy(
    context: &Context,
    instance: &InstanceRef,
    lease_s: Option<u64>,
) -> Result<String, CliError> {
    let program = std::env::current_exe().map_err(|e| CliError::internal(e.to_string()))?;
    let mut words = vec![program.to_string_lossy().into_owned()];
    let mut add = |more: &[&str]| words.extend(more.iter().map(|word| (*word).to_owned()));
    match &context.remote {
        None => {
            if let Some(list) = &context.coordinator {
                let identity = context.ours.dir().path().display().to_string();
                add(&["--coordinator", &list.to_string(), "--identity", &identity]);
            }
            add(&["--root", &context.root.to_string_lossy()]);
            add(&["instance", "proxy", &instance.to_string(), "22"]);
        }
        Some((node, remote)) => {
            let (pool, id) = (&instance.pool, instance.id.to_string());
            add(&["coordinator", "proxy"]);
            add(&["--tenant", pool.tenant.as_str(), "--pool", pool.pool.as_str()]);
            add(&["--instance", &id, "22"]);
            words.extend(remote.words(node));
        }
    }
    if let Some(seconds) = lease_s {
        words.extend(["--lease".to_owned(), seconds.to_string()]);
    }
    // ssh passes the command to a shell, so every argument is quoted.
    let quoted = |text: &String| format!("'{}'", text.replace('%', "%%").replace('\'', "'\\''"));
    Ok(words.iter().map(quoted).collect::<Vec<_>>().join(" "))
}

fn ssh(access: &SshAccess, proxy: String, command: &[String]) -> Command {
    let options = [
        "StrictHostKeyChecking=yes".to_owned(),
        format!("UserKnownHostsFile=\"{}\"", access.known_hosts_file),
        "GlobalKnownHostsFile=/dev/null".to_owned(),
        format!("HostKeyAlias={}", access.host_key_alias),
        "IdentitiesOnly=yes".to_owned(),
        "PreferredAuthentications=publickey".to_owned(),
        "LogLevel=ERROR".to_owned(),
        format!("ProxyCommand={proxy}"),
    ];
    let mut ssh = Command::new("ssh");
    ssh.arg("-F").arg("/dev/null").arg("-i").arg(&access.identity_file);
    for option in options {
        ssh.arg("-o").arg(option);
    }
    ssh.arg(format!("{}@{}", access.user, access.address)).arg("--").args(command);
    ssh
}

fn missing(cause: std::io::Error) -> CliError {
    CliError::new(Code::SshMissing, format!("cannot run ssh: {cause}"))
        .hint("install it, on Debian with `apt-get install openssh-client`; `mvm instance exec` needs none")
}
