//! What can be done with an instance: start, warm, sleep, wake, stop, destroy.
//!
//! Each operation holds the instance's gate and keeps to one order: the intent is durable before
//! the first side effect, the outcome after the last. The two exceptions are resume and pause of a
//! warm machine, which are idempotent: there the record is written once (before the resume, after
//! the pause), and recovery repeats the call.

pub(crate) mod wake;

use crate::catalog::not_built;
use crate::deadlines;
use crate::halted::held_back;
use crate::node::Node;
use crate::problem::{IntoProblem, OrProblem};
use crate::records::World;
use crate::slot::{Live, Slot};
use crate::stages::{operation, stage};
use crate::state_dir::{Files, remove_dir, remove_file};
use crate::template::Template;
use crate::{Result, now, recovery};
use mvm_api::Problem;
use mvm_hypervisor::{Machine, OwnMemory};
use mvm_model::admission::{admit_instance, admit_state};
use mvm_model::network::mac_of;
use mvm_model::{CacheDisk, Instance, InstanceId, Intent, Mover, PoolRef, State, Tenant, WayUp};
use std::sync::Arc;

/// Tries to draw an id that no instance has.
const ID_DRAWS: usize = 64;

impl Node {
    /// Records a new instance of the pool; with a `goal`, one that the reconciler brings there.
    pub async fn create(&self, pool: &PoolRef, goal: Option<State>) -> Result<Instance> {
        self.create_with(pool, |instance| instance.goal = goal).await
    }

    /// Records a new instance of the pool, and what else is to be known of it.
    pub(crate) async fn create_with(
        &self,
        pool: &PoolRef,
        also: impl FnOnce(&mut Instance),
    ) -> Result<Instance> {
        let drawn = draw_ids()?;
        self.records
            .change(|world, changes| {
                let mut instance = new_instance(world, pool, &drawn)?;
                also(&mut instance);
                changes.put_instance(instance.clone());
                crate::audit::note_target(instance.reference());
                Ok(instance)
            })
            .await
    }

    /// Brings an instance to `to` from wherever it is, through `running` where it must, on behalf of
    /// `by`: what its lease forbids is refused before anything happens, at every step. Gives the
    /// state that it came from.
    pub async fn bring(self: &Arc<Self>, id: InstanceId, to: State, by: &Mover) -> Result<State> {
        if to == State::Destroyed {
            let from = self.records.read(|world| world.by_id(id).map(|i| i.state))?;
            return self.destroy(id, by).await.map(|()| from);
        }
        let slot = self.slot(id);
        let mut live = slot.gate.lock().await;
        if let Some(why) = slot.waits.interrupted() {
            return Err(why);
        }
        recovery::settle_now(self, id, &mut live).await?;
        let outcome = self.carry(&mut live, id, to, by).await;
        self.look_at(id, &outcome);
        // What it failed with then is what the interrupt has made of it.
        outcome.map_err(|problem| slot.waits.interrupted().unwrap_or(problem))
    }

    /// What has failed may have left something behind.
    fn look_at<T>(&self, id: InstanceId, outcome: &Result<T>) {
        if outcome.is_err() {
            self.unsettle(id);
            self.wake.notify();
        }
    }

    async fn carry(
        self: &Arc<Self>,
        live: &mut Live,
        id: InstanceId,
        to: State,
        by: &Mover,
    ) -> Result<State> {
        let began = std::time::Instant::now();
        let (from, dormant) =
            self.records.read(|world| world.by_id(id).map(|i| (i.state, i.dormant)))?;
        if from != to {
            from.check(to).or_else(|fault| match from.allows(State::Running) {
                true => State::Running.check(to),
                false => Err(fault),
            })?;
        }
        let rises = |from, to| {
            matches!((from, to), (State::Warm | State::Sleeping, State::Running | State::Warm))
        };
        if from != to && rises(from, to) {
            // What there is no room to go on with stays as it is.
            self.check_space()?;
        }
        if matches!(to, State::Running | State::Warm) {
            self.behind_walls().await?;
        }
        match (from, to) {
            (from, to) if from == to => self.stay(id, to, by).await?,
            (State::Warm, State::Running) => {
                operation("resume", id, self.resume(live, id, by)).await?;
            }
            (State::Running, State::Warm) => {
                operation("pause", id, self.pause(live, id, by)).await?;
            }
            (State::Running | State::Warm, State::Sleeping) => {
                operation("sleep", id, self.sleep(live, id, by)).await?;
            }
            (State::Sleeping, State::Running | State::Warm) if dormant => {
                operation("clone", id, self.rise(live, id, to, by)).await?;
            }
            (State::Sleeping, State::Running | State::Warm) => {
                operation("wake", id, self.wake(live, id, to, by)).await?;
            }
            (State::Running | State::Warm | State::Sleeping, State::Stopped) => {
                operation("stop", id, self.shut_down(live, id, by)).await?;
            }
            (State::Created | State::Stopped | State::Failed, State::Running) => {
                self.power_on(live, id, by).await?;
            }
            (State::Created | State::Stopped | State::Failed, State::Warm) => {
                self.power_on(live, id, by).await?;
                self.pause(live, id, by).await?;
            }
            (State::Created, State::Sleeping) if self.template_for(id).await?.is_some() => {
                self.lie_down(id, by).await?;
            }
            (State::Created | State::Stopped | State::Failed, State::Sleeping) => {
                self.power_on(live, id, by).await?;
                self.sleep(live, id, by).await?;
            }
            (from, to) => {
                return Err(from.check(to).err().map_or_else(
                    || Problem::internal(format!("no way from {from} to {to}")),
                    Problem::from,
                ));
            }
        }
        if from != to {
            self.records.events().moved(from, to, began.elapsed());
        }
        Ok(from)
    }

