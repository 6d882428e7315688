//! Builds the guest's static binary, which `mvm` carries inside itself.

use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    let here = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let workspace = here.ancestors().nth(2).expect("a crate of the workspace").to_owned();
    for input in
        ["crates/mvm-archive", "crates/mvm-guest/src", "crates/mvm-guest/Cargo.toml", "Cargo.lock"]
    {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    // A directory of its own: the outer cargo holds the lock of the usual one. It is shared by all
    // profiles: OUT_DIR is <target>/<profile>/build/<crate>/out.
    let target = out.ancestors().nth(4).unwrap_or(&workspace).join("guest");
    build(&workspace, &target);
    let binary = target.join(TARGET).join("guest/mvm-guest");
    println!("cargo::rustc-env=MVM_GUEST={}", binary.display());
}

fn build(workspace: &Path, target: &Path) {
    let mut cargo = Command::new(std::env::var_os("CARGO").expect("cargo sets it"));
    cargo
        .current_dir(workspace)
        .args(["build", "--locked", "--package", "mvm-guest", "--profile", "guest"])
        .args(["--target", TARGET, "--target-dir"])
        .arg(target)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    // What the outer cargo (or clippy) has set is not meant for this build.
    for name in ["RUSTC_WORKSPACE_WRAPPER", "RUSTC_WRAPPER", "RUSTFLAGS", "CLIPPY_ARGS"] {
        cargo.env_remove(name);
    }
    let status = cargo.status().expect("cargo starts");
    assert!(status.success(), "the guest's binary was not built: {status}");
}
