//! Log files that a machine appends to: trimming them, and quoting them in errors.

use crate::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Keeps about the last `max_bytes` of the log at `path`, from the start of a line, and returns
/// whether it cut anything. Does nothing while the file is shorter than `max_bytes` plus a quarter,
/// so that a caller may call it often.
///
/// The writer must have opened the file with `O_APPEND` (drivers do): it then goes on at the new
/// end. What it writes between the reading and the cutting is lost. A missing file is no error.
/// Errors: `io`.
pub fn trim_log(path: &Path, max_bytes: u64) -> Result<bool> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).custom_flags(libc::O_NOFOLLOW);
    let mut file = match options.open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(Error::io(format!("cannot open {}", path.display()))(e)),
    };
    trim(&mut file, max_bytes).map_err(Error::io(format!("cannot trim {}", path.display())))
}

fn trim(file: &mut File, max_bytes: u64) -> std::io::Result<bool> {
    let length = file.metadata()?.len();
    if length <= max_bytes.saturating_add(max_bytes / 4) {
        return Ok(false);
    }
    let mut kept = Vec::new();
    file.seek(SeekFrom::Start(length - max_bytes))?;
    file.read_to_end(&mut kept)?;
    let from = kept.iter().position(|b| *b == b'\n').map_or(0, |newline| newline + 1);
    file.set_len(0)?;
    file.write_all(&kept[from..])?;
    Ok(true)
}

/// Returns the last `lines` lines of the file, at most 8 KiB, without control characters (a guest's
/// console may hold anything); empty if the file does not exist.
pub(super) fn last_lines(path: &Path, lines: usize) -> String {
    const AT_MOST: u64 = 8 * 1024;
    let mut bytes = Vec::new();
    let mut options = OpenOptions::new();
    let opened = options.read(true).custom_flags(libc::O_NOFOLLOW).open(path);
    let _ = opened.and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(AT_MOST)))?;
        file.take(AT_MOST).read_to_end(&mut bytes)
    });
    printable_tail(&bytes, lines)
}

fn printable_tail(bytes: &[u8], lines: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut kept: Vec<String> = text
        .lines()
        .rev()
        .map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>())
        .filter(|line| !line.trim().is_empty())
        .take(lines)
        .collect();
    kept.reverse();
    kept.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_tail_stays_and_the_writer_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut writer = OpenOptions::new().append(true).create(true).open(&path).unwrap();
        for n in 0..1000 {
            writeln!(writer, "line {n}").unwrap();
        }
        assert!(trim_log(&path, 100).unwrap());
        writeln!(writer, "after").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.len() < 120 && text.starts_with("line ") && text.ends_with("999\nafter\n"));
        assert!(!trim_log(&path, 100).unwrap(), "little over the bound is left alone");
        assert!(!trim_log(&dir.path().join("none"), 1).unwrap());
        assert_eq!(last_lines(&path, 2), "line 999\nafter");
        assert_eq!(last_lines(&dir.path().join("none"), 2), "");
    }

    proptest! {
        #[test]
        fn any_console_can_be_quoted(
            bytes in proptest::collection::vec(any::<u8>(), 0..2000), lines in 0usize..20,
        ) {
            let text = printable_tail(&bytes, lines);
            prop_assert!(text.lines().count() <= lines);
            prop_assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
        }

        #[test]
        fn what_is_kept_is_a_suffix(
            bytes in proptest::collection::vec(any::<u8>(), 0..3000), max in 1u64..1000,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            std::fs::write(&path, &bytes).unwrap();
            trim_log(&path, max).unwrap();
            let kept = std::fs::read(&path).unwrap();
            prop_assert!(bytes.ends_with(&kept));
            prop_assert!(kept.len() as u64 <= max + max / 4);
        }
    }
}
