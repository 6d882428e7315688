//! The files of simulated machines: snapshots, and the machines that live.
//!
//! Each file is a line of JSON, followed by the guest's memory as it is.

use super::machine_state::MachineState;
use crate::{ProcessIdentity, RestoreMemory, VmSpec};
use mvm_model::Mib;
use mvm_model::accelerator::Processor;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// A simulated snapshot.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedSnapshot {
    simulated: bool,
    vcpus: u32,
    mem_mib: Mib,
    pub(super) guest_ms: u64,
    /// Whether it is of a clone that has no memory file of its own.
    with_memory: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) processor: Option<Processor>,
    #[serde(skip)]
    pub(super) memory: Vec<u8>,
}

impl SavedSnapshot {
    /// Makes the snapshot of a machine; `unshared` says that a clone has left its memory in a file.
    pub(super) fn of(state: &MachineState, unshared: bool) -> Self {
        Self {
            simulated: true,
            vcpus: state.spec.vcpus,
            mem_mib: state.spec.mem_mib,
            guest_ms: state.guest_ms(),
            with_memory: state.memory == RestoreMemory::Clone && !unshared,
            processor: state.processor().cloned(),
            memory: state.memory_bytes().clone(),
        }
    }

    pub(super) fn write(&self, to: &Path) -> io::Result<()> {
        write(to, self, &self.memory)
    }

    pub(super) fn read(path: &Path, spec: &VmSpec) -> Result<Self, String> {
        let (mut saved, memory): (Self, _) = read(path).map_err(|e| e.to_string())?;
        saved.memory = memory;
        if !saved.with_memory && !spec.memory.exists() {
            return Err(format!("its memory file {} is gone", spec.memory.display()));
        }
        match (saved.vcpus, saved.mem_mib) == (spec.vcpus, spec.mem_mib) {
            true => Ok(saved),
            false => Err("it is of a machine with other vCPUs or memory".into()),
        }
    }
}

/// A live machine, for a simulated host that outlives its process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedMachine {
    pub(super) identity: ProcessIdentity,
    pub(super) spec: VmSpec,
    pub(super) memory: RestoreMemory,
    pub(super) running: bool,
    pub(super) guest_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) processor: Option<Processor>,
}

impl SavedMachine {
    pub(super) fn write(state: &MachineState, to: &Path) -> io::Result<()> {
        let saved = Self {
            identity: state.identity.clone(),
            spec: state.spec.clone(),
            memory: state.memory,
            running: state.is_running(),
            guest_ms: state.guest_ms(),
            processor: state.processor().cloned(),
        };
        write(to, &saved, &state.memory_bytes())
    }

    pub(super) fn read(path: &Path) -> io::Result<(Self, Vec<u8>)> {
        read(path)
    }
}

/// Returns the path under which a file is written before it is complete.
pub(super) fn part_of(path: &Path) -> PathBuf {
    path.with_extension("part")
}

/// Writes a file under another name, then renames it.
fn write(to: &Path, head: &impl Serialize, memory: &[u8]) -> io::Result<()> {
    let part = part_of(to);
    let mut bytes = serde_json::to_vec(head).map_err(io::Error::other)?;
    bytes.push(b'\n');
    bytes.extend_from_slice(memory);
    std::fs::write(&part, bytes)
        .and_then(|()| std::fs::rename(&part, to))
        .inspect_err(|_| drop(std::fs::remove_file(&part)))
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<(T, Vec<u8>)> {
    let mut bytes = std::fs::read(path)?;
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let head = serde_json::from_slice(&bytes[..end]).map_err(io::Error::other)?;
    bytes.drain(..(end + 1).min(bytes.len()));
    Ok((head, bytes))
}
