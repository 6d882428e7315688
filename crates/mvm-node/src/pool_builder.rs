//! Builds the images of pools, and makes existing images current.

use crate::Result;
use crate::builds::Builds;
use crate::error::{Missing, PoolError};
use crate::health::Health;
use crate::images::Images;
use crate::records::Records;
use crate::template_maker::TemplateMaker;
use crate::transfer::Transfer;
use crate::wake::Wake;
use mvm_api::types::{BuildPool, BuildResult, FetchImage};
use mvm_image::{BuildRequest, Progress};
use mvm_model::desired::ImageSource;
use mvm_model::pool::RevisionEntry;
use mvm_model::{Digest, PoolRef};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// Builds the images of pools.
pub(crate) struct PoolBuilder {
    records: Arc<Records>,
    images: Arc<Images>,
    transfer: Arc<Transfer>,
    template_maker: Arc<TemplateMaker>,
    health: Arc<Health>,
    wake: Wake,
    /// The builds that are under way.
    pub builds: Builds,
}

impl PoolBuilder {
    /// Makes the builder for the pools of these records.
    pub(crate) fn new(
        records: Arc<Records>,
        images: Arc<Images>,
        transfer: Arc<Transfer>,
        template_maker: Arc<TemplateMaker>,
        health: Arc<Health>,
        wake: Wake,
    ) -> PoolBuilder {
        let builds = Builds::default();
        PoolBuilder { records, images, transfer, template_maker, health, wake, builds }
    }

    /// Builds the pool's image and makes it current.
    pub async fn build(
        &self,
        reference: &PoolRef,
        wanted: BuildPool,
        progress: &UnboundedSender<Progress>,
    ) -> Result<BuildResult> {
        let pool = self.records.read(|records| records.pool(reference).cloned())?;
        let overrides = match wanted.override_inputs.is_empty() {
            true => pool.override_inputs,
            false => wanted.override_inputs,
        };
        let began = std::time::Instant::now();
        let request = BuildRequest {
            flake: pool.flake_ref,
            profile: pool.profile,
            override_inputs: overrides.clone(),
            kernel: pool.kernel.map(|kernel| kernel.to_string()),
        };
        let building = self.builds.begin(reference, self.records.clock().wall());
        // When the build is dropped, it ends its programs and removes its files.
        let image = tokio::select! {
            built = self.images.store().build(&request, progress) => built?,
            () = building.canceled() => {
                return Err(PoolError::BuildCanceled(reference.clone()).into());
            }
        };
        let revision = self.make_current(reference, image.digest, Some(overrides)).await?;
        let detail = "boots once, is cloned from then on".to_owned();
        let _ = progress.send(Progress::Stage { name: "template", detail });
        // The build succeeds even if its template fails: the reconciler tries the template again.
        let template = self.template_maker.ensure_of(reference).await;
        self.wake.notify();
        let took_ms = began.elapsed().as_millis() as u64;
        let template_failure = template.err().map(|error| error.to_string());
        Ok(BuildResult { revision, size_bytes: image.size_bytes, took_ms, template_failure })
    }

    /// Cancels the builds of a pool's image that are under way.
    pub fn cancel(&self, reference: &PoolRef) -> Result<()> {
        self.records.read(|records| records.pool(reference).map(drop))?;
        match self.builds.cancel(reference) {
            true => Ok(()),
            false => Err(Missing::Build(reference.clone()).into()),
        }
    }

    /// Makes an image current that another node has built, and fetches it from there first if
    /// necessary.
    pub(crate) async fn use_image(
        &self,
        reference: &PoolRef,
        digest: &str,
        source: Option<&ImageSource>,
    ) -> Result<()> {
        if let Some(ImageSource { content, nodes }) = source {
            let (digest, content) = (digest.to_owned(), Some(content.clone()));
            let wanted = FetchImage { digest, content, sources: nodes.clone() };
            // Nobody reads this progress.
            self.transfer.fetch(wanted, &unbounded_channel().0).await?;
        }
        let image = self.images.store().get(digest)?;
        self.make_current(reference, image.digest, None).await?;
        self.wake.notify();
        Ok(())
    }

    /// Records which image a pool was built to, and from which inputs.
    async fn make_current(
        &self,
        reference: &PoolRef,
        digest: Digest,
        overrides: Option<BTreeMap<String, String>>,
    ) -> Result<RevisionEntry> {
        self.images.invalidate();
        let entry = self
            .records
            .change(|records, changes| {
                let mut pool = records.pool(reference)?.clone();
                pool.override_inputs = overrides.unwrap_or(pool.override_inputs);
                let entry = pool.record_build(digest, self.records.clock().wall());
                changes.put_pool(pool);
                Ok(entry)
            })
            .await?;
        self.health.succeeded(reference);
        Ok(entry)
    }
}
