//! QEMU's argument vector, as a pure function of the specification.
//!
//! JSON forms are used wherever QEMU has them, so that no path needs quoting.

use super::Accelerator;
use super::binary::Version;
use crate::{Confine, Kernel, Platform, RestoreMemory, VmSpec};
use mvm_model::CpuModel;
use mvm_model::accelerator::Processor;
use serde_json::json;
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::Path;

/// Name of the virtio port that the guest agent serves.
pub(super) const GUEST_PORT: &str = "mvm.agent.0";

/// Whether a machine boots from its kernel or is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    Boot,
    Restore(RestoreMemory),
}

/// Everything besides the specification that the argument vector depends on.
#[derive(Debug)]
pub(super) struct Setting<'a> {
    /// The accelerator and the CPU model.
    pub(super) processor: &'a Processor,
    pub(super) version: Version,
    /// The machine type, see [`machine_type`].
    pub(super) machine: &'a str,
    /// Listening socket for QMP, inherited.
    pub(super) qmp: RawFd,
    /// Listening socket for the guest channel, inherited.
    pub(super) channel: RawFd,
}

/// Returns the machine type, with its version where the platform has versions: a machine that
/// sleeps across an upgrade of QEMU must wake on the hardware that it was booted on.
pub(super) fn machine_type(platform: Platform, version: Version) -> String {
    match platform {
        Platform::Pci => format!("pc-i440fx-{version}"),
        Platform::Mmio => "microvm".into(),
    }
}

/// Returns the processor of a new machine. Under TCG its CPU model is a small one: features cost
/// time in the kernel's set-up code, and these are what x86-64-v2 user space needs.
pub(super) fn processor_of(accelerator: Accelerator) -> Processor {
    let model = match accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16",
    };
    Processor { accelerator, model: model.to_owned() }
}

/// Makes QEMU refuse to start where a feature of a named model cannot be had, instead of leaving it
/// out: the machine would not be the same elsewhere.
const ENFORCED: &str = ",enforce";

/// Returns the named model; `None` where a model is that of the host or, under TCG, the small one.
pub(super) fn named(model: &str) -> Option<CpuModel> {
    model.parse().ok().filter(|model: &CpuModel| !model.is_host())
}

/// Returns the option for a CPU model.
fn cpu_option(model: &str) -> String {
    let enforced = if named(model).is_some() { ENFORCED } else { "" };
    format!("{model}{enforced}")
}

/// Returns the CPU model that an option asks for; `None` if it is none.
pub(super) fn cpu_model_in(option: &str) -> Option<String> {
    let model = option.strip_suffix(ENFORCED).unwrap_or(option);
    is_cpu_model(model).then(|| model.to_owned())
}

/// Returns whether a text may be a CPU model with features: `qemu64,+ssse3`.
pub(super) fn is_cpu_model(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "+-_.,=".contains(c);
    (1..=1024).contains(&text.len()) && text.chars().all(plain) && !text.starts_with(['-', ','])
}

/// Returns the whole argument vector, without the program's name.
pub(super) fn arguments(spec: &VmSpec, start: Start, setting: &Setting<'_>) -> Vec<OsString> {
    let mut args = Args(Vec::new());
    args.flags(&["-nodefaults", "-no-user-config", "-no-reboot"]);
    args.pair("-name", format!("guest={}", spec.marker));
    args.pair("-display", "none");
    args.pair("-accel", accelerator_option(setting.processor.accelerator));
    args.pair("-cpu", cpu_option(&setting.processor.model));
    args.pair("-machine", machine_option(spec.kernel.platform, setting.machine));
    args.pair("-smp", spec.vcpus.to_string());
    args.pair("-m", spec.mem_mib.0.to_string());
    args.pair("-object", memory_object(spec, start, setting.version));
    args.confinement(spec.confine.as_ref(), &spec.dir, setting.version);
    args.characters(spec, setting);
    args.devices(spec);
    match start {
        Start::Boot => args.kernel(&spec.kernel, setting.processor.accelerator),
        // The kernel is in memory already; loading its file again would only take time.
        Start::Restore(_) => {
            args.flags(&["-S"]);
            args.pair("-incoming", "defer");
        }
    }
    args.0
}

fn accelerator_option(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg,thread=multi",
    }
}

