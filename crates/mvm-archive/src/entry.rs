//! The entries of an archive.

/// One file, folder or link of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path in the archive, as bytes: components with `/` between them.
    pub name: Vec<u8>,
    /// Whether it is a file, a folder or a link, and what only that kind has.
    pub kind: Kind,
    /// Permissions: the lower twelve bits of `st_mode` (inode(7)).
    pub mode: u32,
    /// Time of the last write.
    pub modified: Time,
    /// Extended attributes (xattr(7)).
    pub xattrs: Vec<Xattr>,
}

/// The kind of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File {
        /// Length in bytes, including holes.
        size: u64,
        /// The parts that have data, in order; the rest are holes. The archive holds the bytes of
        /// these parts.
        data: Vec<Extent>,
    },
    /// A folder.
    Folder,
    /// A symbolic link to this target, byte for byte.
    Symlink(Vec<u8>),
    /// Another name of the file that an earlier entry has under this name.
    HardLink(Vec<u8>),
    /// Something that cannot be copied, in words: `a FIFO`, `a device`.
    Other(&'static str),
}

impl Kind {
    /// Returns the kind of a file without holes.
    pub fn file(size: u64) -> Kind {
        let whole = Extent { offset: 0, length: size };
        Kind::File { size, data: if size == 0 { Vec::new() } else { vec![whole] } }
    }
}

/// A part of a file that has data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the file at which it begins, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// A time since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Whole seconds, rounded down: negative before the epoch.
    pub seconds: i64,
    /// The rest, in nanoseconds: 0 to 999,999,999.
    pub nanos: u32,
}

/// An extended attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xattr {
    /// The attribute's name, such as `user.mime_type`.
    pub name: Vec<u8>,
    /// The attribute's value.
    pub value: Vec<u8>,
}