    /// Destroys an instance on behalf of `by`: process, tap, disks, record. Idempotent, and waits
    /// for nobody.
    pub async fn destroy(self: &Arc<Self>, id: InstanceId, by: &Mover) -> Result<()> {
        let slot = self.slot(id);
        let (mut live, _interrupt) = self.seize(&slot, id, by).await;
        if self.records.read(|world| !world.instances.contains_key(&id)) {
            self.forget(id);
            return Ok(());
        }
        let outcome = self.destroy_live(&mut live, id, by).await;
        self.look_at(id, &outcome);
        outcome
    }

    pub(crate) async fn destroy_live(
        self: &Arc<Self>,
        live: &mut Live,
        id: InstanceId,
        by: &Mover,
    ) -> Result<()> {
        let destroyed = async {
            let (_, instance) = self.begin(id, State::Destroyed, by).await?;
            self.kill(live).await?;
            stage!("network", self.disconnect_instance(&instance)).await?;
            stage!("disks", async { remove_dir(&self.parts.root.files(id).dir) }).await?;
            self.records
                .change(|_, changes| {
                    changes.remove_instance(id);
                    Ok(())
                })
                .await
        };
        operation("destroy", id, destroyed).await?;
        self.forget(id);
        self.wake.notify();
        Ok(())
    }

    /// A clone of the pool's template where the instance has nothing of its own yet and there is
    /// one, else a cold boot.
    async fn power_on(self: &Arc<Self>, live: &mut Live, id: InstanceId, by: &Mover) -> Result<()> {
        let template = self.template_for(id).await?;
        let kind = if template.is_some() { "clone" } else { "boot" };
        let set_going = async {
            let outcome = self.set_going(live, id, State::Running, template, by).await;
            self.conclude(id, State::Running, outcome).await
        };
        operation(kind, id, set_going).await
    }

    async fn set_going(
        self: &Arc<Self>,
        live: &mut Live,
        id: InstanceId,
        to: State,
        template: Option<Template>,
        by: &Mover,
    ) -> Result<()> {
        let key = template.as_ref().map(|template| template.key.clone());
        let way = if key.is_some() { WayUp::Cloned } else { WayUp::Booted };
        let note = |i: &mut Instance| (i.template, i.way_up) = (key, Some(way));
        let (tenant, instance) = self.begin_with(id, to, by, note).await?;
        match template {
            Some(template) => {
                let outcome = self.clone_of(live, &tenant, &instance, &template).await;
                self.judge(&instance.pool, &template, &outcome);
                outcome
            }
            None => {
                let pool = self.records.read(|world| world.pools.get(&instance.pool).cloned());
                pool.iter().filter(|_| instance.is_blank()).for_each(|pool| self.count_boot(pool));
                self.boot(live, &tenant, &instance).await
            }
        }
    }

    /// A new instance becomes a sleeper: it is the template until somebody wakes it.
    async fn lie_down(&self, id: InstanceId, by: &Mover) -> Result<()> {
        self.pass(id, State::Sleeping, by, |instance| instance.dormant = true).await
    }

