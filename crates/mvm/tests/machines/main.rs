//! End-to-end tests on real machines, through the command line.
//!
//! Needs root, QEMU, Nix, nft, and the fixtures that `./test` makes: `MVM_TEST_KERNELS` (the
//! `kernels` folder of a state directory) and `MVM_TEST_DEBIAN_PKGS`.

mod accelerators;
mod archives;
mod audit;
mod beliefs;
mod builds;
mod caches;
mod cleaning;
mod clocks;
mod crashes;
mod desired;
mod disks;
mod docs;
mod ended;
mod events;
mod expose;
mod guard;
mod identity;
mod images;
mod jobs;
mod lab;
mod life;
mod linger;
mod liveness;
mod networks;
mod output;
mod policy;
mod queue;
mod refusals;
mod secrets;
mod service;
mod sessions;
mod shown;
mod simulated;
mod takeover;
mod templates;
