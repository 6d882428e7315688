//! Decides between KVM and the software CPU by running a guest's kernel.
//!
//! A /dev/kvm that opens, and even one that runs a few instructions, may still be unable to run a
//! kernel (on a host that is itself a software-virtualised guest). The test is a kernel that gets
//! through its whole start: it finds its timers, its CPU and its devices, and then panics, as it
//! must, for want of a root file system.

use super::{Accelerator, arguments, binary};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// How long a kernel may take to get through its start; with hardware, about a second.
const DEADLINE: Duration = Duration::from_secs(10);
/// The largest console output to read, in bytes; a kernel that gets through its start writes far
/// less.
const LONGEST_CONSOLE: usize = 1 << 20;

/// Which accelerator runs guests on this host, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// The reason, for people.
    pub reason: String,
}

#[derive(Serialize, Deserialize)]
struct Cached {
    boot_id: String,
    qemu: String,
    probe: Probe,
}

/// Finds out which accelerator runs guests here with this QEMU program: from /dev/kvm, the loaded
/// modules and the CPU's flags, and if these do not rule KVM out, by booting `kernel` under it (at
/// most 10 s). That verdict is kept in the file `cache` until the host is rebooted or QEMU changes.
/// Without a kernel the answer is `tcg`, and nothing is kept.
pub async fn probe(qemu: &Path, kernel: Option<&Path>, cache: &Path) -> Probe {
    let tcg = |reason: String| Probe { accelerator: "tcg".to_owned(), reason };
    if let Some(reason) = without_kvm() {
        return tcg(reason);
    }
    let Some(kernel) = kernel else {
        return tcg("no kernel yet to try /dev/kvm with; fetch or import one, then restart the \
             agent"
            .into());
    };
    let version = match binary::release(qemu).await {
        Ok(release) => release.words,
        Err(error) => return tcg(error.to_string()),
    };
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    if let Some(probe) = kept(cache, &boot_id, &version) {
        return probe;
    }
    let probe = match comes_through(qemu, kernel, Accelerator::Kvm, DEADLINE).await {
        Ok(()) => Probe {
            accelerator: "kvm".to_owned(),
            reason: "a kernel came through its start under /dev/kvm".to_owned(),
        },
        Err(reason) => tcg(format!("a kernel does not boot under /dev/kvm: {reason}")),
    };
    let record = Cached { boot_id, qemu: version, probe: probe.clone() };
    let text = serde_json::to_vec(&record).unwrap_or_default();
    if let Err(error) = std::fs::write(cache, text) {
        tracing::warn!(%error, cache = %cache.display(), "cannot keep the verdict on KVM");
    }
    probe
}

/// Returns the cached verdict if it was made in this boot of the host and with this QEMU.
fn kept(cache: &Path, boot_id: &str, version: &str) -> Option<Probe> {
    let cached: Cached = serde_json::from_slice(&std::fs::read(cache).ok()?).ok()?;
    let fits = cached.boot_id == boot_id && cached.qemu == version && !boot_id.is_empty();
    fits.then_some(cached.probe)
}

/// Returns a reason against KVM that can be found without a guest; `None` if there is none.
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

