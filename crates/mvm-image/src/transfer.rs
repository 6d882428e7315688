//! Moves images from the store of one node to that of another.
//!
//! An image is requested by its digest, which covers what went in, and by its *content*, the digest
//! of what came out: who knows the content need not trust the node that sends the bytes. What has
//! arrived stays in `images/.incoming-DIGEST` until it is complete, so that an interrupted transfer
//! can be resumed, even from another node.

use crate::error::{At, Error, Result, free_bytes};
use crate::fs::{json, write};
use crate::layout::ImageStore;
use crate::revision::{self, MANIFEST, digest_of, parts_of};
use crate::types::{PARTS, Part, Revision};
use crate::workdir::{self, INCOMING};
use mvm_model::{Digest, Timestamp};
use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Ending of the name of an incomplete part.
const PARTIAL: &str = ".partial";
/// The largest part that is accepted, in bytes: 1 TiB.
const MAX_PART: u64 = 1 << 40;
/// The longest manifest that is accepted, in bytes.
const MAX_MANIFEST: usize = 32 << 20;
/// The longest text in a manifest that is accepted, in bytes: a path has at most as many.
const MAX_TEXT: usize = 4096;
/// How many store paths an image may have at most.
const MAX_CLOSURE: usize = 100_000;
/// The end of the year 9999: later times cannot be shown.
const MAX_TIME: Timestamp = Timestamp::from_millis(253_402_300_799_999);
/// Free bytes that must remain besides what a transfer needs.
const SPARE: u64 = 64 << 20;

/// An image that is being received. While it is held, no other task receives the same one.
#[derive(Debug)]
pub struct Incoming {
    images: PathBuf,
    dir: PathBuf,
    revision: Revision,
    _lock: File,
}

/// See [`ImageStore::manifest`].
pub(crate) fn manifest(store: &ImageStore, digest: &str) -> Result<Vec<u8>> {
    let mut revision = revision::find(store, digest)?;
    if revision.parts.is_empty() {
        revision.parts = parts_of(&revision.dir)?;
    }
    Ok(json(&revision))
}

/// See [`ImageStore::receive`].
pub(crate) fn receive(
    store: &ImageStore,
    manifest: &[u8],
    digest: &str,
    content: Option<&str>,
) -> Result<Incoming> {
    let revision = checked(manifest, digest, content)?;
    let images = store.images_dir();
    let dir = images.join(format!("{INCOMING}{digest}"));
    std::fs::create_dir_all(&dir).at("create", &dir)?;
    let lock = File::open(&dir).at("open", &dir)?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(Error::Busy { digest: digest.to_owned() });
    }
    let incoming = Incoming { images, dir, revision, _lock: lock };
    incoming.forget_what_differs()?;
    incoming.check_room()?;
    Ok(incoming)
}

/// Returns the image that a manifest describes, if it is the wanted one. Error: `image_refused`.
pub(crate) fn checked(manifest: &[u8], digest: &str, content: Option<&str>) -> Result<Revision> {
    let refused = |why: String| Error::ImageRefused { digest: digest.to_owned(), why };
    if manifest.len() > MAX_MANIFEST {
        return Err(refused(format!("its manifest has more than {MAX_MANIFEST} bytes")));
    }
    let unreadable = |e| refused(format!("its manifest cannot be read: {e}"));
    let named: Named = serde_json::from_slice(manifest).map_err(unreadable)?;
    if named.digest != digest {
        return Err(refused(format!("its manifest is of {:.64}", named.digest)));
    }
    if !is_digest(digest) {
        return Err(refused("not a valid digest".to_owned()));
    }
    if !is_digest(&named.kernel_digest) {
        return Err(refused(impossible_value("kernel_digest")));
    }
    let mut revision: Revision = serde_json::from_slice(manifest).map_err(unreadable)?;
    let names: Vec<&str> = revision.parts.iter().map(|part| part.name.as_str()).collect();
    if names != PARTS {
        return Err(refused(format!("its parts are not {}", PARTS.join(", "))));
    }
    if revision.parts.iter().any(|p| !is_digest(&p.sha256) || p.size > MAX_PART) {
        return Err(refused("a part has an impossible size or digest".to_owned()));
    }
    if let Some(field) = impossible(&revision) {
        return Err(refused(impossible_value(field)));
    }
    let found = revision.content();
    if content.is_some_and(|wanted| wanted != found) {
        return Err(refused(format!("its content is {found}, not what was asked for")));
    }
    revision.size_bytes = revision.parts.iter().map(|part| part.size).sum();
    Ok(revision)
}

