//! The services of tenants: pools, builds of their images, and making of their templates.

use super::base::Base;
use super::lifecycle::Lifecycle;
use super::supplies::Supplies;
use super::work::Work;
use crate::catalog::Catalog;
use crate::health::Health;
use crate::pool_builder::PoolBuilder;
use crate::pool_removal::PoolRemoval;
use crate::template_maker::TemplateMaker;
use crate::tenants::Tenants;
use std::sync::Arc;

/// The services of tenants and their pools.
pub(crate) struct Pools {
    pub health: Arc<Health>,
    pub template_maker: Arc<TemplateMaker>,
    pub tenants: Arc<Tenants>,
    pub catalog: Arc<Catalog>,
    pub builder: Arc<PoolBuilder>,
    pub removal: Arc<PoolRemoval>,
}

impl Pools {
    /// Makes the services for the pools in these records.
    pub fn new(base: &Base, supplies: &Supplies, lifecycle: &Lifecycle, work: &Work) -> Pools {
        let Base { records, auditor, wake, .. } = base;
        let Supplies { host, images, transfer, links, caches, templates, .. } = supplies;
        let health = Arc::new(Health::new(records.clock().clone()));
        let template_maker = Arc::new(TemplateMaker::new(
            records.clone(),
            lifecycle.instances.clone(),
            templates.clone(),
            health.clone(),
            auditor.clone(),
            wake.clone(),
        ));
        let root = base.state_dir.clone();
        let tenants = Tenants::new(records.clone(), links.clone(), root, wake.clone());
        let catalog = Catalog::new(
            records.clone(),
            links.clone(),
            images.clone(),
            caches.clone(),
            health.clone(),
            host.clone(),
            wake.clone(),
        );
        let builder = PoolBuilder::new(
            records.clone(),
            images.clone(),
            transfer.clone(),
            template_maker.clone(),
            health.clone(),
            wake.clone(),
        );
        let removal = PoolRemoval::new(
            records.clone(),
            work.exposes.clone(),
            work.jobs.clone(),
            lifecycle.instances.clone(),
            caches.clone(),
            wake.clone(),
        );
        let (tenants, catalog) = (Arc::new(tenants), Arc::new(catalog));
        let (builder, removal) = (Arc::new(builder), Arc::new(removal));
        Pools { health, template_maker, tenants, catalog, builder, removal }
    }
}
