//! A job's log: frames of standard output and standard error in the order of their arrival, in one
//! file.

use super::queue::Jobs;
use crate::Result;
use crate::error::io;
use mvm_guest::frame::{self, Frame};
use mvm_model::JobId;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::sync::watch;

/// The maximum size of a log, in bytes. Later output is not kept.
const MAX_LOG: u64 = 64 << 20;
/// The length of a frame's kind and length fields, in bytes.
const HEAD: u64 = 5;
/// The kind of the frame that gives the offset in the output ([`Frame::Ack`]).
const MARK: u8 = 19;

/// Returns a line of mvm's own, on standard error.
pub(super) fn line(words: &str) -> Frame {
    Frame::Stderr(format!("mvm: {words}\n").into_bytes())
}

/// Returns the length of such a line in a log, in bytes.
pub(super) fn line_length(words: &str) -> u64 {
    HEAD + line(words).output().len() as u64
}

/// A log that is open for writing.
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Log {
    /// Opens or makes a log, and truncates it after its last whole frame.
    pub(crate) async fn open(path: &Path) -> Result<Log> {
        let open = async {
            let mut options = OpenOptions::new();
            options.create(true).truncate(false).read(true).write(true).mode(0o600);
            let mut file = options.open(path).await?;
            let length = whole(&mut file).await?;
            file.set_len(length).await?;
            file.seek(std::io::SeekFrom::Start(length)).await?;
            Ok((file, length))
        };
        let (file, length) = open.await.map_err(|e| io(format!("open {}", path.display()), e))?;
        Ok(Log { path: path.to_owned(), file, length })
    }

    /// Writes a piece of output, as long as the log is not full.
    pub(crate) async fn write(&mut self, piece: &Frame) -> Result<()> {
        if self.length >= MAX_LOG {
            return Ok(());
        }
        self.put(piece).await?;
        if self.length >= MAX_LOG {
            let words = format!("\nmvm: the log ends here: it has {} MiB\n", MAX_LOG >> 20);
            self.put(&Frame::Stderr(words.into_bytes())).await?;
        }
        Ok(())
    }

    /// Returns the log's length in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Returns whether the log takes no more output.
    pub(crate) fn is_full(&self) -> bool {
        self.length >= MAX_LOG
    }

    /// Returns how many bytes the log holds of the output of the program whose part began at
    /// `from`. Returns 0 for a full log: the program is then asked for all the output that it still
    /// has.
    pub(crate) async fn output_since(&self, from: u64) -> Result<u64> {
        if self.is_full() {
            return Ok(0);
        }
        let read = async {
            let mut file = File::open(&self.path).await?;
            let (mut at, mut output) = (from, 0);
            while at < self.length {
                let mut head = [0; HEAD as usize];
                file.seek(std::io::SeekFrom::Start(at)).await?;
                file.read_exact(&mut head).await?;
                let length = u64::from(u32::from_be_bytes([head[1], head[2], head[3], head[4]]));
                match head[0] {
                    MARK => output = file.read_u64().await?,
                    _ => output += length,
                }
                at += HEAD + length;
            }
            Ok(output)
        };
        read.await.map_err(|e| io(format!("read {}", self.path.display()), e))
    }

    async fn put(&mut self, piece: &Frame) -> Result<()> {
        let mut bytes = Vec::new();
        let written = async {
            frame::write(&mut bytes, piece).await.map_err(std::io::Error::other)?;
            self.file.write_all(&bytes).await?;
            self.file.flush().await
        };
        written.await.map_err(|e| io(format!("write {}", self.path.display()), e))?;
        self.length += bytes.len() as u64;
        Ok(())
    }
}

/// Returns where the last whole frame ends.
async fn whole(file: &mut File) -> std::io::Result<u64> {
    let length = file.metadata().await?.len();
    let mut at = 0;
    while at + HEAD <= length {
        let mut head = [0; HEAD as usize];
        file.seek(std::io::SeekFrom::Start(at)).await?;
        file.read_exact(&mut head).await?;
        let next = at + HEAD + u64::from(u32::from_be_bytes([head[1], head[2], head[3], head[4]]));
        if next > length {
            break;
        }
        at = next;
    }
    Ok(at)
}

/// A reader of a log, who can wait for more output until the job has ended.
pub(crate) struct Follow {
    jobs: Arc<Jobs>,
    id: JobId,
    follow: bool,
    from: u64,
    changed: watch::Receiver<()>,
    file: Option<File>,
}

impl Follow {
    /// Makes a reader that starts at byte `from` of the log.
    pub(crate) fn new(jobs: Arc<Jobs>, id: JobId, follow: bool, from: u64) -> Follow {
        let changed = jobs.channel_of(id).changed.subscribe();
        Follow { jobs, id, follow, from, changed, file: None }
    }

