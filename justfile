# What is run while working; CONTRIBUTING.md says how to have `just`, and what each takes.

set shell := ["bash", "-euo", "pipefail", "-c"]

machines := "binary(machines) | binary(qemu) | binary(qemu_failures)"
fleets := "binary(fleet) | binary(chaos)"
crashes := "package(mvm-node) & test(/^crashes::/)"
# What needs root otherwise: mounts, network namespaces, files of other users, the host's Nix store.
rooted := "package(mvm-network) | package(mvm-image) & kind(test) | binary(window) | binary(pulse) | binary(production) | test(/oom::tests::/) | package(mvm-archive) & test(/round::/) | package(mvm-node) & test(/^(holders|jobs|instances::halted|api::tests::refusals)::/)"
# What takes long for a first look.
long := "package(mvm-fuzz) | binary(engines) | binary(whole) | binary(admission)"

[private]
default:
    @just --list --unsorted

# Format, spelling, dependencies, lints
check:
    scripts/check
    cargo clippy --workspace --all-targets --locked -- -D warnings

# Tests that need neither root nor minutes; arguments of `cargo nextest run` select among them
unit *words:
    scripts/tests -E 'not ({{ machines }} | {{ fleets }} | {{ crashes }} | {{ rooted }} | {{ long }})' {{ words }}

# Real machines, as root
vm *words: build
    source scripts/fixtures; fixtures; scripts/tests -E '{{ machines }}' {{ words }}

# Real machines on KVM, in an emulated machine that has it, as root
kvm *words: build
    source scripts/fixtures; fixtures; scripts/kvm-tests {{ words }}

# Fleets of processes in network namespaces, as root
fleet *words: build
    source scripts/fixtures; fixtures; scripts/tests -E '{{ fleets }}' {{ words }}

# The agent is killed at every point of every operation; MVM_CRASH=NAME chooses one operation
crash *words:
    scripts/tests -E '{{ crashes }}' {{ words }}

# Every reader of foreign bytes is given what comes of its corpus by chance
fuzz seconds="20" *words:
    MVM_FUZZ_SECONDS={{ seconds }} scripts/tests -E "package(mvm-fuzz)" {{ words }}

# The documentation of the code, and its examples
docs:
    cargo doc --workspace --locked --no-deps --document-private-items
    cargo test --workspace --locked --doc

[private]
build:
    cargo build --locked --package mvm
