//! The errors of this crate, in messages that name the thing, the cause and the next step.

use mvm_model::Code;
use std::path::{Path, PathBuf};

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed call of this crate. [`Error::code`] is stable and for programs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The `nix` program was not found.
    #[error(
        "Nix is not installed ({tried:?} was not found): install it with `apt-get install nix-bin`, \
         or as https://nixos.org/download describes"
    )]
    NixMissing {
        /// The program that was looked for, by name or path.
        tried: PathBuf,
    },
    /// Another program that is needed was not found.
    #[error("{tool} is not installed: install it with `apt-get install {package}`")]
    ToolMissing {
        /// The program's name.
        tool: String,
        /// The Debian package that contains the program.
        package: &'static str,
    },
    /// The flake is a path without a flake.
    #[error("there is no flake at {}: {why}; name a directory that has a flake.nix", path.display())]
    FlakeMissing {
        /// The path that the request names.
        path: PathBuf,
        /// What is wrong with the path.
        why: String,
    },
    /// The flake's repository belongs to another user, so git refuses to read it.
    #[error(
        "{} is a git repository of {owner}, which git refuses to read for {us}; name the flake as path:{}, or allow it: git config --system --add safe.directory {}",
        path.display(), path.display(), path.display()
    )]
    FlakeForeign {
        /// Directory of the repository.
        path: PathBuf,
        /// The user that owns the repository.
        owner: String,
        /// The user that this process runs as.
        us: String,
    },
    /// The flake has no such package.
    #[error(
        "flake {flake} has no package `{profile}`; it has: {}",
        if available.is_empty() { "none".to_owned() } else { available.join(", ") }
    )]
    ProfileMissing {
        /// The flake, as the user wrote it.
        flake: String,
        /// The attribute that was requested.
        profile: String,
        /// The attributes of `packages.x86_64-linux` that exist.
        available: Vec<String>,
    },
    /// Nix could not build the package, or fetch what it needs.
    #[error("nix could not build {flake}#{profile}:\n{output}")]
    FlakeBuildFailed {
        /// The flake, as the user wrote it.
        flake: String,
        /// The attribute that was built.
        profile: String,
        /// Nix's own output: the lines from its `error:` on, then those before.
        output: String,
    },
    /// Nix cannot evaluate the flake.
    #[error("nix cannot make sense of {flake}#{profile}:\n{output}")]
    FlakeEvaluationFailed {
        /// The flake, as the user wrote it.
        flake: String,
        /// The attribute that was evaluated.
        profile: String,
        /// Nix's own output: the lines from its `error:` on, then those before.
        output: String,
    },
    /// Nix cannot set up the sandbox that builders must run in.
    #[error(
        "nix cannot build {flake}#{profile} in a sandbox here, and nothing is built outside of one: \
         allow namespaces (sysctl user.max_user_namespaces and user.max_mnt_namespaces over 0, \
         kernel.unprivileged_userns_clone=1; in a container: CAP_SYS_ADMIN), or build on another \
         node:\n{output}"
    )]
    SandboxUnavailable {
        /// The flake, as the user wrote it.
        flake: String,
        /// The attribute that was built.
        profile: String,
        /// Nix's own output.
        output: String,
    },
    /// A derivation asks to be built outside of the sandbox.
    #[error(
        "{flake}#{profile} wants to be built outside of the sandbox (__noChroot), which this node \
         does not allow: where all its flakes are trusted, start the agent with \
         `--nix-sandbox relaxed`:\n{output}"
    )]
    SandboxRefused {
        /// The flake, as the user wrote it.
        flake: String,
        /// The attribute that was built.
        profile: String,
        /// Nix's own output.
        output: String,
    },
    /// Another kernel has the name already.
    #[error("kernel {digest} is called {name:?} already, and is another one")]
    KernelExists {
        /// The name that is taken.
        name: String,
        /// The kernel that has it.
        digest: String,
    },
    /// The request itself cannot be carried out.
    #[error("{what} is not valid: {why}")]
    Invalid {
        /// The part of the request that is wrong.
        what: String,
        /// Why it is wrong, and what would be right.
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
        /// Path whose file system is full.
        path: PathBuf,
        /// Bytes that were needed, as far as known.
        needed_bytes: u64,
        /// Bytes that were free.
        free_bytes: u64,
    },
    /// The file is not a kernel.
    #[error(
        "{} is not a kernel: {looks_like}; give an x86-64 bzImage (vmlinuz) or an uncompressed \
         ELF vmlinux",
        path.display()
    )]
    NotAKernel {
        /// The file that was given.
        path: PathBuf,
        /// What the file looks like instead, for people.
        looks_like: String,
    },
    /// The file is a kernel whose compression cannot be undone here.
    #[error("{}: the kernel inside is compressed with {compression}, which {why}", path.display())]
    KernelCompression {
        /// The file that was given.
        path: PathBuf,
        /// Name of the compression method.
        compression: String,
        /// What prevents unpacking, and what to do.
        why: String,
    },
    /// The kernel cannot boot an image in the form in which it was given.
    #[error("kernel {name} cannot boot an image: {why}")]
    KernelUnfit {
        /// The kernel's name or version.
        name: String,
        /// What the kernel lacks, and what to do.
        why: String,
    },
    /// The store has no kernel by that name, or none at all.
    #[error(
        "{}: get one with `mvm kernel fetch`, or bring one with `mvm kernel import FILE`",
        match wanted {
            Some(w) => format!("there is no kernel `{w}`"),
            None => "there is no kernel yet, and the flake has no `kernel` package".to_owned(),
        }
    )]
    KernelMissing {
        /// The name or digest that was asked for; `None` means the default kernel.
        wanted: Option<String>,
    },
    /// A name or digest prefix matches several things.
    #[error("`{wanted}` fits {count} {kind}s; give more digits")]
    Ambiguous {
        /// The text that was asked for.
        wanted: String,
        /// The number of matches.
        count: usize,
        /// `revision` or `kernel`.
        kind: &'static str,
    },
    /// The store has no such revision.
    #[error("there is no image revision `{digest}`: build it with `mvm pool build`")]
    RevisionMissing {
        /// The digest or prefix that was asked for.
        digest: String,
    },
    /// A revision or kernel in the store is incomplete or unreadable.
    #[error("{} is damaged: {why}; remove that directory and build or fetch it again", path.display())]
    Damaged {
        /// The damaged directory or file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The distribution's kernel could not be fetched.
    #[error("could not fetch the distribution's cloud kernel ({step}): {why}")]
    FetchFailed {
        /// The step that failed.
        step: String,
        /// The tool's own output.
        why: String,
    },
    /// A program failed.
    #[error("{tool} failed ({status}): {output}")]
    ToolFailed {
        /// The program's name.
        tool: String,
        /// Its exit status, for people.
        status: String,
        /// The last lines of its output.
        output: String,
    },
    /// An operating system call failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory concerned.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// Another node offers something other than the wanted image.
    #[error("image {digest} is not taken from that node: {why}")]
    ImageRefused {
        /// The digest of the wanted image.
        digest: String,
        /// What is wrong with the offer.
        why: String,
    },
    /// A file of an image arrived with other bytes than its digest says.
    #[error("{part} of image {digest} did not arrive as it was sent; it is thrown away, try again")]
    ImageCorrupt {
        /// The image's digest.
        digest: String,
        /// The file's name.
        part: String,
    },
    /// Another task is receiving the same image.
    #[error("image {digest} is on its way here already; wait for that")]
    Busy {
        /// The image's digest.
        digest: String,
    },
    /// The work ended early because its task was cancelled or panicked.
    #[error("the build was interrupted: {0}")]
    Interrupted(String),
}

