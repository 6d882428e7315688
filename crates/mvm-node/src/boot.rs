//! From a record to a machine whose guest is ready.

use crate::blocking::blocking;
use crate::caches::serial;
use crate::deadlines::{self, Deadline};
use crate::firewall::uid_of;
use crate::halted::held_back;
use crate::names::Names;
use crate::node::Node;
use crate::problem::{IntoProblem, OrProblem, io};
use crate::slot::Live;
use crate::stages::stage;
use crate::state_dir::{Files, make_dir, write_atomically};
use crate::template::{Template, is_mould};
use crate::{Result, identity};
use mvm_api::Problem;
use mvm_guest::channel::Channel;
use mvm_guest::protocol::{Adopt, GuestNetwork, SshIdentity};
use mvm_hypervisor::{
    Confine, Disk, Kernel, Machine, Nic, Platform, ProcessIdentity, RestoreMemory, VmSpec,
};
use mvm_model::{Instance, InstanceId, Tenant};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

/// How long after its channel a machine's process may be seen to end.
const DYING: Duration = Duration::from_millis(500);

impl Node {
    /// Everything the hypervisor needs to know of an instance.
    pub(crate) fn spec(&self, tenant: &Tenant, instance: &Instance) -> Result<VmSpec> {
        let image = self.image(&instance.revision)?;
        let files = self.parts.root.files(instance.id);
        let disk = |id: &str, path, read_only| Disk { id: id.to_owned(), path, read_only };
        let mut disks =
            vec![disk("root", image.root.clone(), true), disk("scratch", files.scratch(), false)];
        if instance.resources.data_disk_mib > 0 {
            disks.push(disk("data", files.data(), false));
        }
        let caches = (0..instance.caches.len()).map(|i| (serial(i), files.cache(i)));
        disks.extend(caches.map(|(id, path)| Disk { id, path, read_only: false }));
        let uid = uid_of(tenant);
        let window = Some(files.window()).filter(|window| window.exists());
        Ok(VmSpec {
            id: instance.id.to_string(),
            marker: self.parts.root.marker(instance.id),
            dir: files.vm(),
            vcpus: instance.resources.vcpus,
            mem_mib: instance.resources.mem_mib,
            kernel: Kernel {
                image: image.kernel.clone(),
                initrd: Some(image.initrd.clone()),
                append: String::new(),
                platform: match image.platform {
                    mvm_image::Platform::Pci => Platform::Pci,
                    mvm_image::Platform::Mmio => Platform::Mmio,
                },
            },
            memory: match &instance.template {
                Some(key) => self.template_files(key).memory(),
                None => files.memory(),
            },
            reserve_memory: !is_mould(instance),
            disks,
            nic: Some(Nic { tap: self.tap_name(instance), mac: instance.mac.clone() }),
            window,
            confine: Some(Confine { uid, gid: uid }),
        })
    }

    /// Boots the machine and waits until its guest is itself. On any error nothing is left.
    pub(crate) async fn boot(
        self: &Arc<Self>,
        live: &mut Live,
        tenant: &Tenant,
        instance: &Instance,
    ) -> Result<()> {
        let files = self.make_place(instance)?;
        crate::state_dir::remove_file(&files.snapshot())?;
        crate::state_dir::remove_file(&files.resuming())?;
        crate::state_dir::remove_file(&files.memory())?;
        if instance.is_blank() {
            // What an attempt before this one left may be half a copy.
            crate::state_dir::remove_file(&files.scratch())?;
            crate::state_dir::remove_file(&files.data())?;
            crate::disk::remove_caches(instance, &files)?;
        }
        stage!("disks", self.ensure_disks(instance, uid_of(tenant))).await?;
        stage!("network", self.connect_instance(tenant, instance)).await?;
        let spec = self.spec(tenant, instance)?;
        let record = self.record_process(instance.id);
        let machine = self.parts.hypervisor.boot(&spec, &record).await.or_problem()?;
        self.make_ready(live, tenant, instance, machine, deadlines::BOOT, true).await
    }

    /// The directories of a machine that is to be started, if there is room for one.
    fn make_place(&self, instance: &Instance) -> Result<Files> {
        self.check_room(self.memory_to_reserve(instance))?;
        let files = self.parts.root.files(instance.id);
        make_dir(&files.dir, 0o700)?;
        make_dir(&files.vm(), 0o700)?;
        Ok(files)
    }

