//! Extended attributes (xattr(7)) that belong to a file rather than to its machine.

use crate::Xattr;
use crate::format::MOST_BESIDE;
use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// The longest list of names and the longest value on Linux, in bytes.
const LONGEST: usize = 64 * 1024;

/// A program's capabilities, which can give it what root may do.
const CAPABILITY: &[u8] = b"security.capability";

/// Prefix of access lists (acl(5)), which say who else may read and write.
const ACCESS_LIST: &[u8] = b"system.posix_acl_";

/// Returns whether an attribute is copied. Labels of the machine's security module, and what a file
/// system keeps for itself (`trusted.`), are not.
fn goes_along(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name.starts_with(ACCESS_LIST) || name == CAPABILITY
}

/// Returns whether an attribute gives rights that a stranger's file must not have.
pub fn is_privilege(name: &[u8]) -> bool {
    name == CAPABILITY || name.starts_with(ACCESS_LIST)
}

/// Reads the attributes to copy. Error: `TOOBIG` if they are too many for an archive.
pub fn read(file: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> Result<Vec<Xattr>, Errno> {
    buffer.resize(LONGEST, 0);
    let names = match flistxattr(file, &mut buffer[..]) {
        Ok(0) => return Ok(Vec::new()),
        Ok(count) => buffer[..count].to_vec(),
        // The file system has no extended attributes.
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    let mut room = MOST_BESIDE as usize / 2;
    for name in names.split(|byte| *byte == 0).filter(|name| goes_along(name)) {
        let value = match fgetxattr(file, name, &mut buffer[..]) {
            Ok(count) => buffer[..count].to_vec(),
            // The attribute was removed meanwhile.
            Err(Errno::NODATA) => continue,
            Err(error) => return Err(error),
        };
        room = room.checked_sub(name.len() + value.len()).ok_or(Errno::TOOBIG)?;
        found.push(Xattr { name: name.to_vec(), value });
    }
    Ok(found)
}

/// Sets an attribute.
pub fn set(file: BorrowedFd<'_>, xattr: &Xattr) -> Result<(), Errno> {
    fsetxattr(file, &xattr.name[..], &xattr.value, XattrFlags::empty())
}
