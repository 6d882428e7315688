//! Makes machines: from a record to a machine whose guest is ready.

use super::disks::{Disks, remove_caches};
use super::halted::no_space_error;
use super::slot::{Live, died, wall_clock_ns};
use super::snapshot;
use super::watch::MachineWatch;
use crate::blocking::blocking;
use crate::caches::serial;
use crate::deadlines::{self, Deadline};
use crate::links::{Links, uid_of};
use crate::names::Names;
use crate::random::random_bytes;
use crate::stages::stage;
use crate::state_dir::{Files, StateDir, make_dir, remove_file};
use crate::templates::{Template, Templates, is_template_builder};
use crate::{Error, Result, identity};
use mvm_guest::channel::Channel;
use mvm_guest::protocol::{Adopt, GuestNetwork, SshIdentity};
use mvm_hypervisor::{
    Confine, Disk, Hypervisor, Kernel, Machine, Nic, Platform, ProcessIdentity, RestoreMemory,
    VmSpec,
};
use mvm_model::recovery::Snapshot;
use mvm_model::{Instance, InstanceId, Mib, Tenant};
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

/// How long the end of a machine's process may come after the end of its channel.
const DYING: Duration = Duration::from_millis(500);

/// Makes machines from records, and waits for their guests.
pub(crate) struct Machines {
    state_dir: StateDir,
    hypervisor: Arc<dyn Hypervisor>,
    links: Arc<Links>,
    disks: Disks,
    templates: Arc<Templates>,
    watch: Arc<MachineWatch>,
}

impl Machines {
    /// Makes the service for machines of this driver.
    pub(crate) fn new(
        state_dir: StateDir,
        hypervisor: Arc<dyn Hypervisor>,
        links: Arc<Links>,
        disks: Disks,
        templates: Arc<Templates>,
        watch: Arc<MachineWatch>,
    ) -> Machines {
        Machines { state_dir, hypervisor, links, disks, templates, watch }
    }

    /// Returns the hypervisor's driver.
    pub(crate) fn hypervisor(&self) -> &dyn Hypervisor {
        self.hypervisor.as_ref()
    }

    /// Returns the links of machines.
    pub(crate) fn links(&self) -> &Links {
        &self.links
    }

    /// Returns the files of an instance.
    pub(crate) fn files(&self, id: InstanceId) -> Files {
        self.state_dir.files(id)
    }

    /// Returns an error if the disk is too full for a machine to be started or leased.
    pub(crate) fn check_space(&self) -> Result<()> {
        self.disks.check_space()
    }

    /// Watches a machine that is up, until it ends.
    pub(crate) fn watch(&self, id: InstanceId, machine: Arc<dyn Machine>) {
        self.watch.begin(id, machine);
    }

    /// Returns the snapshot to wake an instance from if its process has ended.
    pub(crate) fn snapshot_of(&self, instance: &Instance) -> Snapshot {
        let simulated = self.hypervisor.description().simulated;
        snapshot::snapshot_of(simulated, instance, &self.files(instance.id))
    }

    /// Returns this agent's hypervisor processes by instance.
    pub(crate) fn processes(&self) -> Result<HashMap<InstanceId, ProcessIdentity>> {
        let prefix = self.state_dir.marker_prefix();
        let found = self.hypervisor.find(&prefix)?;
        let of = |process: ProcessIdentity| {
            let id = process.marker.strip_prefix(&prefix)?.parse().ok()?;
            Some((id, process))
        };
        Ok(found.into_iter().filter_map(of).collect())
    }

    /// Ends a process that is in no slot.
    pub(crate) async fn end_process(&self, process: &ProcessIdentity) -> Result<()> {
        self.hypervisor.kill_stray(process).await.map_err(Error::from)
    }

