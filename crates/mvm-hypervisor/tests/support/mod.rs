//! A private place for every test (a directory, a marker, a guest that counts), of which nothing is
//! left afterwards, whatever happens.

#![allow(dead_code, reason = "not every test needs everything")]

use mvm_hypervisor::qemu::QemuDriver;
use mvm_hypervisor::{Confine, Disk, Hypervisor, Kernel, Platform, ProcessIdentity, VmSpec};
use mvm_model::{Accelerator, Mib};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The user that confined machines run as in tests; it needs no entry in passwd.
pub const USER: u32 = mvm_hypervisor::CONFINED_UIDS.start;

/// Records nothing.
pub fn unrecorded(_: &ProcessIdentity) {}

/// One test's directory, marker prefix and devices; removed when dropped.
pub struct Lab {
    pub dir: PathBuf,
    prefix: String,
    mounts: Vec<PathBuf>,
    taps: Vec<String>,
}

impl Lab {
    pub fn new() -> Lab {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(format!("mvm-hv-{name}"));
        std::fs::create_dir_all(&dir).expect("a directory for the test");
        Lab { dir, prefix: format!("mvm:hvtest-{name}:"), mounts: Vec::new(), taps: Vec::new() }
    }

    /// Returns the specification of a machine of 128 MiB with the counting guest.
    pub fn spec(&self, name: &str) -> VmSpec {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir).expect("a directory for the machine");
        VmSpec {
            id: name.to_owned(),
            marker: format!("{}{name}", self.prefix),
            memory: self.dir.join(format!("{name}.mem")),
            reserve_memory: true,
            dir,
            vcpus: 1,
            mem_mib: Mib(128),
            cpu_model: Default::default(),
            kernel: Kernel {
                image: kernel(),
                initrd: Some(self.initrd()),
                append: String::new(),
                platform: Platform::Pci,
            },
            disks: Vec::new(),
            nic: None,
            window: None,
            confine: Some(Confine { uid: USER, gid: USER }),
        }
    }

    /// Returns the live processes of this place.
    pub async fn processes(&self) -> Vec<ProcessIdentity> {
        driver().await.find(&self.prefix).expect("list processes")
    }

    /// Mounts a tmpfs of this size in bytes.
    pub fn tmpfs(&mut self, bytes: u64) -> PathBuf {
        let path = self.dir.join("tmpfs");
        std::fs::create_dir_all(&path).expect("a mount point");
        let options = std::ffi::CString::new(format!("size={bytes},mode=755")).expect("no NUL");
        rustix::mount::mount(
            "tmpfs",
            &path,
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            Some(options.as_c_str()),
        )
        .expect("mount a tmpfs (the tests need root)");
        self.mounts.push(path.clone());
        path
    }

    /// Makes a tap that is connected to nothing.
    pub fn tap(&mut self) -> String {
        let name = format!("mhv{}t{}", std::process::id() % 1_000_000, self.taps.len());
        self.taps.push(name.clone());
        ip(&["tuntap", "add", "dev", &name, "mode", "tap"]);
        name
    }

    /// Makes a raw disk of 1 MiB.
    pub fn disk(&self, id: &str, read_only: bool) -> Disk {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{id},{number}.raw"));
        let file = std::fs::File::create(&path).expect("a disk");
        file.set_len(1 << 20).expect("a disk's size");
        Disk { id: id.to_owned(), path, read_only }
    }

    fn initrd(&self) -> PathBuf {
        let path = self.dir.join("initrd.cpio");
        if !path.exists() {
            std::fs::write(&path, archive("init", guest())).expect("write the initrd");
        }
        path
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for pid in pids_with(&self.prefix) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        for tap in &self.taps {
            ip(&["link", "del", tap]);
        }
        for mount in &self.mounts {
            let _ = rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH);
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn ip(words: &[&str]) {
    let status = std::process::Command::new("ip").args(words).status();
    assert!(status.is_ok_and(|s| s.success()) || std::thread::panicking(), "ip {words:?}");
}

fn pids_with(marker: &str) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).contains(&format!("guest={marker}"))
    })
    .collect()
}

/// Returns what the tests' machines run on: the software CPU, which every host has, or what
/// `MVM_TEST_ACCELERATOR` says.
pub fn accelerator() -> Accelerator {
    let Some(name) = std::env::var_os("MVM_TEST_ACCELERATOR") else { return Accelerator::Tcg };
    let known = name.to_str().and_then(Accelerator::of);
    known.unwrap_or_else(|| panic!("MVM_TEST_ACCELERATOR is kvm or tcg, not {name:?}"))
}

/// Returns a driver with that.
pub async fn driver() -> QemuDriver {
    driver_with(accelerator()).await
}

pub async fn driver_with(accelerator: Accelerator) -> QemuDriver {
    let program = QemuDriver::find_binary().expect("QEMU");
    QemuDriver::new(program, accelerator).await.expect("a usable QEMU")
}

/// Returns the path of the kernel that the tests boot.
pub fn kernel() -> PathBuf {
    let path = std::env::var_os("MVM_TEST_KERNEL").unwrap_or_else(|| {
        panic!(
            "MVM_TEST_KERNEL is not set. These tests boot a real guest: set it to an uncompressed \
             Linux kernel (vmlinux, x86-64, with PVH and an 8250 console). `mvm kernel fetch` makes \
             one out of the distribution's cloud kernel package."
        )
    });
    PathBuf::from(path)
}

/// Returns the guest's program, which is compiled once, or is in the file `MVM_TEST_GUEST` where
/// there is no compiler.
fn guest() -> &'static [u8] {
    static GUEST: OnceLock<Vec<u8>> = OnceLock::new();
    GUEST.get_or_init(|| {
        if let Some(compiled) = std::env::var_os("MVM_TEST_GUEST") {
            return std::fs::read(compiled).expect("MVM_TEST_GUEST");
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/init.c");
        let dir = tempfile::tempdir().expect("a directory to compile in");
        let program = dir.path().join("init");
        let output = std::process::Command::new("cc")
            .args(["-static", "-O2", "-o"])
            .args([&program, &source])
            .output()
            .expect("cc, of the package gcc");
        assert!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
        std::fs::read(&program).expect("the guest's program")
    })
}

/// Makes a cpio archive ("newc", initramfs buffer format) with a place for /dev/console and one
/// program.
fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    for (inode, (name, mode, content)) in
        [(name, 0o100_755, content), ("TRAILER!!!", 0, &[][..])].into_iter().enumerate()
    {
        let fields = [inode + 1, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        all.extend_from_slice(b"070701");
        all.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
        all.extend_from_slice(name.as_bytes());
        all.push(0);
        all.resize(all.len().next_multiple_of(4), 0);
        all.extend_from_slice(content);
        all.resize(all.len().next_multiple_of(4), 0);
    }
    all
}

/// Returns the last whole count that the guest has printed; `None` if there is none yet.
pub fn count(spec: &VmSpec) -> Option<u64> {
    let text = std::fs::read(spec.dir.join("console.log")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let (whole, _) = text.rsplit_once('\n')?;
    whole.lines().rev().find_map(|line| line.trim().strip_prefix("count ")?.parse().ok())
}

/// Waits until the guest has counted beyond `than`.
pub async fn counts_beyond(spec: &VmSpec, than: u64) -> u64 {
    let ends = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(n) = count(spec).filter(|n| *n > than) {
            return n;
        }
        assert!(
            Instant::now() < ends,
            "{} does not count beyond {than}; its console: {}",
            spec.id,
            String::from_utf8_lossy(
                &std::fs::read(spec.dir.join("console.log")).unwrap_or_default()
            )
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
