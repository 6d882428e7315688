//! Runs other programs: with argument vectors only, reading their output line by line, and ending
//! them with their task.

use crate::abandoned::{MARK, mark_of};
use crate::error::{Error, Result};
use crate::workdir::WorkDir;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;

/// How many lines of a tool's standard error are kept for error messages.
const KEPT_LINES: usize = 400;

/// A program to run, with its arguments and environment.
pub(crate) struct Tool {
    program: PathBuf,
    package: &'static str,
    args: Vec<OsString>,
    envs: Vec<(String, String)>,
    dir: Option<PathBuf>,
    stdin: Vec<u8>,
    writes_to: Option<WorkDir>,
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
        Self { program: program.to_owned(), package, args, envs, dir, stdin, writes_to }
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

    fn name(&self) -> String {
        self.program.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Runs the program and passes each line of its standard error to `on_line`. If the future is
    /// dropped, the program gets SIGTERM, so that it can end its own children.
    pub async fn run(mut self, mut on_line: impl FnMut(&str)) -> Result<Ended> {
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
        let io = |e| Error::io("run", &self.program, e);
        Ok(Ended { status: status.map_err(io)?, stdout: stdout.map_err(io)?, stderr })
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
    use std::time::{Duration, Instant};

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
