//! Handlers of images and kernels.

use super::handler::{Answer, Asked, Body, Listing, Refusal, Shared, detached};
use super::pools::progress;
use crate::Error;
use crate::agent::Agent;
use crate::blocking::blocking;
use crate::error::{Missing, PoolError, io};
use crate::transfer::PIECE;
use axum::Json;
use axum::body::Body as HttpBody;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response, Sse};
use futures::Stream;
use mvm_api::Problem;
use mvm_api::query::PartRange;
use mvm_api::types::{FetchImage, Gc, GcResult, ImageView, ImportKernel, KernelView};
use mvm_image::{KernelImport, KernelInfo, Platform};
use mvm_model::{Code, Digest, Pool};
use mvm_server::extract::Query;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io::SeekFrom;
use std::path::PathBuf;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

pub async fn kernels(State(agent): Shared, Asked { page, .. }: Asked) -> Listing<KernelView> {
    let kernels = agent.supplies.image_store.kernels()?;
    Ok(page.of(kernels.iter().map(kernel_view)))
}

pub async fn kernel_import(
    State(agent): Shared,
    Body(body): Body<ImportKernel>,
) -> Answer<KernelView> {
    let options = KernelImport { initrd_modules: body.modules.map(PathBuf::from), name: body.name };
    let file = PathBuf::from(body.file);
    if let Err(error) = std::fs::File::open(&file) {
        let detail = format!("cannot read {:?}: {error}", file.display().to_string());
        return Err(Problem::new(Code::InvalidValue, detail)
            .hint("name a file of the node, by its absolute path")
            .into());
    }
    let import = async move {
        let imported = agent.supplies.image_store.kernel_import(&file, options).await;
        imported.map_err(|error| match error {
            error @ mvm_image::Error::KernelExists { .. } => Error::from(error)
                .with_hint("give it another (--name), or `mvm kernel remove` that one"),
            error => error.into(),
        })
    };
    let kernel = detached(import).await?;
    Ok(Json(kernel_view(&kernel)))
}

/// Removes a kernel. Images have their own copy, so only a pool that names the kernel for later
/// builds prevents it.
pub async fn kernel_remove(State(agent): Shared, Path(kernel): Path<String>) -> Answer<KernelView> {
    let images = agent.supplies.image_store.clone();
    let kernel = images.kernel(&kernel)?;
    let last = images.kernels()?.len() == 1;
    // The records are locked meanwhile, so no pool can be created with this kernel.
    let removed = agent
        .base
        .records
        .change(|records, _| {
            let mut pools = records.pools.values();
            let needs = |pool: &&Pool| match &pool.kernel {
                Some(named) => *named == kernel.digest,
                None => last,
            };
            if let Some(pool) = pools.find(needs) {
                let (kernel, pool) = (kernel.name.clone(), pool.reference.clone());
                return Err(PoolError::KernelInUse { kernel, pool }.into());
            }
            images.kernel_remove(&kernel.digest.to_string()).map_err(Error::from)
        })
        .await?;
    Ok(Json(kernel_view(&removed)))
}

pub async fn kernel_fetch(
    State(agent): Shared,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    progress(move |report| async move {
        let kernel = agent.supplies.image_store.kernel_fetch(&report).await?;
        Ok(kernel_view(&kernel))
    })
}

fn kernel_view(kernel: &KernelInfo) -> KernelView {
    KernelView {
        digest: kernel.digest,
        name: kernel.name.clone(),
        version: kernel.version.clone(),
        platform: match kernel.platform {
            Platform::Pci => "pci",
            Platform::Mmio => "mmio",
        }
        .to_owned(),
        size_bytes: kernel.size_bytes,
        default: kernel.default,
    }
}

pub async fn list(State(agent): Shared, Asked { page, .. }: Asked) -> Listing<ImageView> {
    let images = agent.supplies.image_store.list()?;
    let views = agent.base.records.read(|records| {
        let view = |image: &mvm_image::Revision| ImageView {
            pools: records
                .pools
                .values()
                .filter(|pool| pool.revisions.iter().any(|r| r.digest == image.digest))
                .map(|pool| pool.reference.clone())
                .collect(),
            digest: image.digest,
            flake_ref: image.flake.clone(),
            profile: image.profile.clone(),
            size_bytes: image.size_bytes,
            content: image.content(),
            built_at: image.built_at,
        };
        page.of(images.iter().map(view))
    });
    Ok(views)
}

/// Removes images that are no pool's current or previous revision and that no instance boots from.
pub async fn gc(State(agent): Shared, Body(body): Body<Gc>) -> Result<Json<GcResult>, Refusal> {
    let in_use = in_use(&agent).await;
    let removed = agent.supplies.image_store.remove_unused(&in_use, body.dry_run)?;
    let store_roots = agent.supplies.image_store.remove_stale_roots(body.dry_run);
    let gone: BTreeSet<&str> = removed.iter().map(|r| r.digest.as_str()).collect();
    let mut left = agent.supplies.image_store.list()?;
    left.retain(|image| !gone.contains(image.digest.to_string().as_str()));
    Ok(Json(GcResult {
        store_roots,
        left: left.len() as u64,
        left_bytes: left.iter().map(|image| image.size_bytes).sum(),
        freed_bytes: removed.iter().map(|r| r.bytes).sum(),
        removed: removed.into_iter().map(|r| r.digest).collect(),
        dry_run: body.dry_run,
    }))
}

async fn in_use(agent: &Agent) -> BTreeSet<Digest> {
    // The records are locked, so a concurrent change keeps the images that it needs.
    agent
        .base
        .records
        .alone(|records| {
            let mut digests: BTreeSet<Digest> =
                records.instances.values().map(|instance| instance.revision).collect();
            for pool in records.pools.values() {
                let current = pool.current.unwrap_or(0);
                let previous = pool.revisions.iter().rfind(|r| r.number < current);
                let kept = pool.revisions.iter().filter(|r| r.number == current).chain(previous);
                digests.extend(kept.map(|revision| revision.digest));
            }
            digests
        })
        .await
}

/// Receives an image from another node.
pub async fn fetch(
    State(agent): Shared,
    Body(body): Body<FetchImage>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    progress(move |report| async move { agent.supplies.transfer.fetch(body, &report).await })
}

/// Returns the manifest that another node needs to receive an image.
pub async fn manifest(
    State(agent): Shared,
    Path(digest): Path<String>,
) -> Result<Response, Refusal> {
    let images = agent.supplies.image_store.clone();
    let manifest = blocking(move || images.manifest(&digest).map_err(Error::from)).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], manifest).into_response())
}

/// Sends the bytes of a part from an offset on, within the node's rate for images.
pub async fn part(
    State(agent): Shared,
    Path((digest, part)): Path<(String, String)>,
    Query(from): Query<PartRange>,
) -> Result<HttpBody, Refusal> {
    let image = agent.supplies.image_store.get(&digest)?;
    let path = image.part_file(&part).ok_or(Missing::Part { digest, part })?;
    let reading = |e| io(format!("read {}", path.display()), e);
    let mut file = tokio::fs::File::open(&path).await.map_err(reading)?;
    file.seek(SeekFrom::Start(from.offset)).await.map_err(reading)?;
    let stream = futures::stream::try_unfold((file, agent), |(mut file, agent)| async move {
        let mut buffer = vec![0; PIECE];
        let count = file.read(&mut buffer).await?;
        agent.supplies.transfer.pace.pass(count).await;
        buffer.truncate(count);
        Ok::<_, std::io::Error>((count > 0).then_some((buffer, (file, agent))))
    });
    Ok(HttpBody::from_stream(stream))
}
