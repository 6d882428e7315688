//! Jobs: recorded, queued, given an instance, run, and kept for a while.
//!
//! A job's record says how far it may have come: `running` is durable before its command begins, so
//! that no agent begins it a second time by mistake. What lies in memory only (who listens, whom
//! to tell of a signal) is one [`JobChannel`](job_channel::JobChannel) a job.

mod arrival;
mod attach;
mod command;
mod dispatch;
mod dispatcher;
mod files;
mod harvest;
mod intake;
mod job_channel;
mod limit;
mod log;
mod placing;
mod queue;
mod recover;
mod run;
mod runner;
#[cfg(test)]
mod tests;

pub(crate) use attach::Attached;
pub(crate) use dispatch::dispatch;
pub(crate) use dispatcher::Dispatcher;
pub(crate) use log::Follow;
pub(crate) use queue::Jobs;
