//! What an archive consists of.

/// One file, folder or link of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its path in the archive, as bytes: components with `/` between them.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions: the lower twelve bits of `st_mode` (inode(7)).
    pub mode: u32,
    /// When it was last written.
    pub modified: Time,
    /// Extended attributes (xattr(7)).
    pub xattrs: Vec<Xattr>,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File {
        /// Its length in bytes, holes counted.
        size: u64,
        /// Where it has data, in order; the rest are holes. The archive holds the bytes of these.
        data: Vec<Extent>,
    },
    /// A folder.
    Folder,
    /// A symbolic link to this target, byte for byte.
    Symlink(Vec<u8>),
    /// Another name of the file that an earlier entry has this name for.
    HardLink(Vec<u8>),
    /// What cannot be copied, in words: `a FIFO`, `a device`.
    Other(&'static str),
}

impl Kind {
    /// A file without holes.
    pub fn file(size: u64) -> Kind {
        let whole = Extent { offset: 0, length: size };
        Kind::File { size, data: if size == 0 { Vec::new() } else { vec![whole] } }
    }
}

/// A part of a file that has data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
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
    /// `user.mime_type` and the like.
    pub name: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
}
