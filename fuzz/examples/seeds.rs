//! Writes the seeds of the corpora again: outputs of mvm itself, which its readers must read.
//!
//! `cargo run -p mvm-fuzz --example seeds`. Inputs that once broke a reader are kept beside the
//! seeds.

use mvm_api::Problem;
use mvm_archive::Packer;
use mvm_guest::frame::{self, Frame};
use mvm_guest::link::{Kind, Packet};
use mvm_guest::protocol::Request;
use mvm_guest::window::{SLOT, SLOTS};
use mvm_identity::JoinToken;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;

fn main() -> std::io::Result<()> {
    frames()?;
    archives()?;
    machines()?;
    kernels()?;
    manifest()?;
    texts()
}

fn seed(target: &str, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join(name), bytes)
}

fn frames() -> std::io::Result<()> {
    let get = Request::Get { path: "/work/out".to_owned(), notes: true };
    let all = [
        Frame::Request(Request::Hello),
        Frame::Request(get),
        Frame::Stdin(b"input".to_vec()),
        Frame::StdinClosed,
        Frame::Resize { rows: 24, cols: 80 },
        Frame::Signal(15),
        Frame::Stdout(b"output\n".to_vec()),
        Frame::Ack(7),
        Frame::Data(vec![0; 600]),
        Frame::End,
    ];
    seed("frames", "all", &all.iter().flat_map(frame::bytes).collect::<Vec<u8>>())?;
    let kinds = [Kind::Hello, Kind::Welcome, Kind::Ping, Kind::Data, Kind::Bye];
    let packet = |kind| Packet { kind, session: 42, payload: b"bytes".to_vec() }.encode();
    let wire: Vec<u8> = kinds.into_iter().flat_map(packet).collect();
    seed("packets", "in-pieces", &[&[7], wire.as_slice()].concat())?;
    seed("packets", "behind-noise", &[&[64, 1, 2, 3], wire.as_slice()].concat())?;
    let piece = |slot: usize, length: usize| {
        [&[5, slot as u8][..], &(length as u32).to_be_bytes()].concat()
    };
    let pieces = [piece(0, 40_000), piece(SLOTS - 1, SLOT)].concat();
    seed("window", "pieces", &[&[0], pieces.as_slice()].concat())?;
    seed("window", "freed", &[2, 1, 1, 1, 0])
}

fn archives() -> std::io::Result<()> {
    let dir = tempfile::tempdir()?;
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("folder"))?;
    std::fs::write(tree.join("folder/file"), "content\n")?;
    std::fs::write(tree.join("x".repeat(140)), "a long name\n")?;
    std::fs::hard_link(tree.join("folder/file"), tree.join("hard"))?;
    symlink("folder/file", tree.join("soft"))?;
    symlink("../../etc/passwd", tree.join("out"))?;
    let holes = std::fs::File::create(tree.join("holes"))?;
    holes.set_len(1 << 20)?;
    (&holes).write_all(b"begin")?;
    for (rules, name) in ["keep", "skip", "refuse"].into_iter().enumerate() {
        let mut packer = Packer::new(vec![rules as u8]);
        packer.add(&tree, b"tree")?;
        seed("archive", name, &packer.finish()?.0)?;
    }
    Ok(())
}