    /// Returns the next bytes; `None` at the end. A read error is not taken for the end.
    pub(crate) async fn next(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        loop {
            // Marked as seen before the read, so that a change after the read wakes this reader.
            self.changed.borrow_and_update();
            let over = !self.follow || self.is_over();
            if self.file.is_none() {
                self.file = self.open().await?;
            }
            if let Some(file) = &mut self.file {
                let mut buffer = vec![0; 64 * 1024];
                let count = file.read(&mut buffer).await?;
                if count > 0 {
                    buffer.truncate(count);
                    return Ok(Some(buffer));
                }
            }
            if over {
                return Ok(None);
            }
            self.changed.changed().await.map_err(std::io::Error::other)?;
        }
    }

    /// Opens the log, if anything was ever printed.
    async fn open(&self) -> std::io::Result<Option<File>> {
        let mut file = match File::open(self.jobs.files.log(self.id)).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        file.seek(std::io::SeekFrom::Start(self.from)).await?;
        Ok(Some(file))
    }

    fn is_over(&self) -> bool {
        self.jobs.records.read(|w| w.jobs.get(&self.id).is_none_or(|job| job.state.has_ended()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn frames(path: &Path) -> Vec<Frame> {
        let bytes = std::fs::read(path).expect("log");
        let (mut from, mut found) = (&bytes[..], Vec::new());
        while let Some(frame) = frame::read(&mut from).await.expect("whole frames") {
            found.push(frame);
        }
        found
    }

    #[tokio::test]
    async fn a_log_that_was_cut_off_anywhere_goes_on_behind_its_last_whole_frame() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("log");
        let (one, two) = (Frame::Stdout(b"one".to_vec()), Frame::Stderr(b"two".to_vec()));
        let mut log = Log::open(&path).await.expect("log");
        log.write(&one).await.expect("write");
        log.write(&two).await.expect("write");
        let whole = std::fs::read(&path).expect("log");
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).expect("cut");
            let kept = [&one, &two].into_iter().take(cut / 8).cloned();
            let mut log = Log::open(&path).await.expect("log");
            log.write(&one).await.expect("write");
            assert_eq!(frames(&path).await, kept.chain([one.clone()]).collect::<Vec<_>>(), "{cut}");
        }
    }

    /// A resumed program is asked for all output that the log does not hold.
    #[tokio::test]
    async fn a_log_says_how_much_of_a_program_s_output_it_holds() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("log");
        let mut log = Log::open(&path).await.expect("log");
        log.write(&Frame::Stdout(b"of a run before".to_vec())).await.expect("write");
        let from = log.length() + line_length("attempt 2 of 2");
        log.write(&line("attempt 2 of 2")).await.expect("write");
        assert_eq!((log.length(), log.output_since(from).await.expect("read")), (from, 0));
        log.write(&Frame::Stdout(b"three".to_vec())).await.expect("write");
        log.write(&Frame::Stderr(b"two".to_vec())).await.expect("write");
        assert_eq!(log.output_since(from).await.expect("read"), 8);
        log.write(&line("92 bytes are missing")).await.expect("write");
        log.write(&Frame::Ack(100)).await.expect("write");
        log.write(&Frame::Stdout(b"more".to_vec())).await.expect("write");
        let whole = std::fs::read(&path).expect("log");
        assert_eq!(log.output_since(from).await.expect("read"), 104);
        // The last frame is torn.
        std::fs::write(&path, &whole[..whole.len() - 1]).expect("cut");
        let log = Log::open(&path).await.expect("log");
        assert_eq!(log.output_since(from).await.expect("read"), 100);
    }

    #[tokio::test]
    async fn a_log_has_an_end_that_says_so() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("log");
        let mut log = Log::open(&path).await.expect("log");
        let piece = Frame::Stdout(vec![b'x'; 1 << 20]);
        for _ in 0..80 {
            log.write(&piece).await.expect("write");
        }
        let length = std::fs::metadata(&path).expect("log").len();
        assert!((MAX_LOG..MAX_LOG + (2 << 20)).contains(&length), "{length}");
        let last = frames(&path).await.pop();
        let Some(Frame::Stderr(words)) = last else { panic!("{last:?}") };
        assert!(String::from_utf8_lossy(&words).contains("mvm: the log ends here"));
        // A full log does not grow when it is opened again either.
        Log::open(&path).await.expect("log").write(&piece).await.expect("write");
        assert_eq!(std::fs::metadata(&path).expect("log").len(), length);
    }
}
