//! The types that go into the store and come out of it.

use mvm_model::{Digest, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The files that make up an image, besides its manifest.
pub(crate) const PARTS: [&str; 3] = ["initrd", "root.erofs", "vmlinux"];

/// The static binary that is PID 1 in every guest, and its SHA-256 in hex.
#[derive(Clone)]
pub struct GuestBinary {
    /// The ELF file's bytes; placed in the initrd as `/init`.
    pub bytes: &'static [u8],
    /// SHA-256 of `bytes`, 64 hex digits.
    pub sha256: String,
}

impl GuestBinary {
    /// Hashes the bytes of the guest binary.
    pub fn new(bytes: &'static [u8]) -> Self {
        Self { bytes, sha256: mvm_model::hex::sha256(bytes) }
    }
}

impl std::fmt::Debug for GuestBinary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GuestBinary({} bytes, {})", self.bytes.len(), self.sha256)
    }
}

/// What to build an image from.
#[derive(Clone, Debug, Default)]
pub struct BuildRequest {
    /// The flake as the user wrote it; a path must be absolute already, since the agent's working
    /// directory is not the user's.
    pub flake: String,
    /// Attribute of the flake's packages, such as `ci-runner`.
    pub profile: String,
    /// Flake inputs to replace: name to flake reference, as for `nix --override-input`.
    pub override_inputs: BTreeMap<String, String>,
    /// A kernel of this store by digest, digest prefix or name. `None` means the flake's own
    /// `kernel` package if it has one, otherwise the store's default kernel.
    pub kernel: Option<String>,
}

/// What a flake's builders may do on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// Every builder runs in Nix's sandbox, whatever the flake says.
    #[default]
    Strict,
    /// Builders with `__noChroot` run outside: they can read what every user of the machine can,
    /// and reach its network.
    Relaxed,
}

/// How the hypervisor has to present devices to a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// virtio over PCI: QEMU's `pc` machine; any distribution kernel.
    Pci,
    /// virtio-mmio announced on the kernel command line: QEMU's `microvm`, Firecracker.
    Mmio,
}

/// One immutable, content-addressed image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// The digest of what went in: closure, guest binary, kernel, builder version.
    pub digest: Digest,
    /// The directory that holds all of the image's files.
    #[serde(skip)]
    pub dir: PathBuf,
    /// The read-only root file system, `root.erofs`.
    #[serde(skip)]
    pub root: PathBuf,
    /// The uncompressed kernel, `vmlinux`.
    #[serde(skip)]
    pub kernel: PathBuf,
    /// The uncompressed newc archive with `/init`, modules and `/etc/mvm/modules`.
    #[serde(skip)]
    pub initrd: PathBuf,
    /// How devices must be presented to this kernel.
    pub platform: Platform,
    /// The kernel's digest in the store.
    pub kernel_digest: Digest,
    /// The kernel's version, such as `6.1.0-41-cloud-amd64`.
    pub kernel_version: String,
    /// When the image was built.
    pub built_at: Timestamp,
    /// Sum of the apparent sizes of `root`, `kernel` and `initrd`, in bytes.
    pub size_bytes: u64,
    /// The flake that it was built from, as the user wrote it.
    pub flake: String,
    /// The profile that it was built from.
    pub profile: String,
    /// SHA-256 of the guest binary inside.
    pub guest_sha256: String,
    /// The profile's own store path.
    pub out_path: String,
    /// All store paths inside, sorted.
    pub closure: Vec<String>,
    /// Lengths and digests of the image's files, by name; empty in manifests of older versions.
    #[serde(default)]
    pub parts: Vec<Part>,
}

impl Revision {
    /// Returns the first 12 hex digits of the digest: what people see and type.
    pub fn short(&self) -> String {
        self.digest.short()
    }

    /// Returns the SHA-256, in hex, over the names, lengths and digests of its parts: what the
    /// image *is*, while the digest says what it was made of. Empty if its files were never hashed.
    pub fn content(&self) -> String {
        if self.parts.is_empty() {
            return String::new();
        }
        let mut hash = Sha256::new();
        for part in &self.parts {
            hash.update(format!("{} {} {}\n", part.name, part.size, part.sha256));
        }
        mvm_model::hex::digits(hash.finalize())
    }

