//! The services of instances: transitions, watches, and recovery at start.

use super::base::Base;
use super::parts::AgentParts;
use super::supplies::Supplies;
use crate::instances::{
    Disks, Guests, Halted, Instances, Lingering, LinkKeeper, MachineWatch, Machines, Recovery,
    Transitions, free_space,
};
use crate::pressure::HostPressure;
use std::sync::Arc;

/// The services of instances.
pub(crate) struct Lifecycle {
    pub transitions: Arc<Transitions>,
    pub halted: Arc<Halted>,
    pub lingering: Arc<Lingering>,
    pub recovery: Arc<Recovery>,
    pub instances: Arc<Instances>,
    pub guests: Arc<Guests>,
    pub link_keeper: Arc<LinkKeeper>,
}

impl Lifecycle {
    /// Makes the services for the instances in these records.
    pub fn new(parts: &AgentParts, base: &Base, supplies: &Supplies) -> Lifecycle {
        let Base { records, slots, wake, .. } = base;
        let transitions = Arc::new(Transitions::new(records.clone(), slots.clone()));
        let path = parts.state_dir.path().to_owned();
        let room = Arc::new(move || free_space(&path).ok());
        let halted = Arc::new(Halted::new(parts.settings.no_space_timeout, room));
        let machines = machines(parts, base, supplies, &transitions, &halted);
        let recovery = Arc::new(Recovery::new(
            records.clone(),
            slots.clone(),
            transitions.clone(),
            machines.clone(),
            base.auditor.clone(),
            wake.clone(),
        ));
        let pressure = HostPressure(parts.settings.pressure.clone());
        let lingering = Arc::new(Lingering::new(records.clone(), slots.clone(), pressure));
        let instances = Arc::new(Instances::new(
            records.clone(),
            slots.clone(),
            transitions.clone(),
            machines,
            supplies.templates.clone(),
            lingering.clone(),
            recovery.clone(),
        ));
        let guests = Guests::new(records.clone(), slots.clone(), transitions.clone(), wake.clone());
        let link_keeper = LinkKeeper::new(
            supplies.links.clone(),
            records.clone(),
            slots.clone(),
            transitions.clone(),
            wake.clone(),
        );
        let (guests, link_keeper) = (Arc::new(guests), Arc::new(link_keeper));
        Lifecycle { transitions, halted, lingering, recovery, instances, guests, link_keeper }
    }
}

/// Makes the service that turns records into machines.
fn machines(
    parts: &AgentParts,
    base: &Base,
    supplies: &Supplies,
    transitions: &Arc<Transitions>,
    halted: &Arc<Halted>,
) -> Arc<Machines> {
    let AgentParts { state_dir, hypervisor, images, .. } = parts;
    let watch = Arc::new(MachineWatch::new(
        base.records.clone(),
        base.slots.clone(),
        transitions.clone(),
        halted.clone(),
        state_dir.clone(),
        base.wake.clone(),
    ));
    let simulated = hypervisor.description().simulated;
    let disks = Disks::new(state_dir.clone(), images.clone(), supplies.caches.clone(), simulated);
    Arc::new(Machines::new(
        state_dir.clone(),
        hypervisor.clone(),
        supplies.links.clone(),
        disks,
        supplies.templates.clone(),
        watch,
    ))
}