impl Error {
    /// Returns the stable code of the failure, such as `nix_missing`.
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

    /// Makes an I/O error that says what was tried on what; a full disk becomes [`Error::NoSpace`].
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        if matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) {
            return Self::no_space(action, path, 0);
        }
        Self::Io { action, path: path.to_owned(), source }
    }

    /// Makes [`Error::NoSpace`] for writing `what` at `path`, with the free bytes looked up.
    pub(crate) fn no_space(what: &str, path: &Path, needed_bytes: u64) -> Self {
        let free_bytes = free_bytes(path).unwrap_or(0);
        // A write that failed for want of space needed at least one byte more than is free.
        let needed_bytes = needed_bytes.max(free_bytes + 1);
        Self::NoSpace { what: what.to_owned(), path: path.to_owned(), needed_bytes, free_bytes }
    }
}

/// Returns the bytes free at `path`, or at its nearest ancestor that exists (statvfs(3)).
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    let there = path.ancestors().find(|p| p.exists())?;
    let st = rustix::fs::statvfs(there).ok()?;
    Some(st.f_bavail.saturating_mul(st.f_frsize))
}

/// Adds context to an I/O result: `result.at("read", path)?`.
pub(crate) trait At<T> {
    /// Names what was tried, and on which path.
    fn at(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|e| Error::io(action, path, e.into()))
    }
}