    /// Starts the machine as a clone of a template, and waits until its guest is itself. On any
    /// error nothing is left.
    pub(crate) async fn clone_of(
        self: &Arc<Self>,
        live: &mut Live,
        tenant: &Tenant,
        instance: &Instance,
        template: &Template,
    ) -> Result<()> {
        self.make_place(instance)?;
        stage!("disks", self.clone_disks(instance, template, uid_of(tenant))).await?;
        stage!("network", self.connect_instance(tenant, instance)).await?;
        let spec = self.spec(tenant, instance)?;
        let record = self.record_process(instance.id);
        let snapshot = template.files.snapshot();
        let hypervisor = &self.parts.hypervisor;
        let restored = hypervisor.restore(&spec, &snapshot, RestoreMemory::Clone, &record).await;
        let machine = restored.or_problem()?;
        if let Err(error) = machine.resume().await {
            self.kill_newborn(live, machine).await;
            return Err(error.problem());
        }
        self.make_ready(live, tenant, instance, machine, deadlines::CLONE, true).await
    }

    /// Restores a sleeping machine; it stays paused.
    pub(crate) async fn restore(
        &self,
        tenant: &Tenant,
        instance: &Instance,
    ) -> Result<Arc<dyn Machine>> {
        self.check_room(self.memory_to_reserve(instance))?;
        let files = self.parts.root.files(instance.id);
        stage!("network", self.connect_instance(tenant, instance)).await?;
        let spec = self.spec(tenant, instance)?;
        let record = self.record_process(instance.id);
        let snapshot = files.snapshot();
        let hypervisor = &self.parts.hypervisor;
        hypervisor.restore(&spec, &snapshot, RestoreMemory::Own, &record).await.or_problem()
    }

    /// Connects to the guest of a machine that was just started or resumed, and makes it itself. All
    /// that the guest does for it has one deadline.
    pub(crate) async fn make_ready(
        self: &Arc<Self>,
        live: &mut Live,
        tenant: &Tenant,
        instance: &Instance,
        machine: Arc<dyn Machine>,
        deadline: Deadline,
        fresh: bool,
    ) -> Result<()> {
        let (waits, until) = (live.waits.clone(), deadline.begin());
        let ready = async {
            let (socket, window) = (machine.channel(), machine.window());
            let connecting = Channel::connect(&socket, window.as_deref(), until.left());
            let connecting = stage!("channel", waits.guest(until, connecting));
            // Keys are made while the guest comes to itself.
            let (channel, identity) = match fresh {
                true => tokio::join!(connecting, self.identity_of(tenant, instance)),
                false => (connecting.await, Ok(Adopt::default())),
            };
            let (channel, identity) = (channel?, identity?);
            let adopt = Adopt { wall_clock_ns: Some(wall_clock_ns()), ..identity };
            stage!("adopt", waits.guest(until, channel.adopt(&adopt))).await?;
            Ok::<_, Problem>(channel)
        };
        let mortal = machine.clone();
        let died = async { Err(self.died(instance.id, &mortal.exited().await.reason)) };
        tokio::pin!(died);
        let outcome = tokio::select! {
            outcome = ready => match outcome {
                // The channel of a machine that dies breaks first.
                Err(problem) => {
                    tokio::time::timeout(DYING, died).await.unwrap_or(Err(problem))
                }
                channel => channel,
            },
            outcome = &mut died => outcome,
        };
        match outcome {
            Ok(channel) => {
                live.channel = Some(channel);
                self.watch(instance.id, machine.clone());
                live.machine = Some(machine);
                Ok(())
            }
            Err(problem) => {
                let held = held_back(&machine);
                if let Some(held) = held.clone().filter(|_| !fresh) {
                    // It has memory of its own, and goes on when there is room.
                    self.watch(instance.id, machine.clone());
                    live.machine = Some(machine);
                    return Err(held);
                }
                self.kill_newborn(live, machine).await;
                Err(held
                    .unwrap_or(problem)
                    .hint(format!("see its console: mvm instance logs {}", instance.reference())))
            }
        }
    }

    /// Ends a machine that came to nothing; one that cannot be ended is in its slot from then on.
    async fn kill_newborn(&self, live: &mut Live, machine: Arc<dyn Machine>) {
        let id = machine.process().marker;
        live.machine = Some(machine);
        if let Err(problem) = self.kill(live).await {
            tracing::error!(machine = id, "cannot end a machine: {problem}");
        }
    }

    /// The open channel to a running guest, connected anew where the last agent had it.
    pub(crate) async fn channel(&self, live: &mut Live) -> Result<Channel> {
        if let Some(channel) = live.channel.as_ref().filter(|channel| !channel.is_closed()) {
            return Ok(channel.clone());
        }
        let machine = live.machine.as_ref().ok_or_else(|| {
            Problem::new(409, "wrong_state", "the instance has no running machine")
                .hint("start it with `mvm instance start` or `mvm instance wake`")
        })?;
        let (socket, window) = (machine.channel(), machine.window());
        let until = deadlines::RESUME.begin();
        let connecting = Channel::connect(&socket, window.as_deref(), until.left());
        let connecting = live.waits.guest(until, connecting);
        let channel = tokio::select! {
            channel = connecting => channel?,
            exit = machine.exited() => return Err(ended(&exit.reason)),
        };
        live.channel = Some(channel.clone());
        Ok(channel)
    }

