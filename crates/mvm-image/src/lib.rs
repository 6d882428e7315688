//! From a flake to an immutable image: revisions, kernels, disk templates, garbage collection.
//!
//! What lives here: running `nix build`, staging a closure into a root file system, `mkfs.erofs`,
//! the initrd that carries the guest binary and the kernel's modules, reading and importing
//! kernels, blank ext4 disks, and the store that keeps all of them by content under one state root
//! and receives images that other nodes have built.
//!
//! What never may: instances, pools, tenants, hypervisors. The caller decides which revision a pool
//! runs, and which revisions are in use. The guest binary comes in as bytes.
//!
//! Everything in the store is written aside and renamed into place when it is complete. A process
//! killed at any moment leaves nothing but `.tmp-*` directories and the programs that worked for
//! them, which the next [`ImageStore::open`] ends and removes.

mod abandoned;
mod apt;
mod build;
mod clone;
mod command;
mod disk;
mod elf;
mod error;
mod folder;
mod fs;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod image_store;
mod initrd;
mod kernel;
mod kernel_image;
mod layout;
mod modules;
mod nix;
mod revision;
mod stage;
mod transfer;
mod types;
mod workdir;

pub use clone::{clone_file, refill_file};
pub use error::{Error, Result};
pub use layout::ImageStore;
pub use transfer::Incoming;
pub use types::{
    BuildRequest, GuestBinary, KernelImport, KernelInfo, Part, Platform, Progress, Removed,
    Revision, Sandbox, Tools,
};
