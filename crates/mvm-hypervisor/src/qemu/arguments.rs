//! From a specification to QEMU's arguments (qemu-system-x86_64(1)).

use crate::{Disk, Nic, Platform, RestoreMemory, VmSpec};
use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::path::Path;

/// What a boot needs on a kernel's command line: a console, a restart instead of a halt, and none
/// of the start-up work that a guest on a software CPU pays most for.
const KERNEL: &str = "console=ttyS0 quiet loglevel=1 panic=-1 reboot=t nokaslr mitigations=off \
                      random.trust_cpu=on no_timer_check cryptomgr.notests";

/// File descriptors that the process inherits.
pub struct Handed {
    /// The listening QMP socket.
    pub qmp: RawFd,
    /// The listening socket of the guest channel.
    pub channel: RawFd,
    /// Where the device state comes from, for a restore.
    pub state: Option<RawFd>,
    /// For every disk that can be written: opened for reading and writing, and for reading only.
    /// QEMU gives writing up when it is snapshotted, and by then it can open no path any more.
    pub disks: BTreeMap<String, [RawFd; 2]>,
}

/// All arguments but the program's name.
pub fn arguments(
    spec: &VmSpec,
    accelerator: &str,
    memory: RestoreMemory,
    handed: &Handed,
) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| all.extend(words.iter().map(|word| (*word).to_owned()));
    add(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    add(&["-name", &format!("guest={}", spec.marker)]);
    match accelerator {
        "kvm" => add(&["-accel", "kvm", "-cpu", "host"]),
        // x86-64-v2, as far as it costs nothing: what distributions build for.
        _ => add(&["-accel", "tcg,thread=multi", "-cpu", "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt"]),
    }
    let machine = match spec.kernel.platform {
        Platform::Pci => "pc,usb=off,vmport=off,hpet=off,memory-backend=mem",
        Platform::Mmio => "microvm,acpi=off,pic=on,pit=on,rtc=on,isa-serial=on,memory-backend=mem",
    };
    add(&["-M", machine, "-m", &format!("{}M", spec.mem_mib), "-smp", &spec.vcpus.to_string()]);
    add(&["-object", &memory_backend(spec, memory)]);
    let console = quoted(&spec.dir.join("console.log"));
    add(&["-chardev", &format!("file,id=console,path={console},append=on")]);
    add(&["-serial", "chardev:console"]);
    add(&["-chardev", &format!("socket,id=qmp,fd={},server=on,wait=off", handed.qmp)]);
    add(&["-mon", "chardev=qmp,mode=control"]);
    let bus = match spec.kernel.platform {
        Platform::Pci => "pci",
        Platform::Mmio => "device",
    };
    add(&["-chardev", &format!("socket,id=channel,fd={},server=on,wait=off", handed.channel)]);
    add(&["-device", &format!("virtio-serial-{bus},max_ports=2")]);
    add(&["-device", "virtserialport,chardev=channel,name=mvm.agent.0,nr=1"]);
    add(&["-object", "rng-builtin,id=rng"]);
    add(&["-device", &format!("virtio-rng-{bus},rng=rng")]);
    for (set, disk) in spec.disks.iter().enumerate() {
        let mut path = quoted(&disk.path);
        if let Some(fds) = handed.disks.get(&disk.id) {
            for fd in fds {
                add(&["-add-fd", &format!("fd={fd},set={set}")]);
            }
            path = format!("/dev/fdset/{set}");
        }
        add(&disk_arguments(disk, &path, bus).each_ref().map(String::as_str));
    }
    if let Some(nic) = &spec.nic {
        add(&nic_arguments(nic, spec.kernel.platform, bus).each_ref().map(String::as_str));
    }
    if handed.state.is_some() {
        // The kernel is in memory already: its file would only be read again.
        add(&["-S", "-incoming", "defer"]);
    } else {
        add(&["-kernel", &spec.kernel.image.to_string_lossy()]);
        if let Some(initrd) = &spec.kernel.initrd {
            add(&["-initrd", &initrd.to_string_lossy()]);
        }
        add(&["-append", format!("{KERNEL} {}", spec.kernel.append).trim_end()]);
    }
    confine(spec, &mut all);
    all
}

fn memory_backend(spec: &VmSpec, memory: RestoreMemory) -> String {
    let share = match memory {
        RestoreMemory::Own => "on",
        RestoreMemory::Clone => "off",
    };
    let path = quoted(&spec.memory);
    format!("memory-backend-file,id=mem,mem-path={path},size={}M,share={share}", spec.mem_mib)
}

fn disk_arguments(disk: &Disk, path: &str, bus: &str) -> [String; 4] {
    let id = &disk.id;
    // Nobody else opens a disk that can be written: its instance has one process. The lock of the
    // process itself would stand in its way when it is restored.
    let access = match disk.read_only {
        true => "readonly=on",
        false => "readonly=off,discard=unmap,file.locking=off",
    };
    [
        "-drive".to_owned(),
        format!("if=none,id={id},file={path},format=raw,{access}"),
        "-device".to_owned(),
        format!("virtio-blk-{bus},drive={id},serial={id}"),
    ]
}

fn nic_arguments(nic: &Nic, platform: Platform, bus: &str) -> [String; 4] {
    let rom = match platform {
        Platform::Pci => ",romfile=",
        Platform::Mmio => "",
    };
    [
        "-netdev".to_owned(),
        format!("tap,id=net,ifname={},script=no,downscript=no,vhost=off", nic.tap),
        "-device".to_owned(),
        format!("virtio-net-{bus},netdev=net,mac={}{rom}", nic.mac),
    ]
}

fn confine(spec: &VmSpec, all: &mut Vec<String>) {
    let filter = "on,obsolete=deny,spawn=deny,resourcecontrol=deny";
    match spec.confine {
        // The filter is in force before QEMU changes to the user, so that it cannot deny that;
        // no_new_privs and the lack of capabilities keep it from going back.
        Some(user) => all.extend([
            "-sandbox".to_owned(),
            filter.to_owned(),
            "-runas".to_owned(),
            format!("{}:{}", user.uid, user.gid),
            "-chroot".to_owned(),
            spec.dir.to_string_lossy().into_owned(),
        ]),
        None => all.extend(["-sandbox".to_owned(), format!("{filter},elevateprivileges=deny")]),
    }
}

/// A path as a value of QEMU's `key=value,…` syntax: a comma is doubled.
fn quoted(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}
