//! Finds where a file has data, according to the kernel (lseek(2), SEEK_DATA).

use crate::Extent;
use crate::format::{BLOCK, MOST_EXTENTS};
use rustix::fs::{SeekFrom, Stat, seek};
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// Returns the parts of a file that have data, in whole blocks. On a file system without holes, and
/// for a file that has none, that is the whole file.
pub fn extents(file: BorrowedFd<'_>, stat: &Stat) -> Vec<Extent> {
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let whole = Extent { offset: 0, length: size };
    if size == 0 {
        return Vec::new();
    }
    // An inline or compressed file has few blocks and no holes: asking the kernel is right for
    // those, too.
    if u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512) >= size {
        return vec![whole];
    }
    find(file, size).unwrap_or_else(|| vec![whole])
}

fn find(file: BorrowedFd<'_>, size: u64) -> Option<Vec<Extent>> {
    let mut found: Vec<Extent> = Vec::new();
    let mut at = 0;
    while at < size && found.len() < MOST_EXTENTS {
        let begin = match seek(file, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            // There is no data up to the end.
            Err(Errno::NXIO) => break,
            Err(_) => return None,
        };
        if begin >= size {
            break;
        }
        let end = seek(file, SeekFrom::Hole(begin)).ok()?;
        // The file may shrink and change meanwhile: the result must be in order and within the
        // size.
        let last = found.last().map_or(0, |extent| extent.offset + extent.length);
        let begin = (begin - begin % BLOCK as u64).max(last);
        let mut end = end.max(begin + 1).next_multiple_of(BLOCK as u64).min(size);
        if found.len() + 1 == MOST_EXTENTS {
            end = size;
        }
        match found.last_mut() {
            Some(before) if before.offset + before.length == begin => {
                before.length = end - before.offset
            }
            _ => found.push(Extent { offset: begin, length: end - begin }),
        }
        at = end;
    }
    Some(found)
}
