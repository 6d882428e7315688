//! What reads foreign bytes here, for the fuzzer.

use super::snapshot;
use super::stream::{copy_without_zero_pages, with_memory_part};

/// A machine's state as QEMU sends it: it is copied without its zero pages, and joined with itself.
/// Says whether anything was left out.
pub fn migration_stream(bytes: &[u8]) -> bool {
    let mut copied = Vec::new();
    let whole = copy_without_zero_pages(bytes, &mut copied).is_ok();
    assert!(!whole || copied.len() <= bytes.len(), "a copy without zero pages is no longer");
    let middle = bytes.len() / 2;
    let _ = with_memory_part(&bytes[..middle], &bytes[middle..]);
    let _ = with_memory_part(bytes, bytes);
    whole && copied.len() < bytes.len()
}

/// The head of a snapshot's file. Says whether it is one.
pub fn snapshot_header(bytes: &[u8]) -> bool {
    snapshot::parse(bytes).is_ok()
}
