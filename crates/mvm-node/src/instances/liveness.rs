//! Guests that stop answering: the agent probes the guests, and ends the machines of dead ones.
//!
//! Only running machines are watched. [`mvm_model::liveness`] decides what is done about each. Any
//! byte from a guest is a sign of life. If a guest is dead, its machine is ended and its instance
//! fails with that reason, which all operations and sessions that use the machine report.

use super::slots::Slots;
use super::transitions::Transitions;
use crate::deadlines::RESUME;
use crate::error::MachineError;
use crate::labels::{Labels, of_pool};
use crate::locks::locked;
use crate::records::Records;
use crate::wake::Wake;
use crate::{Error, Result};
use mvm_guest::pulse::Pulse;
use mvm_hypervisor::{Condition, Machine};
use mvm_model::liveness::{Liveness, Next};
use mvm_model::{InstanceId, PoolRef, State, Timestamp};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use std::collections::HashMap;
use std::sync::{Arc, Mutex as Lock};
use std::time::Duration;
use tokio::time::Instant;

/// The period at which all guests are checked.
const PERIOD: Duration = Duration::from_secs(1);

/// The guests that are watched.
pub(crate) struct Guests {
    /// The instant from which times are counted.
    began: Instant,
    watched: Lock<HashMap<InstanceId, Watched>>,
    silent: Family<Labels, Counter>,
    records: Arc<Records>,
    slots: Arc<Slots>,
    transitions: Arc<Transitions>,
    wake: Wake,
}

/// A watched guest.
#[derive(Debug)]
struct Watched {
    /// The process in which the guest was first seen. Another process has another guest.
    pid: u32,
    since: Instant,
    pulse: Option<Arc<Pulse>>,
    liveness: Liveness,
}

impl Guests {
    /// Makes the service that watches the guests of these records.
    pub(crate) fn new(
        records: Arc<Records>,
        slots: Arc<Slots>,
        transitions: Arc<Transitions>,
        wake: Wake,
    ) -> Guests {
        let (watched, silent) = (Lock::default(), Family::default());
        Guests { began: Instant::now(), watched, silent, records, slots, transitions, wake }
    }

    /// Registers the metrics.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let what = "Guests that stopped answering, whose machines were ended";
        registry.register("guests_silent", what, self.silent.clone());
    }

    fn time(&self, at: Instant) -> Timestamp {
        let elapsed = at.saturating_duration_since(self.began);
        #[cfg(test)]
        let elapsed = elapsed * crate::deadlines::haste::divisor();
        Timestamp::EPOCH + elapsed
    }

    /// Returns what to do about the guest of a running instance. `seen` names its process and its
    /// channel's signs of life; `None` while the instance's gate is held.
    fn next(
        &self,
        id: InstanceId,
        seen: Option<(u32, Option<Arc<Pulse>>)>,
        timeout_s: u64,
    ) -> Next {
        let now = Instant::now();
        let mut watched = locked(&self.watched);
        if let Some((pid, pulse)) = seen {
            let known = watched.get(&id).is_some_and(|watched| watched.pid == pid);
            if !known {
                let liveness = Liveness::begin(self.time(now));
                watched.insert(id, Watched { pid, since: now, pulse: None, liveness });
            }
            if let Some(watched) = watched.get_mut(&id) {
                watched.pulse = pulse.or(watched.pulse.take());
            }
        }
        let Some(watched) = watched.get_mut(&id) else { return Next::Wait };
        let heard = watched.pulse.as_ref().map_or(watched.since, |pulse| pulse.heard());
        let heard = self.time(heard.max(watched.since));
        watched.liveness.look(timeout_s, heard, self.time(now))
    }

    fn forget_all_but(&self, running: &[Running]) {
        locked(&self.watched).retain(|id, _| running.iter().any(|of| of.id == *id));
    }

    /// Forgets what is known of a guest, which is then watched anew.
    fn forget(&self, id: InstanceId) {
        locked(&self.watched).remove(&id);
    }
}

/// A running instance.
#[derive(Clone, Debug)]
struct Running {
    id: InstanceId,
    pool: PoolRef,
    timeout_s: u64,
}

/// Watches the guests until the task is aborted.
pub async fn run(guests: Arc<Guests>) {
    loop {
        let period = PERIOD;
        #[cfg(test)]
        let period = period / crate::deadlines::haste::divisor();
        tokio::time::sleep(period).await;
        let running = running(&guests);
        guests.forget_all_but(&running);
        for instance in running {
            probe(&guests, instance);
        }
    }
}

