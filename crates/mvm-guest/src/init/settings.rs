//! Kernel settings that are made when a guest starts.

use std::fs;
use std::path::Path;

/// Each file and the value to write to it, in order.
///
/// Multi-generational LRU (admin-guide/mm/multigen_lru): pages used within the last second stay in
/// memory, and if that is impossible, the kernel ends a program for want of memory. Without this, a
/// program that takes all memory makes the kernel evict and reread the pages of every other program
/// from the image's disk, and for minutes nothing in the guest answers.
const SETTINGS: [(&str, &str); 2] =
    [("/sys/kernel/mm/lru_gen/enabled", "y"), ("/sys/kernel/mm/lru_gen/min_ttl_ms", "1000")];

/// Makes all settings; those that the kernel does not have are skipped.
pub fn apply() {
    for (file, value) in SETTINGS {
        if Path::new(file).exists()
            && let Err(cause) = fs::write(file, value)
        {
            super::say(&format!("cannot write {value} to {file}: {cause}"));
        }
    }
}
