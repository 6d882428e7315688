//! The snapshot file: a header line that describes the machine, then QEMU's device state.
//!
//! ```text
//! mvm-snapshot {"version":1,"machine":"pc-i440fx-7.2",…,"length":405806,"sha256":"…"}   \n
//! …device state, with the memory of a machine that has no memory file of its own…
//! ```
//!
//! QEMU itself notices some faults of a state and crashes late on others; the header reveals a
//! truncated, damaged or unsuitable one before a process is started. A state with memory may have
//! gigabytes: its checksum is computed while QEMU reads it, and compared at the end.

use super::Accelerator;
use super::arguments::is_cpu_model;
use super::run_dir;
use super::stream::{copy_without_zero_pages, with_memory_part};
use crate::VmSpec;
use mvm_model::Mib;
use mvm_model::accelerator::Processor;
use mvm_model::cpu::CpuIdentity;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const MAGIC: &str = "mvm-snapshot ";
/// The header's length in bytes with its newline. The header is written last, when the state is
/// known.
const HEADER: usize = 4096;
/// The largest accepted state without memory, in bytes; one normally has under 1 MiB.
const LONGEST_STATE: u64 = 256 << 20;
/// Bytes reserved before a state is requested, so that a full disk is noticed before the machine is
/// touched.
const SET_ASIDE: u64 = 1 << 20;

/// The virtual hardware, which must be the same when the state is loaded again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hardware {
    /// The machine type, with its version where it has one.
    pub(super) machine: String,
    /// The CPU model, as an option of QEMU.
    pub(super) cpu: String,
    pub(super) accelerator: Accelerator,
    /// The CPU of the host that it began on; absent where its guest does not see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host_cpu: Option<CpuIdentity>,
    vcpus: u32,
    mem_mib: Mib,
    disks: Vec<String>,
    nic: bool,
    #[serde(default)]
    window: bool,
}

impl Hardware {
    /// `host_cpu` is the CPU of this host.
    pub(super) fn of(
        spec: &VmSpec,
        machine: &str,
        processor: Processor,
        host_cpu: &CpuIdentity,
    ) -> Self {
        let sees_host = shows_host(&processor);
        Self {
            machine: machine.to_owned(),
            cpu: processor.model,
            accelerator: processor.accelerator,
            host_cpu: sees_host.then(|| host_cpu.clone()),
            vcpus: spec.vcpus,
            mem_mib: spec.mem_mib,
            disks: spec.disks.iter().map(|disk| disk.id.clone()).collect(),
            nic: spec.nic.is_some(),
            window: spec.window.is_some(),
        }
    }

    /// Returns the CPU that the machine began on, and why it cannot go on on the CPU `here`; `None` if
    /// it can, or if an earlier version, which noted no CPU, started it.
    pub(super) fn cpu_misfit(&self, here: &CpuIdentity) -> Option<(CpuIdentity, String)> {
        let began = self.host_cpu.as_ref()?;
        Some((began.clone(), began.misfit(here)?))
    }

    /// Returns the processor of the machine.
    pub(super) fn processor(&self) -> Processor {
        Processor { accelerator: self.accelerator, model: self.cpu.clone() }
    }

    /// Describes the first difference, for people; `None` if the state fits. The processor does not
    /// count: the machine gets the one that it had.
    fn misfit(&self, wanted: &Self) -> Option<String> {
        let kind = |h: &Self| h.machine.split('-').next().unwrap_or_default().to_owned();
        let parts = [
            ("machine type", kind(self), kind(wanted)),
            ("vCPUs", self.vcpus.to_string(), wanted.vcpus.to_string()),
            ("MiB of memory", self.mem_mib.0.to_string(), wanted.mem_mib.0.to_string()),
            ("disks", self.disks.join(","), wanted.disks.join(",")),
            ("network card", self.nic.to_string(), wanted.nic.to_string()),
            ("window", self.window.to_string(), wanted.window.to_string()),
        ];
        let differs = parts.iter().find(|(_, here, there)| here != there)?;
        let (what, here, there) = differs;
        Some(format!("it is of a machine with {what} {here:?}, this one has {there:?}"))
    }
}

