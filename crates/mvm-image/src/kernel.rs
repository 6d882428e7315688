//! Kernels in the store: `kernels/DIGEST/{vmlinux, modules/…, kernel.json}`, and `kernels/default`.

use crate::command::Tool;
use crate::error::{At, Error, Result};
use crate::fs::{blocking, json, read_manifest, write};
use crate::kernel_image::{self, Compression, Contents, Facts};
use crate::layout::ImageStore;
use crate::modules::{LoadedModule, Tree};
use crate::types::{KernelImport, KernelInfo, now};
use crate::workdir::{self, WorkDir};
use mvm_model::Digest;
use sha2::{Digest as _, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MANIFEST: &str = "kernel.json";
/// How long uncompressing a kernel or module may take: seconds, unless the host is overloaded.
const UNCOMPRESS: Duration = Duration::from_secs(300);
/// The largest kernel or module, uncompressed, in bytes: those of distributions have 100 MiB at most.
const LARGEST: usize = 512 << 20;

/// A kernel that was read but is not in the store yet.
struct Incoming {
    vmlinux: Vec<u8>,
    facts: Facts,
    /// Path in the initrd and bytes of each module, in load order.
    modules: Vec<(String, Vec<u8>)>,
}

/// Imports `file`; `origin` says where it comes from (a Nix store path, a package).
pub(crate) async fn import(
    store: &ImageStore,
    file: &Path,
    opts: KernelImport,
    origin: &str,
) -> Result<KernelInfo> {
    let incoming = read(file, opts.initrd_modules.as_deref()).await?;
    let name = opts.name.unwrap_or_else(|| incoming.facts.version.clone());
    check_name(&name)?;
    let (store, origin) = (store.clone(), origin.to_owned());
    blocking(move || keep(&store, &incoming, &name, &origin)).await
}

fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+-~".contains(c);
    if !name.is_empty() && name.len() <= 64 && name.chars().all(plain) && !name.starts_with('-') {
        return Ok(());
    }
    let why = "give 1 to 64 letters, digits, or . _ + - ~, not starting with -".to_owned();
    Err(Error::Invalid { what: format!("kernel name `{name}`"), why })
}

/// Reads and unpacks a kernel file, and the modules that it needs.
async fn read(file: &Path, modules: Option<&Path>) -> Result<Incoming> {
    let meta = tokio::fs::metadata(file).await.at("read", file)?;
    if !meta.is_file() {
        let looks_like =
            if meta.is_dir() { "it is a directory" } else { "it is not a regular file" };
        return Err(Error::NotAKernel { path: file.into(), looks_like: looks_like.to_owned() });
    }
    let bytes = tokio::fs::read(file).await.at("read", file)?;
    let vmlinux = match kernel_image::identify(&bytes) {
        Contents::Vmlinux => bytes,
        Contents::Compressed(compression, payload) => unpack(file, compression, payload).await?,
        Contents::Other(looks_like) => {
            return Err(Error::NotAKernel { path: file.into(), looks_like });
        }
    };
    let facts = kernel_image::facts(&vmlinux).ok_or_else(|| Error::NotAKernel {
        path: file.into(),
        looks_like: "what is packed in it is not an x86-64 Linux kernel".to_owned(),
    })?;
    let lacking = kernel_image::not_built_in(&vmlinux);
    let dir = match modules {
        Some(dir) => Some(dir.to_owned()),
        None if lacking.is_empty() => None,
        None => modules_beside(file, &facts.version),
    };
    let modules = match dir {
        Some(dir) => needed_modules(&dir, &facts.version, &lacking).await?,
        None if lacking.is_empty() => Vec::new(),
        None => {
            let why = format!(
                "it has not built in {}; name the directory of its modules (lib/modules/{}), or \
                 take the distribution's with `mvm kernel fetch`",
                lacking.join(", "),
                facts.version
            );
            return Err(Error::KernelUnfit { name: facts.version, why });
        }
    };
    Ok(Incoming { vmlinux, facts, modules })
}

/// Returns the modules directory of a kernel in an unpacked package (`boot/vmlinuz-V`,
/// `lib/modules/V`); `None` if there is none.
fn modules_beside(file: &Path, version: &str) -> Option<PathBuf> {
    let beside = file.parent()?.parent().map(|p| p.join("lib/modules").join(version));
    beside.filter(|dir| dir.is_dir())
}

