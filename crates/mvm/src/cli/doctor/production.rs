//! The checks of a production machine: `mvm doctor --production`.

use super::accelerator::unused_kvm;
use super::check::{Check, Status, existing, free_room};
use super::host::{Host, droppers, file_system, open_files, sysctl, unit, without_kvm};
use crate::time::wall;
use mvm_api::types::AgentInfo;
use mvm_identity::tls::Credentials;
use mvm_model::Accelerator;
use mvm_model::accelerator::Verdict;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

const UNIT: &str = "mvm-agent.service";
/// With a lower limit of open files, a host runs out of them long before it runs out of memory.
const LEAST_FILES: u64 = 65_536;
const LEAST_PIDS: u64 = 131_072;
const LEAST_GIB: u64 = 20;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Runs all checks. `agent` is the agent of this state directory, if it runs.
pub fn checks(host: &Host, root: &Path, agent: Option<&AgentInfo>) -> Vec<Check> {
    vec![
        kvm(host, agent, mvm_node::kept_verdict(root)),
        installed(host),
        supervised(host, agent),
        state_directory(root),
        storage(host, root),
        reflink(root),
        files(host, agent),
        processes(host),
        controllers(host),
        overcommit(host),
        swap(host),
        pressure(host),
        clock(),
        bridged(host),
        forwarding(host),
        foreign_rules(),
        certificate(root),
    ]
    .into_iter()
    .chain(agent.map(templates))
    .collect()
}

/// Makes a check whose failure has to be mended.
fn must(
    name: &'static str,
    ok: bool,
    detail: impl Into<String>,
    why: &'static str,
    remedy: &'static str,
) -> Check {
    let status = if ok { Status::Ok } else { Status::Mend };
    Check { name, status, detail: detail.into(), why, remedy }
}

/// Makes a check whose failure is only a remark.
fn better(
    name: &'static str,
    ok: bool,
    detail: impl Into<String>,
    why: &'static str,
    remedy: &'static str,
) -> Check {
    let status = if ok { Status::Ok } else { Status::Note };
    Check { name, status, detail: detail.into(), why, remedy }
}

/// Since this version, QEMU can open a file read-only that it maps privately.
const READS_ALONE: (u32, u32) = (8, 2);

fn templates(agent: &AgentInfo) -> Check {
    let version = &agent.hypervisor_version;
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let known = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    better(
        "templates' memory",
        known >= READS_ALONE,
        format!("{} {version}", agent.hypervisor),
        "before 8.2 QEMU opens a template's memory for writing: who breaks out of a guest can write to what \
         the later machines of its pool are made of",
        "use QEMU 8.2 or later (Debian: bookworm-backports), or one pool for each kind of trust",
    )
}

/// `kept` is the verdict that the last agent has left for the next one.
pub(super) fn kvm(host: &Host, agent: Option<&AgentInfo>, kept: Option<Verdict>) -> Check {
    let used = agent.map(|agent| (agent.accelerator == "kvm", agent.accelerator_reason.clone()));
    let refused = kept.filter(|kept| kept.accelerator == Accelerator::Tcg);
    let (ok, detail) = match (used, without_kvm(host), refused) {
        (Some((true, why)), ..) => (true, why),
        (_, Some(why), _) => (false, why),
        (Some((false, why)), None, _) => (false, format!("the agent does not use it: {why}")),
        (None, None, Some(kept)) => {
            (false, format!("the last agent did not use it, nor will the next: {}", kept.reason))
        }
        (None, None, None) => (true, "/dev/kvm, of the hardware kind".to_owned()),
    };
    let usable = without_kvm(host).is_none();
    let remedy = match agent.and_then(|agent| unused_kvm(host, agent)) {
        Some(step) => step,
        None if usable && agent.is_none() => "mvm agent probe tries it again",
        None if usable => "wait: it is being tried",
        None => {
            "enable VT-x or AMD-V in the firmware (or nested virtualisation), and modprobe kvm_intel or kvm_amd"
        }
    };
    must(
        "hardware KVM",
        ok,
        detail,
        "without it guests are emulated: ten times slower, and with less between them and the host",
        remedy,
    )
}

fn installed(host: &Host) -> Check {
    let (installed, enabled) = unit(host, UNIT);
    let detail = match (installed, enabled) {
        (false, _) => format!("{UNIT} is not installed"),
        (true, false) => format!("{UNIT} is installed, and not started at boot"),
        (true, true) => format!("{UNIT} is installed and enabled"),
    };
    must(
        "unit",
        installed && enabled,
        detail,
        "after a reboot no pool is kept, and nobody starts the agent again when it dies",
        "copy packaging/systemd/mvm-agent.service to /etc/systemd/system; systemctl enable --now mvm-agent",
    )
}

