//! What the kernel is told when a guest starts.

use std::fs;
use std::path::Path;

/// Each file, and what is written to it, in this order.
///
/// Multi-generational LRU (admin-guide/mm/multigen_lru): what was in use within the last second stays
/// in memory, and where that cannot be, the kernel ends a program for want of memory. Without it a
/// program that takes all memory makes the kernel throw out and read again the pages of every other
/// program, the image being on a disk, for minutes in which nothing in the guest answers.
const SETTINGS: [(&str, &str); 2] =
    [("/sys/kernel/mm/lru_gen/enabled", "y"), ("/sys/kernel/mm/lru_gen/min_ttl_ms", "1000")];

/// Tells the kernel all of it; one without such a setting goes on as it is.
pub fn apply() {
    for (file, value) in SETTINGS {
        if Path::new(file).exists()
            && let Err(cause) = fs::write(file, value)
        {
            super::say(&format!("cannot write {value} to {file}: {cause}"));
        }
    }
}
