//! A job's command in its guest: started once, followed to its end, and resumed if the channel
//! broke or the agent was replaced.

use super::dispatcher::Dispatcher;
use super::job_channel::{JobChannel, JobSignal};
use super::limit::until;
use super::log::Log;
use super::runner::{Runner, WORK};
use crate::Error;
use mvm_archive::Notes;
use mvm_guest::channel::Channel;
use mvm_guest::exec::{ExecInput, ExecOutput, ExecStream, Output};
use mvm_guest::frame::Frame;
use mvm_guest::protocol::{ExecRequest, Keep};
use mvm_model::job::{JobState, Outcome};
use mvm_model::{Code, InstanceId, Job};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// How long a command may take to end after it was asked to.
const GRACE: Duration = Duration::from_secs(2);
/// The number of the signal SIGTERM (signal(7)).
const TERM: i32 = 15;
/// How long the agent tries to reach a guest whose channel broke.
const PATIENCE: Duration = Duration::from_secs(60);
/// The pause between two attempts to reach a guest.
const AGAIN: Duration = Duration::from_millis(200);
/// How often the agent resumes a program that prints nothing in between.
const TRIES: u32 = 5;

/// Writes a program's output to the log and to the client.
pub(super) struct Printer {
    log: Option<Log>,
    /// Why part of the output is missing from the log; absent where the log is complete.
    cut: Option<String>,
    channel: Arc<JobChannel>,
    /// The length of the output of this run that was passed on, in bytes.
    offset: u64,
    /// The same length, as it is acknowledged to the guest, which then drops this output.
    safe: watch::Sender<u64>,
    /// Whether the agent is stopping. Output that comes from then on is left to the next agent.
    stopping: watch::Receiver<bool>,
}

impl Printer {
    /// Makes a printer that continues after the first `offset` bytes of the program's output.
    pub(super) fn new(
        log: Log,
        channel: Arc<JobChannel>,
        offset: u64,
        stopping: watch::Receiver<bool>,
    ) -> Printer {
        let safe = watch::Sender::new(offset);
        Printer { log: Some(log), cut: None, channel, offset, safe, stopping }
    }

    /// Never returns once the agent is stopping. The runtime then refuses writes, and output that
    /// was not written must not be acknowledged, or the guest would drop it.
    async fn hang_if_stopping(&self) {
        if *self.stopping.borrow() {
            std::future::pending().await
        }
    }

    /// Passes output on until the program's end. Returns the program's exit status.
    async fn follow(&mut self, output: &mut ExecOutput) -> mvm_guest::Result<i32> {
        loop {
            let piece = match output.next().await? {
                Output::Stdout(bytes) => Frame::Stdout(bytes),
                Output::Stderr(bytes) => Frame::Stderr(bytes),
                Output::Taken(_) => continue,
                Output::Exit(exit) => return Ok(exit.shell_status()),
            };
            let length = piece.output().len() as u64;
            self.print(piece).await;
            self.offset += length;
            self.safe.send_replace(self.offset);
        }
    }

    /// Writes a piece to the log, and passes it on to the client, if one is attached.
    async fn print(&mut self, piece: Frame) {
        self.hang_if_stopping().await;
        let client = {
            // A client that attaches at this moment reads this piece either from the log or from
            // its channel, not from both.
            let _turn = self.channel.turn.lock().await;
            if let Some(to) = &mut self.log
                && let Err(error) = to.write(&piece).await
            {
                self.hang_if_stopping().await;
                // The command runs on without its log.
                tracing::warn!("a job's log ends here: {error}");
                self.cut = Some(format!("its log is cut short: {}", error.detail()));
                self.log = None;
            }
            self.channel.client()
        };
        self.channel.bump();
        if let Some(client) = client {
            // If the client has gone, its handler detaches it.
            let _ = client.send(piece).await;
        }
    }

    /// Prints a line of mvm's own.
    pub(super) async fn print_line(&mut self, words: &str) {
        self.print(super::log::line(words)).await;
    }

    /// Prints, after the program's output, which files could not be copied as they were.
    pub(super) async fn print_notes(&mut self, notes: &Notes) {
        for line in notes.lines() {
            self.print_line(&line).await;
        }
        if !notes.is_empty() {
            // This marks the offset, so that a resumed run does not count these lines as the
            // program's output.
            self.print(Frame::Ack(self.offset)).await;
        }
    }

    /// Returns why part of the output is missing from the log, the first time it is asked.
    pub(super) fn cut(&mut self) -> Option<String> {
        self.cut.take()
    }

    /// Notes that the guest continues the output at byte `from`, and prints how many bytes are
    /// missing.
    async fn note_gap(&mut self, from: u64) {
        if from <= self.offset {
            return;
        }
        let full = self.log.as_ref().is_none_or(Log::is_full);
        if !full {
            self.print_line(&format!("{} bytes of output are missing here", from - self.offset))
                .await;
            self.print(Frame::Ack(from)).await;
        }
        self.offset = from;
    }
}

