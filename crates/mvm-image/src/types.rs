//! What goes into the store and what comes out of it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The files that make an image, beside its manifest.
pub(crate) const PARTS: [&str; 3] = ["initrd", "root.erofs", "vmlinux"];

/// The SHA-256, in hex, of a kernel and the modules kept with it.
pub type KernelDigest = String;

/// The static binary that is PID 1 in every guest, and its SHA-256 in hex.
#[derive(Clone)]
pub struct GuestBinary {
    /// The ELF file's bytes; placed in the initrd as `/init`.
    pub bytes: &'static [u8],
    /// SHA-256 of `bytes`, 64 hex digits.
    pub sha256: String,
}

impl GuestBinary {
    /// Takes the bytes of the guest binary and hashes them.
    pub fn new(bytes: &'static [u8]) -> Self {
        Self { bytes, sha256: hex(&Sha256::digest(bytes)) }
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
    /// The flake as the user wrote it; a path must be absolute already (the agent's working
    /// directory is not the user's).
    pub flake: String,
    /// Attribute of the flake's packages, such as `ci-runner`.
    pub profile: String,
    /// Flake inputs to replace: name to flake reference, as `nix --override-input` takes them.
    pub override_inputs: BTreeMap<String, String>,
    /// A kernel of this store by digest, digest prefix or name. `None`: the flake's own `kernel`
    /// package if it has one, else the store's default kernel.
    pub kernel: Option<KernelDigest>,
}

/// What a flake's builders may do on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// Every one is in Nix's sandbox, whatever the flake says.
    #[default]
    Strict,
    /// Those that say `__noChroot` are not: they read what every user of the machine may, and reach
    /// its network.
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
    /// SHA-256 in hex of what went in: closure, guest binary, kernel, builder version.
    pub digest: String,
    /// The directory that holds all of it.
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
    /// How devices have to be presented to this kernel.
    pub platform: Platform,
    /// The kernel's digest in the store, and its version string.
    pub kernel_digest: KernelDigest,
    /// Such as `6.1.0-41-cloud-amd64`.
    pub kernel_version: String,
    /// When it was built, milliseconds since the Unix epoch.
    pub built_at: u64,
    /// Bytes that `root`, `kernel` and `initrd` occupy together (apparent sizes).
    pub size_bytes: u64,
    /// The flake it was built from, as the user wrote it.
    pub flake: String,
    /// The profile it was built from.
    pub profile: String,
    /// SHA-256 of the guest binary inside.
    pub guest_sha256: String,
    /// The profile's own store path.
    pub out_path: String,
    /// All store paths inside, sorted.
    pub closure: Vec<String>,
    /// Lengths and digests of its files, by name.
    #[serde(default)]
    pub parts: Vec<Part>,
}

impl Revision {
    /// The first 12 hex digits of the digest: what people see and type.
    pub fn short(&self) -> &str {
        self.digest.get(..12).unwrap_or(&self.digest)
    }

    /// SHA-256 in hex over names, lengths and digests of its parts: what the image *is*, where the
    /// digest says what it was made of. Empty where its files were never digested.
    pub fn content(&self) -> String {
        if self.parts.is_empty() {
            return String::new();
        }
        let mut hash = Sha256::new();
        for part in &self.parts {
            hash.update(format!("{} {} {}\n", part.name, part.size, part.sha256));
        }
        hex(&hash.finalize())
    }

    /// The file of a part, if it has one of that name.
    pub fn part_file(&self, name: &str) -> Option<PathBuf> {
        PARTS.contains(&name).then(|| self.dir.join(name))
    }
}

/// One file of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// `initrd`, `root.erofs` or `vmlinux`.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// SHA-256 of its bytes, 64 hexadecimal digits.
    pub sha256: String,
}

/// A kernel that the store holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelInfo {
    /// SHA-256 in hex over the kernel and its modules.
    pub digest: KernelDigest,
    /// The name it was imported under; unique in the store.
    pub name: String,
    /// Version string out of the image, such as `6.1.0-41-cloud-amd64`.
    pub version: String,
    /// How devices have to be presented to it.
    pub platform: Platform,
    /// Whether the ELF file has a PVH entry note (QEMU's `-kernel` wants it for a vmlinux).
    pub pvh: bool,
    /// Modules that the initrd will load, in this order, relative to the initrd's root.
    pub modules: Vec<String>,
    /// Bytes of the kernel and its modules together.
    pub size_bytes: u64,
    /// When it was imported, milliseconds since the Unix epoch.
    pub imported_at: u64,
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
    /// A `lib/modules/VERSION` directory (with `modules.dep`) to take virtio, erofs, overlay,
    /// vsock and packet modules from. `None`: the kernel has what it needs built in.
    pub initrd_modules: Option<PathBuf>,
    /// What to call it; `None`: its version string.
    pub name: Option<String>,
}

/// Something that garbage collection removed, or would remove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// The revision's digest, or the name of a leftover temporary directory.
    pub digest: String,
    /// Bytes on disk that it gave back.
    pub bytes: u64,
}

/// What a build or a fetch is doing, for a person to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A new stage began.
    Stage {
        /// A fixed word: `check`, `nix`, `closure`, `kernel`, `stage`, `erofs`, `initrd`,
        /// `publish`, `cached`, `resolve`, `download`, `unpack`, `import`, `receive`.
        name: &'static str,
        /// What it works on, for people.
        detail: String,
    },
    /// One line of a tool's own output (Nix, apt).
    Line(String),
}

/// The programs this crate runs; each a name to be found in `PATH`, or a path.
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
    /// `apt-cache`, likewise.
    pub apt_cache: PathBuf,
    /// `dpkg-deb`, likewise.
    pub dpkg_deb: PathBuf,
}

impl Default for Tools {
    /// Names looked up in `PATH`; `MVM_NIX` in the environment names another `nix`.
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

/// Lower-case hex of some bytes.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Milliseconds since the Unix epoch, now.
#[allow(clippy::disallowed_methods)] // It is shown, and nothing is decided by it.
pub(crate) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
