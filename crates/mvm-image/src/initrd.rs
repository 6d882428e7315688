//! Writes the initrd: an uncompressed newc archive (kernel:
//! Documentation/driver-api/early-userspace/buffer-format.rst), since every cold boot waits until
//! it is unpacked.
//!
//! It holds `/init`, the kernel's modules, and `/etc/mvm/modules`: one path per line, relative to
//! the archive's root, in the order in which to load them.

use crate::error::{At, Error, Result};
use std::collections::BTreeSet;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CONSOLE: u32 = 0o020_600;

/// Writes the archive to `to`. `modules` are pairs of the path in the archive and the file to read,
/// in load order.
pub(crate) fn write(to: &Path, init: &[u8], modules: &[(String, PathBuf)]) -> Result<()> {
    let file = std::fs::File::create_new(to).at("create", to)?;
    let mut archive = Archive { out: Some(BufWriter::new(file)), ino: 0, at: to };
    let list: String = modules.iter().map(|(path, _)| format!("{path}\n")).collect();
    let mut dirs: BTreeSet<&str> = ["dev", "proc", "sys", "run", "etc", "etc/mvm"].into();
    for (path, _) in modules {
        dirs.extend(path.match_indices('/').map(|(i, _)| &path[..i]));
    }
    // A BTreeSet's order puts parents before children.
    for dir in dirs {
        archive.add(dir, DIRECTORY, &[])?;
    }
    // The kernel opens /dev/console for init before init can mount devtmpfs.
    archive.add("dev/console", CONSOLE, &[])?;
    archive.add("init", PROGRAM, init)?;
    archive.add("etc/mvm/modules", FILE, list.as_bytes())?;
    for (path, source) in modules {
        let bytes = std::fs::read(source).at("read", source)?;
        archive.add(path, FILE, &bytes)?;
    }
    archive.finish()
}

struct Archive<'a> {
    out: Option<BufWriter<std::fs::File>>,
    ino: u32,
    at: &'a Path,
}

impl Archive<'_> {
    fn add(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        let Some(out) = self.out.take() else { return Ok(()) };
        self.ino += 1;
        let size = u32::try_from(bytes.len()).map_err(|_| Error::Invalid {
            what: format!("initrd entry {name}"),
            why: "it is larger than 4 GiB".to_owned(),
        })?;
        let mut entry = cpio::newc::Builder::new(name).ino(self.ino).mode(mode).nlink(1);
        if mode == CONSOLE {
            entry = entry.rdev_major(5).rdev_minor(1);
        }
        let mut writer = entry.write(out, size);
        let written = writer.write_all(bytes).and_then(|()| writer.finish());
        self.out = Some(written.at("write", self.at)?);
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        let Some(out) = self.out.take() else { return Ok(()) };
        let mut out = cpio::newc::trailer(out).at("write", self.at)?;
        out.flush().at("write", self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_reads_back_with_parents_first_and_modules_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (b, a) = (dir.path().join("b.ko"), dir.path().join("a.ko"));
        std::fs::write(&b, "module b").unwrap();
        std::fs::write(&a, "module a").unwrap();
        let to = dir.path().join("initrd");
        let modules = [("lib/m/b.ko".to_owned(), b), ("lib/m/a.ko".to_owned(), a)];
        write(&to, b"#!guest", &modules).unwrap();
        let mut input = std::fs::File::open(&to).unwrap();
        let (mut names, mut list) = (Vec::new(), String::new());
        loop {
            let mut reader = cpio::newc::Reader::new(input).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let name = reader.entry().name().to_owned();
            if name == "etc/mvm/modules" {
                std::io::Read::read_to_string(&mut reader, &mut list).unwrap();
            }
            names.push(name);
            input = reader.finish().unwrap();
        }
        assert_eq!(list, "lib/m/b.ko\nlib/m/a.ko\n");
        let at = |n: &str| names.iter().position(|x| x == n).unwrap();
        assert!(at("lib") < at("lib/m") && at("lib/m") < at("lib/m/a.ko"));
        assert!(at("dev") < at("dev/console") && names.contains(&"init".to_owned()));
    }
}