    /// A sleeper that has never run, to running or warm. If it fails, it sleeps on.
    async fn rise(
        self: &Arc<Self>,
        live: &mut Live,
        id: InstanceId,
        to: State,
        by: &Mover,
    ) -> Result<()> {
        let template = self.template_for(id).await?;
        let outcome = async {
            self.set_going(live, id, to, template, by).await?;
            if to == State::Warm {
                machine_of(live)?.pause().await.or_problem()?;
            }
            Ok(())
        };
        match outcome.await {
            Ok(()) => self.arrive(id, to, by).await,
            Err(problem) => {
                self.kill(live).await?;
                self.abandon(id).await?;
                Err(problem)
            }
        }
    }

    /// Warm to running: one durable record, one hypervisor call, one guest round trip.
    async fn resume(self: &Arc<Self>, live: &mut Live, id: InstanceId, by: &Mover) -> Result<()> {
        let machine = machine_of(live)?;
        self.pass(id, State::Running, by, |i| i.way_up = Some(WayUp::Warm)).await?;
        let outcome = async {
            machine.resume().await.or_problem()?;
            self.greet(live).await
        };
        match outcome.await {
            Ok(()) => Ok(()),
            Err(problem) => match held_back(&machine) {
                // It runs, as its record says, when there is room.
                Some(held) => Err(held),
                None => self.give_up(live, id, problem).await,
            },
        }
    }

    /// Running to warm.
    async fn pause(self: &Arc<Self>, live: &mut Live, id: InstanceId, by: &Mover) -> Result<()> {
        let machine = machine_of(live)?;
        // Connected now, the channel is there when the machine is woken.
        self.channel(live).await?;
        self.records.read(|world| admit(world, id, State::Warm, by).map(|_| ()))?;
        machine.pause().await.or_problem()?;
        // There was no intent: somebody may have taken the machine meanwhile.
        let outcome = self.pass(id, State::Warm, by, |_| {}).await;
        if outcome.is_err() {
            machine.resume().await.or_problem()?;
        }
        outcome
    }

    /// Running or warm to sleeping. On an error, a full disk above all, the machine is as it was.
    async fn sleep(self: &Arc<Self>, live: &mut Live, id: InstanceId, by: &Mover) -> Result<()> {
        let machine = machine_of(live)?;
        let spare = self.records.read(|world| world.by_id(id).map(is_untouched_clone))?;
        if spare {
            // What nobody has used is worth no snapshot: it is the template again.
            self.begin_with(id, State::Sleeping, by, |instance| instance.dormant = true).await?;
            self.kill(live).await?;
            return self.arrive(id, State::Sleeping, by).await;
        }
        let (_, instance) = self.begin(id, State::Sleeping, by).await?;
        let was_running = instance.state == State::Running;
        let files = self.parts.root.files(id);
        live.channel = None;
        let own = instance.template.as_ref().map(|template| OwnMemory {
            file: files.memory(),
            template: self.template_files(template).snapshot(),
        });
        let outcome = async {
            machine.pause().await.or_problem()?;
            machine.snapshot(&files.snapshot(), own.as_ref()).await.or_problem()
        };
        if let Err(problem) = outcome.await {
            remove_file(&files.snapshot())?;
            discard_memory(&instance, &files)?;
            if was_running {
                machine.resume().await.or_problem()?;
            }
            self.abandon(id).await?;
            return Err(problem);
        }
        // From here on the snapshot is the machine: it is not lost, whatever becomes of the process.
        self.linger(live, &instance).await?;
        self.arrive(id, State::Sleeping, by).await
    }

    /// Any live state to stopped: the guest shuts down by itself, so that its disks are whole.
    async fn shut_down(
        self: &Arc<Self>,
        live: &mut Live,
        id: InstanceId,
        by: &Mover,
    ) -> Result<()> {
        let (state, dormant) =
            self.records.read(|world| world.by_id(id).map(|i| (i.state, i.dormant)))?;
        match state {
            State::Sleeping if dormant => {
                return self.pass(id, State::Stopped, by, |_| {}).await;
            }
            State::Sleeping => self.wake(live, id, State::Running, by).await?,
            State::Warm => self.resume(live, id, by).await?,
            _ => {}
        }
        self.begin(id, State::Stopped, by).await?;
        if let (Ok(channel), Some(machine)) = (self.channel(live).await, live.machine.clone()) {
            let polite = async {
                let _ = channel.shutdown().await;
                machine.exited().await;
                Ok(())
            };
            if let Err(problem) = live.waits.guest(deadlines::SHUTDOWN, polite).await {
                tracing::warn!(instance = %id, "{problem}");
            }
        }
        self.kill(live).await?;
        remove_file(&self.parts.root.files(id).memory())?;
        self.arrive(id, State::Stopped, by).await
    }