fn supervised(host: &Host, agent: Option<&AgentInfo>) -> Check {
    let by_unit =
        |agent: &AgentInfo| host.text(&format!("/proc/{}/cgroup", agent.pid)).contains(UNIT);
    let (ok, detail) = match agent {
        Some(agent) if by_unit(agent) => (true, format!("pid {}, of {UNIT}", agent.pid)),
        Some(agent) => {
            (false, format!("pid {} was started by a command, not by {UNIT}", agent.pid))
        }
        None => (false, "no agent serves this state directory".to_owned()),
    };
    must(
        "supervision",
        ok,
        detail,
        "only the unit gives it its limits, its watchdog and a new start when it dies",
        "mvm agent stop; systemctl start mvm-agent",
    )
}

fn state_directory(root: &Path) -> Check {
    let (ok, detail) = match std::fs::metadata(root) {
        Err(error) => (false, format!("{}: {error}", root.display())),
        Ok(meta) => {
            let mode = meta.mode() & 0o777;
            let fine = meta.is_dir() && meta.uid() == 0 && mode & 0o077 == 0;
            (fine, format!("{} of uid {}, mode {mode:03o}", root.display(), meta.uid()))
        }
    };
    must(
        "permissions",
        ok,
        detail,
        "it holds guests' memory, disks and keys, and the socket that commands the node",
        "mvm agent stop; chown root: DIR; chmod 0700 DIR",
    )
}

fn storage(host: &Host, root: &Path) -> Check {
    let at = existing(root);
    let kind = file_system(host, at).unwrap_or_else(|| "unknown".to_owned());
    let lasting = !["tmpfs", "ramfs", "overlay", "nfs", "nfs4", "cifs", "fuse"]
        .iter()
        .any(|bad| kind == *bad || kind.starts_with("fuse."));
    let (free, share) = free_room(at).unwrap_or_default();
    must(
        "storage",
        lasting && free >= LEAST_GIB && share >= 10,
        format!("{kind}, {free} GiB free, {share} % of it"),
        "sleeping machines are files: they need a local disk that lasts, with room for memory and disks",
        "a file system of its own for the state directory (xfs or btrfs), with 20 GiB and 10 % free",
    )
}

fn reflink(root: &Path) -> Check {
    let at = existing(root);
    let shared = || -> std::io::Result<()> {
        let source = tempfile::tempfile_in(at)?;
        source.set_len(4096)?;
        let target = tempfile::tempfile_in(at)?;
        Ok(rustix::fs::ioctl_ficlone(&target, &source)?)
    };
    let (ok, detail) = match shared() {
        Ok(()) => (true, "copies share their blocks".to_owned()),
        Err(error) => (false, format!("copies are real ones ({error})")),
    };
    better(
        "reflink",
        ok,
        detail,
        "a clone's disks are copied block by block: slower, and it takes their place on disk at once",
        "xfs (mkfs.xfs has it on) or btrfs for the state directory",
    )
}

fn files(host: &Host, agent: Option<&AgentInfo>) -> Check {
    let (limit, whose) = match agent.and_then(|agent| open_files(host, agent.pid)) {
        Some(limit) => (limit, "the agent's"),
        None => (open_files(host, std::process::id()).unwrap_or(0), "this shell's"),
    };
    must(
        "open files",
        limit >= LEAST_FILES,
        format!("{limit} ({whose})"),
        "a machine takes about ten of the agent's descriptors, and every session a few more",
        "LimitNOFILE=1048576 in the unit, as packaging/systemd/mvm-agent.service has it",
    )
}

fn processes(host: &Host) -> Check {
    let most = |name: &str| host.number(&format!("/proc/sys/kernel/{name}")).unwrap_or(0);
    let (pids, threads) = (most("pid_max"), most("threads-max"));
    must(
        "processes",
        pids >= LEAST_PIDS && threads >= LEAST_PIDS,
        format!("kernel.pid_max {pids}, kernel.threads-max {threads}"),
        "every vCPU is a thread of the host, and so is much of what QEMU does",
        "sysctl -w kernel.pid_max=4194304 kernel.threads-max=1048576, and the same in /etc/sysctl.d",
    )
}

fn controllers(host: &Host) -> Check {
    let there = host.text("/sys/fs/cgroup/cgroup.controllers");
    let missing: Vec<&str> = ["cpu", "io", "memory", "pids"]
        .into_iter()
        .filter(|name| !there.split_whitespace().any(|there| there == *name))
        .collect();
    let detail = match missing.is_empty() {
        true => format!("cgroup v2: {there}"),
        false => format!("cgroup v2 lacks {}", missing.join(", ")),
    };
    better(
        "cgroups",
        missing.is_empty(),
        detail,
        "limits of the unit, and of what else runs here, need them",
        "boot with systemd.unified_cgroup_hierarchy=1, and without cgroup_disable=",
    )
}

