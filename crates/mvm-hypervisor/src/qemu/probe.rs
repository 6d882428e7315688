//! Finds out whether KVM works, by running a guest's kernel.
//!
//! A /dev/kvm that opens, and even one that runs a few instructions, may still be unable to run a
//! kernel (on a host that is itself a software-virtualised guest). The test is a kernel that gets
//! through its whole start: it finds its timers, its CPU and its devices, and then panics, as it
//! must, for want of a root file system.

use super::{Accelerator, arguments};
use mvm_model::accelerator::{PATIENCE, Patience, Trial, Verdict};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdout};
use tokio::time::Instant;

/// The largest console output to read, in bytes; a kernel that gets through its start writes far
/// less.
const LONGEST_CONSOLE: usize = 1 << 20;
/// How long QEMU's last words are waited for once it has been killed.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// The words of earlier versions for a trial that was too slow. They kept that verdict.
const TOO_SLOW: &str = "it was not through within";

/// The trials of KVM on this host with one QEMU program.
#[derive(Clone, Debug)]
pub struct KvmProbe {
    pub(super) program: PathBuf,
    /// The version of QEMU, as exactly as it is known.
    pub(super) release: String,
    /// The file that keeps a verdict until the host is rebooted or QEMU changes.
    pub(super) cache: PathBuf,
}

/// The content of the file that keeps a verdict.
#[derive(Serialize, Deserialize)]
struct CachedProbe {
    boot_id: String,
    qemu: String,
    probe: CachedVerdict,
}

#[derive(Serialize, Deserialize)]
struct CachedVerdict {
    accelerator: Accelerator,
    reason: String,
}

impl KvmProbe {
    /// Returns why KVM cannot run machines here, as far as that can be found without a guest: from
    /// /dev/kvm, the loaded modules and the CPU's flags. `None` if nothing rules it out.
    pub fn against(&self) -> Option<String> {
        without_kvm()
    }

    /// Starts a kernel under KVM, for at most 60 s.
    pub async fn try_with(&self, kernel: &Path) -> Trial {
        comes_through(&self.program, kernel, Accelerator::Kvm, PATIENCE).await
    }

    /// Returns the verdict that was kept in this boot of the host and with this QEMU.
    pub fn kept(&self) -> Option<Verdict> {
        kept(&self.cache, &boot_id(), &self.release)
    }

    /// Keeps a verdict that lasts. A failure is only logged.
    pub fn keep(&self, verdict: &Verdict) {
        if !verdict.is_lasting() {
            return;
        }
        let words =
            CachedVerdict { accelerator: verdict.accelerator, reason: verdict.reason.clone() };
        let kept = CachedProbe { boot_id: boot_id(), qemu: self.release.clone(), probe: words };
        let text = serde_json::to_vec(&kept).unwrap_or_default();
        if let Err(error) = std::fs::write(&self.cache, text) {
            let cache = self.cache.display();
            tracing::warn!(%error, %cache, "cannot keep the verdict on KVM");
        }
    }
}

