//! `mvm doctor`

use super::Context;
use crate::agent_process;
use crate::output::{self, Outcome};
use serde::Serialize;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    /// `ok`, `missing`, or `note`: worth knowing, and no fault.
    status: &'static str,
    detail: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    remedy: &'static str,
}

/// Carries it out.
pub async fn run(context: &Context) -> Outcome {
    let mut checks = vec![
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
        root_length(&context.root),
        free_space(&context.root),
    ];
    checks.push(agent(&context.root).await);
    let healthy = checks.iter().all(|check| check.status != "missing");
    let rows = checks.iter().map(|check| {
        let remedy = if check.status == "missing" { check.remedy } else { "" };
        vec![
            check.name.to_owned(),
            check.status.to_owned(),
            check.detail.clone(),
            remedy.to_owned(),
        ]
    });
    output::show(context.format, &checks, &["CHECK", "STATUS", "DETAIL", "REMEDY"], rows)?;
    Ok(u8::from(!healthy))
}

async fn agent(root: &Path) -> Check {
    let Some(client) = agent_process::running(root) else {
        return Check {
            name: "agent",
            status: "note",
            detail: "does not run; the first command that needs it starts it".to_owned(),
            remedy: "",
        };
    };
    let (ok, detail) = match agent_process::info(&client).await {
        Err(problem) => (false, problem.to_string()),
        Ok(info) => {
            let driver = format!("{} {}", info.hypervisor, info.hypervisor_version);
            let with = format!("{}: {}", info.accelerator, info.accelerator_reason);
            (true, format!("pid {}, {driver} with {with}", info.pid))
        }
    };
    check("agent", ok, detail, "see agent.log in the state directory; end it: mvm agent stop")
}

fn check(name: &'static str, ok: bool, detail: impl Into<String>, remedy: &'static str) -> Check {
    Check { name, status: if ok { "ok" } else { "missing" }, detail: detail.into(), remedy }
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

fn free_space(root: &Path) -> Check {
    let existing = root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(existing) {
        Ok(stat) => {
            let gib = (stat.f_bavail * stat.f_frsize) >> 30;
            check(
                "disk space",
                gib >= 4,
                format!("{gib} GiB free for {}", root.display()),
                "4 GiB or more: mvm image gc, or another --root",
            )
        }
        Err(error) => check("disk space", false, error.to_string(), "choose another --root"),
    }
}