/// The digests in a manifest as its text has them, so that one that is none is refused by its name.
#[derive(Deserialize)]
struct Named {
    digest: String,
    kernel_digest: String,
}

fn impossible_value(field: &str) -> String {
    format!("`{field}` of its manifest has an impossible value")
}

fn is_digest(text: &str) -> bool {
    text.parse::<Digest>().is_ok()
}

fn is_text(text: &str) -> bool {
    text.len() <= MAX_TEXT && !text.chars().any(char::is_control)
}

fn is_path(text: &str) -> bool {
    is_text(text) && text.starts_with('/') && !text.split('/').any(|part| part == "..")
}

/// Returns the first field that no image of this mvm has with this value. These fields say where an
/// image comes from: they are shown and stored, and the digests above do not cover them.
fn impossible(revision: &Revision) -> Option<&'static str> {
    let closure = &revision.closure;
    let fields = [
        ("kernel_version", is_text(&revision.kernel_version)),
        ("built_at", revision.built_at <= MAX_TIME),
        ("flake", is_text(&revision.flake)),
        ("profile", is_text(&revision.profile)),
        ("guest_sha256", is_digest(&revision.guest_sha256)),
        ("out_path", is_path(&revision.out_path)),
        ("closure", closure.len() <= MAX_CLOSURE && closure.iter().all(|path| is_path(path))),
    ];
    fields.into_iter().find(|(_, possible)| !possible).map(|(field, _)| field)
}

impl Incoming {
    /// Returns the image's digest.
    pub fn digest(&self) -> Digest {
        self.revision.digest
    }

    /// Returns each part that is still missing, and how many of its bytes have arrived.
    pub fn missing(&self) -> Vec<(Part, u64)> {
        let wanted = self.revision.parts.iter().filter(|part| !self.dir.join(&part.name).exists());
        let there =
            |part: &Part| std::fs::metadata(self.partial(&part.name)).map_or(0, |m| m.len());
        wanted.map(|part| (part.clone(), there(part))).collect()
    }

