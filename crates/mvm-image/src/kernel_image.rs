//! Recognises kernel files, and unpacks the kernel in them. The bytes come from outside: nothing
//! panics.
//!
//! Sources: the kernel's Documentation/arch/x86/boot.rst (bzImage header), lib/decompress_unlz4.c
//! (the "legacy" LZ4 stream), kernel/configs.c (IKCONFIG).

use crate::elf::{Elf, slice, u16_at, u32_at};
use crate::types::Platform;
use std::io::Read;

/// The largest unpacked kernel that is accepted, in bytes.
const MAX_KERNEL: usize = 1 << 30;
/// Block size of the legacy LZ4 stream, in bytes.
const LZ4_BLOCK: usize = 8 << 20;

/// What kind of file some bytes are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Contents<'a> {
    /// The file itself is an uncompressed ELF kernel.
    Vmlinux,
    /// A bzImage with this payload.
    Compressed(Compression, &'a [u8]),
    /// Not a kernel; the text says what it looks like, for people.
    Other(String),
}

/// How a bzImage's payload is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Gzip,
    Lz4,
    Xz,
    Zstd,
    Bzip2,
    Lzma,
    Lzo,
    None,
    Unknown,
}

/// Facts about an uncompressed kernel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub version: String,
    pub platform: Platform,
    pub pvh: bool,
}

/// Tells a kernel from other files.
pub(crate) fn identify(bytes: &[u8]) -> Contents<'_> {
    if bytes.starts_with(b"\x7fELF") {
        return match facts(bytes) {
            Some(_) => Contents::Vmlinux,
            None => Contents::Other(elf_looks_like(bytes)),
        };
    }
    match payload(bytes) {
        Some(payload) => Contents::Compressed(compression(payload), payload),
        None => Contents::Other(looks_like(bytes)),
    }
}

/// Returns the facts of an uncompressed ELF kernel; `None` if the bytes are not one.
pub(crate) fn facts(vmlinux: &[u8]) -> Option<Facts> {
    let elf = Elf::parse(vmlinux)?;
    if !matches!(elf.kind(), 2 | 3) || elf.is_user_program() {
        return None;
    }
    let banner = b"Linux version ";
    let version = find_all(vmlinux, banner).find_map(|at| {
        let rest = vmlinux.get(at + banner.len()..)?;
        let end = rest.iter().take(128).position(|b| *b == b' ')?;
        let text = std::str::from_utf8(&rest[..end]).ok()?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "._+-~".contains(c);
        let right = text.starts_with(|c: char| c.is_ascii_digit()) && text.chars().all(plain);
        right.then(|| text.to_owned())
    })?;
    let platform = if announces_mmio(vmlinux) { Platform::Mmio } else { Platform::Pci };
    Some(Facts { version, platform, pvh: elf.has_pvh_entry() })
}

/// Returns whether the kernel has built-in support for virtio-mmio devices on its command line.
fn announces_mmio(vmlinux: &[u8]) -> bool {
    if let Some(config) = ikconfig(vmlinux) {
        let set = |name: &str| config.lines().any(|l| l.trim_end() == format!("{name}=y"));
        return set("CONFIG_VIRTIO_MMIO") && set("CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES");
    }
    // The message that drivers/virtio/virtio_mmio.c prints for each such device.
    contains(vmlinux, b"Registering device virtio-mmio")
}

/// Returns the kernel's own configuration; `None` if it contains none (CONFIG_IKCONFIG).
fn ikconfig(vmlinux: &[u8]) -> Option<String> {
    let at = find_all(vmlinux, b"IKCFG_ST").next()? + 8;
    let mut text = String::new();
    let mut reader = flate2::read::GzDecoder::new(vmlinux.get(at..)?).take(16 << 20);
    reader.read_to_string(&mut text).ok()?;
    Some(text)
}