/// How following a program has ended.
enum FollowEnd {
    Over(Outcome),
    /// The channel broke. The program may still run.
    Broke(String),
}

/// A message to a program.
enum ProgramMessage {
    Signal(i32),
    End,
}

impl Runner {
    /// Runs the command, or resumes it: a kept program is never started twice. If the machine goes
    /// away while the command runs, the outcome is lost.
    pub(super) async fn command(
        &mut self,
        channel: &mut Channel,
        job: &Job,
        printer: &mut Printer,
    ) -> Outcome {
        let (mut tries, mut taken_up) = (0, self.again);
        loop {
            let request = request(job, printer.offset);
            let started = match taken_up {
                true => self.hold_on("its command was taken up", channel.exec(request)).await,
                false => self.hold("its command was started", channel.exec(request)).await,
            };
            let why = match started {
                Err(outcome) => return outcome,
                Ok(Err(mvm_guest::Error::Guest { code, message })) => {
                    return self.not_started(code, message, taken_up);
                }
                Ok(Err(error)) => error.to_string(),
                Ok(Ok(program)) => {
                    if let Some(kept) = &program.kept {
                        printer.note_gap(kept.from).await;
                    }
                    let before = printer.offset;
                    match self.watch(program, printer).await {
                        FollowEnd::Over(outcome) => return outcome,
                        FollowEnd::Broke(_) if printer.offset > before => {
                            tries = 0;
                            "the guest channel broke".to_owned()
                        }
                        FollowEnd::Broke(why) => why,
                    }
                }
            };
            tries += 1;
            if job.kept.is_none() || tries > TRIES {
                return self.lost(&why);
            }
            tracing::info!(job = %self.id, "its guest is looked for: {why}");
            taken_up = true;
            match self.find_guest().await {
                Ok(Ok(found)) => *channel = found,
                Ok(Err(gone)) => return self.lost(&gone),
                Err(outcome) => return outcome,
            }
        }
    }

    fn not_started(&self, code: Code, message: String, taken_up: bool) -> Outcome {
        let exit_status = match code {
            Code::CommandNotFound => Some(127),
            Code::CommandNotExecutable => Some(126),
            // The program was there before, so it is lost, not unstartable.
            _ if taken_up => return self.lost(&message),
            _ => None,
        };
        Outcome { state: JobState::Failed, exit_status, reason: Some(message) }
    }