async fn unpack(file: &Path, compression: Compression, payload: &[u8]) -> Result<Vec<u8>> {
    let refuse = |compression: &str, why: &str| Error::KernelCompression {
        path: file.into(),
        compression: compression.to_owned(),
        why: why.to_owned(),
    };
    let damaged = |name: &str| refuse(name, "cannot be unpacked: the file is damaged");
    // The compressed stream is followed by four bytes with the unpacked size.
    let stream = &payload[..payload.len().saturating_sub(4)];
    match compression {
        Compression::Gzip => kernel_image::gunzip(payload).ok_or_else(|| damaged("gzip")),
        Compression::Lz4 => kernel_image::unlz4(payload).ok_or_else(|| damaged("LZ4")),
        Compression::None => Ok(stream.to_vec()),
        Compression::Xz => filter("xz", "xz-utils", stream).await,
        Compression::Zstd => filter("zstd", "zstd", stream).await,
        Compression::Bzip2 => filter("bzip2", "bzip2", stream).await,
        Compression::Lzma | Compression::Lzo => Err(refuse(
            if compression == Compression::Lzma { "LZMA" } else { "LZO" },
            "cannot be undone here; give the vmlinux of that kernel instead",
        )),
        Compression::Unknown => Err(refuse(
            "an unknown method",
            "cannot be undone here; give the vmlinux of that kernel instead",
        )),
    }
}

/// Uncompresses a kernel or module. The bytes may be anybody's: few can stand for very many.
async fn filter(program: &str, package: &'static str, bytes: &[u8]) -> Result<Vec<u8>> {
    let filter = Tool::new(Path::new(program), package).arg("-dc").stdin(bytes.to_vec());
    filter.within(UNCOMPRESS).most_output(LARGEST).output().await
}

/// Returns the modules under `dir`, uncompressed and in load order, with their paths in the initrd.
async fn needed_modules(
    dir: &Path,
    version: &str,
    lacking: &[&str],
) -> Result<Vec<(String, Vec<u8>)>> {
    let (dir, version) = (dir.to_owned(), version.to_owned());
    let lacking: Vec<String> = lacking.iter().map(|s| (*s).to_owned()).collect();
    let handle = tokio::runtime::Handle::current();
    blocking(move || {
        let tree = Tree::open(&dir)?;
        let absent: Vec<&str> =
            lacking.iter().map(String::as_str).filter(|n| !tree.offers(n)).collect();
        if !absent.is_empty() {
            let why = format!("neither it nor its modules in {dir:?} have {}", absent.join(", "));
            return Err(Error::KernelUnfit { name: version, why });
        }
        let order = tree.load_order(&mut |file| handle.block_on(read_module(file)))?;
        Ok(order.into_iter().map(|m| place(&dir, &version, m)).collect())
    })
    .await
}

async fn read_module(file: &Path) -> Result<Vec<u8>> {
    let bytes = tokio::fs::read(file).await.at("read", file)?;
    match file.extension().and_then(|e| e.to_str()) {
        Some("xz") => filter("xz", "xz-utils", &bytes).await,
        Some("zst") => filter("zstd", "zstd", &bytes).await,
        Some("gz") => kernel_image::gunzip(&bytes).ok_or_else(|| Error::Damaged {
            path: file.into(),
            why: "it is not a gzip file".into(),
        }),
        _ => Ok(bytes),
    }
}

fn place(dir: &Path, version: &str, module: LoadedModule) -> (String, Vec<u8>) {
    let inside = module.file.strip_prefix(dir).unwrap_or(&module.file).to_string_lossy();
    let plain = [".xz", ".zst", ".gz"].iter().find_map(|e| inside.strip_suffix(e));
    let inside = plain.unwrap_or(&inside);
    (format!("lib/modules/{version}/{inside}"), module.bytes)
}