fn machine_option(platform: Platform, machine: &str) -> String {
    match platform {
        // Without `graphics=off`, although there are none: with it the firmware takes the serial port
        // for its screen, and the guest's console begins with the terminal's control sequences.
        Platform::Pci => {
            format!("{machine},memory-backend=ram,usb=off,vmport=off,hpet=off,dump-guest-core=off")
        }
        // ACPI is off and a PIT is on: under TCG the kernel has no other timer to calibrate from.
        Platform::Mmio => format!(
            "{machine},memory-backend=ram,acpi=off,pic=on,pit=on,rtc=on,isa-serial=on,dump-guest-core=off"
        ),
    }
}

/// From this version on, a clone's process opens its template's file read-only, so that a guest
/// that breaks out cannot write to what all other clones are made of. Before 8.2 `readonly` made
/// the guest's memory itself read-only, and a privately mapped file was opened for writing all the
/// same.
const READ_ONLY_TEMPLATES: Version = Version { major: 8, minor: 2 };

fn memory_object(spec: &VmSpec, start: Start, version: Version) -> String {
    let is_clone = start == Start::Restore(RestoreMemory::Clone);
    let mut object = json!({
        "qom-type": "memory-backend-file",
        "id": "ram",
        "mem-path": spec.memory,
        "size": spec.mem_mib.bytes(),
        "share": !is_clone,
    });
    if is_clone && version >= READ_ONLY_TEMPLATES {
        object["readonly"] = json!(true);
        object["rom"] = json!("off");
    }
    object.to_string()
}

/// Returns the kernel's arguments: the driver's own, then the caller's.
pub(super) fn kernel_arguments(accelerator: Accelerator, append: &str) -> String {
    // `reboot=t` ends QEMU by a triple fault: with ACPI off, nothing else does.
    let mut line = String::from(
        "console=ttyS0 quiet loglevel=1 panic=-1 reboot=t random.trust_cpu=on cryptomgr.notests",
    );
    if accelerator == Accelerator::Tcg {
        // Calibration and mitigations are slow where every instruction is translated.
        line.push_str(" nokaslr mitigations=off no_timer_check");
    }
    if !append.trim().is_empty() {
        line.push(' ');
        line.push_str(append.trim());
    }
    line
}

/// Doubles the commas of a path: in QEMU's option syntax a single comma ends a value.
fn comma_doubled(path: &Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut bytes = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        bytes.extend(std::iter::repeat_n(*byte, if *byte == b',' { 2 } else { 1 }));
    }
    OsString::from_vec(bytes)
}

fn joined(parts: &[&std::ffi::OsStr]) -> OsString {
    parts.iter().copied().collect()
}

struct Args(Vec<OsString>);

impl Args {
    fn flags(&mut self, flags: &[&str]) {
        self.0.extend(flags.iter().map(OsString::from));
    }

    fn pair(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.push(option.into());
        self.0.push(value.into());
    }

    fn confinement(&mut self, confine: Option<&Confine>, dir: &Path, version: Version) {
        let mut sandbox = String::from("on,obsolete=deny,spawn=deny,resourcecontrol=deny");
        let Some(Confine { uid, gid }) = confine else {
            sandbox.push_str(",elevateprivileges=deny");
            return self.pair("-sandbox", sandbox);
        };
        // The filter is in force before QEMU drops to the user, so it cannot deny setuid;
        // no_new_privs and an empty capability set take care of that afterwards.
        self.pair("-sandbox", sandbox);
        let user = format!("{uid}:{gid}");
        let root = comma_doubled(dir);
        // `-runas` gave way to `-run-with user=` in 9.1, `-chroot` to `-run-with chroot=` in 8.1.
        if version >= (Version { major: 9, minor: 1 }) {
            let with = format!("user={user},chroot=");
            return self.pair("-run-with", joined(&[with.as_ref(), &root]));
        }
        self.pair("-runas", user);
        if version >= (Version { major: 8, minor: 1 }) {
            self.pair("-run-with", joined(&["chroot=".as_ref(), &root]));
        } else {
            self.pair("-chroot", dir);
        }
    }

    fn characters(&mut self, spec: &VmSpec, setting: &Setting<'_>) {
        let console = comma_doubled(&spec.dir.join(super::CONSOLE_LOG));
        self.pair(
            "-chardev",
            joined(&["file,id=console,append=on,path=".as_ref(), console.as_os_str()]),
        );
        self.pair("-serial", "chardev:console");
        self.pair("-chardev", format!("socket,id=qmp,fd={},server=on,wait=off", setting.qmp));
        self.pair("-mon", "chardev=qmp,mode=control");
        self.pair("-chardev", format!("socket,id=agent,fd={},server=on,wait=off", setting.channel));
    }

