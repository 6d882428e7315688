//! The snapshot file: a line that says what machine it is of, then QEMU's device state.
//!
//! ```text
//! mvm-snapshot {"version":1,"machine":"pc-i440fx-7.2",…,"length":405806,"sha256":"…"}\n
//! …device state…
//! ```
//!
//! QEMU itself notices some faults of a state and crashes late on others; the header
//! tells a truncated, damaged or unsuitable one before a process is started.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Accelerator;
use super::arguments::cpu_model;
use super::place;
use crate::VmSpec;

const MAGIC: &str = "mvm-snapshot ";
const LONGEST_HEADER: u64 = 64 * 1024;
/// A state without memory is under 1 MiB; one of this size holds what it should not.
pub(super) const LONGEST_STATE: u64 = 256 << 20;
/// Set aside before a state is asked for, so that a full disk is noticed before anything
/// has happened to the machine.
const SET_ASIDE: u64 = 1 << 20;

/// The virtual hardware: what must be the same when the state is loaded again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hardware {
    /// Machine type with its version.
    pub(super) machine: String,
    cpu: String,
    accelerator: String,
    vcpus: u32,
    mem_mib: u64,
    disks: Vec<String>,
    nic: bool,
}

impl Hardware {
    pub(super) fn of(spec: &VmSpec, machine: &str, accelerator: Accelerator) -> Self {
        Self {
            machine: machine.to_owned(),
            cpu: cpu_model(accelerator).to_owned(),
            accelerator: accelerator.name().to_owned(),
            vcpus: spec.vcpus,
            mem_mib: spec.mem_mib,
            disks: spec.disks.iter().map(|disk| disk.id.clone()).collect(),
            nic: spec.nic.is_some(),
        }
    }

    /// What differs, for people; `None` if the state fits.
    fn misfit(&self, wanted: &Self) -> Option<String> {
        let kind = |h: &Self| h.machine.split('-').next().unwrap_or_default().to_owned();
        let parts = [
            ("machine type", kind(self), kind(wanted)),
            ("accelerator", self.accelerator.clone(), wanted.accelerator.clone()),
            ("CPU model", self.cpu.clone(), wanted.cpu.clone()),
            ("vCPUs", self.vcpus.to_string(), wanted.vcpus.to_string()),
            ("MiB of memory", self.mem_mib.to_string(), wanted.mem_mib.to_string()),
            ("disks", self.disks.join(","), wanted.disks.join(",")),
            ("network card", self.nic.to_string(), wanted.nic.to_string()),
        ];
        let differs = parts.iter().find(|(_, here, there)| here != there)?;
        let (what, here, there) = differs;
        Some(format!("it is of a machine with {what} {here:?}, this one has {there:?}"))
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    version: u32,
    #[serde(flatten)]
    hardware: Hardware,
    length: u64,
    sha256: String,
}

/// Reads a snapshot for a machine like `wanted`, whose version of the machine type may
/// differ; gives the hardware that it is of and its state. The error is for people.
pub(super) fn read(path: &Path, wanted: &Hardware) -> Result<(Hardware, Vec<u8>), String> {
    let mut file = BufReader::new(File::open(path).map_err(|e| e.to_string())?);
    let mut line = Vec::new();
    file.by_ref().take(LONGEST_HEADER).read_until(b'\n', &mut line).map_err(|e| e.to_string())?;
    let header = parse(&line)?;
    if let Some(misfit) = header.hardware.misfit(wanted) {
        return Err(misfit);
    }
    let mut state = Vec::new();
    file.take(LONGEST_STATE).read_to_end(&mut state).map_err(|e| e.to_string())?;
    if state.len() as u64 != header.length {
        let (has, length) = (state.len(), header.length);
        return Err(format!("it is cut off or damaged: {has} bytes of state instead of {length}"));
    }
    if hex(&Sha256::digest(&state)) != header.sha256 {
        return Err("it is damaged: its checksum does not match".into());
    }
    Ok((header.hardware, state))
}

fn parse(line: &[u8]) -> Result<Header, String> {
    let json = line.strip_prefix(MAGIC.as_bytes()).ok_or("it is no snapshot of mvm's")?;
    let header: Header =
        serde_json::from_slice(json).map_err(|e| format!("its header is damaged: {e}"))?;
    match header.version {
        1 => Ok(header),
        version => Err(format!("its version {version} is unknown; this mvm knows 1")),
    }
}

/// A snapshot in the making, beside the file that it will be; removed when dropped.
#[derive(Debug)]
pub(super) struct Draft {
    file: File,
    path: PathBuf,
    to: PathBuf,
}

impl Draft {
    /// Begins, and sets space aside.
    pub(super) fn begin(to: &Path) -> io::Result<Self> {
        let mut name = to.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let path = to.with_file_name(name);
        place::remove(&path)?;
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path)?;
        let draft = Self { file, path, to: to.to_owned() };
        let flags = rustix::fs::FallocateFlags::empty();
        match rustix::fs::fallocate(&draft.file, flags, 0, SET_ASIDE) {
            // Not every file system can; then the writing tells.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(draft),
            Err(e) => Err(e.into()),
        }
    }

