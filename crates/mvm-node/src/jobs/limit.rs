//! The bounds of a job: its deadline, and requests to end it. Both are obeyed in every phase.

use super::job_channel::JobSignal;
use mvm_model::job::{JobState, Outcome};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

/// How long a guest may still take to hand over a job's results after the deadline or a
/// cancellation.
#[cfg(not(test))]
const LAST: Duration = Duration::from_secs(10);
#[cfg(test)]
const LAST: Duration = Duration::from_millis(200);

/// Why the job no longer waits for its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interruption {
    /// The deadline has passed.
    TimedOut,
    /// The job was canceled.
    Canceled,
}

/// Waits until `then`, or forever where it is absent.
pub(super) async fn until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}

/// A job's deadline and signals.
pub(super) struct Limit {
    signals: UnboundedReceiver<JobSignal>,
    timeout_s: Option<u64>,
    ends: Option<Instant>,
    /// Whether the job was canceled.
    pub(super) canceled: bool,
    /// Signals that arrived before the command could receive them.
    unread: VecDeque<JobSignal>,
}

impl Limit {
    /// Makes a limit without a deadline: the start of the machine does not count.
    pub(super) fn new(signals: UnboundedReceiver<JobSignal>, timeout_s: Option<u64>) -> Limit {
        Limit { signals, timeout_s, ends: None, canceled: false, unread: VecDeque::new() }
    }

    /// Starts the job's time, which may have begun `ago`.
    pub(super) fn begin(&mut self, ago: Duration) {
        let left = |seconds| Duration::from_secs(seconds).saturating_sub(ago);
        self.ends = self.timeout_s.map(|seconds| Instant::now() + left(seconds));
    }

    /// Like [`Limit::begin`], for a job that a new agent resumes. Leaves time to report an end that
    /// came in the meantime.
    pub(super) fn begin_again(&mut self, ago: Duration) {
        self.begin(ago);
        self.ends = self.ends.map(|ends| ends.max(Instant::now() + LAST));
    }

    /// Sets the deadline for the rest of a job that is to end.
    pub(super) fn last_moment(&mut self) {
        self.ends = Some(Instant::now() + LAST);
    }

    /// Waits until the deadline has passed.
    pub(super) fn passed(&self) -> impl Future<Output = ()> + use<> {
        until(self.ends)
    }

    /// Returns the next signal; waits forever where none can come.
    pub(super) async fn next_signal(&mut self) -> JobSignal {
        let heard = self.unread.pop_front();
        let heard = if heard.is_some() { heard } else { self.signals.recv().await };
        let Some(signal) = heard else { return std::future::pending().await };
        self.canceled |= signal == JobSignal::Cancel;
        signal
    }

    /// Does work that needs the guest, until the deadline passes or a signal comes.
    pub(super) async fn hold<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, Interruption> {
        let passed = self.passed();
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = passed => Err(Interruption::TimedOut),
            _ = self.next_signal() => Err(Interruption::Canceled),
        }
    }

    /// Like [`Limit::hold`], for a running command that is being resumed. Signals are kept for the
    /// command. A cancellation leaves the work `LAST` to complete.
    pub(super) async fn hold_on<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, Interruption> {
        let passed = self.passed();
        tokio::pin!(work, passed);
        let mut ends: Option<Instant> = None;
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = &mut passed => return Err(Interruption::TimedOut),
                () = until(ends) => return Err(Interruption::Canceled),
                Some(signal) = self.signals.recv() => {
                    if signal == JobSignal::Cancel {
                        self.canceled = true;
                        ends.get_or_insert(Instant::now() + LAST);
                    }
                    self.unread.push_back(signal);
                }
            }
        }
    }

    /// Returns the outcome of a job that was cut off while `doing` was in progress.
    pub(super) fn outcome(&self, cut: Interruption, doing: &str) -> Outcome {
        let because = match cut {
            Interruption::TimedOut if !self.canceled => self.timed_out(),
            _ => Outcome::because(JobState::Canceled, "canceled"),
        };
        let reason = because.reason.unwrap_or_default();
        Outcome { reason: Some(format!("{reason} while {doing}")), ..because }
    }

    /// Returns the outcome of a job whose deadline has passed.
    pub(super) fn timed_out(&self) -> Outcome {
        let reason = format!("ended after {} s", self.timeout_s.unwrap_or_default());
        Outcome::because(JobState::TimedOut, reason)
    }
}