    /// Returns the path of the file to which a part's bytes are appended.
    pub fn partial(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}{PARTIAL}"))
    }

    /// Checks the digest of a part that has arrived completely; a part with a wrong one is deleted.
    /// Blocks. Errors: `image_corrupt`, `io`.
    pub fn seal(&self, part: &Part) -> Result<()> {
        let path = self.partial(&part.name);
        let size = std::fs::metadata(&path).at("look at", &path)?.len();
        if size == part.size && digest_of(&path)? == part.sha256 {
            return std::fs::rename(&path, self.dir.join(&part.name)).at("keep", &path);
        }
        std::fs::remove_file(&path).at("remove", &path)?;
        let digest = self.revision.digest.to_string();
        Err(Error::ImageCorrupt { digest, part: part.name.clone() })
    }

    /// Puts the image into the store once all parts have arrived. Blocks. Errors: `image_damaged`
    /// if one is missing, `io`.
    pub fn finish(self) -> Result<Revision> {
        if let Some((part, there)) = self.missing().first() {
            let why = format!("{there} of {} bytes of {} are there", part.size, part.name);
            return Err(Error::Damaged { path: self.dir, why });
        }
        let to = self.images.join(self.revision.digest.to_string());
        write(&self.dir.join(MANIFEST), &json(&self.revision))?;
        remove_if_there(&self.note())?;
        if !workdir::publish(&self.dir, &to)? {
            workdir::remove(&self.dir)?;
        }
        revision::load_whole(&to)
    }

    /// Deletes what an earlier transfer left if it was of another content.
    fn forget_what_differs(&self) -> Result<()> {
        let content = self.revision.content();
        if std::fs::read_to_string(self.note()).is_ok_and(|known| known == content) {
            return Ok(());
        }
        for name in PARTS {
            remove_if_there(&self.dir.join(name))?;
            remove_if_there(&self.partial(name))?;
        }
        write(&self.note(), content.as_bytes())
    }

    /// Returns the path of the file that says to which content the present parts belong.
    fn note(&self) -> PathBuf {
        self.dir.join("content")
    }

    fn check_room(&self) -> Result<()> {
        let needed: u64 =
            self.missing().iter().map(|(part, there)| part.size - there.min(&part.size)).sum();
        match free_bytes(&self.images) {
            Some(free) if free < needed + SPARE => {
                Err(Error::no_space("the image", &self.images, needed + SPARE))
            }
            _ => Ok(()),
        }
    }
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_model::Code;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn manifest() -> Value {
        let digest = "ab".repeat(32);
        let part = |name: &&str| json!({ "name": name, "size": 4096, "sha256": digest });
        json!({
            "digest": digest, "platform": "pci", "kernel_digest": digest, "kernel_version": "6.1.0",
            "built_at": 1, "size_bytes": 0, "flake": "/flake", "profile": "ci",
            "guest_sha256": digest, "out_path": "/nix/store/x", "closure": ["/nix/store/x"],
            "parts": PARTS.iter().map(part).collect::<Vec<_>>(),
        })
    }

    fn read(manifest: &Value) -> Result<Revision> {
        checked(&serde_json::to_vec(manifest).unwrap(), &"ab".repeat(32), None)
    }

    #[track_caller]
    fn refused(field: &str, value: Value) {
        let mut forged = manifest();
        forged[field] = value;
        let error = read(&forged).unwrap_err();
        assert_eq!(error.code(), Code::ImageRefused);
        assert!(error.to_string().contains(&format!("`{field}`")), "{error}");
    }

    const TEXTS: [&str; 3] = ["kernel_version", "flake", "profile"];

    #[test]
    fn a_manifest_says_nothing_impossible() {
        read(&manifest()).unwrap();
        for field in ["kernel_digest", "guest_sha256"] {
            for digest in ["".to_owned(), "ab".repeat(31), "ab".repeat(33), "xy".repeat(32)] {
                refused(field, json!(digest));
            }
        }
        for field in TEXTS {
            refused(field, json!("a".repeat(MAX_TEXT + 1)));
        }
        for path in ["", "nix/store/x", "/nix/store/../../etc", "/nix/store/a\nb"] {
            refused("out_path", json!(path));
            refused("closure", json!(["/nix/store/x", path]));
        }
        refused("closure", json!(vec!["/"; MAX_CLOSURE + 1]));
        refused("built_at", json!(u64::MAX));
        let mut long = manifest();
        long["more"] = json!("a".repeat(MAX_MANIFEST));
        assert_eq!(read(&long).unwrap_err().code(), Code::ImageRefused);
    }

    proptest! {
        /// What is shown of an image cannot change how a terminal shows what follows.
        #[test]
        fn no_text_has_control_characters(
            before in ".{0,20}", control in "\\p{Cc}", after in ".{0,20}", field in 0..TEXTS.len(),
        ) {
            refused(TEXTS[field], json!([before, control, after].concat()));
        }

        #[test]
        fn other_texts_are_taken(text in "\\PC{0,200}", field in 0..TEXTS.len()) {
            let mut whole = manifest();
            whole[TEXTS[field]] = json!(text);
            prop_assert!(read(&whole).is_ok());
        }
    }
}