/// Messages or names that a kernel contains only if the feature is built in. Tried on kernels that
/// have each feature as a module: then only the module contains the words.
const BUILT_IN_WORDS: [(&str, &[u8]); 5] = [
    ("virtio_blk", b"virtio_blk\0"),
    ("virtio_console", b"virtio_console\0"),
    ("ext4", b"EXT4-fs"),
    ("erofs", b"erofs\0"),
    ("overlay", b"overlayfs: "),
];

/// Returns the features that every image needs of its kernel and that this one has not built in.
pub(crate) fn not_built_in(vmlinux: &[u8]) -> Vec<&'static str> {
    let lacks = |words: &[u8]| !contains(vmlinux, words);
    BUILT_IN_WORDS.into_iter().filter(|(_, words)| lacks(words)).map(|(name, _)| name).collect()
}

/// Returns the compressed kernel inside a bzImage (boot.rst: payload_offset, payload_length).
fn payload(bytes: &[u8]) -> Option<&[u8]> {
    if u16_at(bytes, 0x1fe)? != 0xaa55 || slice(bytes, 0x202, 4)? != b"HdrS" {
        return None;
    }
    if u16_at(bytes, 0x206)? < 0x0208 {
        return None; // no payload fields before boot protocol 2.08 (Linux 2.6.26)
    }
    let setup_sectors = match *bytes.get(0x1f1)? {
        0 => 4,
        n => u64::from(n),
    };
    let offset = u64::from(u32_at(bytes, 0x248)?);
    slice(bytes, (setup_sectors + 1) * 512 + offset, u64::from(u32_at(bytes, 0x24c)?))
}

fn compression(payload: &[u8]) -> Compression {
    let magics: [(&[u8], Compression); 8] = [
        (b"\x1f\x8b", Compression::Gzip),
        (b"\x02\x21\x4c\x18", Compression::Lz4),
        (b"\xfd7zXZ\0", Compression::Xz),
        (b"\x28\xb5\x2f\xfd", Compression::Zstd),
        (b"BZh", Compression::Bzip2),
        (b"\x5d\0\0", Compression::Lzma),
        (b"\x89LZO", Compression::Lzo),
        (b"\x7fELF", Compression::None),
    ];
    let found = magics.iter().find(|(magic, _)| payload.starts_with(magic));
    found.map_or(Compression::Unknown, |(_, compression)| *compression)
}

/// Unpacks a gzip stream; `None` if it is damaged or larger than any kernel.
pub(crate) fn gunzip(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let limit = MAX_KERNEL as u64 + 1;
    flate2::read::GzDecoder::new(bytes).take(limit).read_to_end(&mut out).ok()?;
    (out.len() <= MAX_KERNEL).then_some(out)
}

/// Unpacks the legacy LZ4 stream: blocks of up to 8 MiB, each preceded by its compressed size.
/// `None` if it is damaged or larger than any kernel.
pub(crate) fn unlz4(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut rest = bytes.strip_prefix(b"\x02\x21\x4c\x18")?;
    let mut out = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    // Four bytes remain at the end: the unpacked size, which mkpiggy appends for the kernel's own
    // decompressor.
    while rest.len() > 4 {
        let size = usize::try_from(u32_at(rest, 0)?).ok()?;
        let packed = rest.get(4..4usize.checked_add(size)?)?;
        let n = lz4_flex::block::decompress_into(packed, &mut block).ok()?;
        out.extend_from_slice(block.get(..n)?);
        if out.len() > MAX_KERNEL {
            return None;
        }
        rest = rest.get(4 + size..)?;
    }
    Some(out)
}

fn elf_looks_like(bytes: &[u8]) -> String {
    let Some(elf) = Elf::parse(bytes) else {
        return "it is an ELF file, but not a 64-bit one for x86-64".to_owned();
    };
    match elf.kind() {
        1 => "it is an ELF object file or kernel module".to_owned(),
        2 | 3 if elf.is_user_program() => "it is an ELF program or library".to_owned(),
        _ => "it is an ELF file without the words \"Linux version\"".to_owned(),
    }
}