    /// Returns the specification that the hypervisor needs for an instance.
    pub(crate) fn spec(&self, tenant: &Tenant, instance: &Instance) -> Result<VmSpec> {
        let image = self.disks.image(instance.revision)?;
        let files = self.state_dir.files(instance.id);
        let disk = |id: &str, path, read_only| Disk { id: id.to_owned(), path, read_only };
        let mut disks =
            vec![disk("root", image.root.clone(), true), disk("scratch", files.scratch(), false)];
        if instance.resources.data_disk_mib > Mib(0) {
            disks.push(disk("data", files.data(), false));
        }
        let caches = (0..instance.caches.len()).map(|i| (serial(i), files.cache(i)));
        disks.extend(caches.map(|(id, path)| Disk { id, path, read_only: false }));
        let uid = uid_of(tenant);
        let window = Some(files.window()).filter(|window| window.exists());
        Ok(VmSpec {
            id: instance.id.to_string(),
            marker: self.state_dir.marker(instance.id),
            dir: files.vm(),
            vcpus: instance.resources.vcpus,
            mem_mib: instance.resources.mem_mib,
            cpu_model: instance.cpu_model.clone(),
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
                Some(key) => self.templates.files(key).memory(),
                None => files.memory(),
            },
            reserve_memory: !is_template_builder(instance),
            disks,
            nic: Some(Nic { tap: self.links.tap_name(instance), mac: instance.mac }),
            window,
            confine: Some(Confine { uid, gid: uid }),
        })
    }

    /// Boots the machine and waits until its guest has its identity. On an error, the machine is
    /// ended.
    pub(crate) async fn boot(
        &self,
        live: &mut Live,
        tenant: &Tenant,
        instance: &Instance,
    ) -> Result<()> {
        let files = self.make_place(instance)?;
        remove_file(&files.snapshot())?;
        remove_file(&files.resuming())?;
        remove_file(&files.memory())?;
        if instance.is_blank() {
            // An earlier attempt may have left half a copy of a disk.
            remove_file(&files.scratch())?;
            remove_file(&files.data())?;
            remove_caches(instance, &files)?;
        }
        stage!("disks", self.disks.ensure(instance, uid_of(tenant))).await?;
        stage!("network", self.links.connect_instance(tenant, instance)).await?;
        let spec = self.spec(tenant, instance)?;
        let record = self.record_process(instance.id);
        let machine = self.hypervisor.boot(&spec, &record).await?;
        self.make_ready(live, tenant, instance, machine, deadlines::BOOT, true).await
    }

    /// Makes the directories of a machine that is to be started, if there is disk space for the
    /// machine.
    fn make_place(&self, instance: &Instance) -> Result<Files> {
        self.disks.check_room(self.disks.memory_to_reserve(instance))?;
        let files = self.state_dir.files(instance.id);
        make_dir(&files.dir, 0o700)?;
        make_dir(&files.vm(), 0o700)?;
        Ok(files)
    }

    /// Starts the machine as a clone of a template and waits until its guest has its identity. On
    /// an error, the machine is ended.
    pub(crate) async fn clone_of(
        &self,
        live: &mut Live,
        tenant: &Tenant,
        instance: &Instance,
        template: &Template,
    ) -> Result<()> {
        self.make_place(instance)?;
        stage!("disks", self.disks.clone_from(instance, template, uid_of(tenant))).await?;
        stage!("network", self.links.connect_instance(tenant, instance)).await?;
        let spec = self.spec(tenant, instance)?;
        let record = self.record_process(instance.id);
        let snapshot = template.files.snapshot();
        let hypervisor = &self.hypervisor;
        let restored = hypervisor.restore(&spec, &snapshot, RestoreMemory::Clone, &record).await;
        let machine = restored?;
        if let Err(error) = machine.resume().await {
            self.kill_unready(live, machine).await;
            return Err(error.into());
        }
        self.make_ready(live, tenant, instance, machine, deadlines::CLONE, true).await
    }

    /// Restores a sleeping machine, which stays paused.
    pub(crate) async fn restore(
        &self,
        tenant: &Tenant,
        instance: &Instance,
    ) -> Result<Arc<dyn Machine>> {
        self.disks.check_room(self.disks.memory_to_reserve(instance))?;
        let files = self.state_dir.files(instance.id);
        stage!("network", self.links.connect_instance(tenant, instance)).await?;
        let spec = self.spec(tenant, instance)?;
        let record = self.record_process(instance.id);
        let snapshot = files.snapshot();
        let hypervisor = &self.hypervisor;
        hypervisor.restore(&spec, &snapshot, RestoreMemory::Own, &record).await.map_err(Error::from)
    }

    /// Connects to the guest of a machine that was just started or resumed, and gives the guest its
    /// identity and the time. One deadline covers all that the guest does for this.
    pub(crate) async fn make_ready(
        &self,
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
            // The keys are made while the guest starts.
            let (channel, identity) = match fresh {
                true => tokio::join!(connecting, self.identity_of(tenant, instance)),
                false => (connecting.await, Ok(Adopt::default())),
            };
            let (channel, identity) = (channel?, identity?);
            let adopt =
                Adopt { wall_clock_ns: Some(wall_clock_ns(self.watch.clock())), ..identity };
            stage!("adopt", waits.guest(until, channel.adopt(&adopt))).await?;
            Ok::<_, Error>(channel)
        };
        let mortal = machine.clone();
        let died = async { Err(died(mortal.exited().await)) };
        tokio::pin!(died);
        let outcome = tokio::select! {
            outcome = ready => match outcome {
                // When a machine dies, its channel breaks before its end is reported: prefer the
                // machine's end as the reason.
                Err(error) => {
                    tokio::time::timeout(DYING, died).await.unwrap_or(Err(error))
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
            Err(error) => {
                let why = match no_space_error(&machine) {
                    Some(held) if !fresh => {
                        // The machine has memory of its own, and goes on when there is disk space.
                        self.watch(instance.id, machine.clone());
                        live.machine = Some(machine);
                        return Err(held);
                    }
                    held => held.unwrap_or(error),
                };
                self.kill_unready(live, machine).await;
                let console =
                    format!("see its console: mvm instance logs {}", instance.reference());
                Err(why.with_hint(console))
            }
        }
    }

    /// Ends a machine whose start has failed. If that fails too, the machine remains in its slot.
    async fn kill_unready(&self, live: &mut Live, machine: Arc<dyn Machine>) {
        let id = machine.process().marker;
        live.machine = Some(machine);
        if let Err(error) = live.kill().await {
            tracing::error!(machine = id, "cannot end a machine: {error}");
        }
    }

    async fn identity_of(&self, tenant: &Tenant, instance: &Instance) -> Result<Adopt> {
        let (root, tenant, instance) = (self.state_dir.clone(), tenant.clone(), instance.clone());
        let mtu = self.links.mtu().await?;
        let made = blocking(move || whole_identity(&root, &tenant, &instance, mtu));
        stage!("identity", made).await
    }

    /// Returns a callback that records an instance's process before anything else is done with it.
    fn record_process(&self, id: InstanceId) -> impl Fn(&ProcessIdentity) + Send + Sync + use<> {
        let path = self.state_dir.files(id).dir.join("process.json");
        move |process| {
            let text = serde_json::to_vec(process).unwrap_or_default();
            // This record is for users only, so nothing waits for the disk. Recovery finds the
            // process by its marker.
            if let Err(error) = std::fs::write(&path, &text) {
                tracing::warn!("cannot write {}: {error}", path.display());
            }
        }
    }
}

/// Returns the name under which an instance's host key is pinned.
pub fn host_key_alias(reference: &mvm_model::InstanceRef) -> String {
    format!("{}.{}.{}.mvm", reference.id, reference.pool.pool, reference.pool.tenant)
}

/// Returns the guest's identity, except the time.
fn whole_identity(
    root: &StateDir,
    tenant: &Tenant,
    instance: &Instance,
    mtu: u32,
) -> Result<Adopt> {
    let files = root.files(instance.id);
    let reference = instance.reference();
    let prefix = tenant.network.ipv4_subnet.prefix_len();
    let (names, gateway) = (Names::of_host(), tenant.network.gateway());
    let network = Some(GuestNetwork {
        address: format!("{}/{prefix}", instance.address),
        gateway: gateway.to_string(),
        dns: names.for_guests(gateway).iter().map(Ipv4Addr::to_string).collect(),
        search: names.search,
        mtu: Some(mtu),
        mac: Some(instance.mac.to_string()),
    });
    let entropy = Some(random_bytes::<64>()?.to_vec());
    if is_template_builder(instance) {
        // A template's clones get names and keys of their own; the template needs none.
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
            authorized_keys: vec![identity::tenant_key(root, &tenant.name)?],
            port: 22,
        }),
    })
}