/// Writes a state whose first block is `ram` (docs/devel/migration.rst of QEMU), with a page of
/// zeros and one of sevens, and a snapshot's header.
fn machines() -> std::io::Result<()> {
    let mut state =
        b"QEVM\0\0\0\x03\x07\0\0\0\x02pc\x01\0\0\0\x09\x03ram\0\0\0\0\0\0\0\x04".to_vec();
    state.extend((0x10_0000u64 | 0x04).to_be_bytes());
    state.extend(b"\x03ram");
    state.extend(0x10_0000u64.to_be_bytes());
    state.extend(0x10u64.to_be_bytes());
    state.extend(b"\x7e\0\0\0\x09\x03\0\0\0\x09");
    state.extend(0x02u64.to_be_bytes());
    state.extend(b"\x03ram\0");
    state.extend((0x1000u64 | 0x08 | 0x20).to_be_bytes());
    state.extend([7; 4096]);
    state.extend(0x10u64.to_be_bytes());
    state.extend(b"\x7e\0\0\0\x09\x04devices\0");
    seed("migration-stream", "two-pages", &state)?;
    let head = serde_json::json!({
        "version": 1, "machine": "pc", "cpu": "max", "accelerator": "tcg", "vcpus": 1, "mem_mib": 256,
        "disks": ["root"], "nic": true, "window": true, "with_memory": false, "length": 3, "sha256": "00",
    });
    let head = format!("mvm-snapshot {head}");
    seed("snapshot-header", "head", head.as_bytes())
}

/// Writes an ELF file with modinfo and the sections by which a kernel is recognised. Real ones have
/// megabytes.
fn kernels() -> std::io::Result<()> {
    let strings = b"\0.modinfo\0.shstrtab\0";
    let info = b"name=virtio_blk\0depends=virtio,virtio_ring\0vermagic=6.1.0 SMP\0";
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64, 0);
    elf[16] = 2;
    elf[18] = 62;
    let (at_info, at_strings) = (elf.len(), elf.len() + info.len());
    elf.extend(info);
    elf.extend(strings);
    let table = elf.len() as u64;
    elf[40..48].copy_from_slice(&table.to_le_bytes());
    elf[58..64].copy_from_slice(&[64, 0, 3, 0, 2, 0]);
    let sections = [(0, 0, 0), (1u32, at_info, info.len()), (10, at_strings, strings.len())];
    for (name, at, length) in sections {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[24..32].copy_from_slice(&(at as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(length as u64).to_le_bytes());
        elf.extend(header);
    }
    elf.extend(b"Linux version 6.1.0-41-cloud-amd64 (builder)\n");
    seed("kernel", "elf", &elf)?;
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(b"\x55\xaa");
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&[0x0c, 2]);
    image[0x248..0x24c].copy_from_slice(&0u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&20u32.to_le_bytes());
    image.extend(b"\x02\x21\x4c\x18\x0a\0\0\0\x90kernel123\0\0\0\0");
    seed("kernel", "bzimage-lz4", &image)
}

fn manifest() -> std::io::Result<()> {
    let digest = "ab".repeat(32);
    let part = |name: &str| serde_json::json!({"name": name, "size": 4096, "sha256": digest});
    let manifest = serde_json::json!({
        "digest": digest, "platform": "pci", "kernel_digest": digest, "kernel_version": "6.1.0",
        "built_at": 1, "size_bytes": 12288, "flake": "/flake", "profile": "ci", "guest_sha256": digest,
        "out_path": "/nix/store/x", "closure": ["/nix/store/x"],
        "parts": [part("initrd"), part("root.erofs"), part("vmlinux")],
    });
    seed("image-manifest", "whole", &serde_json::to_vec(&manifest)?)
}

fn texts() -> std::io::Result<()> {
    let pem =
        |text: &str| format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
    let addresses = vec!["https://[::1]:7100".to_owned()];
    let token = JoinToken::new(addresses, pem("AAAA"), pem("BBBB"), pem("CCCC"));
    seed("join-token", "token", token.to_string().as_bytes())?;
    for (name, text) in [
        ("query", "limit=10&after=bmFtZQ&state=warm%20x"),
        ("link", "</v1/tenants?limit=2&after=YWJj>; rel=\"next\", </v1>; rel=prev"),
        ("number", "42"),
        ("fleet", "node-1:42,node-2:7"),
    ] {
        seed("page", name, text.as_bytes())?;
    }
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    for name in ["desired-state.json", "fleet.json"] {
        seed("documents", name, &std::fs::read(examples.join(name))?)?;
    }
    let problem = Problem::new(mvm_model::Code::Leased, "it is leased").hint("end the lease");
    seed("problem", "leased", &serde_json::to_vec(&problem)?)
}
