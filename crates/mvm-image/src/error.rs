//! What can go wrong, in words that name the thing, the cause and the next step.

use mvm_model::Code;
use std::path::{Path, PathBuf};

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every way in which this crate fails. [`Error::code`] is stable and for programs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No `nix` program.
    #[error(
        "Nix is not installed ({tried:?} was not found): install it with `apt-get install nix-bin`, \
         or as https://nixos.org/download describes"
    )]
    NixMissing {
        /// The program that was looked for.
        tried: PathBuf,
    },
    /// Another program that is needed is not there.
    #[error("{tool} is not installed: install it with `apt-get install {package}`")]
    ToolMissing {
        /// The program.
        tool: String,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The flake is a path at which there is no flake.
    #[error("there is no flake at {}: {why}; name a directory that has a flake.nix", path.display())]
    FlakeMissing {
        /// The path that was looked at.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The flake's repository is another user's, and git does not read it for us.
    #[error(
        "{} is a git repository of {owner}, which git refuses to read for {us}; name the flake as path:{}, or allow it: git config --system --add safe.directory {}",
        path.display(), path.display(), path.display()
    )]
    FlakeForeign {
        /// The repository.
        path: PathBuf,
        /// Whose it is.
        owner: String,
        /// Who we are.
        us: String,
    },
    /// The flake has no such package.
    #[error(
        "flake {flake} has no package `{profile}`; it has: {}",
        if available.is_empty() { "none".to_owned() } else { available.join(", ") }
    )]
    ProfileMissing {
        /// The flake.
        flake: String,
        /// The attribute asked for.
        profile: String,
        /// The attributes of `packages.x86_64-linux` that there are.
        available: Vec<String>,
    },
    /// Nix could not build it, or fetch what it needs.
    #[error("nix could not build {flake}#{profile}:\n{output}")]
    FlakeBuildFailed {
        /// The flake.
        flake: String,
        /// The attribute.
        profile: String,
        /// Nix's own words: what it called the error first, then the lines before it.
        output: String,
    },
    /// Nix cannot make sense of the flake.
    #[error("nix cannot make sense of {flake}#{profile}:\n{output}")]
    FlakeEvaluationFailed {
        /// The flake.
        flake: String,
        /// The attribute.
        profile: String,
        /// Nix's own words: what it called the error first, then the lines before it.
        output: String,
    },
    /// Nix cannot make the sandbox that builders are to be in.
    #[error(
        "nix cannot build {flake}#{profile} in a sandbox here, and nothing is built outside of one: \
         allow namespaces (sysctl user.max_user_namespaces and user.max_mnt_namespaces over 0, \
         kernel.unprivileged_userns_clone=1; in a container: CAP_SYS_ADMIN), or build on another \
         node:\n{output}"
    )]
    SandboxUnavailable {
        /// The flake.
        flake: String,
        /// The attribute.
        profile: String,
        /// Nix's own words.
        output: String,
    },
    /// A derivation wants to be built outside of the sandbox.
    #[error(
        "{flake}#{profile} wants to be built outside of the sandbox (__noChroot), which this node \
         does not allow: where all its flakes are trusted, start the agent with \
         `--nix-sandbox relaxed`:\n{output}"
    )]
    SandboxRefused {
        /// The flake.
        flake: String,
        /// The attribute.
        profile: String,
        /// Nix's own words.
        output: String,
    },
    /// Another kernel has the name.
    #[error("kernel {digest} is called {name:?} already, and is another one")]
    KernelExists {
        /// The name.
        name: String,
        /// The kernel that has it.
        digest: String,
    },
    /// The request itself makes no sense.
    #[error("{what} is not valid: {why}")]
    Invalid {
        /// The thing asked for.
        what: String,
        /// Why it cannot be, and what would do.
        why: String,
    },
    /// The disk is full, or would be.
    #[error(
        "no space left at {}: {what} needs {} MiB and {} MiB are free; free some (`mvm pool \
         revisions`, garbage collection) or put the state root on a larger disk",
        path.display(), needed_bytes.div_ceil(1 << 20), free_bytes >> 20
    )]
    NoSpace {
        /// What was being written.
        what: String,
        /// Where.
        path: PathBuf,
        /// How much was needed, as far as known (bytes).
        needed_bytes: u64,
        /// How much was free (bytes).
        free_bytes: u64,
    },
    /// The file is no kernel.
    #[error(
        "{} is not a kernel: {looks_like}; give an x86-64 bzImage (vmlinuz) or an uncompressed \
         ELF vmlinux",
        path.display()
    )]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        looks_like: String,
    },
    /// A kernel, compressed in a way that cannot be undone here.
    #[error("{}: the kernel inside is compressed with {compression}, which {why}", path.display())]
    KernelCompression {
        /// The file.
        path: PathBuf,
        /// The method's name.
        compression: String,
        /// What stands in the way, and what to do.
        why: String,
    },
    /// A kernel that cannot boot an image as it was given.
    #[error("kernel {name} cannot boot an image: {why}")]
    KernelUnfit {
        /// Its name or version.
        name: String,
        /// What it lacks, and what to do.
        why: String,
    },
    /// No kernel by that name, or none at all.
    #[error(
        "{}: get one with `mvm kernel fetch`, or bring one with `mvm kernel import FILE`",
        match wanted {
            Some(w) => format!("there is no kernel `{w}`"),
            None => "there is no kernel yet, and the flake has no `kernel` package".to_owned(),
        }
    )]
    KernelMissing {
        /// What was asked for; `None`: the default.
        wanted: Option<String>,
    },
    /// A digest prefix or name that fits more than one thing.
    #[error("`{wanted}` fits {count} {kind}s; give more digits")]
    Ambiguous {
        /// What was asked for.
        wanted: String,
        /// How many fit.
        count: usize,
        /// `revision` or `kernel`.
        kind: &'static str,
    },
    /// No such revision.
    #[error("there is no image revision `{digest}`: build it with `mvm pool build`")]
    RevisionMissing {
        /// What was asked for.
        digest: String,
    },
    /// A revision or kernel in the store is not whole.
    #[error("{} is damaged: {why}; remove that directory and build or fetch it again", path.display())]
    Damaged {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The distribution's kernel could not be fetched.
    #[error("could not fetch the distribution's cloud kernel ({step}): {why}")]
    FetchFailed {
        /// What was being done.
        step: String,
        /// The tool's own words.
        why: String,
    },
    /// A program ended badly.
    #[error("{tool} failed ({status}): {output}")]
    ToolFailed {
        /// The program.
        tool: String,
        /// How it ended.
        status: String,
        /// The end of its output.
        output: String,
    },
    /// An operating system call failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// What another node offers is not the image that is wanted.
    #[error("image {digest} is not taken from that node: {why}")]
    ImageRefused {
        /// What was wanted.
        digest: String,
        /// What is wrong with the offer.
        why: String,
    },
    /// A file of an image came with other bytes than its digest says.
    #[error("{part} of image {digest} did not arrive as it was sent; it is thrown away, try again")]
    ImageCorrupt {
        /// The image.
        digest: String,
        /// The file.
        part: String,
    },
    /// Somebody is at it already.
    #[error("image {digest} is on its way here already; wait for that")]
    Busy {
        /// The image.
        digest: String,
    },
    /// The work was given up because its task was cancelled or panicked.
    #[error("the build was interrupted: {0}")]
    Interrupted(String),
}

