//! The host's end of a program that runs in a guest, over any byte stream: a stream of a
//! [`crate::channel::Channel`], or the CLI's connection to an agent that only copies bytes.

use crate::frame::{self, Frame};
use crate::protocol::{ExecRequest, Exit, ProgramPosition, Request};
use crate::{Error, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};

/// One item from a running program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Bytes of standard output, or of the terminal.
    Stdout(Vec<u8>),
    /// Bytes of standard error.
    Stderr(Vec<u8>),
    /// The number of bytes of standard input that were taken so far; for kept programs only.
    Taken(u64),
    /// How the program ended; nothing follows.
    Exit(Exit),
}

/// A running program. Dropping both halves ends it: SIGHUP and SIGTERM to its process group, and
/// SIGKILL half a second later. A kept program continues.
#[derive(Debug)]
pub struct ExecStream {
    /// The program's output.
    pub output: ExecOutput,
    /// Frames for the program.
    pub input: ExecInput,
    /// Where the output begins if the guest keeps it; `None` otherwise.
    pub kept: Option<ProgramPosition>,
}

/// The receiving half of a running program.
pub struct ExecOutput(Box<dyn AsyncRead + Unpin + Send>);

/// The sending half of a running program.
pub struct ExecInput(Box<dyn AsyncWrite + Unpin + Send>);

impl ExecStream {
    /// Sends the request and waits until the program has been started. Errors: `command_not_found`
    /// (a shell would report 127), `command_not_executable` (126), and others of the guest.
    pub async fn begin<S>(mut stream: S, request: ExecRequest) -> Result<ExecStream>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let kept =
            frame::ask::<Option<ProgramPosition>>(&mut stream, Request::Exec(request)).await?;
        let (output, input): (ReadHalf<S>, WriteHalf<S>) = tokio::io::split(stream);
        let (output, input) = (ExecOutput(Box::new(output)), ExecInput(Box::new(input)));
        Ok(ExecStream { output, input, kept })
    }

    /// Collects standard output, standard error and the exit. The output is not bounded.
    pub async fn finish(&mut self) -> Result<(Vec<u8>, Vec<u8>, Exit)> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            match self.output.next().await? {
                Output::Stdout(bytes) => out.extend(bytes),
                Output::Stderr(bytes) => err.extend(bytes),
                Output::Taken(_) => {}
                Output::Exit(exit) => return Ok((out, err, exit)),
            }
        }
    }
}

impl ExecOutput {
    /// Returns the next item. Not cancel-safe: give it a task of its own. It is an error if the
    /// channel breaks before the exit.
    pub async fn next(&mut self) -> Result<Output> {
        match frame::read(&mut self.0).await? {
            Some(Frame::Stdout(bytes)) => Ok(Output::Stdout(bytes)),
            Some(Frame::Stderr(bytes)) => Ok(Output::Stderr(bytes)),
            Some(Frame::Exit(exit)) => Ok(Output::Exit(exit)),
            Some(Frame::Ack(taken)) => Ok(Output::Taken(taken)),
            Some(Frame::Reply(crate::protocol::Reply::Error { code, message })) => {
                Err(crate::words::said(&code, &message))
            }
            Some(other) => Err(Error::Broken(format!("{} from a program", other.kind()))),
            None => Err(Error::Broken("the guest went away before the program ended".to_owned())),
        }
    }
}

impl ExecInput {
    /// Sends bytes for the standard input. Waits while the program does not read.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(frame::MAX_PAYLOAD) {
            frame::write(&mut self.0, &Frame::Stdin(piece.to_vec())).await?;
        }
        Ok(())
    }

    /// Ends the standard input.
    pub async fn close(&mut self) -> Result<()> {
        frame::write(&mut self.0, &Frame::StdinClosed).await
    }

    /// Sets the size of the terminal.
    pub async fn resize(&mut self, rows: u16, cols: u16) -> Result<()> {
        frame::write(&mut self.0, &Frame::Resize { rows, cols }).await
    }

    /// Acknowledges a kept program's output before `offset`, which the guest then forgets.
    pub async fn acknowledge(&mut self, offset: u64) -> Result<()> {
        frame::write(&mut self.0, &Frame::Ack(offset)).await
    }

    /// Ends a kept program: SIGHUP and SIGTERM to its process group, and SIGKILL half a second later.
    pub async fn end(&mut self) -> Result<()> {
        frame::write(&mut self.0, &Frame::End).await
    }

    /// Sends a signal, by its number (signal(7)), to the program's process group.
    pub async fn signal(&mut self, signal: i32) -> Result<()> {
        frame::write(&mut self.0, &Frame::Signal(signal)).await
    }
}

impl std::fmt::Debug for ExecOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ExecOutput")
    }
}

impl std::fmt::Debug for ExecInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ExecInput")
    }
}