/// Boots the kernel with nothing else, until it panics for want of a root file system.
async fn comes_through(
    qemu: &Path,
    kernel: &Path,
    accelerator: Accelerator,
    deadline: Duration,
) -> Result<(), String> {
    let append = arguments::kernel_arguments(accelerator, "ignore_loglevel");
    let words: [(&str, OsString); 9] = [
        ("-display", "none".into()),
        ("-machine", "pc,usb=off,graphics=off".into()),
        ("-accel", accelerator.name().into()),
        ("-cpu", arguments::cpu_model(accelerator).into()),
        ("-m", "128".into()),
        ("-serial", "stdio".into()),
        ("-monitor", "none".into()),
        ("-kernel", kernel.into()),
        ("-append", append.into()),
    ];
    let mut command = tokio::process::Command::new(qemu);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
    for (option, value) in words {
        command.arg(option).arg(value);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().map_err(|e| e.to_string())?;
    let mut console = child.stdout.take().ok_or("it has no console")?;
    let mut said = Vec::new();
    let outcome = tokio::select! {
        outcome = listen(&mut console, &mut said) => outcome,
        () = tokio::time::sleep(deadline) => {
            Err(format!("it was not through within {} s", deadline.as_secs_f32()))
        }
    };
    let _ = child.kill().await;
    if outcome.is_err()
        && let Some(mut errors) = child.stderr.take()
    {
        let mut text = Vec::new();
        let _ = (&mut errors).take(4096).read_to_end(&mut text).await;
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        return outcome.map_err(|reason| format!("{reason} {text}").trim_end().to_owned());
    }
    outcome
}

/// Reads the console until it holds a verdict, QEMU ends, or the output is too long.
async fn listen(
    console: &mut tokio::process::ChildStdout,
    said: &mut Vec<u8>,
) -> Result<(), String> {
    loop {
        let more = console.read_buf(said).await;
        if let Some(verdict) = verdict_of(said) {
            return verdict;
        }
        match more {
            Ok(0) => return Err("QEMU ended".into()),
            Err(error) => return Err(error.to_string()),
            Ok(_) if said.len() > LONGEST_CONSOLE => return Err("it does not stop talking".into()),
            Ok(_) => {}
        }
    }
}

/// Returns the verdict that a console holds; `None` until the panic is there as a whole line, since
/// the serial port delivers it in pieces.
fn verdict_of(said: &[u8]) -> Option<Result<(), String>> {
    let text = String::from_utf8_lossy(said);
    let panic = &text[text.find("Kernel panic")?..];
    let line = &panic[..panic.find('\n')?];
    Some(match line.contains("VFS: Unable to mount root") {
        true => Ok(()),
        false => Err(format!("it panicked on its way: {}", line.trim_end())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel() -> std::path::PathBuf {
        let path = std::env::var_os("MVM_TEST_KERNEL");
        path.expect("MVM_TEST_KERNEL: an uncompressed Linux kernel, see tests/support").into()
    }

    #[test]
    fn a_panic_is_judged_when_its_line_is_whole() {
        let whole = "x\nKernel panic - not syncing: VFS: Unable to mount root fs\r\n";
        for cut in 0..whole.len() {
            assert_eq!(verdict_of(&whole.as_bytes()[..cut]), None, "{cut} bytes");
        }
        assert_eq!(verdict_of(whole.as_bytes()), Some(Ok(())));
        let other = verdict_of(b"Kernel panic - not syncing: Fatal exception\n").unwrap();
        assert!(other.unwrap_err().ends_with("Fatal exception"));
    }

    #[tokio::test]
    async fn a_kernel_that_comes_through_is_told_from_one_that_does_not() {
        let qemu = binary::find_binary().unwrap();
        let minute = Duration::from_secs(60);
        // The same boot works with the software CPU, so the test itself is sound.
        comes_through(&qemu, &kernel(), Accelerator::Tcg, minute).await.unwrap();
        let short = Duration::from_millis(100);
        let slow = comes_through(&qemu, &kernel(), Accelerator::Tcg, short).await.unwrap_err();
        assert!(slow.contains("within 0.1 s"), "{slow}");
        let none = comes_through(&qemu, Path::new("/nonexistent"), Accelerator::Tcg, minute).await;
        assert!(none.unwrap_err().contains("nonexistent"));
        // Where the cheap checks rule KVM out, the boot under it agrees.
        if without_kvm().is_some() {
            assert!(comes_through(&qemu, &kernel(), Accelerator::Kvm, DEADLINE).await.is_err());
        }
    }

    #[tokio::test]
    async fn the_verdict_is_for_this_boot_and_this_qemu() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("verdict");
        assert_eq!(kept(&cache, "boot", "7.2"), None);
        let probe = Probe { accelerator: "kvm".into(), reason: "it was tried".into() };
        let record = Cached { boot_id: "boot".into(), qemu: "7.2".into(), probe: probe.clone() };
        std::fs::write(&cache, serde_json::to_vec(&record).unwrap()).unwrap();
        assert_eq!(kept(&cache, "boot", "7.2"), Some(probe));
        assert_eq!(kept(&cache, "other", "7.2"), None);
        assert_eq!(kept(&cache, "boot", "10.0"), None);
        std::fs::write(&cache, "{").unwrap();
        assert_eq!(kept(&cache, "boot", "7.2"), None);
        let qemu = binary::find_binary().unwrap();
        let verdict = super::probe(&qemu, Some(&kernel()), &cache).await;
        assert!(["kvm", "tcg"].contains(&verdict.accelerator.as_str()));
        assert!(!verdict.reason.is_empty());
    }
}
