//! Numbers of the format.

/// Headers and data come in blocks of so many bytes.
pub const BLOCK: usize = 512;
/// The most that a header may say beside itself (long names, PAX records), in bytes.
pub const MOST_BESIDE: u64 = 4 << 20;
/// How many extents a header holds, and a block that goes on with it.
pub const EXTENTS: (usize, usize) = (4, 21);
/// The most extents of one file. A file with more holes is archived with some of them as zeros.
pub const MOST_EXTENTS: usize = 8192;

/// The key of an extended attribute's record goes on with its name.
pub const XATTR: &[u8] = b"SCHILY.xattr.";

/// How many bytes fill the last block of `length` bytes.
pub fn padding(length: u64) -> u64 {
    length.next_multiple_of(BLOCK as u64) - length
}