/// Returns whether a guest with this processor sees the host's CPU as it is.
pub(super) fn shows_host(processor: &Processor) -> bool {
    let model = processor.model.split(',').next();
    processor.accelerator == Accelerator::Kvm && model == Some("host")
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    version: u32,
    #[serde(flatten)]
    hardware: Hardware,
    /// Whether the guest's memory is in the state; otherwise it is in a file of its own.
    #[serde(default)]
    with_memory: bool,
    length: u64,
    sha256: String,
}

/// Where a snapshot keeps the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    /// In a file of the machine's own, or of the template's, next to the snapshot.
    File,
    /// In the state.
    State,
}

/// A snapshot that fits the machine, ready to be fed to QEMU.
pub(super) struct Stored {
    /// The hardware that it was taken on; its machine type may have an older version.
    pub(super) hardware: Hardware,
    state: State,
}

enum State {
    /// The device state, whole and with the right checksum.
    Checked(Vec<u8>),
    /// The rest of this file, device state and memory, and the checksum that it should have.
    Unchecked(BufReader<File>, String),
}

impl Stored {
    /// Returns where the guest's memory is.
    pub(super) fn memory(&self) -> Memory {
        match self.state {
            State::Checked(_) => Memory::File,
            State::Unchecked(..) => Memory::State,
        }
    }

    /// Returns the state of another machine with the same hardware, from its `devices` alone;
    /// `None` if the hardware differs or the form is unknown.
    pub(super) fn with_devices(&self, hardware: &Hardware, devices: &[u8]) -> Option<Vec<u8>> {
        match &self.state {
            State::Checked(state) if self.hardware == *hardware => with_memory_part(state, devices),
            _ => None,
        }
    }

    /// Writes the state to `to` and closes it; returns false if the state is damaged. A reader that
    /// closes early counts as undamaged: the caller that waits for that reader reports it.
    pub(super) fn feed(self, mut to: impl Write) -> bool {
        let (mut file, sha256) = match self.state {
            State::Checked(state) => {
                let _ = to.write_all(&state);
                return true;
            }
            State::Unchecked(file, sha256) => (file, sha256),
        };
        let mut digest = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return mvm_model::hex::digits(digest.finalize()) == sha256,
                Ok(n) => {
                    digest.update(&buffer[..n]);
                    if to.write_all(&buffer[..n]).is_err() {
                        return true;
                    }
                }
                Err(_) => return false,
            }
        }
    }
}

/// Opens a snapshot for a machine like `wanted`; only the version of the machine type and the
/// processor may differ.
/// The error is for people.
pub(super) fn open(path: &Path, wanted: &Hardware) -> Result<Stored, String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let whole = file.metadata().map_err(|e| e.to_string())?.len();
    let mut file = BufReader::with_capacity(1 << 20, file);
    let mut line = Vec::new();
    file.by_ref().take(HEADER as u64).read_until(b'\n', &mut line).map_err(|e| e.to_string())?;
    let header = parse(&line)?;
    if let Some(misfit) = header.hardware.misfit(wanted) {
        return Err(misfit);
    }
    if !is_cpu_model(&header.hardware.cpu) {
        return Err("its header is damaged: it names no CPU model".into());
    }
    let (has, length) = (whole - line.len() as u64, header.length);
    if has != length {
        return Err(format!("it is cut off or damaged: {has} bytes of state instead of {length}"));
    }
    let Header { hardware, sha256, with_memory, .. } = header;
    if with_memory {
        return Ok(Stored { hardware, state: State::Unchecked(file, sha256) });
    }
    let mut state = Vec::new();
    file.take(LONGEST_STATE).read_to_end(&mut state).map_err(|e| e.to_string())?;
    if mvm_model::hex::sha256(&state) != sha256 {
        return Err("it is damaged: its checksum does not match".into());
    }
    Ok(Stored { hardware, state: State::Checked(state) })
}

pub(super) fn parse(line: &[u8]) -> Result<Header, String> {
    let json = line.strip_prefix(MAGIC.as_bytes()).ok_or("it is not an mvm snapshot")?;
    let header: Header =
        serde_json::from_slice(json).map_err(|e| format!("its header is damaged: {e}"))?;
    match header.version {
        1 => Ok(header),
        version => Err(format!("its version {version} is unknown; this mvm knows 1")),
    }
}

