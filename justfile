# What is run while working; CONTRIBUTING.md says how to have `just`, and what each takes.

set shell := ["bash", "-euo", "pipefail", "-c"]

machines := "binary(machines) | binary(qemu) | binary(qemu_failures)"
fleets := "binary(fleet) | binary(chaos)"
crashes := "package(mvm-node) & test(/^crashes::/)"
# What takes a minute alone, or root: a network, etcd, the host's Nix store.
slow := "package(mvm-network) | package(mvm-image) & kind(test) | binary(engines)"

[private]
default:
    @just --list --unsorted

# Format, spelling, dependencies, lints
check:
    scripts/check
    cargo clippy --workspace --all-targets --locked -- -D warnings

# Tests that need no root and take no minute; words of `cargo nextest run` choose among them
unit *words:
    scripts/tests -E 'not ({{ machines }} | {{ fleets }} | {{ crashes }} | {{ slow }})' {{ words }}

# Real machines, as root
vm *words: build
    source scripts/fixtures; fixtures; scripts/tests -E '{{ machines }}' {{ words }}

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
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --locked --no-deps --document-private-items
    cargo test --workspace --locked --doc

[private]
build:
    cargo build --locked --package mvm
