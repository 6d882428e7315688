//! Entry points for the fuzzer: what reads a guest's bytes and is not public otherwise.

use crate::window::{Announced, SIZE, SLOT, SLOTS, Window};
use futures::FutureExt;
use std::path::Path;

/// Returns the content of a window for [`window`]: each of the guest's slots is full of its number,
/// counted from one, and the host's are zero.
pub fn window_content() -> Vec<u8> {
    let mut content = vec![0; SIZE as usize / 2];
    content.extend((1..=SLOTS as u8).flat_map(|number| std::iter::repeat_n(number, SLOT)));
    content
}

/// Reads what a guest says of its window, whose `file` holds [`window_content`]. The first byte is
/// the number of slots that the host has written; then each payload follows its length. Returns
/// whether one of them meant anything. Panics if something outside of the named slot is read, or a
/// slot is freed that was not in use.
pub fn window(file: &Path, bytes: &[u8]) -> bool {
    let Some((count, mut rest)) = bytes.split_first() else { return false };
    let window = Window::of_host(file);
    let turn = window.turn();
    let mut in_use = [false; SLOTS];
    for _ in 0..usize::from(*count) % (SLOTS + 1) {
        in_use[turn.slot().now_or_never().expect("a free slot")] = true;
    }
    let mut meant = false;
    while let Some((length, behind)) = rest.split_first() {
        let (payload, behind) = behind.split_at(usize::from(*length).min(behind.len()));
        rest = behind;
        if let Some(announced) = Announced::decode(payload) {
            let piece = window.read(announced).expect("it is within the window");
            assert_eq!(piece.bytes().len(), announced.length);
            let number = announced.slot as u8 + 1;
            assert!(piece.bytes().iter().all(|byte| *byte == number), "another slot is read");
            window.recycle(piece);
            meant = true;
        }
        let used = match payload {
            &[slot] => in_use.get_mut(usize::from(slot)).is_some_and(std::mem::take),
            _ => false,
        };
        assert_eq!(turn.free(payload), used, "{payload:?}");
        meant |= used;
    }
    meant
}
