//! Images are moved from one store to another; transfers are cut off, tampered with and resumed.

mod common;

use common::*;
use mvm_image::{ImageStore, Revision};
use mvm_model::Code;
use proptest::prelude::*;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

async fn built() -> (ImageStore, tempfile::TempDir, Revision) {
    let (store, root) = store();
    debian_kernel(&store).await;
    let flakes = tempfile::tempdir().unwrap();
    let flake = flake(flakes.path(), SMALL);
    let revision = store.build(&request(&flake, "small"), &quiet()).await.unwrap();
    (store, root, revision)
}

/// Appends up to `most` bytes of what a part still lacks.
fn carry(from: &Revision, part: &str, to: &Path, offset: u64, most: u64) {
    let mut source = std::fs::File::open(from.part_file(part).unwrap()).unwrap();
    source.seek(SeekFrom::Start(offset)).unwrap();
    let mut bytes = Vec::new();
    source.take(most).read_to_end(&mut bytes).unwrap();
    let mut target = std::fs::OpenOptions::new().create(true).append(true).open(to).unwrap();
    target.write_all(&bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_arrives_whole_though_it_was_cut_off_and_tampered_with() {
    let (from, _root, revision) = built().await;
    assert_eq!(revision.parts.len(), 3);
    let (to, to_root) = store();
    let digest = revision.digest.to_string();
    let (manifest, content) = (from.manifest(&digest).unwrap(), revision.content());
    let receive = || to.receive(&manifest, &digest, Some(&content));

    // Every part is cut off in the middle: what has arrived stays.
    let incoming = receive().unwrap();
    assert_eq!(receive().unwrap_err().code(), Code::Busy);
    for (part, there) in incoming.missing() {
        assert_eq!(there, 0);
        carry(&revision, &part.name, &incoming.partial(&part.name), 0, part.size / 2);
    }
    drop(incoming);
    assert!(to.list().unwrap().is_empty());
    assert!(to.remove_unused(&Default::default(), false).unwrap().is_empty(), "it is gone on with");

    let incoming = receive().unwrap();
    for (part, there) in incoming.missing() {
        assert_eq!(there, part.size / 2);
        carry(&revision, &part.name, &incoming.partial(&part.name), there, part.size);
    }
    // With one byte changed, a part is thrown away, and the others are kept.
    let path = incoming.partial("initrd");
    let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(100)).unwrap();
    file.write_all(b"?").unwrap();
    for (part, _) in incoming.missing() {
        let sealed = incoming.seal(&part);
        assert_eq!(sealed.is_err(), part.name == "initrd");
        if let Err(error) = sealed {
            assert_eq!(error.code(), Code::ImageCorrupt);
        }
    }
    assert_eq!(incoming.missing().len(), 1);
    drop(incoming);

    let incoming = receive().unwrap();
    let (part, there) = incoming.missing().remove(0);
    assert_eq!((part.name.as_str(), there), ("initrd", 0));
    carry(&revision, "initrd", &incoming.partial("initrd"), 0, part.size);
    incoming.seal(&part).unwrap();
    let arrived = incoming.finish().unwrap();
    assert_eq!((&arrived.digest, arrived.content()), (&revision.digest, content.clone()));
    for part in &arrived.parts {
        let bytes = |image: &Revision| std::fs::read(image.part_file(&part.name).unwrap()).unwrap();
        assert!(bytes(&arrived) == bytes(&revision), "{} differs", part.name);
    }
    assert_eq!(names(&to_root.path().join("images")), [digest.as_str()]);
    assert_eq!(to.get(&digest).unwrap().parts, revision.parts);

    // A manifest of another image is refused, and leaves nothing behind.
    let (other, other_root) = store();
    for (digest, content) in [("0".repeat(64), None), (digest.clone(), Some("0".repeat(64)))] {
        let refused = other.receive(&manifest, &digest, content.as_deref()).unwrap_err();
        assert_eq!(refused.code(), Code::ImageRefused);
    }
    assert!(names(&other_root.path().join("images")).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A manifest comes from another machine: whatever it says, nothing is written outside the
    /// directory, and any other image is refused.
    #[test]
    fn a_manifest_of_any_text_is_refused(text in "\\PC{0,200}", name in "(\\.\\./)?[a-z.]{1,12}", size in any::<u64>()) {
        let (store, root) = store();
        let digest = "a".repeat(64);
        let forged = serde_json::json!({
            "digest": digest, "platform": "pci", "kernel_digest": "", "kernel_version": "",
            "built_at": 0, "size_bytes": 0, "flake": "", "profile": "", "guest_sha256": "",
            "out_path": "", "closure": [],
            "parts": [{ "name": name, "size": size, "sha256": text }],
        });
        for manifest in [text.clone().into_bytes(), forged.to_string().into_bytes()] {
            let refused = store.receive(&manifest, &digest, None).unwrap_err();
            prop_assert_eq!(refused.code(), Code::ImageRefused);
        }
        prop_assert!(names(&root.path().join("images")).is_empty());
    }
}
