//! What bounds a job: its deadline, and whoever wants it to end. Both are heard in every phase.

use super::job_channel::JobSignal;
use mvm_model::job::{JobState, Outcome};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

/// How long a guest may still take to hand over what a job leaves, once its deadline has passed or
/// it was canceled.
#[cfg(not(test))]
const LAST: Duration = Duration::from_secs(10);
#[cfg(test)]
const LAST: Duration = Duration::from_millis(200);

/// Why the guest is not waited for any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// The deadline has passed.
    TimedOut,
    /// Somebody wants the job to end.
    Canceled,
}

/// Waits until then, or for ever where there is no such time.
pub(super) async fn until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}

/// The deadline of a job, and what it is told.
pub(super) struct Limit {
    words: UnboundedReceiver<JobSignal>,
    timeout_s: Option<u64>,
    ends: Option<Instant>,
    /// Whether it was told to end.
    pub(super) canceled: bool,
    /// Heard before there was a command that could be told.
    heard: VecDeque<JobSignal>,
}

impl Limit {
    /// No deadline yet: a machine that is brought up does not count.
    pub(super) fn new(words: UnboundedReceiver<JobSignal>, timeout_s: Option<u64>) -> Limit {
        Limit { words, timeout_s, ends: None, canceled: false, heard: VecDeque::new() }
    }

    /// The job's time begins, or began so long ago.
    pub(super) fn begin(&mut self, ago: Duration) {
        let left = |seconds| Duration::from_secs(seconds).saturating_sub(ago);
        self.ends = self.timeout_s.map(|seconds| Instant::now() + left(seconds));
    }

    /// The same for a job that is taken up again: what has ended meanwhile is still told.
    pub(super) fn go_on(&mut self, ago: Duration) {
        self.begin(ago);
        self.ends = self.ends.map(|ends| ends.max(Instant::now() + LAST));
    }

    /// The job is to end: what remains to be done has a moment.
    pub(super) fn last_moment(&mut self) {
        self.ends = Some(Instant::now() + LAST);
    }

    /// Resolves when the deadline has passed.
    pub(super) fn passed(&self) -> impl Future<Output = ()> + use<> {
        until(self.ends)
    }

    /// The next word; waits for ever where none will come.
    pub(super) async fn word(&mut self) -> JobSignal {
        let heard = self.heard.pop_front();
        let heard = if heard.is_some() { heard } else { self.words.recv().await };
        let Some(word) = heard else { return std::future::pending().await };
        self.canceled |= word == JobSignal::Cancel;
        word
    }

    /// Does something that needs the guest, as long as the job may go on.
    pub(super) async fn hold<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Cut> {
        let passed = self.passed();
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = passed => Err(Cut::TimedOut),
            _ = self.word() => Err(Cut::Canceled),
        }
    }

    /// The same for a command that runs already and is being taken up: what it is told meanwhile it
    /// hears then, as long as that is soon.
    pub(super) async fn hold_on<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Cut> {
        let passed = self.passed();
        tokio::pin!(work, passed);
        let mut ends: Option<Instant> = None;
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = &mut passed => return Err(Cut::TimedOut),
                () = until(ends) => return Err(Cut::Canceled),
                Some(word) = self.words.recv() => {
                    if word == JobSignal::Cancel {
                        self.canceled = true;
                        ends.get_or_insert(Instant::now() + LAST);
                    }
                    self.heard.push_back(word);
                }
            }
        }
    }

    /// How a job comes out that was cut off while it was at `doing`.
    pub(super) fn outcome(&self, cut: Cut, doing: &str) -> Outcome {
        let because = match cut {
            Cut::TimedOut if !self.canceled => self.timed_out(),
            _ => Outcome::because(JobState::Canceled, "canceled"),
        };
        let reason = because.reason.unwrap_or_default();
        Outcome { reason: Some(format!("{reason} while {doing}")), ..because }
    }

    /// How a job comes out whose deadline has passed.
    pub(super) fn timed_out(&self) -> Outcome {
        let reason = format!("ended after {} s", self.timeout_s.unwrap_or_default());
        Outcome::because(JobState::TimedOut, reason)
    }
}