    /// Returns the path of the part with this name; `None` if an image has no such part.
    pub fn part_file(&self, name: &str) -> Option<PathBuf> {
        PARTS.contains(&name).then(|| self.dir.join(name))
    }
}

/// One file of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// `initrd`, `root.erofs` or `vmlinux`.
    pub name: String,
    /// Length in bytes.
    pub size: u64,
    /// SHA-256 of the bytes, 64 hexadecimal digits.
    pub sha256: String,
}

/// A kernel that the store holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelInfo {
    /// The digest of the kernel and its modules.
    pub digest: Digest,
    /// The name that it was imported under; unique in the store.
    pub name: String,
    /// Version found in the image, such as `6.1.0-41-cloud-amd64`.
    pub version: String,
    /// How devices must be presented to it.
    pub platform: Platform,
    /// Whether the ELF file has a PVH entry note (QEMU's `-kernel` wants it for a vmlinux).
    pub pvh: bool,
    /// Modules that the initrd loads, in this order, relative to the initrd's root.
    pub modules: Vec<String>,
    /// Bytes of the kernel and its modules together.
    pub size_bytes: u64,
    /// When it was imported.
    pub imported_at: Timestamp,
    /// Where it came from: a file, a package, a Nix store path.
    pub origin: String,
    /// Whether builds that name no kernel use this one.
    #[serde(skip)]
    pub default: bool,
    /// The uncompressed ELF kernel.
    #[serde(skip)]
    pub path: PathBuf,
    /// The directory that holds the kernel and its modules.
    #[serde(skip)]
    pub dir: PathBuf,
}

/// How to import a kernel file.
#[derive(Clone, Debug, Default)]
pub struct KernelImport {
    /// A `lib/modules/VERSION` directory to take virtio, erofs, overlay, vsock and packet modules
    /// from. `None` means that the kernel has what it needs built in, or that the directory lies
    /// next to the file as in an unpacked package.
    pub initrd_modules: Option<PathBuf>,
    /// Name in the store; `None` means the version string.
    pub name: Option<String>,
}

/// Something that garbage collection removed, or would remove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// The revision's digest, or the name of a leftover temporary directory.
    pub digest: String,
    /// Bytes on disk that became free.
    pub bytes: u64,
}

/// A step of a build or a fetch, for people to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A new stage began.
    Stage {
        /// A fixed word: `check`, `nix`, `closure`, `kernel`, `stage`, `erofs`, `initrd`,
        /// `publish`, `cached`, `resolve`, `download`, `unpack`, `import`, `receive`.
        name: &'static str,
        /// What the stage works on, for people.
        detail: String,
    },
    /// One line of a tool's own output (Nix, apt).
    Line(String),
}

/// The programs that this crate runs; each is a name to find in `PATH`, or a path.
#[derive(Clone, Debug)]
pub struct Tools {
    /// `nix` 2.8 or later.
    pub nix: PathBuf,
    /// `mkfs.erofs` of erofs-utils 1.5 or later.
    pub mkfs_erofs: PathBuf,
    /// `mke2fs` of e2fsprogs.
    pub mke2fs: PathBuf,
    /// `apt-get`, for [`crate::ImageStore::kernel_fetch`] only.
    pub apt_get: PathBuf,
    /// `apt-cache`, for the same method only.
    pub apt_cache: PathBuf,
    /// `dpkg-deb`, for the same method only.
    pub dpkg_deb: PathBuf,
}

impl Default for Tools {
    /// Returns names to find in `PATH`; `MVM_NIX` in the environment names another `nix`.
    fn default() -> Self {
        Self {
            nix: std::env::var_os("MVM_NIX").map_or_else(|| "nix".into(), PathBuf::from),
            mkfs_erofs: "mkfs.erofs".into(),
            mke2fs: "mke2fs".into(),
            apt_get: "apt-get".into(),
            apt_cache: "apt-cache".into(),
            dpkg_deb: "dpkg-deb".into(),
        }
    }
}

/// Returns the present time by the wall clock.
#[allow(clippy::disallowed_methods)] // It is shown, and nothing is decided by it.
pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp::EPOCH + since.unwrap_or_default()
}
