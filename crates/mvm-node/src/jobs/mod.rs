//! Jobs: recorded, queued, given an instance, run, and kept for a while.
//!
//! A job's record says how far the job may have come: `running` is durable before the command
//! begins, so that no agent begins the command a second time by mistake. Listeners and signals are
//! in memory only, in one [`JobChannel`](job_channel::JobChannel) per job.

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
