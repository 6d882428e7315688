//! A program in a guest, over as many connections as it takes. Where one breaks, the same or
//! another coordinator is asked, and the session goes on where it was.
//!
//! The guest keeps the program and its output under our key. We count the bytes of output that we
//! have written; the guest reports how much of the input the program has taken.

use super::stream::{Stream, guest_problem, open};
use super::terminal::{Raw, Run, pass_signals, print, read_input};
use crate::error::CliError;
use crate::output;
use mvm_api::Client;
use mvm_api::client::{Patience, Waiting};
use mvm_guest::frame::{self, Frame};
use mvm_guest::patience::answer;
use mvm_guest::protocol::{ExecRequest, Hello, Keep, ProgramPosition, Reply, Request};
use mvm_model::{Code, InstanceRef};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::io::{AsyncWrite, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// How much longer than our patience the guest keeps the program without us, in seconds.
const ALONE_S: u64 = 30;
/// After this many bytes of output we acknowledge them to the guest.
const ACKNOWLEDGE: u64 = 128 << 10;
/// The most input, in bytes, that is sent ahead of what the program has taken.
const AHEAD: usize = 1 << 20;
/// How long the guest may take to accept that the program is to end.
const LAST_WORD: Duration = Duration::from_secs(2);

/// Runs a program in the guest with our standard streams. Returns its exit status as a shell would.
pub async fn exec(client: &Client, instance: &InstanceRef, run: Run) -> Result<u8, CliError> {
    let mut request = run.request.clone();
    request.stdin = run.interactive;
    request.keep = keep(client.patience())?;
    let terminal = request.tty.is_some();
    let (input, pieces) = mpsc::channel(8);
    let (say, words) = mpsc::channel(8);
    let mut session = Session {
        client: client.clone().patient(Patience::none()),
        instance,
        lease_s: run.lease_s,
        request,
        waiting: client.waiting(),
        attached: false,
        printed: 0,
        messages: ProgramMessages::new(words, run.interactive.then_some(pieces)),
    };
    let connection = match session.begin().await? {
        FirstReply::Runs(connection) => connection,
        FirstReply::Never(status) => return Ok(status),
    };
    let _raw = if terminal { Raw::enter() } else { None };
    if run.interactive {
        tokio::spawn(read_input(input));
    }
    tokio::spawn(pass_signals(say, terminal));
    match run.timeout {
        None => session.follow(connection).await,
        Some(limit) => match timeout(limit, session.follow(connection)).await {
            Ok(status) => status,
            Err(_) => {
                output::note(format_args!("mvm: ended, as asked with --timeout"));
                Ok(124)
            }
        },
    }
}

/// Returns how the guest is to keep the program: `None` for a client that would not come back.
fn keep(patience: &Patience) -> Result<Option<Keep>, CliError> {
    if patience.limit().is_zero() {
        return Ok(None);
    }
    let key = super::key::draw_key()?;
    let unattended_s = Some(patience.limit().as_secs() + ALONE_S);
    Ok(Some(Keep { key, unattended_s, ..Keep::default() }))
}

/// The state of a session with a program.
struct Session<'a> {
    /// The client repeats no request; the session itself does.
    client: Client,
    instance: &'a InstanceRef,
    lease_s: Option<u64>,
    request: ExecRequest,
    waiting: Waiting,
    /// Whether the guest has confirmed that the program runs.
    attached: bool,
    /// The number of bytes of output that we have written.
    printed: u64,
    messages: ProgramMessages,
}

/// A connection to the program.
struct Connection {
    stream: Stream,
    /// `None`: the guest ends the program with the connection.
    kept: Option<ProgramPosition>,
}

/// The outcome of the first request.
enum FirstReply {
    Runs(Connection),
    /// The program does not exist or cannot be run. Holds the exit status that a shell has then.
    Never(u8),
}

/// The end of a connection.
enum End {
    /// The program has ended.
    Exit(u8),
    /// The connection broke; holds the error's message.
    Broke(String),
}

