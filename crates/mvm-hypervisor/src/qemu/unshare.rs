//! Writes the memory of a clone to a file of its own.
//!
//! A clone maps its template's file privately: the pages that it has written are anonymous memory
//! of its process, and all others are the file's. The kernel says which is which (pagemap: Linux'
//! Documentation/admin-guide/mm/pagemap.rst), so the clone's file is a copy of the template's with
//! these pages written over it. The cost depends on what the guest has written, not on how much
//! memory it may have.

use super::run_dir;
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

const PAGE: u64 = 4096;
/// The largest number of bytes to copy at once.
const PIECE: usize = 1 << 20;
/// The page is in memory (bit 63 of a pagemap entry).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// The page belongs to a file, or is shared.
const OF_FILE: u64 = 1 << 61;

/// A part of a process's address space that maps part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    begin: u64,
    end: u64,
    /// Offset in the file at which the mapping begins, in bytes.
    offset: u64,
}

/// Writes the memory of the stopped process `pid`, which maps `template` privately, to the new file
/// `own`. After an error the file does not exist; after success it is not synced yet.
pub(super) fn copy_memory(pid: u32, template: &Path, own: &Path) -> io::Result<()> {
    run_dir::remove(own)?;
    let written = write_memory(pid, template, own);
    if written.is_err() {
        run_dir::remove(own)?;
    }
    written
}

fn write_memory(pid: u32, template: &Path, own: &Path) -> io::Result<()> {
    let from = File::open(template)?;
    let mappings = mappings(pid, template, from.metadata()?.ino())?;
    let length = from.metadata()?.len();
    let covered: u64 = mappings.iter().map(|mapping| mapping.end - mapping.begin).sum();
    if covered != length {
        return Err(io::Error::other(format!("{covered} of its {length} bytes are mapped")));
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let to = options.open(own)?;
    copy_sparse(&from, &to, length)?;
    let (memory, pages) = (proc_file(pid, "mem")?, proc_file(pid, "pagemap")?);
    for mapping in mappings {
        copy_own_pages(&memory, &pages, mapping, &to)?;
    }
    Ok(())
}

fn proc_file(pid: u32, name: &str) -> io::Result<File> {
    File::open(format!("/proc/{pid}/{name}"))
}

/// Returns where the process maps this file privately, from /proc/PID/maps (proc(5)).
fn mappings(pid: u32, file: &Path, inode: u64) -> io::Result<Vec<Mapping>> {
    let (path, mut text) = (file.canonicalize()?, String::new());
    proc_file(pid, "maps")?.read_to_string(&mut text)?;
    Ok(text.lines().filter_map(|line| mapping(line, &path, inode)).collect())
}

/// Reads a line of /proc/PID/maps; `None` if it maps another file. The device is not compared:
/// btrfs reports one there and another in stat(2).
fn mapping(line: &str, path: &Path, inode: u64) -> Option<Mapping> {
    let mut words = line.split_ascii_whitespace();
    let (range, permissions, offset) = (words.next()?, words.next()?, words.next()?);
    let same = words.nth(1)?.parse::<u64>() == Ok(inode)
        && Path::new(&line[line.find('/')?..]) == path
        && permissions.ends_with('p');
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let (begin, end) = range.split_once('-')?;
    let found = Mapping { begin: hex(begin)?, end: hex(end)?, offset: hex(offset)? };
    (same && found.begin < found.end).then_some(found)
}

/// Copies a file without its holes; as a whole if the file system can share its blocks.
fn copy_sparse(from: &File, to: &File, length: u64) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    to.set_len(length)?;
    let mut at = 0;
    while at < length {
        use rustix::fs::{SeekFrom, seek};
        at = match seek(from, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            at => at?,
        };
        let end = seek(from, SeekFrom::Hole(at))?;
        let mut source = from;
        source.seek(io::SeekFrom::Start(at))?;
        let mut target = to;
        target.seek(io::SeekFrom::Start(at))?;
        // On one file system this becomes copy_file_range(2).
        io::copy(&mut source.take(end - at), &mut target)?;
        at = end;
    }
    Ok(())
}

/// Writes the process's own pages over the copy of the template's.
fn copy_own_pages(memory: &File, pages: &File, mapping: Mapping, to: &File) -> io::Result<()> {
    let mut pages = io::BufReader::with_capacity(PIECE, pages);
    pages.seek(SeekFrom::Start(mapping.begin / PAGE * 8))?;
    let (mut entry, mut piece) = ([0; 8], Vec::new());
    let mut run = mapping.begin..mapping.begin;
    for address in (mapping.begin..mapping.end).step_by(PAGE as usize) {
        pages.read_exact(&mut entry)?;
        let full = (run.end - run.start) as usize >= PIECE;
        if !is_own(u64::from_ne_bytes(entry)) || full {
            copy_run(memory, &mut piece, &run, mapping, to)?;
            run = address..address;
        }
        if is_own(u64::from_ne_bytes(entry)) {
            run.end = address + PAGE;
        } else {
            run = address + PAGE..address + PAGE;
        }
    }
    copy_run(memory, &mut piece, &run, mapping, to)
}

