//! The client's side of jobs: inputs in, live output, artifacts back.

use crate::error::CliError;
use crate::progress::Progress;
use crate::session;
use mvm_api::client::{Bytes, Waiting};
use mvm_api::jobs::{JobView, SubmitJob};
use mvm_api::{Client, Problem, jobs, paths};
use mvm_archive::{Packer, Rules, Trust, name_of};
use mvm_guest::frame::{self, Frame};
use mvm_guest::protocol::Reply;
use mvm_model::job::JobSpec;
use mvm_model::{AnyCode, Code, JobId, JobState, PoolRef};
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use tokio::io::AsyncRead;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// The working directory of a job in its guest.
pub const WORK: &str = "/work";

/// A local file or folder, and the folder of the guest that it is copied to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// The path as the user gave it.
    pub path: String,
    folder: PathBuf,
}

impl Input {
    /// Parses `PATH[:FOLDER]`. Errors: the path does not exist, or the folder leads out of the
    /// guest.
    pub fn parse(text: &str) -> Result<Input, CliError> {
        let (path, folder) = split(text, WORK);
        if !Path::new(path).exists() {
            return Err(CliError::file(format!("there is no input {path}")));
        }
        let folder = Path::new(WORK).join(folder);
        if folder.components().any(|part| part == std::path::Component::ParentDir) {
            let what = format!("the folder {} has .. in it", folder.display());
            return Err(CliError::new(Code::InvalidValue, what).hint("name it without"));
        }
        Ok(Input { path: path.to_owned(), folder })
    }

    /// Adds the input to an archive that is unpacked at the guest's root.
    fn pack(&self, archive: &mut Packer<impl Write>) -> std::io::Result<()> {
        let source = Path::new(&self.path).canonicalize()?;
        let folder = self.folder.strip_prefix("/").unwrap_or(&self.folder).as_os_str();
        let above: &[u8] = if folder.is_empty() { b"" } else { b"/" };
        archive.add(&source, &[folder.as_bytes(), above, &name_of(&source)].concat())
    }
}

/// Splits `PATH[:FOLDER]`.
pub fn split<'a>(text: &'a str, default: &'a str) -> (&'a str, &'a str) {
    text.rsplit_once(':').unwrap_or((text, default))
}

/// Records a job with its inputs. It is queued unless `hold` is set.
pub async fn submit(
    client: &Client,
    pool: &PoolRef,
    spec: JobSpec,
    inputs: Vec<Input>,
    hold: bool,
) -> Result<JobView, CliError> {
    let path = paths::pool_part(pool, "jobs");
    let body = SubmitJob { spec, hold: hold || !inputs.is_empty() };
    let made: JobView = client.post(&path, &body).await?;
    if inputs.is_empty() {
        return Ok(made);
    }
    let given = async {
        // An upload that broke off is repeated from the beginning.
        let mut waiting = client.waiting();
        loop {
            match upload(client, made.job_id, inputs.clone()).await {
                Ok(()) => break,
                Err(problem) => {
                    // The node reports an upload that a coordinator in between has broken off with
                    // this code.
                    let code = match problem.code() {
                        Some(Code::InputsIncomplete) => Some(Code::ConnectionBroken),
                        code => code,
                    };
                    if !waiting.after(code, &problem, true).await {
                        return Err(problem);
                    }
                }
            }
        }
        match hold {
            true => Ok(made.clone()),
            false => queue(client, made.job_id).await,
        }
    };
    let outcome = given.await;
    if outcome.is_err() {
        // This is best effort: the agent ends a job whose inputs never arrive.
        let _ = verb(client, made.job_id, "cancel").await;
    }
    outcome
}

/// Queues a job that has its inputs. Where the answer is lost, the job's state says whether it is
/// queued.
async fn queue(client: &Client, id: JobId) -> Result<JobView, CliError> {
    let mut waiting = client.waiting();
    loop {
        let problem = match verb(client, id, "submit").await {
            Err(problem) if problem.code() == Some(Code::ConnectionBroken) => problem,
            outcome => return outcome,
        };
        let view: JobView = client.get(&jobs::job(id)).await?;
        if view.state != JobState::Preparing {
            return Ok(view);
        }
        if !waiting.after(problem.code(), &problem, true).await {
            return Err(problem);
        }
    }
}