    /// Appends the devices. Their order is part of every snapshot: never change it.
    fn devices(&mut self, spec: &VmSpec) {
        let bus = match spec.kernel.platform {
            Platform::Pci => "pci",
            Platform::Mmio => {
                self.pair("-global", "virtio-mmio.force-legacy=false");
                "device"
            }
        };
        let device = |kind: &str| format!("virtio-{kind}-{bus}");
        let mut serial = json!({ "driver": device("serial"), "id": "serial", "max_ports": 2 });
        if spec.kernel.platform == Platform::Pci {
            // One vector per device instead of one per queue: nothing here is fast enough to need
            // more.
            serial["vectors"] = json!(2);
        }
        self.pair("-device", serial.to_string());
        let port = json!({ "driver": "virtserialport", "id": "port", "bus": "serial.0", "nr": 1,
            "chardev": "agent", "name": GUEST_PORT });
        self.pair("-device", port.to_string());
        self.pair("-object", json!({ "qom-type": "rng-builtin", "id": "entropy" }).to_string());
        self.pair(
            "-device",
            json!({ "driver": device("rng"), "id": "rng", "rng": "entropy" }).to_string(),
        );
        for disk in &spec.disks {
            let node = format!("disk-{}", disk.id);
            let file = json!({ "driver": "file", "filename": disk.path });
            let block = json!({ "driver": "raw", "node-name": node, "read-only": disk.read_only,
                "discard": "unmap", "file": file });
            self.pair("-blockdev", block.to_string());
            // If the host's disk is full or broken, the machine stops instead of seeing errors: the
            // fault is the host's, and is reported and mended there.
            let front = json!({ "driver": device("blk"), "id": format!("blk-{}", disk.id),
                "drive": node, "serial": disk.id, "werror": "stop", "rerror": "stop" });
            self.pair("-device", front.to_string());
        }
        if let Some(nic) = &spec.nic {
            let tap = json!({ "type": "tap", "id": "net", "ifname": nic.tap, "script": "no",
                "downscript": "no", "vhost": false });
            self.pair("-netdev", tap.to_string());
            let mut front = json!({ "driver": device("net"), "id": "nic", "netdev": "net",
                "mac": nic.mac });
            if spec.kernel.platform == Platform::Pci {
                front["romfile"] = json!("");
            }
            self.pair("-device", front.to_string());
        }
        if let Some(path) = &spec.window {
            let file = json!({ "driver": "file", "filename": path });
            // The window's content is worthless once it has been read, so it is never flushed.
            let block = json!({ "driver": "raw", "node-name": "window", "file": file,
                "cache": { "direct": false, "no-flush": true } });
            self.pair("-blockdev", block.to_string());
            let front = json!({ "driver": device("blk"), "id": "window", "drive": "window",
                "serial": "window", "werror": "report", "rerror": "report" });
            self.pair("-device", front.to_string());
        }
    }

    fn kernel(&mut self, kernel: &Kernel, accelerator: Accelerator) {
        self.pair("-kernel", &kernel.image);
        if let Some(initrd) = &kernel.initrd {
            self.pair("-initrd", initrd);
        }
        self.pair("-append", kernel_arguments(accelerator, &kernel.append));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{Disk, Nic};
    use mvm_model::{Mac, Mib};

    pub(in crate::qemu) fn sample(confined: bool) -> VmSpec {
        let disk = |id: &str| Disk { id: id.into(), path: "/dev/null".into(), read_only: true };
        VmSpec {
            id: "i-1".into(),
            marker: "mvm:test:i-1".into(),
            dir: "/run/a,b".into(),
            vcpus: 2,
            mem_mib: Mib(256),
            cpu_model: CpuModel::default(),
            kernel: Kernel {
                image: "/k".into(),
                initrd: Some("/i".into()),
                append: " root=x ".into(),
                platform: Platform::Pci,
            },
            memory: "/m,em".into(),
            reserve_memory: true,
            disks: vec![disk("root"), disk("data")],
            nic: Some(Nic { tap: "tap0".into(), mac: Mac::from_bytes([2, 0, 0, 0, 0, 1]) }),
            window: None,
            confine: confined.then_some(Confine { uid: 7, gid: 8 }),
        }
    }

    fn words(spec: &VmSpec, start: Start, major: u32, minor: u32) -> Vec<String> {
        let setting = Setting {
            processor: &processor_of(Accelerator::Tcg),
            version: Version { major, minor },
            machine: "pc-i440fx-7.2",
            qmp: 3,
            channel: 4,
        };
        let args = arguments(spec, start, &setting);
        args.into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    fn value<'a>(words: &'a [String], option: &str) -> Option<&'a str> {
        let at = words.iter().position(|word| word == option)?;
        words.get(at + 1).map(String::as_str)
    }