impl Session<'_> {
    /// Starts the program. A request that was cut off is repeated where the guest keeps programs:
    /// the key ensures that the program is started once.
    async fn begin(&mut self) -> Result<FirstReply, CliError> {
        loop {
            let problem = match self.ask().await {
                Ok(connection) => return Ok(FirstReply::Runs(connection)),
                Err(problem) => problem,
            };
            let status = match problem.code() {
                Some(Code::CommandNotFound) => Some(127),
                Some(Code::CommandNotExecutable) => Some(126),
                _ => None,
            };
            if let Some(status) = status {
                output::note(format_args!("mvm: {}", problem.detail()));
                return Ok(FirstReply::Never(status));
            }
            let safe = self.request.keep.is_some() && (!is_broken(&problem) || self.keeps().await);
            if !self.wait(&problem, safe).await {
                return Err(problem);
            }
        }
    }

    /// Returns whether this guest keeps programs. Returns false where it does not answer, since a
    /// request that may have reached it cannot be repeated safely.
    async fn keeps(&mut self) -> bool {
        loop {
            let hello = async {
                let mut stream = open(&self.client, self.instance, self.lease_s).await?;
                let hello = answer(frame::ask::<Hello>(&mut stream, Request::Hello)).await;
                let hello = hello.map_err(guest_problem)?;
                Ok::<bool, CliError>(hello.life.is_some())
            };
            match hello.await {
                Ok(keeps) => return keeps,
                Err(problem) if self.wait(&problem, true).await => {}
                Err(_) => return false,
            }
        }
    }

    /// Rests before the next try. Returns whether there is to be one.
    async fn wait(&mut self, problem: &CliError, repeatable: bool) -> bool {
        let code = if is_broken(problem) { Some(Code::SessionLost) } else { problem.code() };
        self.waiting.after(code, problem, repeatable).await
    }

    /// Asks the guest for the program at the session's present state.
    async fn ask(&mut self) -> Result<Connection, CliError> {
        let mut request = self.request.clone();
        if let Some(keep) = &mut request.keep {
            (keep.offset, keep.attach) = (self.printed, self.attached);
        }
        let mut stream = open(&self.client, self.instance, self.lease_s).await?;
        let kept =
            answer(frame::ask::<Option<ProgramPosition>>(&mut stream, Request::Exec(request)));
        let kept = self.client.while_there(kept).await?;
        let kept = kept.map_err(guest_problem)?;
        self.attached = true;
        self.waiting.went_on();
        Ok(Connection { stream, kept })
    }

    /// Follows the program to its end, over this connection and later ones.
    async fn follow(&mut self, mut connection: Connection) -> Result<u8, CliError> {
        loop {
            let kept = connection.kept.is_some();
            let why = match self.talk(connection).await? {
                End::Exit(status) => return Ok(status),
                End::Broke(why) => {
                    format!("the connection to {} broke: {why}", self.client.server())
                }
            };
            if !kept {
                return Err(self.lost(&format!("{why}; the guest does not keep the program")));
            }
            connection = match self.again(&why).await {
                Ok(connection) => connection,
                Err(None) => return Err(self.lost(&why)),
                Err(Some(problem)) => {
                    return Err(self.lost(&format!("{why}; asked for again: {problem}")));
                }
            };
        }
    }

    fn lost(&self, detail: &str) -> CliError {
        let hint = format!(
            "the program was started, and what became of it is not known: mvm instance info {}",
            self.instance
        );
        CliError::new(Code::SessionLost, detail).hint(hint)
    }

    /// Attaches to the program again after its connection broke; `why` is the cause. Returns the
    /// last error, or `None` where no time was left to try.
    async fn again(&mut self, why: &str) -> Result<Connection, Option<CliError>> {
        if !self.wait(&CliError::new(Code::SessionLost, why), true).await {
            return Err(None);
        }
        loop {
            match self.ask().await {
                Ok(connection) => return Ok(connection),
                Err(problem) if self.wait(&problem, true).await => {}
                Err(problem) => return Err(Some(problem)),
            }
        }
    }

    /// Talks with the program until it ends or the connection breaks.
    async fn talk(&mut self, connection: Connection) -> Result<End, CliError> {
        let Connection { stream, kept } = connection;
        let (from, mut to) = tokio::io::split(stream);
        let (heard, hearing) = watch::channel(Progress::new(self.printed, kept));
        let received = tokio::select! {
            received = self.client.while_there(receive(from, &mut self.printed, &heard)) => {
                received.unwrap_or_else(|silent| Ok(End::Broke(silent.to_string())))
            }
            // The guest may still send on a connection that accepts no more data.
            () = self.messages.send_forever(&mut to, hearing, kept.is_some()) => unreachable!("it goes on"),
        };
        if received.is_err() && kept.is_some() {
            // This session cannot go on, so the program must not go on either.
            let _ = timeout(LAST_WORD, frame::write(&mut to, &Frame::End)).await;
        }
        received
    }
}