/// Writes a kernel into the store unless it is there already. The first kernel becomes the default.
fn keep(store: &ImageStore, incoming: &Incoming, name: &str, origin: &str) -> Result<KernelInfo> {
    let digest = digest(incoming);
    let kernels = store.kernels_dir();
    let dir = kernels.join(digest.to_string());
    if let Some(info) = load(&dir)? {
        return finish(store, info);
    }
    if let Some(other) = list(store)?.into_iter().find(|k| k.name == name) {
        let digest = other.digest.short();
        return Err(Error::KernelExists { name: name.to_owned(), digest });
    }
    let work = WorkDir::new_in(&kernels)?;
    let size = incoming.vmlinux.len() + incoming.modules.iter().map(|m| m.1.len()).sum::<usize>();
    write(&work.path().join("vmlinux"), &incoming.vmlinux)?;
    for (path, bytes) in &incoming.modules {
        let file = work.path().join("modules").join(path);
        let parent = file.parent().unwrap_or(work.path());
        std::fs::create_dir_all(parent).at("create", parent)?;
        write(&file, bytes)?;
    }
    let info = KernelInfo {
        digest,
        name: name.to_owned(),
        version: incoming.facts.version.clone(),
        platform: incoming.facts.platform,
        pvh: incoming.facts.pvh,
        modules: incoming.modules.iter().map(|m| m.0.clone()).collect(),
        size_bytes: size as u64,
        imported_at: now(),
        origin: origin.to_owned(),
        default: false,
        path: PathBuf::new(),
        dir: PathBuf::new(),
    };
    write(&work.path().join(MANIFEST), &json(&info))?;
    work.publish(&dir)?;
    finish(store, load(&dir)?.unwrap_or(info))
}

fn finish(store: &ImageStore, mut info: KernelInfo) -> Result<KernelInfo> {
    if default_digest(store)?.is_none() {
        set_default(store, info.digest)?;
    }
    info.default = default_digest(store)? == Some(info.digest);
    Ok(info)
}