fn looks_like(bytes: &[u8]) -> String {
    let magics: [(&[u8], &str); 11] = [
        (b"#!", "a script"),
        (b"\x1f\x8b", "a gzip file (unpack it first)"),
        (b"\xfd7zXZ\0", "an xz file (unpack it first)"),
        (b"\x28\xb5\x2f\xfd", "a zstd file (unpack it first)"),
        (b"070701", "a cpio archive, perhaps an initrd"),
        (b"!<arch>\ndebian", "a Debian package (unpack it, or use `mvm kernel fetch`)"),
        (b"QFI\xfb", "a qcow2 disk"),
        (b"PK\x03\x04", "a zip file"),
        (b"<!DOCTYPE", "an HTML page"),
        (b"<html", "an HTML page"),
        (b"MZ", "a PE program, without the boot header of an x86 Linux kernel"),
    ];
    if bytes.is_empty() {
        return "it is empty".to_owned();
    }
    if slice(bytes, 0x38, 4) == Some(b"ARM\x64") {
        return "it looks like a kernel for ARM64".to_owned();
    }
    if let Some((_, what)) = magics.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return format!("it looks like {what}");
    }
    let head = &bytes[..bytes.len().min(512)];
    let text = head.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace());
    match text {
        true => "it looks like text".to_owned(),
        false => {
            format!("its first bytes are {}", mvm_model::hex::digits(&bytes[..bytes.len().min(8)]))
        }
    }
}

fn find_all<'a>(haystack: &'a [u8], needle: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    memchr::memmem::find_iter(haystack, needle)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(haystack, needle).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Puts a bzImage header around a payload.
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        let len = u32::try_from(payload.len()).unwrap();
        image[0x24c..0x250].copy_from_slice(&len.to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn payloads_are_told_apart() {
        let image = bzimage(b"\xfd7zXZ\0rest");
        assert_eq!(identify(&image), Contents::Compressed(Compression::Xz, b"\xfd7zXZ\0rest"));
        let image = bzimage(b"what");
        assert!(matches!(identify(&image), Contents::Compressed(Compression::Unknown, _)));
    }

    #[test]
    fn the_lz4_stream_unpacks() {
        let text = b"Linux version ".repeat(1000);
        let mut stream = b"\x02\x21\x4c\x18".to_vec();
        for _ in 0..2 {
            let packed = lz4_flex::block::compress(&text);
            stream.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
            stream.extend(packed);
        }
        stream.extend([1, 2, 3, 4]);
        assert_eq!(unlz4(&stream).unwrap(), text.repeat(2));
    }

    #[test]
    fn other_files_are_named() {
        for (bytes, word) in [
            (&b""[..], "empty"),
            (b"#!/bin/sh\n", "script"),
            (b"hello\n", "text"),
            (b"\x7fELF\x01\x01", "not a 64-bit"),
            (b"\0\0\x01\x02", "first bytes are 00000102"),
        ] {
            let Contents::Other(what) = identify(bytes) else { panic!("{bytes:?}") };
            assert!(what.contains(word), "{what}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let _ = identify(&bytes);
            let _ = gunzip(&bytes);
            let _ = unlz4(&[b"\x02\x21\x4c\x18", bytes.as_slice()].concat());
            for head in [&b"\x7fELF\x02\x01\x01"[..], b"070701"] {
                let mut image = bytes.clone();
                let n = head.len().min(image.len());
                image[..n].copy_from_slice(&head[..n]);
                if image.len() > 20 {
                    image[18..20].copy_from_slice(&[62, 0]);
                    image[16] = 2;
                }
                let _ = identify(&image);
                if let Some(elf) = Elf::parse(&image) {
                    let _ = (elf.section(".modinfo"), elf.has_pvh_entry());
                }
            }
        }

        #[test]
        fn a_damaged_header_never_panics(at in 0usize..1100, value: u8, payload: Vec<u8>) {
            let mut image = bzimage(&payload);
            if let Some(byte) = image.get_mut(at) {
                *byte = value;
            }
            let _ = identify(&image);
        }
    }
}