/// Returns whether the connection to the program broke, rather than the program itself.
pub fn is_broken(problem: &CliError) -> bool {
    problem.is_one_of(&[
        Code::GuestChannelBroken,
        Code::GuestUnreachable,
        Code::ConnectionBroken,
        Code::SessionLost,
    ])
}

/// The counts that the guest's frames give.
#[derive(Clone, Copy)]
struct Progress {
    /// The number of bytes of output that we have written.
    printed: u64,
    /// The number of bytes of input that the program has taken.
    taken: u64,
}

impl Progress {
    fn new(printed: u64, kept: Option<ProgramPosition>) -> Progress {
        Progress { printed, taken: kept.map_or(0, |kept| kept.input) }
    }
}

/// Writes the output that arrives, until the end of the program or of the connection.
async fn receive(
    mut from: ReadHalf<Stream>,
    printed: &mut u64,
    heard: &watch::Sender<Progress>,
) -> Result<End, CliError> {
    loop {
        match frame::read(&mut from).await {
            Ok(Some(Frame::Exit(exit))) => {
                return Ok(End::Exit(u8::try_from(exit.shell_status()).unwrap_or(255)));
            }
            Ok(Some(Frame::Ack(taken))) => heard.send_modify(|heard| heard.taken = taken),
            Ok(Some(Frame::Reply(Reply::Error { code, message }))) => {
                return Err(guest_problem(mvm_guest::words::said(&code, &message)));
            }
            Ok(Some(piece)) => {
                print(&piece).await?;
                *printed += piece.output().len() as u64;
                heard.send_modify(|heard| heard.printed = *printed);
            }
            Ok(None) => return Ok(End::Broke("it was closed".to_owned())),
            Err(error) => return Ok(End::Broke(error.to_string())),
        }
    }
}

/// The messages to the program: signals, and our standard input.
struct ProgramMessages {
    words: mpsc::Receiver<Frame>,
    /// The last signal sent; it may not have arrived.
    word: Option<Frame>,
    /// `None`: there is no input, or no more.
    input: Option<mpsc::Receiver<Vec<u8>>>,
    /// Whether the end of the input is to be sent.
    over: bool,
    /// Input that the program may not have taken.
    ahead: VecDeque<Vec<u8>>,
    /// The number of bytes of input before `ahead`.
    taken: u64,
    /// The number of bytes of output that we have acknowledged.
    acknowledged: u64,
}

impl ProgramMessages {
    fn new(
        words: mpsc::Receiver<Frame>,
        input: Option<mpsc::Receiver<Vec<u8>>>,
    ) -> ProgramMessages {
        let (word, ahead) = Default::default();
        ProgramMessages { words, word, input, over: false, ahead, taken: 0, acknowledged: 0 }
    }

    /// Sends the messages over this connection, forever. What may not have arrived is sent again
    /// first.
    async fn send_forever(
        &mut self,
        to: &mut WriteHalf<Stream>,
        hearing: watch::Receiver<Progress>,
        kept: bool,
    ) {
        let _ = self.send_while_connected(to, hearing, kept).await;
        std::future::pending::<()>().await;
    }

