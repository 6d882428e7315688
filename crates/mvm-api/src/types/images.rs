//! Requests and responses about images and kernels.

use mvm_model::{Millis, PoolRef};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `POST /v1/kernels/import`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportKernel {
    /// A file on the node: vmlinux or bzImage.
    pub file: String,
    /// A folder with the kernel's modules, where it needs some to boot.
    #[serde(default)]
    pub modules: Option<String>,
    /// A name to show.
    #[serde(default)]
    pub name: Option<String>,
}

/// A kernel as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct KernelView {
    /// Its digest.
    pub digest: String,
    /// Its name.
    pub name: String,
    /// The version that it says of itself.
    pub version: String,
    /// `pci` or `mmio`.
    pub platform: String,
    /// Size of the kernel in bytes.
    pub size_bytes: u64,
    /// Whether pools that name none boot it.
    pub default: bool,
}

/// An image as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ImageView {
    /// Its digest.
    pub digest: String,
    /// The flake that it was built from.
    pub flake_ref: String,
    /// The attribute.
    pub profile: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Digest of what it is, where `digest` is of what it was made of: by it another node checks
    /// what it receives. Empty for one that was built by a version that did not know this.
    #[serde(default)]
    pub content: String,
    /// When it was built; 0 where the node does not say.
    #[serde(default)]
    pub built_at: Millis,
    /// Pools that have it among their revisions.
    pub pools: Vec<PoolRef>,
}

/// `POST /v1/images/fetch`: receive an image from a node that has it (server-sent events).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FetchImage {
    /// Its digest.
    pub digest: String,
    /// What it has to be, where that is known; else the first source is believed.
    #[serde(default)]
    pub content: Option<String>,
    /// `HOST:PORT` of nodes that have it; each is tried in turn, and goes on where the one before
    /// was cut off.
    pub sources: Vec<String>,
}

/// What a fetch came to.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FetchedImage {
    /// Its digest.
    pub digest: String,
    /// What it is.
    pub content: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Bytes that came over the network this time; 0 where it was there already.
    pub received_bytes: u64,
    /// How long it took in ms.
    pub took_ms: u64,
}

/// What a collection of garbage removed.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GcResult {
    /// Digests removed.
    pub removed: Vec<String>,
    /// Bytes freed.
    pub freed_bytes: u64,
    /// How many roots of Nix's garbage collector that led nowhere builds had left.
    #[serde(default)]
    pub store_roots: u64,
    /// How many images are left.
    #[serde(default)]
    pub left: u64,
    /// How large those are together, in bytes.
    #[serde(default)]
    pub left_bytes: u64,
    /// Whether it was only tried.
    pub dry_run: bool,
}

/// `POST /v1/images/gc`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gc {
    /// Only say what would go.
    #[serde(default)]
    pub dry_run: bool,
}