    /// Returns a channel to the guest of a running machine, or the reason why there is none.
    pub(super) async fn find_guest(
        &mut self,
    ) -> std::result::Result<std::result::Result<Channel, String>, Outcome> {
        let (dispatcher, id) = (self.dispatcher.clone(), self.instance.id);
        let until = Instant::now() + PATIENCE;
        loop {
            match self.hold_on("its guest was looked for", connect(&dispatcher, id)).await? {
                Ok(found) => return Ok(Ok(found)),
                Err(Unreachable::Machine(why)) => return Ok(Err(why)),
                Err(Unreachable::Silent(error)) if Instant::now() > until => {
                    return Ok(Err(error.to_string()));
                }
                Err(Unreachable::Silent(_)) => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    /// Follows the program to its end. Ends the program at its deadline or on cancellation.
    async fn watch(&mut self, program: ExecStream, printer: &mut Printer) -> FollowEnd {
        let ExecStream { mut output, input, kept } = program;
        let (messages, to_send) = mpsc::channel(8);
        // An old guest does not know acknowledgements.
        let safe = kept.is_some().then(|| printer.safe.subscribe());
        let mut sending = tokio::spawn(send_messages(input, to_send, safe));
        let mut following = Box::pin(printer.follow(&mut output));
        let followed = match self.wait(&mut following, &messages).await {
            WaitEnd::Ended(Ok(status), asked) => FollowEnd::Over(outcome_of(status, asked)),
            WaitEnd::Ended(Err(error), _) => FollowEnd::Broke(error.to_string()),
            WaitEnd::Over(outcome) => {
                if kept.is_some() {
                    // A kept program would run on in a machine that other jobs may get.
                    let _ = messages.try_send(ProgramMessage::End);
                    let ended = tokio::time::timeout(GRACE, &mut following).await;
                    self.cut |= !matches!(ended, Ok(Ok(_)));
                }
                FollowEnd::Over(outcome)
            }
        };
        drop(following);
        // The guest gets the last messages and the stream is closed, which ends a program that is
        // not kept.
        drop(messages);
        if tokio::time::timeout(GRACE, &mut sending).await.is_err() {
            sending.abort();
        }
        followed
    }

    /// Waits for the command's end, and asks for it if the job is canceled.
    async fn wait(
        &mut self,
        following: &mut (impl Future<Output = mvm_guest::Result<i32>> + Unpin),
        messages: &mpsc::Sender<ProgramMessage>,
    ) -> WaitEnd {
        let passed = self.limit.passed();
        tokio::pin!(passed);
        let mut ending: Option<tokio::time::Instant> = None;
        let mut asked = false;
        loop {
            tokio::select! {
                biased;
                ended = &mut *following => return WaitEnd::Ended(ended, asked),
                () = &mut passed => return WaitEnd::Over(self.limit.timed_out()),
                () = until(ending) => {
                    return WaitEnd::Over(Outcome::because(JobState::Canceled, "canceled"));
                }
                signal = self.limit.next_signal() => {
                    let signal = match signal {
                        JobSignal::Signal(signal) => signal,
                        JobSignal::Cancel => {
                            ending.get_or_insert(tokio::time::Instant::now() + GRACE);
                            TERM
                        }
                    };
                    asked = true;
                    // If the guest does not take the signal, the job does not wait for that.
                    let _ = messages.try_send(ProgramMessage::Signal(signal));
                }
            }
        }
    }

    pub(super) fn lost(&self, why: &str) -> Outcome {
        // The machine's end is the reason; the broken channel is only its consequence.
        let slot = self.dispatcher.instances.slot(self.instance.id);
        let failure =
            slot.why_ended().map(|ended| ended.detail()).or_else(|| slot.failure_reason());
        let why = failure.as_deref().unwrap_or(why);
        let reason = format!("its machine {} went away: {why}", self.instance.reference());
        Outcome::because(JobState::Lost, reason)
    }
}

/// The cause of a command's end.
enum WaitEnd {
    /// The command ended, or its channel broke. The flag says whether the command was asked to end.
    Ended(mvm_guest::Result<i32>, bool),
    /// The deadline passed, or the job was canceled.
    Over(Outcome),
}

/// Returns the request that starts a job's program or resumes it, with output from byte `offset`
/// on.
fn request(job: &Job, offset: u64) -> ExecRequest {
    let keep = job.kept.as_ref().map(|kept| Keep {
        // The attempt's number identifies the run: the next run is another program.
        key: format!("{} {}", job.id, job.attempts.len()),
        life: Some(kept.life.clone()),
        offset,
        ..Keep::default()
    });
    ExecRequest {
        argv: job.spec.argv.clone(),
        env: job.spec.env.clone(),
        cwd: Some(WORK.to_owned()),
        keep,
        ..ExecRequest::default()
    }
}

/// Why a guest cannot be reached.
enum Unreachable {
    /// The machine does not exist or does not run.
    Machine(String),
    /// The guest does not answer.
    Silent(Error),
}

async fn connect(
    dispatcher: &Dispatcher,
    id: InstanceId,
) -> std::result::Result<Channel, Unreachable> {
    let slot = dispatcher.instances.slot(id);
    let mut live = slot.gate.lock().await;
    let Some(machine) = live.machine.clone() else {
        // The operation that saw the machine's end has recorded the reason.
        let why = dispatcher.records.read(|records| records.instances.get(&id)?.reason.clone());
        return Err(Unreachable::Machine(
            why.unwrap_or_else(|| "it does not run any more".to_owned()),
        ));
    };
    tokio::select! {
        found = live.channel() => found.map_err(Unreachable::Silent),
        exit = machine.exited() => Err(Unreachable::Machine(exit.reason)),
    }
}

/// Sends messages and acknowledgements to a program until the sender of messages is dropped.
async fn send_messages(
    mut input: ExecInput,
    mut messages: mpsc::Receiver<ProgramMessage>,
    mut safe: Option<watch::Receiver<u64>>,
) {
    loop {
        let safe_to = async {
            if let Some(safe) = &mut safe
                && safe.changed().await.is_ok()
            {
                return *safe.borrow_and_update();
            }
            std::future::pending().await
        };
        let said = tokio::select! {
            message = messages.recv() => match message {
                Some(ProgramMessage::Signal(signal)) => input.signal(signal).await,
                Some(ProgramMessage::End) => input.end().await,
                None => break,
            },
            offset = safe_to => input.acknowledge(offset).await,
        };
        if said.is_err() {
            return;
        }
    }
    if let Some(safe) = safe {
        let offset = *safe.borrow();
        let _ = input.acknowledge(offset).await;
    }
}

/// Returns the outcome of a command that ended with this status. A command that was asked to end,
/// and failed, was canceled.
fn outcome_of(status: i32, asked: bool) -> Outcome {
    let state = match status {
        0 => JobState::Succeeded,
        _ if asked => JobState::Canceled,
        _ => JobState::Failed,
    };
    Outcome { state, exit_status: Some(status), reason: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn piece() -> Frame {
        Frame::Stdout(b"output".to_vec())
    }

    /// The guest drops output once it is acknowledged.
    #[tokio::test]
    async fn what_comes_while_the_agent_ends_is_left_to_the_next_one() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("log");
        let log = Log::open(&path).await.expect("log");
        let (stop, stopping) = watch::channel(false);
        let mut printer = Printer::new(log, Arc::default(), 0, stopping);
        printer.print(piece()).await;
        let written = std::fs::metadata(&path).expect("log").len();
        assert!(written > 0);
        stop.send_replace(true);
        assert!(printer.print(piece()).now_or_never().is_none());
        assert_eq!(std::fs::metadata(&path).expect("log").len(), written);
        assert_eq!(printer.cut(), None);
    }
}
