//! A log file with an end: when it is full it becomes `NAME.1`, in place of the one before.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The most that a log has, in bytes; with the one before it is twice as much.
pub const MOST: u64 = 16 << 20;

/// What is done with a file that lines go to from now on.
type Begun = fn(&File) -> io::Result<()>;

/// A file that lines are added to.
pub struct LogFile {
    path: PathBuf,
    file: File,
    length: u64,
    most: u64,
    begun: Begun,
}

/// Panics, and whatever else a process says on its standard error, go to the log as well.
pub fn take_standard_error(file: &File) -> io::Result<()> {
    Ok(rustix::stdio::dup2_stderr(file)?)
}

impl LogFile {
    /// Opens a log of at most `most` bytes, and makes it if it is not there. What is in it stays.
    pub fn open(path: &Path, most: u64, begun: Begun) -> io::Result<LogFile> {
        let file = open(path)?;
        begun(&file)?;
        let length = file.metadata()?.len();
        Ok(LogFile { path: path.to_owned(), file, length, most, begun })
    }

    /// Puts what is there aside, and begins anew.
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
    /// Adds a line. One that is longer than a log may be is cut.
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
        // One of an earlier agent, without an end, is put aside with the first line.
        std::fs::write(&path, "x".repeat(1000)).expect("file");
        let mut log = LogFile::open(&path, 40, |_| Ok(())).expect("log");
        log.write_all(b"new\n").expect("line");
        assert_eq!(read(&path), "new\n");
    }
}
