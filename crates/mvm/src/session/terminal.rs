//! The local terminal of a program that runs in a guest.

use crate::error::CliError;
use crate::output;
use mvm_guest::frame::Frame;
use mvm_guest::protocol::{ExecRequest, Tty};
use std::io::IsTerminal;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};

/// How to run a program.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// The request to the guest.
    pub request: ExecRequest,
    /// Whether the program gets our standard input.
    pub interactive: bool,
    /// The time after which the program is ended.
    pub timeout: Option<Duration>,
    /// Length of the lease that the program takes, in seconds.
    pub lease_s: Option<u64>,
}

/// Writes a piece of a program's output to our standard output or error. A failed write ends the
/// session, and with it the program, as it would locally.
pub async fn print(piece: &Frame) -> Result<(), CliError> {
    output::written(match piece {
        Frame::Stdout(bytes) => write(tokio::io::stdout(), bytes).await,
        Frame::Stderr(bytes) => write(tokio::io::stderr(), bytes).await,
        _ => Ok(()),
    })
}

pub(super) async fn write(mut to: impl AsyncWrite + Unpin, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

/// Sends our standard input piece by piece, until its end.
pub(super) async fn read_input(to: tokio::sync::mpsc::Sender<Vec<u8>>) {
    let mut input = tokio::io::stdin();
    let mut buffer = vec![0; 32 * 1024];
    while let Ok(count @ 1..) = input.read(&mut buffer).await {
        if to.send(buffer[..count].to_vec()).await.is_err() {
            return;
        }
    }
}

/// Passes on the signals that are meant for the program: interrupts, and the terminal's new size.
pub(super) async fn pass_signals(to: tokio::sync::mpsc::Sender<Frame>, terminal: bool) {
    let on = |kind| signal(kind).ok();
    let (Some(mut int), Some(mut term), Some(mut size)) =
        (on(SignalKind::interrupt()), on(SignalKind::terminate()), on(SignalKind::window_change()))
    else {
        return;
    };
    loop {
        let words = tokio::select! {
            _ = int.recv() => Frame::Signal(2),
            _ = term.recv() => Frame::Signal(15),
            _ = size.recv() => match window() {
                Some((rows, cols)) if terminal => Frame::Resize { rows, cols },
                _ => continue,
            },
        };
        if to.send(words).await.is_err() {
            return;
        }
    }
}

pub(super) fn window() -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout()).ok()?;
    (size.ws_row > 0).then_some((size.ws_row, size.ws_col))
}

/// Returns the terminal settings to request in the guest.
pub fn terminal() -> Tty {
    let (rows, cols) = window().unwrap_or((24, 80));
    Tty { rows, cols, term: std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned()) }
}

/// Our terminal in raw mode, until this is dropped.
pub(super) struct Raw(rustix::termios::Termios);

impl Raw {
    pub(super) fn enter() -> Option<Raw> {
        if !std::io::stdin().is_terminal() {
            return None;
        }
        let before = rustix::termios::tcgetattr(rustix::stdio::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        let now = rustix::termios::OptionalActions::Now;
        rustix::termios::tcsetattr(rustix::stdio::stdin(), now, &raw).ok()?;
        Some(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let now = rustix::termios::OptionalActions::Now;
        let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), now, &self.0);
    }
}
