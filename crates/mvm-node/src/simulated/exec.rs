//! Runs the commands that [`super::script`] knows, as the guest's agent runs programs.

use super::files::{self, absolute};
use super::inside::{Inside, refusal};
use super::script::{self, Action, Command};
use mvm_guest::channel::Stream;
use mvm_guest::frame::{self, Frame};
use mvm_guest::protocol::{ExecRequest, Exit};
use mvm_guest::serve::reply;
use mvm_guest::{Error, Result};
use mvm_model::Code;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// Runs a program until it has ended, or the host sends a signal or disconnects.
pub async fn run(inside: &Inside, stream: &mut Stream, request: ExecRequest) -> Result<()> {
    let commands = script::parse(&request.argv).map_err(|name| not_found(&name))?;
    reply(stream, &()).await?;
    let (mut from_host, mut to_host) = tokio::io::split(stream);
    let (give, input) = mpsc::channel(8);
    let heard = listen(&mut from_host, request.stdin.then_some(give));
    let cwd = request.cwd.unwrap_or_else(|| "/".to_owned());
    let mut program = Program { inside, cwd, input, to: &mut to_host };
    let exit = tokio::select! {
        status = program.run(&commands) => Exit { code: Some(status?), signal: None },
        signal = heard => match signal? {
            Some(signal) => Exit { code: None, signal: Some(signal) },
            None => return Ok(()),
        },
    };
    frame::write(&mut to_host, &Frame::Exit(exit)).await
}

/// Returns the error that a program does not exist.
pub fn not_found(name: &str) -> Error {
    refusal(Code::CommandNotFound, format!("run {name}: a simulated guest has no such program"))
}

/// Passes the input on to the program. Returns the signal that ends the program; `None` once the
/// host has disconnected.
async fn listen(
    from: &mut (impl AsyncRead + Unpin),
    mut input: Option<mpsc::Sender<Vec<u8>>>,
) -> Result<Option<i32>> {
    loop {
        match frame::read(from).await? {
            None => return Ok(None),
            Some(Frame::Signal(signal)) => return Ok(Some(signal)),
            Some(Frame::StdinClosed) => input = None,
            Some(Frame::Stdin(bytes)) => {
                if let Some(to) = &input {
                    // The program need not read its input.
                    let _ = to.send(bytes).await;
                }
            }
            Some(_) => {}
        }
    }
}

struct Program<'a, W> {
    inside: &'a Inside,
    cwd: String,
    input: mpsc::Receiver<Vec<u8>>,
    to: &'a mut W,
}

impl<W: AsyncWrite + Unpin> Program<'_, W> {
    /// Runs the commands, and returns the status of the last one.
    async fn run(&mut self, commands: &[Command]) -> Result<i32> {
        let mut status = 0;
        for command in commands {
            if command.if_well && status != 0 {
                continue;
            }
            let mut printed = Vec::new();
            status = match &command.does {
                Action::Exit(status) => return Ok(*status),
                Action::Be(status) => *status,
                Action::Echo(line) => {
                    printed = format!("{line}\n").into_bytes();
                    0
                }
                Action::Cat(names) if names.is_empty() && command.into.is_none() => {
                    // Output follows each piece of input at once, until the input ends.
                    while let Some(bytes) = self.input.recv().await {
                        frame::write(self.to, &Frame::Stdout(bytes)).await?;
                    }
                    0
                }
                Action::Cat(names) => self.cat(names, &mut printed).await?,
                Action::Sleep(time) => {
                    self.sleep(*time).await;
                    0
                }
                Action::Complain(status, words) => {
                    self.print_error(words).await?;
                    *status
                }
            };
            self.print(command, printed).await?;
        }
        Ok(status)
    }

    async fn print(&mut self, command: &Command, printed: Vec<u8>) -> Result<()> {
        match &command.into {
            Some(name) => files::change(&self.inside.machine, |files| {
                files.write(&absolute(&self.cwd, name), 0o644, printed);
            }),
            None => {
                for piece in printed.chunks(frame::MAX_PAYLOAD) {
                    frame::write(self.to, &Frame::Stdout(piece.to_vec())).await?;
                }
                Ok(())
            }
        }
    }

    async fn cat(&mut self, names: &[String], printed: &mut Vec<u8>) -> Result<i32> {
        while names.is_empty()
            && let Some(bytes) = self.input.recv().await
        {
            printed.extend(bytes);
        }
        let mut status = 0;
        let files = files::files_of(&self.inside.machine);
        for name in names {
            match files.read(&absolute(&self.cwd, name)) {
                Some(bytes) => printed.extend(bytes),
                None => {
                    self.print_error(&format!("cat: {name}: No such file or directory")).await?;
                    status = 1;
                }
            }
        }
        Ok(status)
    }

    async fn print_error(&mut self, words: &str) -> Result<()> {
        frame::write(self.to, &Frame::Stderr(format!("{words}\n").into_bytes())).await
    }

    /// Waits for `time`, which passes only while the vCPUs run.
    async fn sleep(&self, time: Duration) {
        let machine = &self.inside.machine;
        let until = machine.uptime_ms().saturating_add(time.as_millis() as u64);
        let mut running = self.inside.running.clone();
        loop {
            let left = until.saturating_sub(machine.uptime_ms());
            if left == 0 || running.wait_for(|runs| *runs).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(left)).await;
        }
    }
}