    /// After a resume: one round trip to the guest, which gets the right time.
    pub(crate) async fn greet(&self, live: &mut Live) -> Result<()> {
        let until = deadlines::RESUME.begin();
        let channel = self.channel(live).await?;
        let adopt = Adopt { wall_clock_ns: Some(wall_clock_ns()), ..Adopt::default() };
        stage!("adopt", live.waits.guest(until, channel.adopt(&adopt))).await
    }

    async fn identity_of(self: &Arc<Self>, tenant: &Tenant, instance: &Instance) -> Result<Adopt> {
        let (node, tenant, instance) = (self.clone(), tenant.clone(), instance.clone());
        let mtu = self.parts.network.uplink_mtu().await.or_problem()?;
        let made = blocking(move || node.whole_identity(&tenant, &instance, mtu));
        stage!("identity", made).await
    }

    /// Everything but the time.
    fn whole_identity(&self, tenant: &Tenant, instance: &Instance, mtu: u32) -> Result<Adopt> {
        let files = self.parts.root.files(instance.id);
        let reference = instance.reference();
        let prefix = tenant.network.ipv4_subnet.prefix_len();
        let (names, gateway) = (Names::of_host(), tenant.network.gateway());
        let network = Some(GuestNetwork {
            address: format!("{}/{prefix}", instance.address),
            gateway: gateway.to_string(),
            dns: names.for_guests(gateway).iter().map(Ipv4Addr::to_string).collect(),
            search: names.search,
            mtu: Some(mtu),
            mac: Some(instance.mac.clone()),
        });
        let entropy = Some(crate::random::random_bytes::<64>()?.to_vec());
        if is_mould(instance) {
            // Its clones get names and keys of their own; it needs none.
            return Ok(Adopt { entropy, network, ..Adopt::default() });
        }
        Ok(Adopt {
            wall_clock_ns: None,
            hostname: Some(identity::host_name(&instance.pool.pool, instance.id)),
            machine_id: Some(identity::machine_id(&files)?),
            entropy,
            network,
            ssh: Some(SshIdentity {
                host_key: identity::host_key(&files, &host_key_alias(&reference))?,
                authorized_keys: vec![identity::tenant_key(&self.parts.root, &tenant.name)?],
                port: 22,
            }),
        })
    }

    /// Records the process of an instance before anything else is done with it.
    fn record_process(&self, id: InstanceId) -> impl Fn(&ProcessIdentity) + Send + Sync + use<> {
        let path = self.parts.root.files(id).dir.join("process.json");
        move |process| {
            let text = serde_json::to_vec(process).unwrap_or_default();
            // Recovery finds the process by its mark as well: the record is for people.
            if let Err(problem) = write_atomically(&path, &text, 0o600) {
                tracing::warn!("{problem}");
            }
        }
    }

    /// The problem of a machine that ended by itself, with the last lines of its console.
    pub(crate) fn died(&self, id: InstanceId, reason: &str) -> Problem {
        let console = self.parts.root.files(id).console();
        let tail = last_lines(&console, 15);
        ended(&format!("{reason}\nlast lines of its console:\n{tail}"))
    }

    /// Ends the machine for good; idempotent. One that cannot be ended stays in its slot.
    pub(crate) async fn kill(&self, live: &mut Live) -> Result<()> {
        live.channel = None;
        for slot in [&mut live.machine, &mut live.lingering] {
            let Some(machine) = slot.take() else { continue };
            if let Err(error) = machine.kill().await {
                *slot = Some(machine);
                return Err(error.problem());
            }
        }
        Ok(())
    }
}

/// The problem of a machine that ended by itself.
fn ended(reason: &str) -> Problem {
    Problem::new(500, "machine_died", format!("the machine ended by itself: {reason}"))
}

/// The name under which an instance's host key is pinned.
pub fn host_key_alias(reference: &mvm_model::InstanceRef) -> String {
    format!("{}.{}.{}.mvm", reference.id, reference.pool.pool, reference.pool.tenant)
}

fn wall_clock_ns() -> u64 {
    mvm_clock::since_epoch().as_nanos() as u64
}

/// The last lines of a log, or a word that it has none.
pub(crate) fn last_lines(path: &std::path::Path, count: usize) -> String {
    let text = std::fs::read(path).map_err(|e| io("read", e)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    match lines.len() {
        0 => "(it printed nothing)".to_owned(),
        all => lines[all.saturating_sub(count)..].join("\n"),
    }
}