fn digest(incoming: &Incoming) -> Digest {
    let mut hash = Sha256::new();
    hash.update((incoming.vmlinux.len() as u64).to_le_bytes());
    hash.update(&incoming.vmlinux);
    for (path, bytes) in &incoming.modules {
        hash.update(path.as_bytes());
        hash.update([0]);
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    Digest::from_bytes(hash.finalize().into())
}

fn load(dir: &Path) -> Result<Option<KernelInfo>> {
    let manifest: Option<KernelInfo> = read_manifest(&dir.join(MANIFEST))?;
    Ok(manifest.map(|info| KernelInfo { path: dir.join("vmlinux"), dir: dir.to_owned(), ..info }))
}

/// Returns all kernels, sorted by name.
pub(crate) fn list(store: &ImageStore) -> Result<Vec<KernelInfo>> {
    let default = default_digest(store)?;
    let dir = store.kernels_dir();
    let mut all = Vec::new();
    for entry in std::fs::read_dir(&dir).at("list", &dir)? {
        let path = entry.at("list", &dir)?.path();
        if !path.is_dir() {
            continue; // `default`
        }
        if let Some(mut info) = load(&path)? {
            info.default = default == Some(info.digest);
            all.push(info);
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// Returns the kernel with this name or digest, or with a prefix of at least four digits that no
/// other has.
pub(crate) fn find(store: &ImageStore, wanted: &str) -> Result<KernelInfo> {
    let mut all = list(store)?;
    if let Some(i) = all.iter().position(|k| k.name == wanted || k.digest.to_string() == wanted) {
        return Ok(all.swap_remove(i));
    }
    all.retain(|k| wanted.len() >= 4 && k.digest.begins_with(wanted));
    match (all.len(), all.pop()) {
        (1, Some(kernel)) => Ok(kernel),
        (0, _) | (_, None) => Err(Error::KernelMissing { wanted: Some(wanted.to_owned()) }),
        (count, _) => Err(Error::Ambiguous { wanted: wanted.to_owned(), count, kind: "kernel" }),
    }
}

/// Returns the kernel for builds that name none; `None` if the store has no kernel.
pub(crate) fn default(store: &ImageStore) -> Result<Option<KernelInfo>> {
    Ok(list(store)?.into_iter().find(|kernel| kernel.default))
}

/// Returns the digest of the default kernel; `None` if there is none, or if the file that names it
/// is damaged.
fn default_digest(store: &ImageStore) -> Result<Option<Digest>> {
    let path = store.kernels_dir().join("default");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().parse().ok()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", &path, e)),
    }
}

/// Makes the kernel with this digest the default.
pub(crate) fn set_default(store: &ImageStore, digest: Digest) -> Result<()> {
    let dir = store.kernels_dir();
    let to = dir.join("default");
    let made = tempfile::Builder::new().prefix(".tmp-default").tempfile_in(&dir);
    let mut file = made.at("create a file in", &dir)?;
    writeln!(file, "{digest}").and_then(|()| file.as_file().sync_all()).at("write", &to)?;
    file.persist(&to).map_err(|e| Error::io("write", &to, e.error))?;
    workdir::sync(&dir)
}

/// Removes a kernel. Revisions hold their own link to its file.
pub(crate) fn remove(store: &ImageStore, wanted: &str) -> Result<KernelInfo> {
    let kernel = find(store, wanted)?;
    removal(store, &kernel)?.into_iter().try_for_each(|step| step.carry_out(store))?;
    Ok(kernel)
}

/// One step of a removal. A crash may come between any two.
#[derive(Debug)]
enum Removal {
    SetDefault(Digest),
    ForgetDefault,
    RemoveFiles(PathBuf),
}

/// Returns the steps that remove a kernel. The default is moved first, so that it never names a
/// kernel that is gone: then builds would find none, although others are there.
fn removal(store: &ImageStore, kernel: &KernelInfo) -> Result<Vec<Removal>> {
    let next = list(store)?.into_iter().find(|other| other.digest != kernel.digest);
    let default = kernel.default.then_some(match next {
        Some(next) => Removal::SetDefault(next.digest),
        None => Removal::ForgetDefault,
    });
    let files = Removal::RemoveFiles(kernel.dir.clone());
    Ok(default.into_iter().chain([files]).collect())
}

impl Removal {
    fn carry_out(&self, store: &ImageStore) -> Result<()> {
        match self {
            Removal::SetDefault(digest) => set_default(store, *digest),
            Removal::ForgetDefault => {
                let dir = store.kernels_dir();
                let default = dir.join("default");
                std::fs::remove_file(&default).at("remove", &default)?;
                workdir::sync(&dir)
            }
            Removal::RemoveFiles(dir) => workdir::remove(dir),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::GuestBinary;
    use crate::types::Platform;

    fn store_with(names: &[&str]) -> (ImageStore, tempfile::TempDir) {
        let root = tempfile::tempdir().unwrap();
        let store = ImageStore::open(root.path(), GuestBinary::new(b"guest")).unwrap();
        for name in names {
            let facts = Facts { version: (*name).to_owned(), platform: Platform::Pci, pvh: true };
            let incoming =
                Incoming { vmlinux: name.as_bytes().to_vec(), facts, modules: Vec::new() };
            keep(&store, &incoming, name, "a test").unwrap();
        }
        (store, root)
    }

    /// A crash after any step of a removal leaves a default that is there, as long as any kernel is,
    /// and the removal can be repeated.
    #[test]
    fn a_removal_that_is_cut_off_leaves_a_default() {
        for names in [&["a"][..], &["a", "b"], &["a", "b", "c"]] {
            for removed in names {
                for crash_after in 0..=2 {
                    let (store, _root) = store_with(names);
                    let kernel = find(&store, removed).unwrap();
                    let steps = removal(&store, &kernel).unwrap();
                    for step in steps.iter().take(crash_after) {
                        step.carry_out(&store).unwrap();
                    }
                    let case = format!("{removed} of {names:?}, cut off after {crash_after}");
                    let named = default_digest(&store).unwrap();
                    let there = default(&store).unwrap().map(|kernel| kernel.digest);
                    assert_eq!(named, there, "{case}");
                    assert!(there.is_some() || names.len() == 1, "{case}");
                    if crash_after < steps.len() {
                        remove(&store, removed).unwrap();
                    }
                    let left: Vec<String> =
                        list(&store).unwrap().into_iter().map(|kernel| kernel.name).collect();
                    let expected: Vec<&str> =
                        names.iter().filter(|name| *name != removed).copied().collect();
                    assert_eq!(left, expected, "{case}");
                    assert_eq!(default(&store).unwrap().is_some(), names.len() > 1, "{case}");
                }
            }
        }
    }
}