    /// Writes everything and makes it durable under its name, together with `memory`.
    pub(super) fn finish(
        mut self,
        hardware: &Hardware,
        state: &[u8],
        memory: &Path,
    ) -> io::Result<()> {
        let header = Header {
            version: 1,
            hardware: hardware.clone(),
            length: state.len() as u64,
            sha256: hex(&Sha256::digest(state)),
        };
        let mut head = MAGIC.as_bytes().to_vec();
        serde_json::to_writer(&mut head, &header).map_err(io::Error::other)?;
        head.push(b'\n');
        self.file.write_all(&head)?;
        self.file.write_all(state)?;
        self.file.set_len((head.len() + state.len()) as u64)?;
        self.file.sync_all()?;
        // First the memory that the state belongs to, then the name that says it is there.
        File::open(memory)?.sync_data()?;
        std::fs::rename(&self.path, &self.to)?;
        File::open(self.to.parent().unwrap_or(Path::new("/")))?.sync_all()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After `finish` there is nothing under that name.
        let _ = place::remove(&self.path);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::qemu::arguments::tests::sample;

    fn written(state: &[u8]) -> (tempfile::TempDir, PathBuf, Hardware) {
        let dir = tempfile::tempdir().unwrap();
        let (path, memory) = (dir.path().join("snapshot"), dir.path().join("memory"));
        std::fs::write(&memory, b"memory").unwrap();
        let hardware = Hardware::of(&sample(true), "pc-i440fx-7.2", Accelerator::Tcg);
        Draft::begin(&path).unwrap().finish(&hardware, state, &memory).unwrap();
        (dir, path, hardware)
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else_is_left() {
        let (dir, path, hardware) = written(b"state");
        let newer = Hardware { machine: "pc-i440fx-10.0".into(), ..hardware.clone() };
        assert_eq!(read(&path, &newer).unwrap(), (hardware.clone(), b"state".to_vec()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        drop(Draft::begin(&path).unwrap());
        assert!(read(&path, &hardware).is_ok(), "an abandoned draft leaves the old one");
        let other = Hardware { mem_mib: 1, ..hardware };
        assert!(read(&path, &other).unwrap_err().contains("MiB of memory"));
    }

    proptest! {
        #[test]
        fn every_cut_and_every_changed_byte_is_noticed(
            state in proptest::collection::vec(any::<u8>(), 1..600),
            at in any::<proptest::sample::Index>(), change in 1u8..,
        ) {
            let (_dir, path, hardware) = written(&state);
            let whole = std::fs::read(&path).unwrap();
            let at = at.index(whole.len());
            std::fs::write(&path, &whole[..at]).unwrap();
            prop_assert!(read(&path, &hardware).is_err());
            let mut damaged = whole.clone();
            damaged[at] ^= change;
            std::fs::write(&path, &damaged).unwrap();
            // In the header's version of the machine type, a change is another's to notice.
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
