//! KVM or software CPU: found out by running a guest's kernel.
//!
//! A /dev/kvm that opens, and even one that runs a few instructions, may still be unable to run a
//! kernel (a host that is a software-virtualised guest itself). What counts is a kernel that says
//! its first word.

use super::process::tail;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// How long a kernel may take to its first word. On hardware it takes a tenth of a second.
const FIRST_WORD: Duration = Duration::from_secs(5);

/// The verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// Why, for people.
    pub reason: String,
}

#[derive(Serialize, Deserialize)]
struct Cached {
    boot_id: String,
    probe: Probe,
}

/// Finds out which accelerator runs guests here. A verdict by a booted `kernel` is kept in `cache`
/// until the host is booted again.
pub async fn probe(qemu: &Path, kernel: Option<&Path>, cache: &Path) -> Probe {
    let tcg = |reason: &str| Probe { accelerator: "tcg".to_owned(), reason: reason.to_owned() };
    if let Some(reason) = without_kvm() {
        return tcg(&reason);
    }
    let Some(kernel) = kernel else {
        return tcg(
            "there is no kernel yet to try /dev/kvm with; import one and restart the agent",
        );
    };
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let cached = std::fs::read(cache).ok().and_then(|b| serde_json::from_slice::<Cached>(&b).ok());
    if let Some(cached) = cached.filter(|cached| cached.boot_id == boot_id) {
        return cached.probe;
    }
    let probe = match first_word(qemu, kernel).await {
        Ok(()) => Probe {
            accelerator: "kvm".to_owned(),
            reason: "a kernel booted under /dev/kvm".to_owned(),
        },
        Err(reason) => tcg(&format!("a kernel does not boot under /dev/kvm: {reason}")),
    };
    let text = serde_json::to_vec(&Cached { boot_id, probe: probe.clone() }).unwrap_or_default();
    if let Err(error) = std::fs::write(cache, text) {
        tracing::warn!("cannot keep the verdict on KVM: {error}");
    }
    probe
}

/// Reasons that need no guest.
fn without_kvm() -> Option<String> {
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return Some(format!("/dev/kvm cannot be opened: {error}"));
    }
    let loaded = |module: &str| Path::new("/sys/module").join(module).exists();
    if loaded("kvm_pvm") && !loaded("kvm_intel") && !loaded("kvm_amd") {
        return Some(
            "/dev/kvm is the software kind (kvm_pvm), which cannot run a stock kernel".to_owned(),
        );
    }
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    if !flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm") {
        return Some(
            "the CPU has neither vmx nor svm, which KVM needs to run a stock kernel".to_owned(),
        );
    }
    None
}

/// Boots the kernel without anything else until it says what it is.
async fn first_word(qemu: &Path, kernel: &Path) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let console = dir.path().join("console");
    let mut child = tokio::process::Command::new(qemu)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-M", "pc", "-accel", "kvm", "-cpu", "host", "-m", "256M", "-serial"])
        .arg(format!("file:{}", console.display().to_string().replace(',', ",,")))
        .arg("-kernel")
        .arg(kernel)
        .args(["-append", "console=ttyS0 earlyprintk=ttyS0 panic=-1 reboot=t"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| e.to_string())?;
    let spoke = async {
        loop {
            if tail(&console, 1000).contains("Linux version") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let outcome = tokio::select! {
        () = spoke => Ok(()),
        status = child.wait() => match status {
            _ if tail(&console, 1000).contains("Linux version") => Ok(()),
            Ok(status) => Err(format!("QEMU ended ({status})")),
            Err(error) => Err(error.to_string()),
        },
        () = tokio::time::sleep(FIRST_WORD) => {
            Err(format!("no word from it within {} s", FIRST_WORD.as_secs()))
        }
    };
    let _ = child.kill().await;
    outcome
}