impl Error {
    /// A stable word for programs, such as `nix_missing`.
    pub fn code(&self) -> Code {
        match self {
            Self::NixMissing { .. } => Code::NixMissing,
            Self::ToolMissing { .. } => Code::ToolMissing,
            Self::FlakeMissing { .. } => Code::FlakeMissing,
            Self::FlakeForeign { .. } => Code::FlakeForeign,
            Self::ProfileMissing { .. } => Code::ProfileMissing,
            Self::FlakeBuildFailed { .. } => Code::FlakeBuildFailed,
            Self::FlakeEvaluationFailed { .. } => Code::FlakeEvaluationFailed,
            Self::SandboxUnavailable { .. } => Code::SandboxUnavailable,
            Self::SandboxRefused { .. } => Code::SandboxRefused,
            Self::KernelExists { .. } => Code::Exists,
            Self::Invalid { .. } => Code::Invalid,
            Self::NoSpace { .. } => Code::NoSpace,
            Self::NotAKernel { .. } => Code::NotAKernel,
            Self::KernelCompression { .. } => Code::KernelCompression,
            Self::KernelUnfit { .. } => Code::KernelUnfit,
            Self::KernelMissing { .. } => Code::KernelMissing,
            Self::Ambiguous { .. } => Code::Ambiguous,
            Self::RevisionMissing { .. } => Code::RevisionMissing,
            Self::Damaged { .. } => Code::ImageDamaged,
            Self::FetchFailed { .. } => Code::KernelFetchFailed,
            Self::ToolFailed { .. } => Code::ToolFailed,
            Self::Io { .. } => Code::Io,
            Self::ImageRefused { .. } => Code::ImageRefused,
            Self::ImageCorrupt { .. } => Code::ImageCorrupt,
            Self::Busy { .. } => Code::Busy,
            Self::Interrupted(_) => Code::Interrupted,
        }
    }

    /// An I/O error with what was tried on what; a full disk becomes [`Error::NoSpace`].
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        if matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) {
            return Self::no_space(action, path, 0);
        }
        Self::Io { action, path: path.to_owned(), source }
    }

    /// [`Error::NoSpace`] for writing `what` at `path`, with the free space looked up.
    pub(crate) fn no_space(what: &str, path: &Path, needed_bytes: u64) -> Self {
        let free_bytes = free_bytes(path).unwrap_or(0);
        // When a write failed for want of room, at least one byte more than is free was needed.
        let needed_bytes = needed_bytes.max(free_bytes + 1);
        Self::NoSpace { what: what.to_owned(), path: path.to_owned(), needed_bytes, free_bytes }
    }
}

/// Bytes free at `path`, or at its nearest ancestor that exists (statvfs(3)).
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    let there = path.ancestors().find(|p| p.exists())?;
    let st = rustix::fs::statvfs(there).ok()?;
    Some(st.f_bavail.saturating_mul(st.f_frsize))
}

/// Shorthand: `result.at("read", path)?`.
pub(crate) trait At<T> {
    /// Names what was tried, and on what.
    fn at(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|e| Error::io(action, path, e.into()))
    }
}