    async fn send_while_connected(
        &mut self,
        to: &mut (impl AsyncWrite + Unpin),
        mut hearing: watch::Receiver<Progress>,
        kept: bool,
    ) -> mvm_guest::Result<()> {
        self.has_taken(hearing.borrow_and_update().taken);
        for piece in &self.ahead {
            frame::write(to, &Frame::Stdin(piece.clone())).await?;
        }
        if self.over {
            frame::write(to, &Frame::StdinClosed).await?;
        }
        if let Some(word) = self.word.take() {
            frame::write(to, &word).await?;
        }
        loop {
            let has_room = self.ahead.iter().map(Vec::len).sum::<usize>() < AHEAD;
            tokio::select! {
                Some(word) = self.words.recv() => {
                    self.word = Some(word.clone());
                    frame::write(to, &word).await?;
                    self.word = None;
                }
                piece = next(&mut self.input), if has_room => match piece {
                    Some(piece) => {
                        if kept {
                            self.ahead.push_back(piece.clone());
                        }
                        frame::write(to, &Frame::Stdin(piece)).await?;
                    }
                    None => {
                        (self.input, self.over) = (None, true);
                        frame::write(to, &Frame::StdinClosed).await?;
                    }
                },
                Ok(()) = hearing.changed() => {
                    let Progress { printed, taken } = *hearing.borrow_and_update();
                    self.has_taken(taken);
                    if kept && printed >= self.acknowledged + ACKNOWLEDGE {
                        self.acknowledged = printed;
                        frame::write(to, &Frame::Ack(printed)).await?;
                    }
                }
            }
        }
    }

    /// Drops the input that the program has taken.
    fn has_taken(&mut self, taken: u64) {
        while let Some(first) = self.ahead.front_mut() {
            let known = usize::try_from(taken.saturating_sub(self.taken)).unwrap_or(usize::MAX);
            if known == 0 {
                return;
            }
            let known = known.min(first.len());
            first.drain(..known);
            self.taken += known as u64;
            if first.is_empty() {
                self.ahead.pop_front();
            }
        }
    }
}

/// Returns the next piece of the input; `None` at its end. Without an input, never resolves.
async fn next(input: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match input {
        Some(input) => input.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages() -> ProgramMessages {
        let (_, words) = mpsc::channel(1);
        ProgramMessages::new(words, None)
    }

    /// Returns the first messages over a new connection.
    async fn sent(messages: &mut ProgramMessages, taken: u64) -> Vec<Frame> {
        let (mut near, mut far) = tokio::io::duplex(1 << 16);
        let (_keep, hearing) = watch::channel(Progress { printed: 0, taken });
        let messages = messages.send_while_connected(&mut near, hearing, true);
        let _ = timeout(Duration::from_millis(100), messages).await;
        drop(near);
        let mut frames = Vec::new();
        while let Ok(Some(frame)) = frame::read(&mut far).await {
            frames.push(frame);
        }
        frames
    }

    #[tokio::test]
    async fn input_that_may_not_have_arrived_is_sent_again_and_no_other() {
        let mut messages = messages();
        messages.ahead = [b"abc".to_vec(), b"defg".to_vec()].into();
        let stdin = |bytes: &[u8]| Frame::Stdin(bytes.to_vec());
        assert_eq!(sent(&mut messages, 0).await, [stdin(b"abc"), stdin(b"defg")]);
        assert_eq!(sent(&mut messages, 4).await, [stdin(b"efg")]);
        messages.over = true;
        messages.word = Some(Frame::Signal(2));
        let all = sent(&mut messages, 7).await;
        assert_eq!(all, [Frame::StdinClosed, Frame::Signal(2)]);
        assert_eq!(sent(&mut messages, 7).await, [Frame::StdinClosed], "a signal is told once");
    }
}
