//! The host's end of a program that runs in a guest, over any byte stream: a stream of a
//! [`crate::channel::Channel`], or the connection of the CLI to an agent that only copies bytes.

use crate::frame::{self, Frame};
use crate::protocol::{ExecRequest, Exit, Kept, Request};
use crate::{Error, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};

/// What a program says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Bytes of its standard output, or of its terminal.
    Stdout(Vec<u8>),
    /// Bytes of its standard error.
    Stderr(Vec<u8>),
    /// So many bytes of its standard input were taken: said of kept programs.
    Taken(u64),
    /// It has ended; nothing follows.
    Exit(Exit),
}

/// A program that runs. Dropping both halves ends it: SIGHUP and SIGTERM to its process group, and
/// SIGKILL half a second later. One that is kept goes on.
#[derive(Debug)]
pub struct ExecStream {
    /// What it says.
    pub output: ExecOutput,
    /// What it is told.
    pub input: ExecInput,
    /// Where its output begins, if the guest keeps it.
    pub kept: Option<Kept>,
}

/// What a program says.
pub struct ExecOutput(Box<dyn AsyncRead + Unpin + Send>);

/// What a program is told.
pub struct ExecInput(Box<dyn AsyncWrite + Unpin + Send>);

impl ExecStream {
    /// Sends the request and waits until the program has been started. A program that is not there
    /// gives the code `command_not_found` (a shell says 127), one that cannot be run
    /// `command_not_executable` (126).
    pub async fn begin<S>(mut stream: S, request: ExecRequest) -> Result<ExecStream>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let kept = frame::ask::<Option<Kept>>(&mut stream, Request::Exec(request)).await?;
        let (output, input): (ReadHalf<S>, WriteHalf<S>) = tokio::io::split(stream);
        let (output, input) = (ExecOutput(Box::new(output)), ExecInput(Box::new(input)));
        Ok(ExecStream { output, input, kept })
    }

    /// Collects everything until the program has ended: standard output, standard error, exit.
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
    /// The next piece. Not cancel-safe: give it a task of its own. A channel that breaks before the
    /// exit is an error.
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
    /// Bytes for the standard input. Waits while the program does not read.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(frame::MAX_PAYLOAD) {
            frame::write(&mut self.0, &Frame::Stdin(piece.to_vec())).await?;
        }
        Ok(())
    }

    /// The end of the standard input.
    pub async fn close(&mut self) -> Result<()> {
        frame::write(&mut self.0, &Frame::StdinClosed).await
    }

    /// The terminal has this size now.
    pub async fn resize(&mut self, rows: u16, cols: u16) -> Result<()> {
        frame::write(&mut self.0, &Frame::Resize { rows, cols }).await
    }

    /// Of a kept program's output all before `offset` is safe: the guest forgets it.
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
