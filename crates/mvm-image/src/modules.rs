//! Finds out which modules a kernel needs to bring up its root file system, and in which order.
//!
//! Dependencies are read from the modules themselves (the `.modinfo` section: `depends`,
//! `softdep`), not from `modules.dep`: depmod makes that file at installation, and a kernel package
//! that is only unpacked has none.

use crate::elf::Elf;
use crate::error::{At, Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The modules that an image may need, in the order in which to load them. Those built in or
/// missing are skipped.
const WANTED: [&str; 11] = [
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_console",
    "ext4",
    "erofs",
    "overlay",
    "virtio_net",
    "virtio_rng",
    "vmw_vsock_virtio_transport",
    "af_packet",
];

/// The modules of one kernel: a `lib/modules/VERSION` directory.
pub(crate) struct Tree {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

/// What a module's `.modinfo` section says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ModInfo {
    pub depends: Vec<String>,
    /// Modules to load before this one, if they exist.
    pub soft_before: Vec<String>,
}

impl Tree {
    /// Lists the modules under `dir`.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut tree = Self { files: BTreeMap::new(), builtin: BTreeSet::new() };
        tree.walk(dir)?;
        let list = dir.join("modules.builtin");
        match std::fs::read_to_string(&list) {
            Ok(text) => tree.builtin = text.lines().filter_map(module_name).collect(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("read", &list, e)),
        }
        Ok(tree)
    }

    fn walk(&mut self, dir: &Path) -> Result<()> {
        for entry in std::fs::read_dir(dir).at("list", dir)? {
            let entry = entry.at("list", dir)?;
            let path = entry.path();
            // Symbolic links are not followed: `build` and `source` lead out of the tree.
            if entry.file_type().at("look at", &path)?.is_dir() {
                self.walk(&path)?;
            } else if let Some(name) = path.to_str().and_then(module_name) {
                self.files.insert(name, path);
            }
        }
        Ok(())
    }

    /// Returns whether a feature is a module of this tree or built into its kernel.
    pub fn offers(&self, name: &str) -> bool {
        self.files.contains_key(name) || self.builtin.contains(name)
    }

    /// Returns the modules that an image needs, dependencies first. `read` returns a module's
    /// uncompressed bytes.
    pub fn load_order(
        &self,
        read: &mut dyn FnMut(&Path) -> Result<Vec<u8>>,
    ) -> Result<Vec<LoadedModule>> {
        let mut order = Order { tree: self, seen: BTreeSet::new(), list: Vec::new(), read };
        for name in WANTED {
            order.visit(name)?;
        }
        Ok(order.list)
    }
}

/// A module in load order.
pub(crate) struct LoadedModule {
    pub file: PathBuf,
    pub bytes: Vec<u8>,
}

struct Order<'a> {
    tree: &'a Tree,
    seen: BTreeSet<String>,
    list: Vec<LoadedModule>,
    read: &'a mut dyn FnMut(&Path) -> Result<Vec<u8>>,
}

impl Order<'_> {
    fn visit(&mut self, name: &str) -> Result<()> {
        // crc32c's software implementation has a name of its own and is requested by alias.
        let generic = format!("{name}_generic");
        let name = if self.tree.files.contains_key(name) { name } else { generic.as_str() };
        let Some(file) = self.tree.files.get(name) else { return Ok(()) };
        if !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let bytes = (self.read)(file)?;
        let info = modinfo(&bytes);
        for before in info.soft_before.iter().chain(&info.depends) {
            self.visit(before)?;
        }
        self.list.push(LoadedModule { file: file.clone(), bytes });
        Ok(())
    }
}

/// Turns `…/virtio-rng.ko.xz` into `virtio_rng`: the kernel treats `-` and `_` in module names as
/// equal.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().find_map(|e| file.strip_suffix(e))?;
    (!stem.is_empty()).then(|| stem.replace('-', "_"))
}

/// Reads a module's `.modinfo`: NUL-terminated `key=value` strings.
pub(crate) fn modinfo(module: &[u8]) -> ModInfo {
    let section = Elf::parse(module).and_then(|elf| elf.section(".modinfo")).unwrap_or_default();
    let mut info = ModInfo::default();
    for entry in section.split(|b| *b == 0).filter_map(|e| std::str::from_utf8(e).ok()) {
        let names = |text: &str, by: fn(char) -> bool| -> Vec<String> {
            text.split(by).filter(|n| !n.is_empty()).map(|n| n.replace('-', "_")).collect()
        };
        if let Some(list) = entry.strip_prefix("depends=") {
            info.depends.extend(names(list, |c| c == ','));
        } else if let Some(text) = entry.strip_prefix("softdep=") {
            // The form is `pre: a b post: c`.
            let before = text.split("post:").next().unwrap_or_default();
            if let Some((_, list)) = before.split_once("pre:") {
                info.soft_before.extend(names(list, char::is_whitespace));
            }
        }
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Makes an ELF64 relocatable file whose only relevant section is `.modinfo`.
    pub(crate) fn module(modinfo: &[u8]) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let (info_at, names_at) = (64, 64 + modinfo.len());
        let table_at = names_at + names.len();
        let mut out = b"\x7fELF\x02\x01\x01".to_vec();
        out.resize(64, 0);
        out[16] = 1;
        out[18] = 62;
        out[40..48].copy_from_slice(&(table_at as u64).to_le_bytes());
        out[58] = 64;
        out[60] = 3;
        out[62] = 2;
        out.extend_from_slice(modinfo);
        out.extend_from_slice(names);
        for (name, at, len) in
            [(0u32, 0, 0), (1, info_at, modinfo.len()), (10, names_at, names.len())]
        {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[24..32].copy_from_slice(&(at as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(len as u64).to_le_bytes());
            out.extend_from_slice(&header);
        }
        out
    }

    fn tree(dir: &Path, modules: &[(&str, &str)]) -> Tree {
        for (name, info) in modules {
            std::fs::write(dir.join(format!("{name}.ko")), module(info.as_bytes())).unwrap();
        }
        Tree::open(dir).unwrap()
    }

    #[test]
    fn dependencies_come_first_and_cycles_end() {
        let dir = tempfile::tempdir().unwrap();
        let tree = tree(
            dir.path(),
            &[
                ("erofs", "depends=libcrc32c\0license=GPL\0"),
                ("libcrc32c", "softdep=pre: crc32c post: nothing\0depends=\0"),
                ("crc32c_generic", "depends=libcrc32c\0"),
                ("virtio-rng", "depends=virtio\0"),
                ("virtio", "depends=virtio-ring\0"),
                ("virtio_ring", "depends=\0"),
                ("unrelated", "depends=\0"),
            ],
        );
        let order = tree.load_order(&mut |p| std::fs::read(p).at("read", p)).unwrap();
        let names: Vec<_> = order.iter().map(|m| m.file.file_stem().unwrap()).collect();
        let expected =
            ["crc32c_generic", "libcrc32c", "erofs", "virtio_ring", "virtio", "virtio-rng"];
        assert_eq!(names, expected);
    }

    #[test]
    fn names_are_normal() {
        assert_eq!(module_name("kernel/a/virtio-rng.ko.xz").as_deref(), Some("virtio_rng"));
        assert_eq!(module_name("modules.order"), None);
        assert_eq!(module_name(".ko"), None);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(info: Vec<u8>, cut in 0usize..600, at in 0usize..600, value: u8) {
            let mut bytes = module(&info);
            if let Some(b) = bytes.get_mut(at) { *b = value; }
            bytes.truncate(cut.max(8));
            let _ = modinfo(&bytes);
        }
    }
}
