//! Entry points for the fuzzer: everything in this crate that reads foreign bytes.

use crate::kernel_image::{self, Compression, Contents};
use crate::{modules, transfer};

/// Reads a kernel's file, packed or not, and a module's. Returns whether the bytes are a kernel's.
pub fn kernel(bytes: &[u8]) -> bool {
    let contents = kernel_image::identify(bytes);
    if let Contents::Compressed(compression, payload) = &contents {
        let _ = match compression {
            Compression::Gzip => kernel_image::gunzip(payload),
            Compression::Lz4 => kernel_image::unlz4(payload),
            _ => None,
        };
    }
    let _ = kernel_image::facts(bytes);
    let _ = kernel_image::not_built_in(bytes);
    let _ = modules::modinfo(bytes);
    !matches!(contents, Contents::Other(_))
}

/// Reads another node's manifest of an image, which is accepted only for the image that was asked
/// for. Returns whether it was accepted.
pub fn manifest(bytes: &[u8]) -> bool {
    let digest = "ab".repeat(32);
    let Ok(revision) = transfer::checked(bytes, &digest, None) else { return false };
    assert_eq!(revision.digest.to_string(), digest);
    let shown = [&revision.kernel_version, &revision.flake, &revision.profile, &revision.out_path];
    assert!(shown.iter().all(|text| !text.chars().any(char::is_control)));
    let content = revision.content();
    assert!(transfer::checked(bytes, &digest, Some(&content)).is_ok());
    assert!(transfer::checked(bytes, &digest, Some("another")).is_err());
    true
}