/// Sends `POST` to one of a job's verbs.
pub async fn verb(client: &Client, id: JobId, verb: &str) -> Result<JobView, CliError> {
    client.post(&jobs::job_part(id, verb), &()).await.map_err(CliError::from)
}

/// A writer that sends an archive to the agent piece by piece.
struct Pieces(mpsc::Sender<std::io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn upload(client: &Client, id: JobId, inputs: Vec<Input>) -> Result<(), CliError> {
    let (pieces, body) = mpsc::channel(8);
    let what: Vec<&str> = inputs.iter().map(|input| &*input.path).collect();
    let progress = Progress::of(&what.join(" "));
    let tally = progress.tally.clone();
    let packing = tokio::task::spawn_blocking(move || {
        let to = BufWriter::with_capacity(1 << 18, Pieces(pieces.clone()));
        let mut archive = Packer::counted(to, tally);
        for input in &inputs {
            if let Err(cause) = input.pack(&mut archive) {
                // The agent must not take a partial archive for the whole.
                let _ = pieces.blocking_send(Err(std::io::Error::other("not packed")));
                return Err(format!("cannot read {}: {cause}", input.path));
            }
        }
        archive.finish().map(|(_, notes)| notes).map_err(|e| e.to_string())
    });
    let sent: Result<serde_json::Value, _> =
        client.streams().upload(&jobs::job_part(id, "inputs"), body).await;
    let packed = packing.await.map_err(|e| CliError::internal(e.to_string()))?;
    drop(progress);
    match (packed, sent) {
        // The agent's refusal is the cause of the broken upload, so it is the error to show.
        (_, Err(error @ mvm_api::ClientError::Problem(_)))
            if error.code() != Some(Code::InputsIncomplete) =>
        {
            Err(error.into())
        }
        (Err(cause), _) => Err(CliError::file(cause)),
        (Ok(notes), sent) => {
            sent?;
            session::tell(&notes);
            Ok(())
        }
    }
}

/// Queues a job and follows it to its end, with our standard output, standard error and signals.
/// The job ends with this process; where its agent is replaced, the job goes on and is attached
/// again. Returns the job, and the last signal that was passed on.
pub async fn attach(client: &Client, id: JobId) -> Result<(JobView, u8), CliError> {
    let (frames, mut signals) = mpsc::channel(8);
    let last = Arc::new(AtomicU8::new(0));
    let passing = AbortOnDrop(tokio::spawn(pass_signals(frames, last.clone())));
    let (mut waiting, mut played) = (client.waiting(), 0);
    let reply = loop {
        let path = format!("{}?from={played}", jobs::job_part(id, "attach"));
        let stream = match client.streams().upgrade(&path, &()).await {
            Ok(stream) => stream,
            // A repeated attach takes the same job up again.
            Err(error) => {
                await_again(&mut waiting, error.into()).await?;
                continue;
            }
        };
        let before = played;
        let (from, mut to) = tokio::io::split(stream);
        let talk = async {
            while let Some(signal) = signals.recv().await {
                if frame::write(&mut to, &signal).await.is_err() {
                    break;
                }
            }
            // The input stays open: its end would end the job.
            std::future::pending::<()>().await
        };
        let ended = tokio::select! {
            ended = client.while_there(play(from, &mut played)) => ended,
            () = talk => Ok(Ok(Played::Whole)),
        };
        let why = match ended {
            Ok(ended) => match ended? {
                Played::Reply(reply) => break reply,
                Played::Whole => "it ended early".to_owned(),
                Played::Cut(why) => why.to_string(),
            },
            Err(silent) => {
                let again = waiting.after(silent.code(), &silent, true).await;
                if again { continue } else { return Err(silent.into()) }
            }
        };
        if played > before {
            waiting.went_on();
        }
        await_again(&mut waiting, broken(id, &why)).await?;
    };
    drop(passing);
    match reply {
        Reply::Ok(job) => {
            let job = serde_json::from_value(job)
                .map_err(|e| CliError::new(Code::ConnectionBroken, e.to_string()))?;
            Ok((job, last.load(Ordering::Relaxed)))
        }
        Reply::Error { code, message } => Err(Problem::new(AnyCode::of(&code), message).into()),
    }
}

fn broken(id: JobId, why: &dyn std::fmt::Display) -> CliError {
    let what = format!("the connection to job {id} broke: {why}");
    CliError::new(Code::ConnectionBroken, what)
}

/// A task that is aborted when this is dropped.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Rests before a broken connection is made again. Returns the error where it is not to be.
async fn await_again(waiting: &mut Waiting, problem: CliError) -> Result<(), CliError> {
    // An error that the client itself has waited on in vain is not waited on again.
    let broke = problem.code() == Some(Code::ConnectionBroken);
    match broke && waiting.after(problem.code(), &problem.detail(), true).await {
        true => Ok(()),
        false => Err(problem),
    }
}

async fn pass_signals(to: mpsc::Sender<Frame>, last: Arc<AtomicU8>) {
    let on = |kind| signal(kind).ok();
    let (Some(mut int), Some(mut term)) =
        (on(SignalKind::interrupt()), on(SignalKind::terminate()))
    else {
        return;
    };
    loop {
        let number = tokio::select! {
            _ = int.recv() => 2,
            _ = term.recv() => 15,
        };
        last.store(number, Ordering::Relaxed);
        if to.send(Frame::Signal(number.into())).await.is_err() {
            return;
        }
    }
}

/// The end of a transfer of output.
enum Played {
    /// The transfer ended with the reply at the job's end.
    Reply(Reply),
    /// The transfer ended after a whole frame.
    Whole,
    /// The transfer ended within a frame, for example because the agent was killed.
    Cut(mvm_guest::Error),
}

/// Writes output to our standard streams until its end or a reply. Adds the number of bytes to
/// `played`.
async fn play(mut from: impl AsyncRead + Unpin, played: &mut u64) -> Result<Played, CliError> {
    loop {
        match frame::read(&mut from).await {
            Ok(Some(Frame::Reply(reply))) => return Ok(Played::Reply(reply)),
            Ok(Some(piece)) => {
                session::print(&piece).await?;
                *played += piece.length();
            }
            Ok(None) => return Ok(Played::Whole),
            Err(error) => return Ok(Played::Cut(error)),
        }
    }
}

/// Shows a job's log; with `follow`, until the job has ended.
pub async fn log(client: &Client, id: JobId, follow: bool) -> Result<(), CliError> {
    let (mut waiting, mut played) = (client.waiting(), 0);
    loop {
        let before = played;
        let sent = log_from(client, id, follow, &mut played).await?;
        let Err(problem) = sent else { return Ok(()) };
        if !follow {
            return Err(problem);
        }
        if played > before {
            waiting.went_on();
        }
        if problem.is_one_of(&[Code::AgentUnreachable, Code::AgentSilent]) {
            // The client does not repeat a transfer by itself.
            let again = waiting.after(problem.code(), &problem.detail(), true).await;
            if again { continue } else { return Err(problem) }
        }
        await_again(&mut waiting, problem).await?;
    }
}

/// Shows the log after its first `played` bytes. Returns how the transfer ended.
async fn log_from(
    client: &Client,
    id: JobId,
    follow: bool,
    played: &mut u64,
) -> Result<Result<(), CliError>, CliError> {
    let path = format!("{}?follow={follow}&from={played}", jobs::job_part(id, "log"));
    let (pieces, mut queue) = mpsc::unbounded_channel::<Vec<u8>>();
    let (mut to, from) = tokio::io::duplex(1 << 16);
    let feeding = tokio::spawn(async move {
        while let Some(piece) = queue.recv().await {
            if tokio::io::AsyncWriteExt::write_all(&mut to, &piece).await.is_err() {
                return;
            }
        }
    });
    let download = async {
        let sent =
            client.streams().download_on(&path, |piece| drop(pieces.send(piece.to_vec()))).await;
        drop(pieces);
        sent
    };
    let playing = play(from, played);
    tokio::pin!(download, playing);
    let (sent, shown) = tokio::select! {
        sent = &mut download => (sent, playing.await),
        // The transfer ends at once where our output is closed, or within half a frame.
        shown = &mut playing => match shown? {
            Played::Cut(why) => return Ok(Err(broken(id, &why))),
            ended => (download.await, Ok(ended)),
        },
    };
    let _ = feeding.await;
    let cut = match shown? {
        // A whole log ends after a frame.
        Played::Cut(why) => Err(broken(id, &why)),
        Played::Reply(_) | Played::Whole => Ok(()),
    };
    Ok(sent.map_err(CliError::from).and(cut))
}

/// Checks that a folder can be made and written to, before the work whose results go there begins.
/// Errors: `local_file`.
pub fn check_target(target: &Path) -> Result<(), CliError> {
    let absolute = std::path::absolute(target);
    let there = |path: &Path| path.ancestors().find(|path| path.exists()).map(Path::to_owned);
    let writable = |path: &Path| {
        use rustix::fs::Access;
        if !path.is_dir() {
            return Err(std::io::Error::from(std::io::ErrorKind::NotADirectory));
        }
        Ok(rustix::fs::access(path, Access::WRITE_OK | Access::EXEC_OK)?)
    };
    let checked = absolute.and_then(|path| there(&path).map_or(Ok(()), |there| writable(&there)));
    checked.map_err(|e| {
        let what = format!("cannot write below {}: {e}", target.display());
        CliError::file(what).hint("name a folder that you may write to, or one that can be made")
    })
}

/// Unpacks one of a job's artifacts below the local folder `target`, as far as `rules` allow.
pub async fn fetch(
    client: &Client,
    id: JobId,
    index: usize,
    target: &Path,
    rules: Rules,
) -> Result<(), CliError> {
    let local = |e: std::io::Error| {
        session::refused(&e).unwrap_or_else(|| {
            CliError::file(format!("cannot write below {}: {e}", target.display()))
        })
    };
    std::fs::create_dir_all(target).map_err(local)?;
    let (pieces, queue) = std::sync::mpsc::sync_channel::<Vec<u8>>(8);
    let folder = target.to_owned();
    let progress = Progress::of(&format!("to {}", target.display()));
    let tally = progress.tally.clone();
    let mut unpacking = tokio::task::spawn_blocking(move || {
        let from = Received { queue, piece: Vec::new(), at: 0 };
        mvm_archive::unpack_counted(from, &folder, Trust::Stranger(rules), tally)
    });
    let path = jobs::job_part(id, &format!("artifacts/{index}"));
    let download = async {
        let sent =
            client.streams().download(&path, |piece| drop(pieces.send(piece.to_vec()))).await;
        // Dropping the sender tells the unpacker that the archive has ended.
        drop(pieces);
        sent
    };
    tokio::pin!(download);
    let (sent, unpacked) = tokio::select! {
        sent = &mut download => (sent, unpacking.await),
        // The unpacker ends early only by an error, so the rest of the download is not awaited.
        unpacked = &mut unpacking => match unpacked {
            Ok(Ok(_)) => (download.await, unpacked),
            _ => (Ok(()), unpacked),
        },
    };
    drop(progress);
    let unpacked = unpacked.map_err(|e| CliError::internal(e.to_string()))?;
    sent?;
    session::tell(&unpacked.map_err(local)?);
    Ok(())
}

/// A reader of bytes that arrive in pieces.
struct Received {
    queue: std::sync::mpsc::Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl std::io::Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.piece.len() {
            self.piece = self.queue.recv().unwrap_or_default();
            self.at = 0;
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