    #[test]
    fn a_confined_process_drops_to_its_user_and_directory_in_every_version() {
        let of = |major, minor| words(&sample(true), Start::Boot, major, minor);
        let old = of(7, 2);
        assert_eq!(value(&old, "-runas"), Some("7:8"));
        assert_eq!(value(&old, "-chroot"), Some("/run/a,b"));
        let between = of(8, 2);
        assert_eq!(value(&between, "-runas"), Some("7:8"));
        assert_eq!(value(&between, "-run-with"), Some("chroot=/run/a,,b"));
        let new = of(10, 0);
        assert_eq!(value(&new, "-run-with"), Some("user=7:8,chroot=/run/a,,b"));
        assert!(!new.contains(&"-runas".into()) && !new.contains(&"-chroot".into()));
        let free = words(&sample(false), Start::Boot, 7, 2);
        assert!(value(&free, "-sandbox").unwrap().contains("elevateprivileges=deny"));
        assert_eq!(value(&free, "-runas"), None);
    }

    #[test]
    fn a_named_cpu_model_is_enforced_and_no_other() {
        for (model, option) in
            [("EPYC-v1", "EPYC-v1,enforce"), ("host", "host"), ("qemu64,+ssse3", "qemu64,+ssse3")]
        {
            assert_eq!(cpu_option(model), option);
            assert_eq!(cpu_model_in(option).as_deref(), Some(model));
        }
        let own = processor_of(Accelerator::Tcg).model;
        assert_eq!((cpu_option(&own), named(&own)), (own.clone(), None));
        assert_eq!(cpu_model_in("-S"), None);
    }

    #[test]
    fn a_boot_has_a_kernel_and_a_restore_has_none() {
        let boot = words(&sample(true), Start::Boot, 7, 2);
        assert_eq!((value(&boot, "-kernel"), value(&boot, "-initrd")), (Some("/k"), Some("/i")));
        let append = value(&boot, "-append").unwrap();
        assert!(append.starts_with("console=ttyS0 ") && append.ends_with(" root=x"), "{append}");
        assert!(value(&boot, "-object").unwrap().contains("\"share\":true"));
        assert_eq!(value(&boot, "-name"), Some("guest=mvm:test:i-1"));
        let clone = words(&sample(true), Start::Restore(RestoreMemory::Clone), 7, 2);
        assert_eq!((value(&clone, "-kernel"), value(&clone, "-incoming")), (None, Some("defer")));
        assert!(value(&clone, "-object").unwrap().contains("\"share\":false"));
        let own = words(&sample(true), Start::Restore(RestoreMemory::Own), 7, 2);
        assert!(value(&own, "-object").unwrap().contains("\"share\":true"));
    }

    #[test]
    fn a_clone_opens_its_template_for_reading_where_qemu_can() {
        let of = |start, major, minor| words(&sample(true), start, major, minor);
        let object = |start, major, minor| {
            let words = of(start, major, minor);
            serde_json::from_str::<serde_json::Value>(value(&words, "-object").unwrap()).unwrap()
        };
        let clone = Start::Restore(RestoreMemory::Clone);
        let (old, new) = (object(clone, 8, 1), object(clone, 8, 2));
        assert!(old.get("readonly").is_none() && old.get("rom").is_none());
        assert_eq!(
            (&new["readonly"], &new["rom"], &new["share"]),
            (&json!(true), &json!("off"), &json!(false))
        );
        for start in [Start::Boot, Start::Restore(RestoreMemory::Own)] {
            assert!(object(start, 10, 0).get("readonly").is_none());
        }
    }

    /// Snapshots of machines without a window know the devices before it by their positions.
    #[test]
    fn a_window_comes_behind_all_other_devices() {
        let without = words(&sample(true), Start::Boot, 7, 2);
        let spec = VmSpec { window: Some("/w".into()), ..sample(true) };
        let with = words(&spec, Start::Boot, 7, 2);
        let kernel = without.iter().position(|word| word == "-kernel").unwrap();
        assert_eq!(with[..kernel], without[..kernel]);
        assert_eq!(with[kernel + 4..], without[kernel..]);
        let device = &with[kernel + 3];
        assert!(
            device.contains("virtio-blk-pci") && device.contains("\"werror\":\"report\""),
            "{device}"
        );
    }

    #[test]
    fn kernel_arguments_suit_the_accelerator() {
        assert!(kernel_arguments(Accelerator::Tcg, "").contains("mitigations=off"));
        assert!(!kernel_arguments(Accelerator::Kvm, "").contains("mitigations=off"));
    }
}
