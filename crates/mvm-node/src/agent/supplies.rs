//! The services that supply machines: host, images, caches, templates and links.

use super::base::Base;
use super::parts::AgentParts;
use crate::accelerator::AcceleratorChoice;
use crate::caches::Caches;
use crate::host::Host;
use crate::images::Images;
use crate::links::Links;
use crate::templates::Templates;
use crate::transfer::{Pace, Transfer};
use mvm_image::ImageStore;
use std::sync::Arc;

/// The services that supply machines.
pub(crate) struct Supplies {
    pub host: Arc<Host>,
    pub accelerator: Arc<AcceleratorChoice>,
    pub image_store: ImageStore,
    pub images: Arc<Images>,
    pub transfer: Arc<Transfer>,
    pub links: Arc<Links>,
    pub caches: Arc<Caches>,
    pub templates: Arc<Templates>,
}

impl Supplies {
    /// Makes the services from these parts.
    pub fn new(parts: &AgentParts, base: &Base) -> Supplies {
        let AgentParts { state_dir, hypervisor, network, images, settings, .. } = parts;
        let records = &base.records;
        let short_id = state_dir.short_id();
        Supplies {
            host: Arc::new(Host::new(
                settings.node_id.clone(),
                settings.offer.clone(),
                hypervisor.clone(),
                settings.accelerator.clone(),
                state_dir.path(),
            )),
            accelerator: settings.accelerator.clone(),
            image_store: images.clone(),
            images: Arc::new(Images::new(images.clone(), records.clock().clone())),
            transfer: Arc::new(Transfer::new(
                images.clone(),
                parts.credentials.clone(),
                Pace::new(settings.image_rate),
            )),
            links: Arc::new(Links::new(network.clone(), records.clone(), short_id)),
            caches: Arc::new(Caches::new(
                records.clone(),
                images.clone(),
                state_dir.clone(),
                base.slots.clone(),
            )),
            templates: Arc::new(Templates::new(
                state_dir.clone(),
                hypervisor.clone(),
                settings.accelerator.clone(),
                records.clone(),
                base.wake.clone(),
            )),
        }
    }
}
