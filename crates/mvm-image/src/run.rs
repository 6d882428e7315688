//! Running other programs: argument vectors only, output line by line, ended with their task.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use crate::error::{Error, Result};

/// Lines of a tool's standard error that are kept for error messages.
const KEPT_LINES: usize = 400;

/// A program to run.
pub(crate) struct Tool {
    program: PathBuf,
    package: &'static str,
    args: Vec<OsString>,
    envs: Vec<(String, String)>,
    dir: Option<PathBuf>,
    stdin: Vec<u8>,
}

/// How it went.
pub(crate) struct Ended {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    /// The last lines of standard error, without colour codes.
    pub stderr: Vec<String>,
}

impl Tool {
    /// `program` as a name for `PATH` or a path; `package` is the Debian package that has it.
    pub fn new(program: &Path, package: &'static str) -> Self {
        let (args, envs, stdin) = Default::default();
        Self { program: program.to_owned(), package, args, envs, dir: None, stdin }
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

    /// Bytes for its standard input, which is empty otherwise.
    pub fn stdin(mut self, bytes: Vec<u8>) -> Self {
        self.stdin = bytes;
        self
    }

    fn name(&self) -> String {
        self.program.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Runs it, giving each line of its standard error to `on_line`. When the future is dropped,
    /// the program gets SIGTERM, so that it can take its own children along.
    pub async fn run(self, mut on_line: impl FnMut(&str)) -> Result<Ended> {
        let mut command = Command::new(&self.program);
        command.args(&self.args).env("LC_ALL", "C.UTF-8");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.envs(self.envs.iter().map(|(k, v)| (k, v)));
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        let mut child = command.spawn().map_err(|e| self.spawn_error(e))?;
        let _stop = StopOnDrop(child.id());
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let feed = async {
            if let Some(mut pipe) = stdin {
                // A program that does not read its input says why by its status.
                let _ = pipe.write_all(&self.stdin).await;
            }
        };
        let collect = async {
            let mut bytes = Vec::new();
            match stdout {
                Some(mut pipe) => pipe.read_to_end(&mut bytes).await.map(|_| bytes),
                None => Ok(bytes),
            }
        };
        let (stdout, stderr, ()) = tokio::join!(collect, lines(stderr, &mut on_line), feed);
        let status = child.wait().await;
        std::mem::forget(_stop); // it has ended: its pid may be another's by now
        let io = |e| Error::io("run", &self.program, e);
        Ok(Ended { status: status.map_err(io)?, stdout: stdout.map_err(io)?, stderr })
    }

    /// Runs it and gives its standard output; a bad end is [`Error::ToolFailed`].
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

/// Sends SIGTERM to a child of ours that has not been waited for.
struct StopOnDrop(Option<u32>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        let pid = self.0.and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
}

/// The last `n` lines as one text.
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
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line).await, Ok(n) if n > 0) {
            let text = plain(&String::from_utf8_lossy(&line));
            line.clear();
            on_line(&text);
            if kept.len() == KEPT_LINES {
                kept.pop_front();
            }
            kept.push_back(text);
        }
    }
    kept.into()
}

/// A line without its end, terminal escapes (ECMA-48 CSI) and other control characters.
fn plain(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut chars = line.trim_end().chars();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => {
                if chars.next() == Some('[') {
                    // Parameters, then one final byte in @..~.
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

    #[test]
    fn colours_are_taken_out() {
        assert_eq!(plain("\x1b[31;1merror:\x1b[0m no\r\n"), "error: no");
        assert_eq!(plain("\x1b["), "");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named_with_its_package() {
        let tool = Tool::new(Path::new("/nonexistent/mkfs.erofs"), "erofs-utils");
        let error = tool.output().await.unwrap_err();
        assert_eq!(error.code(), "tool_missing");
        assert!(error.to_string().contains("apt-get install erofs-utils"), "{error}");
    }

    #[tokio::test]
    async fn input_and_output_larger_than_a_pipe_do_not_deadlock() {
        let input = vec![b'x'; 1 << 20];
        let out = Tool::new(Path::new("cat"), "coreutils").stdin(input.clone()).output().await;
        assert_eq!(out.unwrap(), input);
    }
}
