//! Runs other programs: with argument vectors only, reading their output line by line, and ending
//! them with their task.

use crate::abandoned::{MARK, mark_of};
use crate::error::{Error, Result};
use crate::workdir::WorkDir;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;

/// How many lines of a tool's standard error are kept for error messages.
const KEPT_LINES: usize = 400;
/// The longest line that is kept, in bytes; the rest of a longer one is dropped.
const LONGEST_LINE: usize = 16 << 10;
/// The most that a tool may write to its standard output, in bytes: an uncompressed kernel, or
/// Nix's list of a large closure, is far smaller.
const MOST_OUTPUT: usize = 1 << 30;

/// A program to run, with its arguments and environment.
pub(crate) struct Tool {
    program: PathBuf,
    package: &'static str,
    args: Vec<OsString>,
    envs: Vec<(String, String)>,
    dir: Option<PathBuf>,
    stdin: Vec<u8>,
    writes_to: Option<WorkDir>,
    limits: Limits,
}

/// How long a program may run, and how much it may write.
struct Limits {
    time: Option<Duration>,
    output: usize,
}

/// How a program ended, and what it wrote.
#[derive(Debug)]
pub(crate) struct Ended {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    /// The last lines of standard error, without colour codes.
    pub stderr: Vec<String>,
}

impl Tool {
    /// Makes a tool of `program`, a name to find in `PATH` or a path; `package` is the Debian
    /// package that contains it.
    pub fn new(program: &Path, package: &'static str) -> Self {
        let (args, envs, stdin) = Default::default();
        let (dir, writes_to) = (None, None);
        let limits = Limits { time: None, output: MOST_OUTPUT };
        Self { program: program.to_owned(), package, args, envs, dir, stdin, writes_to, limits }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    pub fn env(mut self, name: &str, value: String) -> Self {
        self.envs.push((name.to_owned(), value));
        self
    }

    pub fn dir(mut self, dir: &Path) -> Self {
        self.dir = Some(dir.to_owned());
        self
    }

    /// Sets the bytes for its standard input, which is empty otherwise.
    pub fn stdin(mut self, bytes: Vec<u8>) -> Self {
        self.stdin = bytes;
        self
    }

    /// Sets the work directory that the program writes to, which stays until the program has ended.
    /// If this process is killed meanwhile, the next sweep of the directory ends the program
    /// ([`crate::abandoned`]).
    pub fn writes_to(mut self, work: &WorkDir) -> Self {
        self.writes_to = Some(work.clone());
        self
    }

    /// Ends the program when it has run for this long. Without a limit it may take its time: it is
    /// ended with the task that runs it.
    pub fn within(mut self, limit: Duration) -> Self {
        self.limits.time = Some(limit);
        self
    }

    /// Sets the most bytes that it may write to its standard output.
    pub fn most_output(mut self, bytes: usize) -> Self {
        self.limits.output = bytes;
        self
    }

    fn name(&self) -> String {
        self.program.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Runs the program and passes each line of its standard error to `on_line`. If the future is
    /// dropped, the program gets SIGTERM, so that it can end its own children. Errors:
    /// [`Error::ToolFailed`] where it takes too long or writes too much.
    pub async fn run(self, on_line: impl FnMut(&str)) -> Result<Ended> {
        let (name, limit) = (self.name(), self.limits.time);
        let running = self.carry_out(on_line);
        match limit {
            None => running.await,
            Some(limit) => tokio::time::timeout(limit, running).await.unwrap_or_else(|_| {
                let status = format!("ended after {} s", limit.as_secs());
                Err(Error::ToolFailed { tool: name, status, output: "it did not end".to_owned() })
            }),
        }
    }

    async fn carry_out(mut self, mut on_line: impl FnMut(&str)) -> Result<Ended> {
        let mut command = Command::new(&self.program);
        command.args(&self.args).env("LC_ALL", "C.UTF-8");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.envs(self.envs.iter().map(|(k, v)| (k, v)));
        if let Some(mark) = self.writes_to.as_ref().and_then(|work| mark_of(work.path())) {
            command.env(MARK, mark);
        }
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        let child = command.spawn().map_err(|e| self.spawn_error(e))?;
        let (runtime, writes_to) = (Handle::current(), self.writes_to.take());
        let mut running = Running { child: Some(child), writes_to, runtime };
        let child = running.child.as_mut().expect("it is taken when this is dropped");
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let feed = async {
            if let Some(mut pipe) = stdin {
                // A program that does not read its input shows the reason in its status.
                let _ = pipe.write_all(&self.stdin).await;
            }
            Ok(())
        };
        let io = |e| Error::io("run", &self.program, e);
        let most = self.limits.output;
        let collect = async {
            let mut bytes = Vec::new();
            if let Some(pipe) = stdout {
                pipe.take(most as u64 + 1).read_to_end(&mut bytes).await.map_err(io)?;
            }
            match bytes.len() > most {
                true => Err(Error::ToolFailed {
                    tool: self.name(),
                    status: "ended".to_owned(),
                    output: format!("it wrote more than {} MiB", most >> 20),
                }),
                false => Ok(bytes),
            }
        };
        let told = async { Ok(lines(stderr, &mut on_line).await) };
        let (stdout, stderr, ()) = tokio::try_join!(collect, told, feed)?;
        let status = child.wait().await.map_err(io)?;
        Ok(Ended { status, stdout, stderr })
    }

    /// Runs the program and returns its standard output. Error: [`Error::ToolFailed`] if its status
    /// is not 0.
    pub async fn output(self) -> Result<Vec<u8>> {
        let name = self.name();
        let ended = self.run(|_| {}).await?;
        if ended.status.success() {
            return Ok(ended.stdout);
        }
        let output = tail(&ended.stderr, 20);
        Err(Error::ToolFailed { tool: name, status: ended.status.to_string(), output })
    }

    fn spawn_error(&self, e: std::io::Error) -> Error {
        match e.kind() {
            std::io::ErrorKind::NotFound if self.dir.as_ref().is_none_or(|d| d.is_dir()) => {
                Error::ToolMissing { tool: self.name(), package: self.package }
            }
            _ => Error::io("run", &self.program, e),
        }
    }
}

/// A running program. When dropped, it is asked to end, and the directory that it writes to is held
/// until it has.
struct Running {
    child: Option<Child>,
    writes_to: Option<WorkDir>,
    runtime: Handle,
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // There is no pid once the program has been waited for: another process may have it by now.
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) else { return };
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let writes_to = self.writes_to.take();
        self.runtime.spawn(async move {
            let _ = child.wait().await;
            drop(writes_to);
        });
    }
}

