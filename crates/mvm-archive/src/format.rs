//! Numbers of the tar format.

/// The size of a block in bytes; headers and data consist of whole blocks.
pub const BLOCK: usize = 512;
/// The most bytes that headers before an entry's own may have each (long names, PAX records).
pub const MOST_BESIDE: u64 = 4 << 20;
/// The most headers that may belong to one entry, its own included. An archive has three before an entry at most: a
/// long name, a long target and PAX records. Without a bound a stranger's copy would never end.
pub const MOST_HEADERS: usize = 16;
/// The most bytes that may follow the end of an archive: padding to the record size of tar(1), which `--blocking-factor`
/// sets.
pub const MOST_AFTER: u64 = 16 << 20;
/// How many extents a header holds, and how many each continuation block does.
pub const EXTENTS: (usize, usize) = (4, 21);
/// The most extents of one file. A file with more holes is archived with some of them as zeros.
pub const MOST_EXTENTS: usize = 8192;

/// Prefix of an extended attribute's record key; the attribute's name follows.
pub const XATTR: &[u8] = b"SCHILY.xattr.";

/// Returns how many bytes fill the last block of `length` bytes.
pub fn padding(length: u64) -> u64 {
    length.next_multiple_of(BLOCK as u64) - length
}
