//! Requests and responses about images and kernels.

use mvm_model::{Digest, PoolRef, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Request of `POST /v1/kernels/import`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportKernel {
    /// A file on the node: vmlinux or bzImage.
    pub file: String,
    /// A folder on the node with the kernel's modules, where the kernel needs some to boot.
    #[serde(default)]
    pub modules: Option<String>,
    /// The kernel's name in lists.
    #[serde(default)]
    pub name: Option<String>,
}

/// A kernel as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct KernelView {
    /// The kernel's digest.
    pub digest: Digest,
    /// The kernel's name.
    pub name: String,
    /// The version that the kernel's file names.
    pub version: String,
    /// The bus of the guest's devices: `pci` or `mmio`.
    pub platform: String,
    /// Size of the kernel in bytes.
    pub size_bytes: u64,
    /// Whether pools that name no kernel boot this one.
    pub default: bool,
}

/// An image as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ImageView {
    /// The image's digest.
    pub digest: Digest,
    /// The flake that the image was built from.
    pub flake_ref: String,
    /// The flake's attribute.
    pub profile: String,
    /// Size of the image in bytes.
    pub size_bytes: u64,
    /// Digest of the image's bytes, whereas `digest` is of its inputs. Another node checks what it
    /// receives by it. Empty for an image that an earlier version built.
    #[serde(default)]
    pub content: String,
    /// When the image was built, ms since the Unix epoch; 0 where the node does not know.
    #[serde(default)]
    pub built_at: Timestamp,
    /// The pools that have the image among their revisions.
    pub pools: Vec<PoolRef>,
}

/// Request of `POST /v1/images/fetch`: receive an image from another node (server-sent events).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FetchImage {
    /// The image's digest.
    pub digest: String,
    /// The expected digest of the image's bytes; where absent, the first source's is believed.
    #[serde(default)]
    pub content: Option<String>,
    /// `HOST:PORT` of nodes that have the image. They are tried in turn; each goes on where the one
    /// before was cut off.
    pub sources: Vec<String>,
}

/// The result of a fetch.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FetchedImage {
    /// The image's digest.
    pub digest: Digest,
    /// The digest of the image's bytes.
    pub content: String,
    /// Size of the image in bytes.
    pub size_bytes: u64,
    /// Bytes received over the network this time; 0 where the node had the image already.
    pub received_bytes: u64,
    /// How long the fetch took in ms.
    pub took_ms: u64,
}

/// The result of a garbage collection.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GcResult {
    /// Digests of the images removed.
    pub removed: Vec<String>,
    /// Disk space freed in bytes.
    pub freed_bytes: u64,
    /// Number of garbage collection roots removed that earlier builds had left in Nix's store and
    /// that lead nowhere.
    #[serde(default)]
    pub store_roots: u64,
    /// Number of images left.
    #[serde(default)]
    pub left: u64,
    /// Size of the images left, in bytes.
    #[serde(default)]
    pub left_bytes: u64,
    /// Whether nothing was removed, because the request was a dry run.
    pub dry_run: bool,
}

/// Request of `POST /v1/images/gc`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gc {
    /// Only return what would be removed.
    #[serde(default)]
    pub dry_run: bool,
}
