//! Runs a program for the host.

use super::common::guest_error;
use super::oom::OomKills;
use super::program::{Group, Input, exit_of, kill_group, resize, spawn};
use crate::frame::{self, Frame};
use crate::protocol::ExecRequest;
use crate::serve::reply;
use crate::{Error, Result};
use rustix::fd::OwnedFd;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};

/// How long the program must be silent after its end until its output counts as complete: a child
/// of it may hold the pipe.
const DRAIN: Duration = Duration::from_millis(100);
/// How many bytes are read after the end at most, and how many pauses are waited for: a child may
/// write without end. The largest pipe (pipe(7)) holds as much, so nothing of the program's own is
/// lost.
const LAST_BYTES: usize = 1 << 20;
const LAST_WAITS: u32 = 10;
const BUFFER: usize = 32 * 1024;

/// Runs the program and exchanges frames until it has ended. If the host goes away, the program and
/// its process group are ended.
pub async fn run(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin + Send),
    request: ExecRequest,
) -> Result<()> {
    let kills = OomKills::now();
    let mut program = spawn(&request)?;
    let mut group = Group(program.child.id());
    reply(stream, &()).await?;
    let (mut from_host, mut to_host) = tokio::io::split(stream);
    let (say, mut said) = mpsc::channel::<Frame>(8);
    let (end, ended) = watch::channel(false);
    for (from, source) in program.outputs.drain(..) {
        let say = say.clone();
        tokio::spawn(forward(from, ended.clone(), move |bytes| {
            let say = say.clone();
            async move { say.send(source.frame(bytes)).await.is_ok() }
        }));
    }
    drop(say);
    let listen = listen(&mut from_host, program.input.take(), program.terminal.take(), group.0);
    let mut output = Box::pin(async {
        while let Some(words) = said.recv().await {
            frame::write(&mut to_host, &words).await?;
        }
        Ok::<_, Error>(())
    });
    tokio::pin!(listen);
    let mut waited = tokio::task::spawn_blocking(move || program.child.wait());
    let mut listening = true;
    let mut talking = true;
    let status = loop {
        tokio::select! {
            status = &mut waited => break status,
            heard = &mut listen, if listening => match heard {
                // The host is gone: dropping the group ends the program.
                Err(_) | Ok(Heard::HostGone) => return Ok(()),
                Ok(Heard::NoMoreInput) => listening = false,
            },
            done = &mut output, if talking => { done?; talking = false; }
        }
    };
    let status = status
        .map_err(|e| Error::Broken(e.to_string()))?
        .map_err(|cause| guest_error("wait for the program", &cause))?;
    let _ = end.send(true);
    if talking {
        (&mut output).await?;
    }
    drop(output);
    group.ended();
    let exit = exit_of(status);
    if let Some(words) = kills.words(exit) {
        frame::write(&mut to_host, &Frame::Stderr(words)).await?;
    }
    frame::write(&mut to_host, &Frame::Exit(exit)).await
}

enum Heard {
    HostGone,
    NoMoreInput,
}

/// Carries out the host's frames while the program runs.
async fn listen(
    from_host: &mut (impl AsyncRead + Unpin),
    mut input: Option<Input>,
    terminal: Option<OwnedFd>,
    pid: u32,
) -> Result<Heard> {
    loop {
        match frame::read(from_host).await? {
            None => return Ok(Heard::HostGone),
            Some(Frame::Request(_) | Frame::End) => return Ok(Heard::NoMoreInput),
            Some(word) => obey(word, &mut input, terminal.as_ref(), pid).await,
        }
    }
}

/// Carries out one frame of the host for a program.
pub async fn obey(word: Frame, input: &mut Option<Input>, terminal: Option<&OwnedFd>, pid: u32) {
    match word {
        Frame::Stdin(bytes) => {
            let Some(to) = input else { return };
            // A program that has closed its input is not the host's fault.
            if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
                *input = None;
            }
        }
        Frame::StdinClosed => match (&mut *input, terminal) {
            (Some(to), Some(_)) => {
                // The end-of-transmission character is a terminal's end of input.
                let _ = to.write_all(&[4]).await;
                let _ = to.flush().await;
            }
            _ => *input = None,
        },
        Frame::Resize { rows, cols } => {
            if let Some(terminal) = terminal {
                resize(terminal, rows, cols);
            }
        }
        Frame::Signal(signal) => kill_group(pid, signal),
        _ => {}
    }
}

/// Passes what comes from `from` to `to` until either ends; after the program's end, until nothing
/// has come for a while.
pub async fn forward<F: Future<Output = bool> + Send>(
    mut from: Box<dyn AsyncRead + Unpin + Send>,
    mut ended: watch::Receiver<bool>,
    to: impl Fn(Vec<u8>) -> F,
) {
    let mut buffer = vec![0; BUFFER];
    let (mut bytes, mut waits) = (0, 0);
    while bytes < LAST_BYTES && waits < LAST_WAITS {
        let over = *ended.borrow();
        let silence = async {
            let _ = ended.wait_for(|ended| *ended).await;
            waits += 1;
            tokio::time::sleep(DRAIN).await;
        };
        let count = tokio::select! {
            biased;
            // A terminal whose last program has ended returns an error instead of an end.
            read = from.read(&mut buffer) => read.unwrap_or(0),
            () = silence => 0,
        };
        if over {
            bytes += count;
        }
        if count == 0 || !to(buffer[..count].to_vec()).await {
            return;
        }
    }
}
