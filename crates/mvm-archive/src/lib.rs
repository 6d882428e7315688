//! Archives: how files go into a guest and come back, as tar.
//!
//! Lives here: the one packer ([`Packer`]) and the one unpacker ([`unpack`]) of command line, agent,
//! guest and simulation, and below them the format itself ([`Writer`], [`Reader`]). A packer gives
//! whole entries only, whatever happens to the folder meanwhile; an unpacker writes below its target
//! only, whatever the archive says. What neither can keep is said in [`Notes`].
//!
//! Never here: async, the guest's protocol, HTTP. It is part of the guest's binary: small.

mod entry;
mod format;
mod notes;
mod pack;
mod pax;
mod read;
mod root;
mod rules;
mod sparse;
mod tally;
mod unpack;
mod write;
mod xattr;

#[cfg(test)]
mod tests;

pub use entry::{Entry, Extent, Kind, Time, Xattr};
pub use notes::{Notes, plain};
pub use pack::Packer;
pub use read::Reader;
pub use rules::{Links, Refusal, Rules, Trust};
pub use tally::Tally;
pub use unpack::{unpack, unpack_counted};
pub use write::Writer;

use std::io;
use std::path::Path;

/// An error of the system's with what was being done.
fn failed(doing: &str, what: &str, cause: impl Into<io::Error>) -> io::Error {
    let cause = cause.into();
    io::Error::new(cause.kind(), format!("cannot {doing} {what}: {cause}"))
}

/// The name under which a file or folder is archived: its path's last component.
pub fn name_of(source: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    source.file_name().map_or_else(|| b"root".to_vec(), |name| name.as_bytes().to_vec())
}