/// Returns the last `n` lines as one text.
pub(crate) fn tail(lines: &[String], n: usize) -> String {
    lines[lines.len().saturating_sub(n)..].join("\n")
}

async fn lines(
    pipe: Option<impl AsyncRead + Unpin>,
    on_line: &mut impl FnMut(&str),
) -> Vec<String> {
    let mut kept = VecDeque::new();
    if let Some(pipe) = pipe {
        let mut reader = BufReader::new(pipe);
        while let Some(line) = next_line(&mut reader).await {
            let text = plain(&String::from_utf8_lossy(&line));
            on_line(&text);
            if kept.len() == KEPT_LINES {
                kept.pop_front();
            }
            kept.push_back(text);
        }
    }
    kept.into()
}

/// Returns the beginning of the next line, [`LONGEST_LINE`] bytes at most; `None` at the end.
async fn next_line(reader: &mut BufReader<impl AsyncRead + Unpin>) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    let mut begun = false;
    loop {
        let piece = reader.fill_buf().await.unwrap_or_default();
        if piece.is_empty() {
            return begun.then_some(line);
        }
        begun = true;
        let end = piece.iter().position(|byte| *byte == b'\n');
        let part = &piece[..end.unwrap_or(piece.len())];
        line.extend_from_slice(&part[..part.len().min(LONGEST_LINE - line.len())]);
        let read = part.len() + usize::from(end.is_some());
        reader.consume(read);
        if end.is_some() {
            return Some(line);
        }
    }
}

/// Returns a line without its end, terminal escapes (ECMA-48 CSI) and other control characters.
fn plain(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut chars = line.trim_end().chars();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => {
                if chars.next() == Some('[') {
                    // An escape has parameters, then one final byte in @..~.
                    for c in chars.by_ref() {
                        if ('@'..='~').contains(&c) {
                            break;
                        }
                    }
                }
            }
            '\t' => out.push(c),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_model::Code;
    use std::time::Instant;

    #[test]
    fn colours_are_taken_out() {
        assert_eq!(plain("\x1b[31;1merror:\x1b[0m no\r\n"), "error: no");
        assert_eq!(plain("\x1b["), "");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named_with_its_package() {
        let tool = Tool::new(Path::new("/nonexistent/mkfs.erofs"), "erofs-utils");
        let error = tool.output().await.unwrap_err();
        assert_eq!(error.code(), Code::ToolMissing);
        assert!(error.to_string().contains("apt-get install erofs-utils"), "{error}");
    }

    #[tokio::test]
    async fn input_and_output_larger_than_a_pipe_do_not_deadlock() {
        let input = vec![b'x'; 1 << 20];
        let out = Tool::new(Path::new("cat"), "coreutils").stdin(input.clone()).output().await;
        assert_eq!(out.unwrap(), input);
    }

    #[tokio::test]
    async fn a_program_that_does_not_end_is_ended() {
        let sleeps = Tool::new(Path::new("sleep"), "coreutils").arg("600");
        let error = sleeps.within(Duration::from_millis(50)).output().await.unwrap_err();
        assert!(error.to_string().contains("it did not end"), "{error}");
    }

    #[tokio::test]
    async fn what_has_no_end_is_not_held() {
        let endless = || Tool::new(Path::new("sh"), "dash");
        let output = endless().args(["-c", "exec yes"]).most_output(1 << 20);
        let error = output.output().await.unwrap_err();
        assert!(error.to_string().contains("more than 1 MiB"), "{error}");
        let line = "head -c 1000000 /dev/zero | tr '\\0' x >&2; echo >&2; echo end >&2";
        let mut seen = Vec::new();
        let ended = endless().args(["-c", line]).run(|line| seen.push(line.len())).await.unwrap();
        assert_eq!(seen, [LONGEST_LINE, 3]);
        assert_eq!(ended.stderr[1], "end");
    }

    /// Nix recreates the directory of its result if it is missing, even after SIGTERM.
    #[tokio::test]
    async fn what_a_program_writes_to_stays_until_it_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let here = || std::fs::read_dir(dir.path()).unwrap().count();
        let work = WorkDir::new_in(dir.path()).unwrap();
        let script = "trap 'while [ ! -e ../go ]; do sleep 0.01; done; mkdir -p $PWD/late; exit' \
                      TERM; touch begun; while :; do sleep 0.01; done";
        let program = Tool::new(Path::new("sh"), "dash").args(["-c", script]);
        let program = program.dir(work.path()).writes_to(&work);
        let begun = work.path().join("begun");
        drop(work);
        let running = tokio::spawn(async move { program.run(|_| {}).await });
        while !begun.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(here(), 1, "it is still being written to");
        std::fs::write(dir.path().join("go"), "").unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while here() > 1 {
            assert!(Instant::now() < deadline, "it is left over");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(dir.path().join("go").exists());
    }
}
