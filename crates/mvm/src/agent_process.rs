//! Finds the agent, and starts one where none runs.

use crate::agent_holder;
use crate::error::CliError;
use crate::output;
use mvm_api::types::AgentInfo;
use mvm_api::{Client, paths};
use mvm_model::Code;
use mvm_server::private;
use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a new agent may take until it serves: it may have to take over running machines.
const START: Duration = Duration::from_secs(60);

/// The hint for an agent that does not answer.
pub const DEAF: &str =
    "end it: mvm agent stop (no machine is touched, and the next command starts another)";

/// Returns the default state directory: a system path for root, the XDG one for other users.
pub fn default_root() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/mvm");
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".local/state");
    state.unwrap_or_else(home).join("mvm")
}

fn failed(what: &str, cause: impl std::fmt::Display) -> CliError {
    CliError::new(Code::AgentNotStarted, format!("cannot start the agent: {what}: {cause}"))
}

/// Returns a client of the agent of `root`; starts one if none answers.
pub fn client(root: &Path) -> Result<Client, CliError> {
    let socket = root.join("agent.sock");
    if UnixStream::connect(&socket).is_err() {
        start(root, &socket)?;
    }
    Ok(Client::new(socket))
}

/// Returns a client of the agent of `root`, if it runs.
pub fn running(root: &Path) -> Option<Client> {
    let socket = root.join("agent.sock");
    UnixStream::connect(&socket).is_ok().then(|| Client::new(socket))
}

/// Starts the agent of `root` again where it was killed: then its socket exists and no process
/// listens on it. An agent that stopped in order has removed its socket and stays stopped. Does not
/// block; one process starts at most one agent at a time.
pub fn revive(root: &Path) {
    static UNDER_WAY: AtomicBool = AtomicBool::new(false);
    let socket = root.join("agent.sock");
    let killed = |error: std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
    if !UnixStream::connect(&socket).is_err_and(killed) || UNDER_WAY.swap(true, Ordering::SeqCst) {
        return;
    }
    output::note("mvm: the agent was killed; starting the next one");
    let root = root.to_owned();
    std::thread::spawn(move || {
        if let Err(problem) = start(&root, &socket) {
            output::note(format_args!("mvm: {problem}"));
        }
        UNDER_WAY.store(false, Ordering::SeqCst);
    });
}

/// Asks the agent for its information.
pub async fn info(client: &Client) -> Result<AgentInfo, CliError> {
    client.get(paths::AGENT).await.map_err(CliError::from)
}

fn start(root: &Path, socket: &Path) -> Result<(), CliError> {
    private::own_dir(root).map_err(|problem| match problem.code().known() {
        Some(Code::Io) => failed(&root.display().to_string(), problem.to_string()),
        _ => problem.into(),
    })?;
    // Two commands at the same time start one agent: the second waits for this lock and finds the
    // first one's agent.
    let lock = ours().truncate(false).write(true).open(root.join("start.lock"));
    let lock = lock.map_err(|e| not_opened(root, e))?;
    lock.lock().map_err(|e| failed("its lock", e))?;
    if UnixStream::connect(socket).is_ok() || await_other(root, socket)? {
        return Ok(());
    }
    let path = root.join("agent.log");
    // The file takes what the agent prints before it logs. The agent's log is bounded.
    let log = ours().append(true).open(&path);
    let log = log.map_err(|e| failed(&path.display().to_string(), e))?;
    let errors = log.try_clone().map_err(|e| failed("its log", e))?;
    let program = std::env::current_exe().map_err(|e| failed("this program", e))?;
    let mut command = Command::new(program);
    command.arg("--root").arg(root).args(["agent", "serve", "--log-file"]).arg(&path);
    command.stdin(Stdio::null()).stdout(log).stderr(errors).current_dir("/");
    // SAFETY: setsid(2) is async-signal-safe and touches no memory.
    unsafe {
        command.pre_exec(|| Ok(rustix::process::setsid().map(|_| ())?));
    }
    let mut child = command.spawn().map_err(|e| failed("its process", e))?;
    let deadline = Instant::now() + START;
    while Instant::now() < deadline {
        if UnixStream::connect(socket).is_ok() {
            return Ok(());
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(failed(&format!("it ended ({status})"), last_lines(&path)));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(failed(&format!("it does not serve after {} s", START.as_secs()), last_lines(&path)))
}

/// Makes the error for a state directory whose lock cannot be opened: most often it is another
/// user's.
fn not_opened(root: &Path, cause: std::io::Error) -> CliError {
    let denied = cause.kind() == std::io::ErrorKind::PermissionDenied;
    let problem = failed(&format!("open its lock in {}", root.display()), cause);
    if !denied {
        return problem;
    }
    let whose = std::fs::metadata(root).map_or_else(
        |_| "another user's".to_owned(),
        |about| format!("of the user with the number {}", about.uid()),
    );
    problem.hint(format!(
        "the state directory is {whose}: run mvm as that user, or name a directory of your own with \
         --root DIR or MVM_ROOT"
    ))
}

/// Waits for an agent that already holds the state directory. It may be starting, or somebody has
/// removed its socket, which it replaces within seconds. Returns false where there is none.
fn await_other(root: &Path, socket: &Path) -> Result<bool, CliError> {
    let deadline = Instant::now() + START;
    while let Some(holder) = agent_holder::of(root) {
        if UnixStream::connect(socket).is_ok() {
            return Ok(true);
        }
        if holder.is_stopped() || Instant::now() > deadline {
            let what = format!("the agent is process {}, which does not answer", holder.pid);
            return Err(failed(&root.display().to_string(), what).hint(DEAF));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(false)
}

/// Returns the options for files of the state directory: a new one is its owner's alone.
fn ours() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).mode(0o600);
    options
}

fn last_lines(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    format!("\n{}", lines[lines.len().saturating_sub(8)..].join("\n"))
}