/// An unfinished snapshot, in a file next to its final path; removed when dropped.
#[derive(Debug)]
pub(super) struct Draft {
    file: File,
    path: PathBuf,
    to: PathBuf,
    length: u64,
    digest: Sha256,
}

impl Draft {
    /// Creates the file and reserves space.
    pub(super) fn begin(to: &Path) -> io::Result<Self> {
        let mut name = to.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let path = to.with_file_name(name);
        run_dir::remove(&path)?;
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path)?;
        let draft = Self { file, path, to: to.to_owned(), length: 0, digest: Sha256::new() };
        let flags = rustix::fs::FallocateFlags::empty();
        match rustix::fs::fallocate(&draft.file, flags, 0, SET_ASIDE) {
            // Not every file system can reserve; without it, writing reports a full disk.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(draft),
            Err(e) => Err(e.into()),
        }
    }

    /// Appends a state without memory, read from `from` until its end.
    pub(super) fn fill(&mut self, from: impl Read) -> io::Result<()> {
        io::copy(&mut from.take(LONGEST_STATE + 1), &mut Appending(self))?;
        match self.length > LONGEST_STATE {
            true => Err(io::Error::other("the device state is larger than any should be")),
            false => Ok(()),
        }
    }

    /// Appends a state with memory, read from `from` until its end.
    pub(super) fn fill_with_memory(&mut self, from: impl Read) -> io::Result<()> {
        let mut to = io::BufWriter::with_capacity(1 << 20, Appending(self));
        let from = BufReader::with_capacity(1 << 20, from);
        copy_without_zero_pages(from, &mut to)?;
        to.flush()
    }

    /// Writes the header and makes the snapshot durable under its name, after the memory file that
    /// belongs to it, if any.
    pub(super) fn finish(mut self, hardware: &Hardware, memory: Option<&Path>) -> io::Result<()> {
        let header = Header {
            version: 1,
            hardware: hardware.clone(),
            with_memory: memory.is_none(),
            length: self.length,
            sha256: mvm_model::hex::digits(std::mem::take(&mut self.digest).finalize()),
        };
        let mut head = MAGIC.as_bytes().to_vec();
        serde_json::to_writer(&mut head, &header).map_err(io::Error::other)?;
        if head.len() >= HEADER {
            return Err(io::Error::other("the description of the machine is too long"));
        }
        head.resize(HEADER - 1, b' ');
        head.push(b'\n');
        self.file.write_all_at(&head, 0)?;
        self.file.set_len(HEADER as u64 + self.length)?;
        self.file.sync_all()?;
        // The memory must be durable before the name says that the snapshot exists.
        if let Some(memory) = memory {
            File::open(memory)?.sync_data()?;
        }
        std::fs::rename(&self.path, &self.to)?;
        File::open(self.to.parent().unwrap_or(Path::new("/")))?.sync_all()
    }
}

/// Writes to the end of a draft's state.
struct Appending<'a>(&'a mut Draft);

