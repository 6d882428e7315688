//! Images that travel: from the store of one node to that of another.
//!
//! An image is asked for by its digest, which names what went in, and by its *content*, the digest
//! of what came out: whoever knows the content trusts no node that sends the bytes. What has
//! arrived stays in `images/.incoming-DIGEST` until it is whole, so that a transfer goes on where
//! it was cut off, from another node if need be.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::build::{self, MANIFEST};
use crate::error::{At, Error, Result, free_bytes};
use crate::kernel::{json, write};
use crate::store::ImageStore;
use crate::types::{Revision, hex};
use crate::workdir;

/// The files that make an image, beside its manifest.
pub(crate) const PARTS: [&str; 3] = ["initrd", "root.erofs", "vmlinux"];
/// What begins the name of a directory that a transfer fills.
pub(crate) const INCOMING: &str = ".incoming-";
/// What ends the name of a part that is not whole yet.
const PARTIAL: &str = ".partial";
/// The largest part that is taken, in bytes: 1 TiB.
const MAX_PART: u64 = 1 << 40;
/// Room that is left beside what a transfer needs, in bytes.
const SPARE: u64 = 64 << 20;

/// One file of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// `initrd`, `root.erofs` or `vmlinux`.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// SHA-256 of its bytes, 64 hexadecimal digits.
    pub sha256: String,
}

impl Revision {
    /// SHA-256 in hex over names, lengths and digests of its parts: what the image *is*, where the
    /// digest says what it was made of. Empty where its files were never digested.
    pub fn content(&self) -> String {
        if self.parts.is_empty() {
            return String::new();
        }
        let mut hash = Sha256::new();
        for part in &self.parts {
            hash.update(format!("{} {} {}\n", part.name, part.size, part.sha256));
        }
        hex(&hash.finalize())
    }

    /// The file of a part, if it has one of that name.
    pub fn part_file(&self, name: &str) -> Option<PathBuf> {
        PARTS.contains(&name).then(|| self.dir.join(name))
    }
}

/// Lengths and digests of an image's files.
pub(crate) fn parts_of(dir: &Path) -> Result<Vec<Part>> {
    let part = |name: &&str| {
        let path = dir.join(name);
        let size = std::fs::metadata(&path).at("look at", &path)?.len();
        Ok(Part { name: (*name).to_owned(), size, sha256: digest_of(&path)? })
    };
    PARTS.iter().map(part).collect()
}

fn digest_of(path: &Path) -> Result<String> {
    let mut file = File::open(path).at("open", path)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).at("read", path)? {
            0 => return Ok(hex(&hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// An image on its way in. While it is held nobody else receives the same one.
#[derive(Debug)]
pub struct Incoming {
    images: PathBuf,
    dir: PathBuf,
    revision: Revision,
    _lock: File,
}

impl ImageStore {
    /// What another node has to know of an image to receive it. Blocks: of an image that was built
    /// before its files were digested, they are now. Errors: as [`ImageStore::get`].
    pub fn manifest(&self, digest: &str) -> Result<Vec<u8>> {
        let mut revision = self.get(digest)?;
        if revision.parts.is_empty() {
            revision.parts = parts_of(&revision.dir)?;
        }
        Ok(json(&revision))
    }

    /// Begins to receive the image `digest`, or goes on with it. `manifest` is what the sending
    /// node says of it, which must agree with `digest`, and with `content` where that is known.
    /// Blocks. Errors: `image_refused` (the manifest is not that image's), `busy` (somebody
    /// receives it already), `no_space`, `io`.
    pub fn receive(
        &self,
        manifest: &[u8],
        digest: &str,
        content: Option<&str>,
    ) -> Result<Incoming> {
        let revision = checked(manifest, digest, content)?;
        let images = self.images_dir();
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
}

/// The image that a manifest describes, if it is the wanted one.
fn checked(manifest: &[u8], digest: &str, content: Option<&str>) -> Result<Revision> {
    let refused = |why: String| Error::ImageRefused { digest: digest.to_owned(), why };
    let mut revision: Revision = serde_json::from_slice(manifest)
        .map_err(|e| refused(format!("its manifest cannot be read: {e}")))?;
    if revision.digest != digest {
        return Err(refused(format!("its manifest is of {:.64}", revision.digest)));
    }
    let is_digest = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_digest(digest) {
        return Err(refused("that is no digest".to_owned()));
    }
    let names: Vec<&str> = revision.parts.iter().map(|part| part.name.as_str()).collect();
    if names != PARTS {
        return Err(refused(format!("its parts are not {}", PARTS.join(", "))));
    }
    if revision.parts.iter().any(|p| !is_digest(&p.sha256) || p.size > MAX_PART) {
        return Err(refused("a part has an impossible size or digest".to_owned()));
    }
    let found = revision.content();
    if content.is_some_and(|wanted| wanted != found) {
        return Err(refused(format!("its content is {found}, not what was asked for")));
    }
    revision.size_bytes = revision.parts.iter().map(|part| part.size).sum();
    Ok(revision)
}

impl Incoming {
    /// The image's digest.
    pub fn digest(&self) -> &str {
        &self.revision.digest
    }

    /// What is still to come: each part, and how many bytes of it are there.
    pub fn missing(&self) -> Vec<(Part, u64)> {
        let wanted = self.revision.parts.iter().filter(|part| !self.dir.join(&part.name).exists());
        let there =
            |part: &Part| std::fs::metadata(self.partial(&part.name)).map_or(0, |m| m.len());
        wanted.map(|part| (part.clone(), there(part))).collect()
    }

    /// Where the bytes of a part are to be appended.
    pub fn partial(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}{PARTIAL}"))
    }

    /// A part is whole: checks its digest. If that is wrong the part is thrown away. Blocks.
    /// Errors: `image_corrupt`, `io`.
    pub fn seal(&self, part: &Part) -> Result<()> {
        let path = self.partial(&part.name);
        let size = std::fs::metadata(&path).at("look at", &path)?.len();
        if size == part.size && digest_of(&path)? == part.sha256 {
            return std::fs::rename(&path, self.dir.join(&part.name)).at("keep", &path);
        }
        std::fs::remove_file(&path).at("remove", &path)?;
        let digest = self.revision.digest.clone();
        Err(Error::ImageCorrupt { digest, part: part.name.clone() })
    }

    /// All parts are there: the image is in the store from now on. Blocks.
    pub fn finish(self) -> Result<Revision> {
        if let Some((part, there)) = self.missing().first() {
            let why = format!("{there} of {} bytes of {} are there", part.size, part.name);
            return Err(Error::Damaged { path: self.dir, why });
        }
        let to = self.images.join(&self.revision.digest);
        write(&self.dir.join(MANIFEST), &json(&self.revision))?;
        remove_if_there(&self.note())?;
        if !workdir::publish(&self.dir, &to)? {
            workdir::remove(&self.dir)?;
        }
        build::load(&to)?.ok_or_else(|| Error::Damaged { path: to, why: "no manifest".to_owned() })
    }

    /// What an earlier transfer left is of use only if it was of the same content.
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

    /// Says of which content the parts are that are there.
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
