//! Starts programs, and signals their process groups.

use super::common::{PATH, guest_error};
use super::protect::Ordinary;
use super::spool::Source;
use super::terminal::Terminal;
use crate::protocol::{ExecRequest, Exit, Tty};
use crate::{Error, Result};
use mvm_code::Code;
use rustix::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// Time between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_millis(500);

pub type Input = Box<dyn AsyncWrite + Unpin + Send>;

pub type Output = (Box<dyn AsyncRead + Unpin + Send>, Source);

/// A running program, with its input and outputs.
pub struct Program {
    pub child: std::process::Child,
    pub input: Option<Input>,
    pub outputs: Vec<Output>,
    pub terminal: Option<OwnedFd>,
}

/// Starts a program. Errors: `invalid_value`, `not_found` (no such user), `command_not_found`,
/// `command_not_executable`, `guest_io`.
pub fn spawn(request: &ExecRequest) -> Result<Program> {
    let Some((name, arguments)) = request.argv.split_first() else {
        return Err(Error::Guest {
            code: Code::InvalidValue,
            message: "no program to run".to_owned(),
        });
    };
    let path = request.env.get("PATH").map_or(PATH, String::as_str);
    let mut command = Command::new(find(name, path));
    command.arg0(name).args(arguments).env_clear();
    command.envs([("PATH", PATH), ("LANG", "C.UTF-8"), ("TERM", "dumb")]);
    as_user(&mut command, request.user.as_deref())?;
    let home = home_of(request.user.as_deref());
    command.env("HOME", &home).env("USER", request.user.as_deref().unwrap_or("root"));
    let cwd = request.cwd.as_deref().unwrap_or(&home);
    std::fs::create_dir_all(cwd).map_err(|cause| guest_error(&format!("make {cwd}"), &cause))?;
    command.current_dir(cwd);
    if let Some(tty) = &request.tty {
        command.env("TERM", &tty.term);
    }
    command.envs(&request.env);
    let _ordinary = Ordinary::begin();
    let spawned = match &request.tty {
        Some(tty) => spawn_on_terminal(&mut command, tty),
        None => spawn_on_pipes(&mut command, request.stdin),
    };
    spawned.map_err(|cause| {
        let code = match cause.kind() {
            std::io::ErrorKind::NotFound => Code::CommandNotFound,
            std::io::ErrorKind::PermissionDenied => Code::CommandNotExecutable,
            _ => Code::GuestIo,
        };
        Error::Guest { code, message: format!("run {name}: {cause}") }
    })
}

/// Looks a program up as execvp(3) does: with its path known, it can be started without fork(2). A
/// program that is not found keeps its name, for the system to refuse.
fn find(name: &str, path: &str) -> std::path::PathBuf {
    let runs = |file: &std::path::PathBuf| {
        use std::os::unix::fs::PermissionsExt;
        file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    let found = match name.contains('/') {
        true => None,
        false => path.split(':').map(|dir| std::path::Path::new(dir).join(name)).find(runs),
    };
    found.unwrap_or_else(|| name.into())
}

fn spawn_on_pipes(command: &mut Command, stdin: bool) -> std::io::Result<Program> {
    command.stdin(if stdin { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own, but no session: that would need fork(2), which under emulation costs as
    // much as all the rest. The agent has no terminal that the program could take over.
    command.process_group(0);
    let mut child = command.spawn()?;
    let mut outputs: Vec<Output> = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        outputs.push((Box::new(tokio::process::ChildStdout::from_std(stdout)?), Source::Out));
    }
    if let Some(stderr) = child.stderr.take() {
        outputs.push((Box::new(tokio::process::ChildStderr::from_std(stderr)?), Source::Err));
    }
    let input = match child.stdin.take() {
        Some(stdin) => Some(Box::new(tokio::process::ChildStdin::from_std(stdin)?) as Input),
        None => None,
    };
    Ok(Program { child, input, outputs, terminal: None })
}

fn spawn_on_terminal(command: &mut Command, tty: &Tty) -> std::io::Result<Program> {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let host = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&host)?;
    unlockpt(&host)?;
    resize(&host, tty.rows, tty.cols);
    let name = ptsname(&host, Vec::new())?;
    let name = std::path::PathBuf::from(String::from_utf8_lossy(name.to_bytes()).into_owned());
    let open = || std::fs::OpenOptions::new().read(true).write(true).open(&name);
    command.stdin(open()?).stdout(open()?).stderr(open()?);
    // SAFETY: setsid(2) and ioctl(2) TIOCSCTTY are async-signal-safe and touch no memory; fd 0 is
    // the terminal by then.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            Ok(())
        });
    }
    let child = command.spawn()?;
    // The command holds copies of the terminal's inner end until it gets other descriptors.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let input = Terminal::new(host.try_clone()?)?;
    let output = Terminal::new(host.try_clone()?)?;
    Ok(Program {
        child,
        input: Some(Box::new(input)),
        outputs: vec![(Box::new(output), Source::Out)],
        terminal: Some(host),
    })
}

/// Sets a terminal's size.
pub fn resize(terminal: &OwnedFd, rows: u16, cols: u16) {
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    let _ = rustix::termios::tcsetwinsize(terminal, size);
}

/// Looks a user up in passwd(5) and makes the command run as that user.
fn as_user(command: &mut Command, user: Option<&str>) -> Result<()> {
    let Some(user) = user.filter(|user| *user != "root") else { return Ok(()) };
    let unknown =
        || Error::Guest { code: Code::NotFound, message: format!("the guest has no user {user}") };
    let fields = passwd(user).ok_or_else(unknown)?;
    let number = |index: usize| fields.get(index).and_then(|f| f.parse().ok()).ok_or_else(unknown);
    command.gid(number(3)?).uid(number(2)?);
    Ok(())
}

fn home_of(user: Option<&str>) -> String {
    let home = passwd(user.unwrap_or("root")).and_then(|fields| fields.get(5).cloned());
    home.filter(|home| std::path::Path::new(home).is_dir()).unwrap_or_else(|| "/".to_owned())
}

fn passwd(user: &str) -> Option<Vec<String>> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = text.lines().find(|line| line.split(':').next() == Some(user))?;
    Some(line.split(':').map(str::to_owned).collect())
}

/// A program's process group, which is ended when this is dropped.
pub struct Group(pub u32);

impl Group {
    /// Lets the group live on: the program has ended by itself, and what it left in the background
    /// may continue.
    pub fn ended(&mut self) {
        self.0 = 0;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.0 == 0 {
            return;
        }
        let pid = self.0;
        kill_group(pid, libc::SIGHUP);
        kill_group(pid, libc::SIGTERM);
        std::thread::spawn(move || {
            std::thread::sleep(GRACE);
            kill_group(pid, libc::SIGKILL);
        });
    }
}

/// Sends a signal to a process group.
pub fn kill_group(pid: u32, signal: i32) {
    let signal = rustix::process::Signal::from_named_raw(signal);
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    if let (Some(signal), Some(pid)) = (signal, pid) {
        let _ = rustix::process::kill_process_group(pid, signal);
    }
}

/// Translates how a program ended.
pub fn exit_of(status: ExitStatus) -> Exit {
    Exit { code: status.code(), signal: status.signal() }
}