/// Returns the verdict that the file `cache` keeps for this boot of the host, with whatever QEMU.
pub fn kept_verdict(cache: &Path) -> Option<Verdict> {
    let kept: CachedProbe = serde_json::from_slice(&std::fs::read(cache).ok()?).ok()?;
    self::kept(cache, &boot_id(), &kept.qemu)
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

fn kept(cache: &Path, boot_id: &str, release: &str) -> Option<Verdict> {
    let kept: CachedProbe = serde_json::from_slice(&std::fs::read(cache).ok()?).ok()?;
    let fits = kept.boot_id == boot_id && kept.qemu == release && !boot_id.is_empty();
    let CachedVerdict { accelerator, reason } = kept.probe;
    let slow = accelerator == Accelerator::Tcg && reason.contains(TOO_SLOW);
    (fits && !slow).then(|| Verdict::settled(accelerator, reason))
}

/// Returns a reason against KVM that can be found without a guest; `None` if there is none.
pub(super) fn without_kvm() -> Option<String> {
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
    patience: Patience,
) -> Trial {
    let (mut child, mut console) = match begin(qemu, kernel, accelerator) {
        Ok(begun) => begun,
        Err(reason) => return Trial::Failed(reason),
    };
    let trial = listen(&mut console, patience).await;
    let _ = child.kill().await;
    let Trial::Failed(reason) = trial else { return trial };
    let mut words = Vec::new();
    if let Some(errors) = child.stderr.take() {
        let mut errors = errors.take(4096);
        let _ = tokio::time::timeout(LAST_WORDS, errors.read_to_end(&mut words)).await;
    }
    let words = String::from_utf8_lossy(&words);
    Trial::Failed(format!("{reason} {}", words.trim()).trim_end().to_owned())
}

fn begin(
    qemu: &Path,
    kernel: &Path,
    accelerator: Accelerator,
) -> Result<(Child, ChildStdout), String> {
    let words: [(&str, OsString); 9] = [
        ("-display", "none".into()),
        // Without graphics the firmware talks to the console as well: a first sign of life.
        ("-machine", "pc,usb=off,graphics=off".into()),
        ("-accel", accelerator.as_str().into()),
        ("-cpu", arguments::processor_of(accelerator).model.into()),
        ("-m", "128".into()),
        ("-serial", "stdio".into()),
        ("-monitor", "none".into()),
        ("-kernel", kernel.into()),
        // A panic is printed at every level, and each byte costs an exit from the guest.
        ("-append", arguments::kernel_arguments(accelerator, "").into()),
    ];
    let mut command = tokio::process::Command::new(qemu);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
    for (option, value) in words {
        command.arg(option).arg(value);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().map_err(|e| e.to_string())?;
    let console = child.stdout.take().ok_or("it has no console")?;
    Ok((child, console))
}

/// Reads the console until it holds a verdict, QEMU ends, the output is too long, or the time is
/// over. Whatever the console says is a sign of life, and buys time.
async fn listen(console: &mut ChildStdout, patience: Patience) -> Trial {
    let began = Instant::now();
    let (mut heard, mut said) = (began, Vec::new());
    loop {
        let left = patience.left(began.elapsed(), heard.elapsed());
        if left.is_zero() {
            return Trial::TimedOut(match began.elapsed() >= patience.limit {
                true => format!("it was not through within {} s", patience.limit.as_secs_f32()),
                false => {
                    format!("its console said nothing for {} s", patience.silence.as_secs_f32())
                }
            });
        }
        let Ok(more) = tokio::time::timeout(left, console.read_buf(&mut said)).await else {
            continue;
        };
        if let Some(verdict) = verdict_of(&said) {
            return verdict;
        }
        match more {
            Ok(0) => return Trial::Failed("QEMU ended".into()),
            Err(error) => return Trial::Failed(error.to_string()),
            Ok(_) if said.len() > LONGEST_CONSOLE => {
                return Trial::Failed("it does not stop talking".into());
            }
            Ok(_) => heard = Instant::now(),
        }
    }
}

/// Returns the verdict that a console holds; `None` until the panic is there as a whole line, since
/// the serial port delivers it in pieces.
fn verdict_of(said: &[u8]) -> Option<Trial> {
    let text = String::from_utf8_lossy(said);
    let panic = &text[text.find("Kernel panic")?..];
    let line = &panic[..panic.find('\n')?];
    Some(match line.contains("VFS: Unable to mount root") {
        true => Trial::Passed,
        false => Trial::Failed(format!("it panicked on its way: {}", line.trim_end())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::binary;
    use std::os::unix::fs::PermissionsExt;

    const PANIC: &str = "Kernel panic - not syncing: VFS: Unable to mount root fs";

    fn kernel() -> PathBuf {
        let path = std::env::var_os("MVM_TEST_KERNEL");
        path.expect("MVM_TEST_KERNEL: an uncompressed Linux kernel, see tests/support").into()
    }

    /// Tries a QEMU that is a shell script.
    async fn try_script(script: &str, patience: Patience) -> Trial {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("qemu");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        comes_through(&program, Path::new("/k"), Accelerator::Kvm, patience).await
    }

    fn patience(limit_ms: u64, silence_ms: u64) -> Patience {
        let (limit, silence) = (Duration::from_millis(limit_ms), Duration::from_millis(silence_ms));
        Patience { limit, silence }
    }

    #[test]
    fn a_panic_is_judged_when_its_line_is_whole() {
        let whole = format!("x\n{PANIC}\r\n");
        for cut in 0..whole.len() {
            assert_eq!(verdict_of(&whole.as_bytes()[..cut]), None, "{cut} bytes");
        }
        assert_eq!(verdict_of(whole.as_bytes()), Some(Trial::Passed));
        let other = verdict_of(b"Kernel panic - not syncing: Fatal exception\n").unwrap();
        assert!(matches!(other, Trial::Failed(why) if why.ends_with("Fatal exception")));
    }

    #[tokio::test]
    async fn a_console_that_goes_on_talking_is_waited_for() {
        // Altogether far longer than the silence that is allowed.
        let talks = format!(
            "i=0; while [ $i -lt 12 ]; do echo line $i; i=$((i+1)); sleep 0.2; done; echo '{PANIC}'"
        );
        assert_eq!(try_script(&talks, patience(60_000, 1_500)).await, Trial::Passed);
        let hangs = format!("echo SeaBIOS; sleep 60; echo '{PANIC}'");
        let Trial::TimedOut(why) = try_script(&hangs, patience(60_000, 300)).await else {
            panic!("it was silent");
        };
        assert!(why.contains("said nothing for 0.3 s"), "{why}");
        let endless = "while :; do echo line; sleep 0.05; done";
        let Trial::TimedOut(why) = try_script(endless, patience(800, 600)).await else {
            panic!("it had no end");
        };
        assert!(why.contains("within 0.8 s"), "{why}");
    }

    #[tokio::test]
    async fn a_qemu_that_ends_is_quoted() {
        let ends = "echo 'Could not access KVM kernel module' >&2; exit 1";
        let trial = try_script(ends, PATIENCE).await;
        let Trial::Failed(why) = trial else { panic!("{trial:?}") };
        assert_eq!(why, "QEMU ended Could not access KVM kernel module");
        let none = comes_through(Path::new("/none"), Path::new("/k"), Accelerator::Kvm, PATIENCE);
        assert!(matches!(none.await, Trial::Failed(_)));
        let talks = "yes '.............................................................'";
        let Trial::Failed(why) = try_script(talks, PATIENCE).await else { panic!("it has no end") };
        assert!(why.contains("does not stop talking"), "{why}");
    }

    #[tokio::test]
    async fn a_kernel_that_comes_through_is_told_from_one_that_does_not() {
        let qemu = binary::find_binary().unwrap();
        let long = patience(240_000, 240_000);
        // The same boot works with the software CPU, so the test itself is sound.
        let through = comes_through(&qemu, &kernel(), Accelerator::Tcg, long).await;
        assert_eq!(through, Trial::Passed);
        let none = comes_through(&qemu, Path::new("/nonexistent"), Accelerator::Tcg, long).await;
        assert!(matches!(none, Trial::Failed(why) if why.contains("nonexistent")));
        // Where the cheap checks rule KVM out, the boot under it agrees.
        if without_kvm().is_some() {
            let trial = comes_through(&qemu, &kernel(), Accelerator::Kvm, PATIENCE).await;
            assert_ne!(trial, Trial::Passed);
        }
    }

    #[test]
    fn a_verdict_is_kept_for_this_boot_and_this_qemu_if_it_lasts() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("verdict");
        assert_eq!(kept(&cache, "boot", "7.2"), None);
        let probe = KvmProbe { program: "/q".into(), release: "7.2".into(), cache: cache.clone() };
        probe.keep(&Verdict::of(Trial::TimedOut("it was slow".into())));
        assert!(!cache.exists(), "a verdict that is a time-out is not kept");
        let passed = Verdict::of(Trial::Passed);
        probe.keep(&passed);
        assert_eq!(probe.kept(), Some(passed.clone()));
        assert_eq!(kept_verdict(&cache), Some(passed.clone()));
        let boot = boot_id();
        assert_eq!(kept(&cache, &boot, "7.2"), Some(passed));
        assert_eq!(kept(&cache, "other", "7.2"), None);
        assert_eq!(kept(&cache, &boot, "10.0"), None);
        std::fs::write(&cache, "{").unwrap();
        assert_eq!(probe.kept(), None);
        // An earlier version kept what was only slow.
        let reason = "a kernel does not boot under /dev/kvm: it was not through within 10 s";
        probe.keep(&Verdict::settled(Accelerator::Tcg, reason));
        assert_eq!(probe.kept(), None);
    }
}
