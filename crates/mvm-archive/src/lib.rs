//! Archives: how files go into a guest and come back, as tar.
//!
//! What lives here: the one packer ([`Packer`]) and the one unpacker ([`unpack()`]) of command line,
//! agent, guest and simulation, and below them the format itself ([`Writer`], [`Reader`]). A packer
//! writes only complete entries, whatever happens to the folder meanwhile; an unpacker writes only
//! below its target, whatever the archive says. What neither can preserve is listed in [`Notes`].
//!
//! What never may: async, the guest's protocol, HTTP. The crate is part of the guest's binary and
//! must stay small.

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

/// Makes an I/O error that says what was being done.
fn failed(doing: &str, what: &str, cause: impl Into<io::Error>) -> io::Error {
    let cause = cause.into();
    io::Error::new(cause.kind(), format!("cannot {doing} {what}: {cause}"))
}

/// Returns the name under which a file or folder is archived: the last component of its path, or
/// `root` if there is none.
pub fn name_of(source: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    source.file_name().map_or_else(|| b"root".to_vec(), |name| name.as_bytes().to_vec())
}
