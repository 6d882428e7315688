//! `mvm doctor`

mod accelerator;
mod check;
mod host;
mod production;
mod sandbox;
#[cfg(test)]
mod tests;

use crate::agent_holder::{self, Holder};
use crate::agent_process::{self, DEAF};
use crate::cli::context::Context;
use crate::output::{self, Outcome};
use crate::time::wall;
use check::{Check, Status, check, existing, free_room, note};
use clap::Args;
use host::Host;
use mvm_api::types::AgentInfo;
use mvm_identity::expiry;
use mvm_model::host::ShortfallKind;
use mvm_server::private;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

/// How long an agent may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Arguments.
#[derive(Clone, Copy, Debug, Args)]
pub struct Doctor {
    /// Also check what matters on a machine that others rely on
    #[arg(long)]
    production: bool,
}

/// Runs the command.
pub async fn run(context: &Context, asked: Doctor) -> Outcome {
    let mut checks = basics(&context.root);
    checks.push(sandbox::check().await);
    let (check, info) = agent(&context.root).await;
    checks.push(check);
    checks.extend(info.as_ref().map(|info| accelerator::check(&Host::here(), info)));
    checks.extend(room(&context.root, info.as_ref()));
    checks.extend(certificates(&context.root));
    if asked.production {
        checks.extend(production::checks(&Host::here(), &context.root, info.as_ref()));
    }
    let healthy = checks.iter().all(|c| matches!(c.status, Status::Ok | Status::Note));
    let rows = checks.iter().map(|check| {
        let told = check.status != Status::Ok;
        let told = |text: &str| if told { text.to_owned() } else { String::new() };
        let status = format!("{:?}", check.status).to_lowercase();
        let mut row = vec![check.name.to_owned(), status, check.detail.clone()];
        if asked.production {
            row.push(told(check.why));
        }
        row.push(told(check.remedy));
        row
    });
    let titles: &[&str] = match asked.production {
        true => &["CHECK", "STATUS", "DETAIL", "WHY", "REMEDY"],
        false => &["CHECK", "STATUS", "DETAIL", "REMEDY"],
    };
    output::show(context.format, &checks, titles, rows)?;
    Ok(u8::from(!healthy))
}

fn basics(root: &Path) -> Vec<Check> {
    vec![
        check(
            "root",
            rustix::process::geteuid().is_root(),
            "taps, bridges and confinement need it",
            "run mvm as root (sudo mvm …)",
        ),
        device("tap device", "/dev/net/tun", "modprobe tun"),
        program("QEMU", "qemu-system-x86_64", "apt-get install qemu-system-x86"),
        program("nft", "nft", "apt-get install nftables"),
        program("Nix", "nix", "apt-get install nix-bin"),
        program("mkfs.erofs", "mkfs.erofs", "apt-get install erofs-utils"),
        program("mke2fs", "mke2fs", "apt-get install e2fsprogs"),
        program("dpkg-deb", "dpkg-deb", "needed by `mvm kernel fetch` only: apt-get install dpkg"),
        program("ssh", "ssh", "needed by `mvm instance ssh` only: apt-get install openssh-client"),
        root_length(root),
        free_space(root),
        closed(root),
    ]
}

/// Checks the validity of this node's certificates.
fn certificates(root: &Path) -> Vec<Check> {
    let dir = mvm_node::identity_dir(root);
    let Some(credential) = dir.exists().then(|| dir.load().ok()).flatten() else {
        return Vec::new();
    };
    let warnings = expiry::warnings(&credential, wall());
    let warned = warnings.into_iter().map(|warning| Check {
        name: "certificate",
        status: Status::Mend,
        detail: format!("{}; {}", warning.detail, warning.remedy),
        why: "without a good one the node is not in its fleet any more",
        remedy: "see the agent's log for why it is not renewed",
    });
    warned.collect()
}

