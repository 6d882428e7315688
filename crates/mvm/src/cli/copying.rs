//! Options of all commands that copy files out of a guest.

use clap::{Args, ValueEnum};
use mvm_archive::Rules;

/// How files of a guest are taken.
#[derive(Clone, Copy, Debug, Args)]
pub struct Copying {
    /// How to treat a guest's links that lead out of the target folder
    #[arg(long, value_enum, value_name = "HOW", default_value = "skip")]
    links: Links,
    /// Take at most this many files, folders and links from a guest
    #[arg(long, value_name = "COUNT", default_value_t = Rules::default().most_entries)]
    max_files: u64,
    /// Take at most this many GiB from a guest
    #[arg(long, value_name = "GIB", default_value_t = Rules::default().most_bytes >> 30)]
    max_size: u64,
}

/// What becomes of links that lead out.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Links {
    /// Make symbolic links as they are, wherever they lead
    Keep,
    /// Leave them out, with a warning
    Skip,
    /// End the copy with an error at the first one
    Refuse,
}

impl Copying {
    /// Returns the options in the unpacker's form.
    pub fn rules(&self) -> Rules {
        let links = match self.links {
            Links::Keep => mvm_archive::Links::Keep,
            Links::Skip => mvm_archive::Links::Skip,
            Links::Refuse => mvm_archive::Links::Refuse,
        };
        let most_bytes = self.max_size.saturating_mul(1 << 30);
        Rules { links, most_entries: self.max_files, most_bytes }
    }
}
