//! A log file of bounded size: a full one is renamed to `NAME.1` and replaces the previous one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The largest log file, in bytes. Together with the previous file it is twice as much.
pub const MOST: u64 = 16 << 20;

/// Called with each file that becomes the log.
type Begun = fn(&File) -> io::Result<()>;

/// A log file that lines are appended to.
pub struct LogFile {
    path: PathBuf,
    file: File,
    length: u64,
    most: u64,
    begun: Begun,
}

/// Redirects standard error to the log, so that panics and other messages of the process are there,
/// too.
pub fn take_standard_error(file: &File) -> io::Result<()> {
    Ok(rustix::stdio::dup2_stderr(file)?)
}

impl LogFile {
    /// Opens a log of at most `most` bytes, and creates it if it does not exist. Its contents stay.
    pub fn open(path: &Path, most: u64, begun: Begun) -> io::Result<LogFile> {
        let file = open(path)?;
        begun(&file)?;
        let length = file.metadata()?.len();
        Ok(LogFile { path: path.to_owned(), file, length, most, begun })
    }

    /// Renames the present file, and begins a new one.
    fn rotate(&mut self) -> io::Result<()> {
        let mut before = self.path.clone().into_os_string();
        before.push(".1");
        std::fs::rename(&self.path, before)?;
        self.file = open(&self.path)?;
        self.length = 0;
        (self.begun)(&self.file)
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

impl Write for LogFile {
    /// Appends a line. A line longer than the largest log is cut.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let most = usize::try_from(self.most).unwrap_or(usize::MAX).min(line.len());
        if self.length + most as u64 > self.most {
            self.rotate()?;
        }
        self.file.write_all(&line[..most])?;
        self.length += most as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_is_put_aside_once() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("agent.log");
        std::fs::write(&path, "of before\n").expect("file");
        let mut log = LogFile::open(&path, 40, |_| Ok(())).expect("log");
        for number in 0..10 {
            log.write_all(format!("line number {number}\n").as_bytes()).expect("line");
        }
        let read = |path: &Path| std::fs::read_to_string(path).expect("log");
        assert_eq!(read(&path), "line number 8\nline number 9\n");
        assert_eq!(read(&dir.path().join("agent.log.1")), "line number 6\nline number 7\n");
        log.write_all(&[b'x'; 1000]).expect("line");
        assert_eq!(read(&path).len(), 40);
        // An oversized file of an earlier agent is renamed at the first line.
        std::fs::write(&path, "x".repeat(1000)).expect("file");
        let mut log = LogFile::open(&path, 40, |_| Ok(())).expect("log");
        log.write_all(b"new\n").expect("line");
        assert_eq!(read(&path), "new\n");
    }
}