fn copy_run(
    memory: &File,
    piece: &mut Vec<u8>,
    run: &std::ops::Range<u64>,
    mapping: Mapping,
    to: &File,
) -> io::Result<()> {
    piece.resize((run.end - run.start) as usize, 0);
    memory.read_exact_at(piece, run.start)?;
    to.write_all_at(piece, run.start - mapping.begin + mapping.offset)
}

/// Returns whether a page is the process's own: anonymous, in memory or swapped out.
fn is_own(entry: u64) -> bool {
    entry & SWAPPED != 0 || entry & PRESENT != 0 && entry & OF_FILE == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_private_mappings_of_the_file_count() {
        let line = "7fc0-7fd0 rw-p 00002000 fe:00 854008   /var/lib/a b/memory";
        let path = Path::new("/var/lib/a b/memory");
        let found = mapping(line, path, 854_008);
        assert_eq!(found, Some(Mapping { begin: 0x7fc0, end: 0x7fd0, offset: 0x2000 }));
        assert_eq!(mapping(line, path, 854_009), None);
        assert_eq!(mapping(line, Path::new("/var/lib/b/memory"), 854_008), None);
        assert_eq!(mapping(&line.replace("rw-p", "rw-s"), path, 854_008), None);
    }

    proptest! {
        #[test]
        fn any_line_is_read_without_panic(
            line in "[0-9a-f]{0,20}[-: rwxp]{0,4}.{0,40}", inode: u64,
        ) {
            let _ = mapping(&line, Path::new("/memory"), inode);
        }

        /// The test's own process stands in for QEMU: what it writes to its private mapping is in
        /// the copy.
        #[test]
        fn the_copy_is_what_the_process_sees(
            data in proptest::collection::btree_map(0u64..600, 1u8.., 0..20),
            writes in proptest::collection::btree_map(0u64..600, any::<u8>(), 0..40),
        ) {
            const PAGES: u64 = 600;
            let dir = tempfile::tempdir().unwrap();
            let (template, own) = (dir.path().join("template"), dir.path().join("own"));
            let file = File::create(&template).unwrap();
            file.set_len(PAGES * PAGE).unwrap();
            for (page, byte) in &data {
                file.write_all_at(&[*byte; PAGE as usize], page * PAGE).unwrap();
            }
            let mut seen = Private::map(&template, (PAGES * PAGE) as usize);
            for (page, byte) in &writes {
                seen.bytes()[(page * PAGE) as usize + 7] = *byte;
            }
            copy_memory(std::process::id(), &template, &own).unwrap();
            prop_assert!(std::fs::read(&own).unwrap() == seen.bytes());
            let allocated = std::fs::metadata(&own).unwrap().blocks() * 512 / PAGE;
            let most = (data.len() + writes.len()) as u64;
            prop_assert!(allocated <= most + 1, "{allocated} pages of {most}");
            // A file that nobody maps gives an error, and no copy is left.
            std::fs::rename(&template, dir.path().join("gone")).unwrap();
            std::fs::write(&template, b"another").unwrap();
            prop_assert!(copy_memory(std::process::id(), &template, &own).is_err());
            prop_assert!(!own.exists());
        }
    }

    /// A private mapping of a whole file.
    struct Private(*mut u8, usize);

    impl Private {
        fn map(path: &Path, length: usize) -> Private {
            use rustix::mm::{MapFlags, ProtFlags, mmap};
            let file = File::open(path).unwrap();
            let access = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new mapping, which nothing else knows of; the file keeps its length.
            let at =
                unsafe { mmap(std::ptr::null_mut(), length, access, MapFlags::PRIVATE, file, 0) };
            Private(at.unwrap().cast(), length)
        }

        fn bytes(&mut self) -> &mut [u8] {
            // SAFETY: mapped with this length until `self` is dropped.
            unsafe { std::slice::from_raw_parts_mut(self.0, self.1) }
        }
    }

    impl Drop for Private {
        fn drop(&mut self) {
            // SAFETY: what `map` has mapped, and nothing borrows any more.
            let _ = unsafe { rustix::mm::munmap(self.0.cast(), self.1) };
        }
    }
}