fn overcommit(host: &Host) -> Check {
    let mode = host.number("/proc/sys/vm/overcommit_memory");
    must(
        "overcommit",
        mode != Some(2),
        format!(
            "vm.overcommit_memory {}",
            mode.map_or("unknown".to_owned(), |mode| mode.to_string())
        ),
        "clones map their template privately: in strict mode each counts as if it used all of it",
        "sysctl -w vm.overcommit_memory=0, and the same in /etc/sysctl.d",
    )
}

fn swap(host: &Host) -> Check {
    let swaps = host.text("/proc/swaps");
    let on_disk: Vec<&str> = swaps
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .filter(|device| !device.contains("zram"))
        .collect();
    let detail = match on_disk.is_empty() {
        true => "none on disk".to_owned(),
        false => on_disk.join(", "),
    };
    better(
        "swap",
        on_disk.is_empty(),
        detail,
        "guests' memory may be written there, and a machine that is swapped in wakes slowly",
        "swapoff -a, or zram; put idle pools to sleep instead: mvm pool scale",
    )
}

fn pressure(host: &Host) -> Check {
    must(
        "memory pressure",
        host.has("/proc/pressure/memory"),
        "/proc/pressure/memory",
        "the agent puts machines to sleep before the kernel kills them, if it is told in time",
        "boot with psi=1",
    )
}

fn clock() -> Check {
    let synchronised = synchronised();
    must(
        "time",
        synchronised,
        if synchronised {
            "the clock is synchronised"
        } else {
            "the kernel's clock is not synchronised"
        },
        "certificates, leases and guests' clocks go by it",
        "systemctl enable --now systemd-timesyncd, or chrony",
    )
}

/// Returns whether the kernel considers its clock synchronised.
fn synchronised() -> bool {
    // SAFETY: an all-zero `timex` is valid. With no mode set the kernel changes nothing, and only
    // writes into it.
    let (state, timex) = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&mut timex), timex)
    };
    state >= 0 && state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0
}

fn bridged(host: &Host) -> Check {
    let path = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    let on = host.number(path) == Some(1);
    better(
        "bridge netfilter",
        !on,
        if on { "net.bridge.bridge-nf-call-iptables is 1" } else { "off" },
        "frames between guests of one tenant pass the host's IP rules too: slower, and those may drop them",
        "where nothing else needs it (Docker and Kubernetes may): sysctl -w net.bridge.bridge-nf-call-iptables=0",
    )
}

fn forwarding(host: &Host) -> Check {
    let set = sysctl(host, "net/ipv4/ip_forward");
    let (ok, detail) = match &set {
        Some((value, path)) if value == "0" => (false, format!("{} sets it to 0", path.display())),
        Some((value, path)) => (true, format!("{} sets it to {value}", path.display())),
        None => (true, "the agent turns it on, and nothing turns it off".to_owned()),
    };
    must(
        "forwarding",
        ok,
        detail,
        "the agent turns on net.ipv4.ip_forward; whoever applies that file again cuts guests off",
        "remove the line, or set net.ipv4.ip_forward=1 in /etc/sysctl.d/90-mvm.conf",
    )
}

fn foreign_rules() -> Check {
    let answer = std::process::Command::new("nft").args(["--json", "list", "chains"]).output();
    let (ok, detail) = match answer {
        Ok(output) if output.status.success() => {
            let found = droppers(&String::from_utf8_lossy(&output.stdout));
            match found.is_empty() {
                true => (true, "no other chain drops what is forwarded".to_owned()),
                false => (false, format!("drops what it does not know: {}", found.join(", "))),
            }
        }
        Ok(output) => (false, String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => (false, format!("nft: {error}")),
    };
    must(
        "other firewalls",
        ok,
        detail,
        "a packet must pass every table: what another one drops never reaches a guest's network",
        "let that chain accept what comes from and goes to the bridges of mvm (mvm tenant info names them)",
    )
}

fn certificate(root: &Path) -> Check {
    let name = "certificate";
    let why = "without a good one the node is not in its fleet any more";
    let remedy = "see the agent's log for why it is not renewed; mvm node join with a new token";
    let dir = mvm_node::identity_dir(root);
    if !dir.exists() {
        return better(name, true, "this node has joined no fleet", why, remedy);
    }
    match Credentials::open(dir) {
        Err(problem) => must(name, false, problem.to_string(), why, remedy),
        Ok(credentials) => {
            let credential = credentials.credential();
            let ends = credential.facts.validity.not_after;
            let now = wall();
            let days = ends.since(now).as_secs() / DAY.as_secs();
            let who = credential.facts.identity.holder();
            // The certificate is renewed well before, unless something prevents it.
            let ok = now < ends && !credential.due(now - DAY);
            must(name, ok, format!("{who}: {days} days left"), why, remedy)
        }
    }
}