async fn agent(root: &Path) -> (Check, Option<AgentInfo>) {
    let (name, why) = ("agent", "");
    let holder = agent_holder::of(root);
    let Some(client) = agent_process::running(root) else {
        let check = match holder {
            Some(holder) => deaf(&holder, "nothing listens at agent.sock"),
            None => {
                let detail = "does not run; the first command that needs it starts it".to_owned();
                Check { name, status: Status::Note, detail, why, remedy: "" }
            }
        };
        return (check, None);
    };
    let info = tokio::time::timeout(ANSWER, agent_process::info(&client)).await;
    let broken = |detail| Check { name, status: Status::Mend, detail, why, remedy: DEAF };
    match (info, holder) {
        (Ok(Ok(info)), _) => {
            let driver = format!("{} {}", info.hypervisor, info.hypervisor_version);
            let detail = format!("pid {}, {driver} with {}", info.pid, info.accelerator);
            (check(name, true, detail, ""), Some(info))
        }
        (Ok(Err(problem)), _) => (broken(problem.to_string()), None),
        (Err(_), Some(holder)) if holder.is_stopped() => {
            (deaf(&holder, "somebody has stopped it"), None)
        }
        (Err(_), Some(holder)) => (deaf(&holder, "it takes connections, and hangs"), None),
        (Err(_), None) => (broken("takes connections, and does not answer".to_owned()), None),
    }
}

/// Makes the check of an agent that runs and does not answer.
fn deaf(holder: &Holder, how: &str) -> Check {
    let detail = format!("pid {}, does not answer: {how}", holder.pid);
    Check { name: "agent", status: Status::Mend, detail, why: "", remedy: DEAF }
}

fn program(name: &'static str, file: &'static str, remedy: &'static str) -> Check {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|dir| dir.join(file)).find(|path| is_program(path));
    let detail = found
        .as_ref()
        .map_or_else(|| format!("{file} is not in PATH"), |p| p.display().to_string());
    check(name, found.is_some(), detail, remedy)
}

fn is_program(path: &Path) -> bool {
    let mode = |meta: std::fs::Metadata| meta.is_file() && meta.permissions().mode() & 0o111 != 0;
    std::fs::metadata(path).is_ok_and(mode)
}

fn device(name: &'static str, path: &str, remedy: &'static str) -> Check {
    check(name, Path::new(path).exists(), path, remedy)
}

fn root_length(root: &Path) -> Check {
    let length = root.as_os_str().len();
    check(
        "state directory",
        length <= 64,
        format!("{} ({length} of 64 characters)", root.display()),
        "choose a shorter --root: sockets below it have short names",
    )
}

/// Checks the host's resources for machines.
fn room(root: &Path, agent: Option<&AgentInfo>) -> [Check; 3] {
    let capacity = match agent {
        Some(agent) => agent.capacity,
        None => mvm_node::found_capacity(existing(root)),
    };
    let said = |code| agent?.shortfalls.iter().find(|lack| lack.code == code);
    let detail = format!(
        "{} processors, {} of memory, {} GiB of disk",
        capacity.vcpus, capacity.mem_mib, capacity.disk_gib
    );
    let memory = said(ShortfallKind::Memory).map_or_else(
        || "what pools keep running and warm has no more than the host".to_owned(),
        |lack| lack.detail.clone(),
    );
    let servers = mvm_node::servers();
    let names = match servers.is_empty() {
        true => "the host names none".to_owned(),
        false => servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    [
        note("room", true, detail, ""),
        note("memory", said(ShortfallKind::Memory).is_none(), memory, "keep more of them asleep"),
        note("DNS for guests", !servers.is_empty(), names, "name a server in /etc/resolv.conf"),
    ]
}

/// Checks that no other user can read the state directory. An agent closes it when it starts.
fn closed(root: &Path) -> Check {
    let (name, why) = ("private", "it holds guests' memory and disks, and what jobs were given");
    let remedy = "mvm agent stop; mvm instance list (an agent that starts closes it)";
    let check = |status, detail| Check { name, status, detail, why, remedy };
    match private::open_to_others(root) {
        Ok(open) => match open.first() {
            None => check(Status::Ok, format!("nothing in {} is open to others", root.display())),
            Some(first) => {
                let (path, mode, count) = (first.path.display(), first.mode, open.len());
                let detail = format!("{count} open to others, such as {path} (mode {mode:04o})");
                // Other users cannot get past a closed directory, so an open path below it is only
                // a remark.
                let exposed = open.iter().any(|one| one.path == root);
                check(if exposed { Status::Mend } else { Status::Note }, detail)
            }
        },
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            check(Status::Note, format!("{} cannot be looked into: {error}", root.display()))
        }
        Err(error) => check(Status::Mend, format!("{}: {error}", root.display())),
    }
}

fn free_space(root: &Path) -> Check {
    match free_room(existing(root)) {
        Ok((gib, _)) => check(
            "disk space",
            gib >= 4,
            format!("{gib} GiB free for {}", root.display()),
            "4 GiB or more: mvm image gc, or another --root",
        ),
        Err(error) => check("disk space", false, error.to_string(), "choose another --root"),
    }
}