impl Write for Appending<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let draft = &mut *self.0;
        draft.file.write_all_at(bytes, HEADER as u64 + draft.length)?;
        draft.digest.update(bytes);
        draft.length += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After `finish` the file has its final name, and nothing is left to remove.
        let _ = run_dir::remove(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::arguments::processor_of;
    use crate::qemu::arguments::tests::sample;
    use mvm_model::cpu::Cpuid;
    use proptest::prelude::*;

    fn written(state: &[u8]) -> (tempfile::TempDir, PathBuf, Hardware) {
        let dir = tempfile::tempdir().unwrap();
        let (path, memory) = (dir.path().join("snapshot"), dir.path().join("memory"));
        std::fs::write(&memory, b"memory").unwrap();
        let hardware = hardware_of(Accelerator::Tcg);
        write(&path, &hardware, state, Some(&memory));
        (dir, path, hardware)
    }

    fn cpu(features: u32) -> CpuIdentity {
        CpuIdentity::of(&Cpuid { words: vec![("1.ecx", features)], ..Cpuid::default() })
    }

    fn hardware_of(accelerator: Accelerator) -> Hardware {
        Hardware::of(&sample(true), "pc-i440fx-7.2", processor_of(accelerator), &cpu(3))
    }

    #[test]
    fn only_a_guest_that_sees_the_hosts_cpu_depends_on_it() {
        let (_dir, path, tcg) = written(b"state");
        assert_eq!(tcg.cpu_misfit(&cpu(1)), None);
        let kvm = hardware_of(Accelerator::Kvm);
        write(&path, &kvm, b"state", None);
        let (stored, _) = read(&path, &kvm).unwrap();
        assert_eq!(stored.cpu_misfit(&cpu(3)), None);
        let (began, why) = stored.cpu_misfit(&cpu(1)).unwrap();
        assert!(began == cpu(3) && why.contains("features"), "{why}");
    }

    fn write(path: &Path, hardware: &Hardware, state: &[u8], memory: Option<&Path>) {
        let mut draft = Draft::begin(path).unwrap();
        draft.fill_with_memory(state).unwrap();
        draft.finish(hardware, memory).unwrap();
    }

    /// Returns what QEMU would be fed, if the snapshot fits and is whole.
    fn read(path: &Path, wanted: &Hardware) -> Result<(Hardware, Vec<u8>), String> {
        let stored = open(path, wanted)?;
        let (hardware, mut state) = (stored.hardware.clone(), Vec::new());
        match stored.feed(&mut state) {
            true => Ok((hardware, state)),
            false => Err("damaged".into()),
        }
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else_is_left() {
        let (dir, path, hardware) = written(b"state");
        let newer = Hardware { machine: "pc-i440fx-10.0".into(), ..hardware.clone() };
        assert_eq!(read(&path, &newer).unwrap(), (hardware.clone(), b"state".to_vec()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        drop(Draft::begin(&path).unwrap());
        assert!(read(&path, &hardware).is_ok(), "an abandoned draft leaves the old one");
        let other = Hardware { mem_mib: Mib(1), ..hardware };
        assert!(read(&path, &other).unwrap_err().contains("MiB of memory"));
        let mut draft = Draft::begin(&path).unwrap();
        assert!(draft.fill(io::repeat(1)).is_err(), "it has no end");
    }

    #[test]
    fn a_machine_gets_the_processor_that_it_had() {
        let (_dir, path, hardware) = written(b"state");
        let kvm = processor_of(Accelerator::Kvm);
        let other = Hardware { accelerator: kvm.accelerator, cpu: kvm.model, ..hardware.clone() };
        let (found, _) = read(&path, &other).unwrap();
        assert_eq!(found.processor(), processor_of(Accelerator::Tcg));
        for cpu in ["", "-S", "host -S", "host\n"] {
            write(&path, &Hardware { cpu: cpu.into(), ..hardware.clone() }, b"state", None);
            assert!(read(&path, &hardware).unwrap_err().contains("no CPU model"), "{cpu:?}");
        }
    }

    #[test]
    fn a_header_of_an_earlier_version_is_read() {
        let header = r#"{"version":1,"machine":"pc-i440fx-7.2","cpu":"host","accelerator":"kvm",
            "vcpus":1,"mem_mib":128,"disks":["root"],"nic":true,"length":3,"sha256":"00"}"#;
        let header = parse(format!("{MAGIC}{header}").as_bytes()).unwrap();
        assert_eq!(header.hardware.processor(), processor_of(Accelerator::Kvm));
    }

    proptest! {
        #[test]
        fn every_cut_and_every_changed_byte_is_noticed(
            state in proptest::collection::vec(any::<u8>(), 1..600),
            at in any::<proptest::sample::Index>(), change in 1u8.., with_memory: bool,
        ) {
            let (_dir, path, hardware) = written(&state);
            if with_memory {
                super::tests::write(&path, &hardware, &state, None);
            }
            let whole = std::fs::read(&path).unwrap();
            let at = at.index(whole.len());
            std::fs::write(&path, &whole[..at]).unwrap();
            prop_assert!(read(&path, &hardware).is_err());
            let mut damaged = whole.clone();
            damaged[at] ^= change;
            std::fs::write(&path, &damaged).unwrap();
            // A change of the machine type's version in the header is not noticed here but by QEMU.
            if let Ok((_, read_state)) = read(&path, &hardware) {
                prop_assert_eq!(read_state, state);
            }
        }

        #[test]
        fn any_file_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
            let _ = parse(&[MAGIC.as_bytes(), &bytes].concat());
        }
    }
}
