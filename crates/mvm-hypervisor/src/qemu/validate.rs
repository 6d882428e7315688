//! Checks a specification before a process is started for it.

use crate::{Disk, Error, Nic, Result, VmSpec};
use mvm_model::Mib;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Longest path of a Unix socket (unix(7)), less the longest socket name and a slash.
const LONGEST_DIR: usize = 107 - "/channel.sock".len();

/// Checks everything but the kernel's content. Error: `invalid_spec`.
pub(super) fn validate(spec: &VmSpec) -> Result<()> {
    check(spec).map_err(|reason| Error::InvalidSpec { id: spec.id.clone(), reason })
}

/// Checks that the tap exists: as root, QEMU would silently make one that is connected to nothing.
/// Error: `invalid_spec`.
pub(super) fn validate_tap(spec: &VmSpec) -> Result<()> {
    let Some(nic) = &spec.nic else { return Ok(()) };
    let found =
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::DGRAM, None)
            .and_then(|socket| rustix::net::netdevice::name_to_index(socket, &nic.tap));
    found.map(drop).map_err(|e| Error::InvalidSpec {
        id: spec.id.clone(),
        reason: format!("tap {}: {e}; it must exist before the machine", nic.tap),
    })
}

/// Checks that QEMU can start the kernel. Error: `invalid_spec`. Without this check, QEMU runs any
/// file as a boot sector, silently and for ever.
pub(super) fn validate_kernel(spec: &VmSpec) -> Result<()> {
    let path = &spec.kernel.image;
    let invalid = |why: String| Error::InvalidSpec {
        id: spec.id.clone(),
        reason: format!("kernel {}: {why}", path.display()),
    };
    let mut head = Vec::new();
    File::open(path)
        .and_then(|file| file.take(0x300).read_to_end(&mut head))
        .map_err(|e| invalid(e.to_string()))?;
    if is_kernel(&head) {
        return Ok(());
    }
    Err(invalid("no Linux kernel for x86: neither an ELF image (vmlinux) nor a bzImage".into()))
}

/// Returns whether a file begins as an ELF64 image for x86-64, or has the Linux/x86 boot protocol's
/// magic at 0x202.
fn is_kernel(head: &[u8]) -> bool {
    let elf = head.starts_with(b"\x7fELF\x02\x01") && head.get(18..20) == Some(&[62, 0]);
    elf || head.get(0x202..0x206) == Some(b"HdrS")
}

fn check(spec: &VmSpec) -> Result<(), String> {
    let plain = |text: &str, also: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c))
    };
    if !plain(&spec.marker, ":._-/") {
        return Err(format!("marker {:?}: letters, digits and :._-/ only", spec.marker));
    }
    if spec.vcpus == 0 || spec.vcpus > 255 {
        return Err(format!("vcpus {}: 1 to 255", spec.vcpus));
    }
    if !(Mib(16)..=Mib(1 << 24)).contains(&spec.mem_mib) {
        return Err(format!("mem_mib {}: 16 to {}", spec.mem_mib.0, 1 << 24));
    }
    path(&spec.dir)?;
    if spec.dir.as_os_str().len() > LONGEST_DIR {
        let most = LONGEST_DIR;
        return Err(format!(
            "dir {}: longer than {most} bytes, for its sockets",
            spec.dir.display()
        ));
    }
    path(&spec.memory)?;
    path(&spec.kernel.image)?;
    spec.kernel.initrd.as_deref().map_or(Ok(()), path)?;
    if spec.kernel.append.contains(['\0', '\n']) {
        return Err("kernel arguments hold a line's end".into());
    }
    disks(&spec.disks)?;
    spec.nic.as_ref().map_or(Ok(()), nic)?;
    if let Some(window) = &spec.window {
        path(window)?;
        if !window.exists() {
            return Err(format!("window: {} does not exist", window.display()));
        }
    }
    match spec.confine {
        Some(c) if c.uid == 0 || c.gid == 0 => Err("confine: a user and group other than 0".into()),
        _ => Ok(()),
    }
}

fn path(path: &Path) -> Result<(), String> {
    match path.to_str() {
        None => Err(format!("path {}: not UTF-8", path.display())),
        Some(_) if !path.is_absolute() => Err(format!("path {}: not absolute", path.display())),
        Some(text) if text.chars().any(char::is_control) => {
            Err(format!("path {text:?}: holds control characters"))
        }
        Some(_) => Ok(()),
    }
}

fn disks(disks: &[Disk]) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for disk in disks {
        let id = &disk.id;
        let plain = id.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-'));
        // The virtio block device has 20 bytes for a serial.
        if id.is_empty() || id.len() > 20 || !plain {
            return Err(format!("disk {id:?}: 1 to 20 of a-z 0-9 -"));
        }
        if !seen.insert(id) {
            return Err(format!("disk {id}: there are two of it"));
        }
        path(&disk.path)?;
        if !disk.path.exists() {
            return Err(format!("disk {id}: {} does not exist", disk.path.display()));
        }
    }
    Ok(())
}

fn nic(nic: &Nic) -> Result<(), String> {
    let plain = nic.tap.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    // The kernel's limit is 15 bytes (IFNAMSIZ).
    if nic.tap.is_empty() || nic.tap.len() > 15 || !plain {
        return Err(format!("tap {:?}: 1 to 15 of letters, digits and -_.", nic.tap));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::arguments::tests::sample;
    use proptest::prelude::*;

    #[test]
    fn each_fault_is_named() {
        assert_eq!(check(&sample(true)), Ok(()));
        let fault = |change: &dyn Fn(&mut VmSpec)| {
            let mut spec = sample(true);
            change(&mut spec);
            check(&spec).unwrap_err()
        };
        assert!(fault(&|s| s.marker = "mvm:a,b".into()).contains("marker"));
        assert!(fault(&|s| s.vcpus = 0).contains("vcpus"));
        assert!(fault(&|s| s.mem_mib = Mib(1)).contains("mem_mib"));
        assert!(fault(&|s| s.dir = "a".into()).contains("absolute"));
        assert!(fault(&|s| s.dir = format!("/{}", "d".repeat(95)).into()).contains("sockets"));
        assert!(fault(&|s| s.disks[0].id = "x".repeat(21)).contains("disk"));
        assert!(fault(&|s| s.disks[1].id = s.disks[0].id.clone()).contains("two"));
        assert!(fault(&|s| s.disks[0].path = "/nonexistent/x".into()).contains("exist"));
        assert!(fault(&|s| s.nic.as_mut().unwrap().tap = "a,b=c".into()).contains("tap"));
        assert!(fault(&|s| s.confine.as_mut().unwrap().uid = 0).contains("confine"));
    }

    proptest! {
        #[test]
        fn any_file_is_judged_without_panic(
            head in proptest::collection::vec(any::<u8>(), 0..0x300)
        ) {
            let _ = is_kernel(&head);
        }
    }
}