fn running(guests: &Guests) -> Vec<Running> {
    guests.records.read(|records| {
        let of = |i: &mvm_model::Instance| {
            let timeout_s = records.pools.get(&i.pool)?.runtime_policy.guest_timeout_s;
            Some(Running { id: i.id, pool: i.pool.clone(), timeout_s })
        };
        let running = records.instances.values();
        running.filter(|i| i.state == State::Running && !i.is_busy()).filter_map(of).collect()
    })
}

fn probe(guests: &Arc<Guests>, instance: Running) {
    let slot = guests.slots.of(instance.id);
    let mut held = false;
    let mut channel = None;
    let seen = match slot.gate.try_lock() {
        Ok(live) => {
            let Some(machine) = &live.machine else { return };
            if *machine.condition().borrow() != Condition::Fine {
                // The guest of a paused machine cannot answer: it is watched anew when the machine
                // runs again.
                return guests.forget(instance.id);
            }
            channel = live.channel.clone().filter(|channel| !channel.is_closed());
            let pulse = channel.as_ref().map(|channel| channel.pulse().clone());
            Some((machine.process().pid, pulse))
        }
        Err(_) => {
            held = true;
            None
        }
    };
    match guests.next(instance.id, seen, instance.timeout_s) {
        Next::Wait => {}
        Next::Ask => match channel {
            Some(channel) => channel.ask(),
            // The operation that holds the gate asks the guest itself.
            None if held => {}
            None => connect(guests, instance.id),
        },
        // The operation that holds the gate may wait for the guest until its own deadline.
        Next::Dead(silent)
            if held && silent < Duration::from_secs(instance.timeout_s + RESUME.seconds) => {}
        Next::Dead(_) => {
            let guests = guests.clone();
            tokio::spawn(async move {
                let id = instance.id;
                if let Err(error) = fail_silent(&guests, instance).await {
                    tracing::warn!(instance = %id, "{error}");
                }
            });
        }
    }
}

/// Opens a channel to a guest that has none. The guest's welcome is a sign of life.
fn connect(guests: &Arc<Guests>, id: InstanceId) {
    let guests = guests.clone();
    tokio::spawn(async move {
        let slot = guests.slots.of(id);
        let Ok(mut live) = slot.gate.try_lock() else { return };
        if let Err(error) = live.channel().await {
            tracing::debug!(instance = %id, "no channel to its guest: {error}");
        }
    });
}

/// Ends the machine of a dead guest.
async fn fail_silent(guests: &Arc<Guests>, instance: Running) -> Result<()> {
    let Running { id, pool, timeout_s } = instance;
    let slot = guests.slots.of(id);
    let why = Arc::new(Error::from(MachineError::Silent { seconds: timeout_s }));
    let interrupt = slot.waits.interrupt(why.clone());
    let mut live = slot.gate.lock().await;
    let Some(machine) = live.machine.clone() else { return Ok(()) };
    let runs = guests.records.read(|records| {
        records.by_id(id).is_ok_and(|now| now.state == State::Running && !now.is_busy())
    });
    if !runs || !is_same(guests, id, &machine) || is_held(&machine).await {
        // The instance has moved on, the guest has answered, or the hypervisor has stopped the
        // vCPUs: the silence proves nothing.
        guests.forget(id);
        return Ok(());
    }
    guests.silent.get_or_create(&of_pool(&pool)).inc();
    slot.note_end(why.clone());
    let ended = guests.transitions.fail(&mut live, id, why.into()).await;
    drop((live, interrupt));
    guests.forget(id);
    guests.wake.notify();
    // `ended` holds the reason of the failure, which is not an error of this task.
    ended.or(Ok(()))
}

/// Returns whether the watched guest still is in this machine, and still silent.
fn is_same(guests: &Guests, id: InstanceId, machine: &Arc<dyn Machine>) -> bool {
    let watched = locked(&guests.watched);
    watched.get(&id).is_some_and(|watched| {
        let heard = watched.pulse.as_ref().map(|pulse| guests.time(pulse.heard()));
        watched.pid == machine.process().pid
            && heard.is_none_or(|heard| watched.liveness.is_silent_since(heard))
    })
}

/// Returns whether the hypervisor itself has stopped the vCPUs, because the disk is full for
/// example. The guest cannot answer then, and is not dead.
async fn is_held(machine: &Arc<dyn Machine>) -> bool {
    let halted = *machine.condition().borrow() != Condition::Fine;
    halted || machine.stats().await.is_ok_and(|stats| stats.paused)
}
