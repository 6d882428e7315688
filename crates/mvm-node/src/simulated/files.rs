//! The files of a simulated guest, which are in the guest's memory.

use super::inside::refusal;
use super::program::Program;
use mvm_archive::{Entry, Kind, Notes, Reader, Time, Writer};
use mvm_guest::channel::Stream;
use mvm_guest::frame::{self, Frame};
use mvm_guest::serve::reply;
use mvm_guest::{Error, Result};
use mvm_hypervisor::sim::GuestMachine;
use mvm_model::Code;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The maximum size of all files of one guest, and of an archive for it, in bytes.
const MOST_BYTES: usize = 4 << 20;
/// The size of one piece of an archive, in bytes.
const PIECE: usize = 64 * 1024;

/// The content of a guest's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    pub files: Files,
    /// The kept programs, by their keys.
    #[serde(default)]
    pub programs: BTreeMap<String, Program>,
    /// Identifies the guest's life: drawn at the first request, and again after each boot.
    #[serde(default)]
    pub life: String,
}

/// All files and folders, by absolute path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files(BTreeMap<String, File>);

/// A file, or a folder, which has no bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct File {
    mode: u32,
    bytes: Option<Vec<u8>>,
}

impl Files {
    /// Makes or replaces a file.
    pub fn write(&mut self, path: &str, mode: u32, bytes: Vec<u8>) {
        self.0.insert(path.to_owned(), File { mode, bytes: Some(bytes) });
    }

    /// Returns the content of a file; `None` where it does not exist or is a folder.
    pub fn read(&self, path: &str) -> Option<Vec<u8>> {
        self.0.get(path)?.bytes.clone()
    }

    fn bytes(&self) -> usize {
        self.0.values().filter_map(|file| file.bytes.as_ref()).map(Vec::len).sum()
    }

    /// Unpacks an archive below the folder `path`.
    fn unpack(&mut self, path: &str, archive: &[u8]) -> std::io::Result<()> {
        self.0.insert(absolute("/", path), File { mode: 0o755, bytes: None });
        let mut reader = Reader::new(archive);
        while let Some(entry) = reader.entry()? {
            let name = absolute(path, &String::from_utf8_lossy(&entry.name));
            let bytes = match &entry.kind {
                Kind::Folder => None,
                // A file without holes is no longer than the archive.
                kind if *kind == Kind::file(length(kind)) => Some(bytes(&mut reader)?),
                other => {
                    let what = format!("{name} is {other:?}: not simulated");
                    return Err(std::io::Error::new(std::io::ErrorKind::Unsupported, what));
                }
            };
            self.0.insert(name, File { mode: entry.mode, bytes });
        }
        Ok(())
    }

    /// Returns an archive of a file, or of a folder with its content; `None` where `path` does not
    /// exist.
    fn pack(&self, path: &str) -> std::io::Result<Option<Vec<u8>>> {
        let path = absolute("/", path);
        let below = format!("{}/", path.trim_end_matches('/'));
        let parent = path.rfind('/').map_or(0, |slash| slash + 1);
        let mut archive = Writer::new(Vec::new());
        let mut found = false;
        for (name, file) in self.0.iter().filter(|(n, _)| **n == path || n.starts_with(&below)) {
            found = true;
            let bytes = file.bytes.as_deref().unwrap_or_default();
            archive.entry(&Entry {
                name: name.as_bytes()[parent..].to_vec(),
                kind: match file.bytes {
                    Some(_) => Kind::file(bytes.len() as u64),
                    None => Kind::Folder,
                },
                mode: file.mode,
                modified: Time::default(),
                xattrs: Vec::new(),
            })?;
            archive.data(bytes)?;
        }
        archive.finish().map(|bytes| found.then_some(bytes))
    }
}

fn length(kind: &Kind) -> u64 {
    match kind {
        Kind::File { size, .. } => *size,
        _ => 0,
    }
}

fn bytes(reader: &mut Reader<&[u8]>) -> std::io::Result<Vec<u8>> {
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match reader.data(&mut piece)? {
            0 => return Ok(bytes),
            count => bytes.extend_from_slice(&piece[..count]),
        }
    }
}

/// Returns the absolute path of `path`, which is relative to `folder`, without `.`, `..` and
/// doubled slashes.
pub fn absolute(folder: &str, path: &str) -> String {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{folder}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Returns the files of a machine.
pub fn files_of(machine: &GuestMachine) -> Files {
    machine.with_memory(|memory| (read(memory).files, false))
}

/// Returns the content of the memory, which is empty after a boot.
fn read(memory: &[u8]) -> Memory {
    serde_json::from_slice(memory).unwrap_or_default()
}

/// Changes the files of a machine. Refused if they would be too large.
pub fn change<T>(machine: &GuestMachine, change: impl FnOnce(&mut Files) -> T) -> Result<T> {
    change_all(machine, |memory| change(&mut memory.files))
}

/// Changes the memory of a machine. Refused if its files would be too large.
pub fn change_all<T>(machine: &GuestMachine, change: impl FnOnce(&mut Memory) -> T) -> Result<T> {
    machine.with_memory(|memory| {
        let before = read(memory);
        let mut after = before.clone();
        let value = change(&mut after);
        if after.files.bytes() > MOST_BYTES {
            let message = format!("a simulated guest holds {MOST_BYTES} bytes of files at most");
            return (Err(refusal(Code::NoSpace, message)), false);
        }
        let changed = after != before;
        if changed {
            // Plain maps of strings and numbers, which can always be serialised.
            *memory = serde_json::to_vec(&after).unwrap_or_default();
        }
        (Ok(value), changed)
    })
}

/// Receives and unpacks an archive.
pub async fn put(
    machine: &GuestMachine,
    stream: &mut Stream,
    path: &str,
    notes: bool,
) -> Result<()> {
    reply(stream, &()).await?;
    let mut archive = Vec::new();
    loop {
        match frame::read(stream).await? {
            // The rest of an archive that is too long is read and dropped.
            Some(Frame::Data(bytes)) if archive.len() <= MOST_BYTES => archive.extend(bytes),
            Some(Frame::Data(_)) => {}
            Some(Frame::End) => break,
            _ => return Err(Error::Broken("the archive ended too early".to_owned())),
        }
    }
    let unpacked = change(machine, |files| files.unpack(path, &archive))?;
    unpacked.map_err(|cause| refusal(Code::GuestIo, format!("unpack to {path}: {cause}")))?;
    match notes {
        true => reply(stream, &Notes::default()).await,
        false => reply(stream, &()).await,
    }
}

/// Sends an archive.
pub async fn get(
    machine: &GuestMachine,
    stream: &mut Stream,
    path: &str,
    notes: bool,
) -> Result<()> {
    let packed = files_of(machine).pack(path);
    let packed = packed.map_err(|cause| refusal(Code::GuestIo, format!("read {path}: {cause}")))?;
    let archive =
        packed.ok_or_else(|| refusal(Code::NotFound, format!("read {path}: not there")))?;
    reply(stream, &()).await?;
    for piece in archive.chunks(PIECE) {
        frame::write(stream, &Frame::Data(piece.to_vec())).await?;
    }
    if notes {
        reply(stream, &Notes::default()).await?;
    }
    frame::write(stream, &Frame::End).await
}
