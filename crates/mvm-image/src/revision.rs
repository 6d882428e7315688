//! Revisions in the store: `images/DIGEST/{root.erofs, vmlinux, initrd, manifest.json}`.

use crate::error::{At, Error, Result};
use crate::fs::read_manifest;
use crate::layout::ImageStore;
use crate::types::{PARTS, Part, Revision};
use sha2::{Digest, Sha256};
use std::cmp::Reverse;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The file that describes a revision; a directory that contains it is complete.
pub(crate) const MANIFEST: &str = "manifest.json";

/// Returns the revision in `dir`; `None` if it is missing or incomplete.
pub(crate) fn load(dir: &Path) -> Result<Option<Revision>> {
    let manifest: Option<Revision> = read_manifest(&dir.join(MANIFEST))?;
    Ok(manifest.map(|revision| Revision {
        dir: dir.to_owned(),
        root: dir.join("root.erofs"),
        kernel: dir.join("vmlinux"),
        initrd: dir.join("initrd"),
        ..revision
    }))
}

/// Returns the revision that was just put into `dir`. Error: `image_damaged`.
pub(crate) fn load_whole(dir: &Path) -> Result<Revision> {
    let missing = || Error::Damaged { path: dir.to_owned(), why: "no manifest".to_owned() };
    load(dir)?.ok_or_else(missing)
}

/// Returns all complete revisions, newest first.
pub(crate) fn list(store: &ImageStore) -> Result<Vec<Revision>> {
    let dir = store.images_dir();
    let mut all = Vec::new();
    for entry in std::fs::read_dir(&dir).at("list", &dir)? {
        let entry = entry.at("list", &dir)?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            all.extend(load(&entry.path())?);
        }
    }
    all.sort_by_key(|revision| Reverse((revision.built_at, revision.digest)));
    Ok(all)
}

/// Returns the revision with this digest, or with a prefix of it (at least four digits) that no
/// other has. Errors: `revision_missing`, `ambiguous`, `image_damaged`.
pub(crate) fn find(store: &ImageStore, digest: &str) -> Result<Revision> {
    let missing = || Error::RevisionMissing { digest: digest.to_owned() };
    if digest.len() < 4 || !digest.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(missing());
    }
    if let Some(revision) = load(&store.images_dir().join(digest))? {
        return Ok(revision);
    }
    let mut fitting = list(store)?;
    fitting.retain(|r| r.digest.begins_with(digest));
    let (count, kind) = (fitting.len(), "revision");
    match fitting.pop() {
        Some(revision) if count == 1 => Ok(revision),
        Some(_) => Err(Error::Ambiguous { wanted: digest.to_owned(), count, kind }),
        None => Err(missing()),
    }
}

/// Returns the lengths and digests of an image's files.
pub(crate) fn parts_of(dir: &Path) -> Result<Vec<Part>> {
    let part = |name: &&str| {
        let path = dir.join(name);
        let size = std::fs::metadata(&path).at("look at", &path)?.len();
        Ok(Part { name: (*name).to_owned(), size, sha256: digest_of(&path)? })
    };
    PARTS.iter().map(part).collect()
}

/// Returns the SHA-256 of a file's bytes, in hex.
pub(crate) fn digest_of(path: &Path) -> Result<String> {
    let mut file = File::open(path).at("open", path)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).at("read", path)? {
            0 => return Ok(mvm_model::hex::digits(hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}