    /// Writes the intent, if the table, the quotas and the lease allow the transition.
    async fn begin(&self, id: InstanceId, to: State, by: &Mover) -> Result<(Tenant, Instance)> {
        self.begin_with(id, to, by, |_| {}).await
    }

    /// [`Node::begin`], and what else is to be known on the way.
    async fn begin_with(
        &self,
        id: InstanceId,
        to: State,
        by: &Mover,
        also: impl FnOnce(&mut Instance),
    ) -> Result<(Tenant, Instance)> {
        self.records
            .change(|world, changes| {
                let before = admit(world, id, to, by)?;
                let tenant = world.tenant(&before.pool.tenant)?.clone();
                let mut instance = before.clone();
                also(&mut instance);
                instance.intent = Some(Intent { from: before.state, to, since: now() });
                changes.put_instance(instance.clone());
                Ok((tenant, instance))
            })
            .await
    }

    /// Writes the outcome of a transition: the state, or `failed` with the reason.
    async fn conclude(&self, id: InstanceId, to: State, outcome: Result<()>) -> Result<()> {
        match outcome {
            Ok(()) => self.set_state(id, to).await,
            Err(problem) => {
                self.set_failed(id, &problem.to_string()).await?;
                Err(problem)
            }
        }
    }

    /// A transition came to nothing and the machine is as before.
    async fn abandon(&self, id: InstanceId) -> Result<()> {
        self.records.update(id, |instance| instance.intent = None).await
    }

    /// The machine cannot be saved: ends it and records why.
    pub(crate) async fn give_up(
        &self,
        live: &mut Live,
        id: InstanceId,
        problem: Problem,
    ) -> Result<()> {
        if let Err(second) = self.kill(live).await {
            tracing::error!(instance = %id, "cannot end a machine: {second}");
        }
        self.set_failed(id, &problem.to_string()).await?;
        Err(problem)
    }

    /// A transition of one record alone: checked, done and written at once.
    async fn pass(
        &self,
        id: InstanceId,
        to: State,
        by: &Mover,
        also: impl FnOnce(&mut Instance),
    ) -> Result<()> {
        self.records
            .change(|world, changes| {
                let mut instance = admit(world, id, to, by)?.clone();
                also(&mut instance);
                put_aside(&mut instance, to, by);
                reached(&mut instance, to);
                changes.put_instance(instance);
                Ok(())
            })
            .await
    }

    /// Writes the outcome of a transition on behalf of `by`.
    async fn arrive(&self, id: InstanceId, to: State, by: &Mover) -> Result<()> {
        self.records
            .update(id, |instance| {
                put_aside(instance, to, by);
                reached(instance, to);
            })
            .await
    }

    /// Writes the outcome of a wake, and how the machine came up.
    async fn arrive_by(&self, id: InstanceId, to: State, by: &Mover, way: WayUp) -> Result<()> {
        self.records
            .update(id, |instance| {
                instance.way_up = Some(way);
                put_aside(instance, to, by);
                reached(instance, to);
            })
            .await
    }

    /// The instance is where it is wanted: only a lease may be given up.
    async fn stay(&self, id: InstanceId, to: State, by: &Mover) -> Result<()> {
        self.records
            .change(|world, changes| {
                let mut instance = world.by_id(id)?.clone();
                by.check(&instance)?;
                if by.gives_up(&instance, to) {
                    put_aside(&mut instance, to, by);
                    changes.put_instance(instance);
                }
                Ok(())
            })
            .await
    }

    async fn set_state(&self, id: InstanceId, to: State) -> Result<()> {
        self.records.update(id, |instance| reached(instance, to)).await
    }

    /// Its guest has ended its machine by itself.
    async fn set_ended(&self, id: InstanceId, reason: &str) -> Result<()> {
        self.records
            .update(id, |instance| {
                reached(instance, State::Stopped);
                instance.reason = Some(reason.to_owned());
            })
            .await
    }

    pub(crate) async fn set_failed(&self, id: InstanceId, reason: &str) -> Result<()> {
        // A machine that was ended under an operation has not ended by itself.
        let interrupted = self.slot(id).waits.interrupted().map(|why| why.to_string());
        let reason = interrupted.as_deref().unwrap_or(reason);
        self.records
            .update(id, |instance| {
                tracing::warn!(instance = %instance.reference(), reason, "failed");
                instance.reach(State::Failed, now());
                instance.reason = Some(reason.to_owned());
            })
            .await
    }

    /// Watches a machine and records it when it ends without our doing.
    pub(crate) fn watch(self: &Arc<Self>, id: InstanceId, machine: Arc<dyn Machine>) {
        self.follow(id, machine.clone());
        let node = self.clone();
        tokio::spawn(async move {
            let exit = machine.exited().await;
            let slot: Arc<Slot> = node.slot(id);
            let mut live = slot.gate.lock().await;
            // Whoever ended it on purpose has taken it out of its slot already.
            let ours = live.machine.as_ref().is_some_and(|now| Arc::ptr_eq(now, &machine));
            if !ours {
                return;
            }
            live.machine = None;
            live.channel = None;
            let outcome = match exit.clean {
                true => node.set_ended(id, &exit.reason).await,
                false => node.set_failed(id, &node.died(id, &exit.reason).to_string()).await,
            };
            if let Err(problem) = outcome {
                tracing::error!(instance = %id, "cannot record the end of a machine: {problem}");
            }
            if let Err(error) = machine.kill().await {
                tracing::error!(instance = %id, "{}", error.problem());
            }
            node.wake.notify();
        });
    }
}

fn reached(instance: &mut Instance, to: State) {
    tracing::info!(instance = %instance.reference(), from = %instance.state, %to, "moved");
    instance.reach(to, now());
}

/// Whoever puts a machine aside needs its manual lease no more.
fn put_aside(instance: &mut Instance, to: State, by: &Mover) {
    if by.gives_up(instance, to) {
        instance.lease = None;
    }
}

/// Removes what a sleep that came to nothing may have left of a clone's memory: it has none of its own.
pub(crate) fn discard_memory(instance: &Instance, files: &Files) -> Result<()> {
    if instance.template.is_some() { remove_file(&files.memory()) } else { Ok(()) }
}

/// Whether the reconciler puts to sleep a clone that nobody has ever used.
fn is_untouched_clone(instance: &Instance) -> bool {
    instance.goal.is_some() && instance.template.is_some() && instance.is_clean()
}

/// Checks lease, table and quotas for one transition; gives the record as it is.
fn admit<'a>(world: &'a World, id: InstanceId, to: State, by: &Mover) -> Result<&'a Instance> {
    let instance = world.by_id(id)?;
    by.check(instance)?;
    instance.state.check(to)?;
    let tenant = world.tenant(&instance.pool.tenant)?;
    let usage = world.usage(&tenant.name);
    admit_state(&tenant.name, &tenant.quotas, &usage, instance, to)?;
    Ok(instance)
}

fn machine_of(live: &Live) -> Result<Arc<dyn Machine>> {
    live.machine.clone().ok_or_else(|| {
        Problem::new(409, "wrong_state", "the instance has no machine any more")
            .hint("see why: mvm instance info")
    })
}

/// Numbers for [`new_instance`] to choose an id from.
pub(crate) fn draw_ids() -> Result<Vec<u32>> {
    (0..ID_DRAWS).map(|_| Ok(u32::from_le_bytes(crate::random::random_bytes::<4>()?))).collect()
}

/// A new instance of the pool, if quotas and subnet have room for it.
pub(crate) fn new_instance(world: &World, reference: &PoolRef, drawn: &[u32]) -> Result<Instance> {
    let pool = world.pool(reference)?;
    let tenant = world.tenant(&reference.tenant)?;
    let revision = pool.current_revision().ok_or_else(|| not_built(reference))?;
    let usage = world.usage(&tenant.name);
    let in_pool = world.of_pool(reference).count() as u64;
    admit_instance(&tenant.name, &tenant.quotas, &usage, pool, in_pool)?;
    let address = tenant.network.allocate(&world.addresses(&tenant.name))?;
    let id = drawn
        .iter()
        .map(|number| InstanceId::from_number(*number))
        .find(|id| !world.instances.contains_key(id))
        .ok_or_else(|| Problem::internal("no free instance id was drawn"))?;
    Ok(Instance {
        id,
        pool: reference.clone(),
        state: State::Created,
        intent: None,
        goal: None,
        reason: None,
        paused: None,
        template: None,
        dormant: false,
        revision: revision.digest.clone(),
        resources: pool.resources,
        // Their disks are made when the machine is.
        caches: pool
            .caches
            .iter()
            .map(|disk| CacheDisk { generation: 0, ..disk.clone() })
            .collect(),
        address,
        mac: mac_of(tenant.network.tenant_net_id, address),
        created_at: now(),
        state_since: now(),
        lease: None,
        leases_served: 0,
        way_up: None,
    })
}
