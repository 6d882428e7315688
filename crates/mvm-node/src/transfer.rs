//! Transfers images from node to node.

use crate::blocking::blocking;
use crate::error::{InternalError, NodeError, PoolError, io};
use crate::{Error, Result};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use mvm_api::types::{FetchImage, FetchedImage};
use mvm_api::{Client, paths};
use mvm_identity::tls::{Credentials, Expect};
use mvm_image::{ImageStore, Incoming, Part, Progress};
use mvm_model::Digest;
use std::io::Write;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;

/// How much of a file is read at a time, in bytes.
pub(crate) const PIECE: usize = 256 * 1024;
/// The period at which a transfer's progress is reported.
const TELL: Duration = Duration::from_secs(2);
/// The maximum number of sources in a request.
const MAX_SOURCES: usize = 64;
/// The unit in which the rate of images is counted, in bytes.
const UNIT: usize = 1024;

/// The rate at which images leave this node, for all transfers together.
pub(crate) struct Pace(Option<DefaultDirectRateLimiter>);

impl Pace {
    /// Limits the rate to `mib` MiB per second; unlimited where absent.
    pub(crate) fn new(mib: Option<NonZeroU32>) -> Pace {
        let quota = |mib: NonZeroU32| Quota::per_second(mib.saturating_mul(UNITS_A_MIB));
        Pace(mib.map(|mib| RateLimiter::direct(quota(mib))))
    }

    /// Waits until `bytes` more bytes may leave.
    pub(crate) async fn pass(&self, bytes: usize) {
        let units = u32::try_from(bytes.div_ceil(UNIT)).ok().and_then(NonZeroU32::new);
        if let (Some(limiter), Some(units)) = (&self.0, units) {
            // A burst of the limiter is one second's worth, at least 1 MiB, so a piece always fits.
            let _ = limiter.until_n_ready(units).await;
        }
    }
}

const UNITS_A_MIB: NonZeroU32 = NonZeroU32::new(1024).unwrap();

/// Fetches images from other nodes.
pub(crate) struct Transfer {
    images: ImageStore,
    credentials: Option<Arc<Credentials>>,
    pub pace: Pace,
}

impl Transfer {
    /// Makes the service that stores images here, and authenticates with these credentials.
    pub(crate) fn new(
        images: ImageStore,
        credentials: Option<Arc<Credentials>>,
        pace: Pace,
    ) -> Transfer {
        Transfer { images, credentials, pace }
    }

    /// Receives an image from the first of `sources` that has it. An image that is here already is
    /// not fetched.
    pub(crate) async fn fetch(
        &self,
        wanted: FetchImage,
        report: &UnboundedSender<Progress>,
    ) -> Result<FetchedImage> {
        let began = Instant::now();
        let (mut received, mut last) = (0, None);
        if let Some(done) = self.have(&wanted, began)? {
            return Ok(done);
        }
        for source in wanted.sources.iter().take(MAX_SOURCES) {
            match self.fetch_from(source, &wanted, &mut received, report).await {
                Ok(image) => {
                    tracing::info!(digest = %image.digest, source, received, "received an image");
                    return Ok(fetched(&image, received, began));
                }
                Err(error) => {
                    tracing::warn!(digest = wanted.digest, source, "cannot receive it: {error}");
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| PoolError::NoSource.into()))
    }

    /// Returns a client of another node.
    fn peer(&self, address: &str) -> Result<Client> {
        let Some(credentials) = &self.credentials else {
            return Err(NodeError::NoIdentity.into());
        };
        Ok(mvm_identity::client(address, credentials.clone(), Expect::Node(None)))
    }

    fn have(&self, wanted: &FetchImage, began: Instant) -> Result<Option<FetchedImage>> {
        match self.images.get(&wanted.digest) {
            Ok(image) => Ok(Some(fetched(&image, 0, began))),
            Err(mvm_image::Error::RevisionMissing { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn fetch_from(
        &self,
        source: &str,
        wanted: &FetchImage,
        received: &mut u64,
        report: &UnboundedSender<Progress>,
    ) -> Result<mvm_image::Revision> {
        let client = self.peer(source)?;
        let mut manifest = Vec::new();
        let path = paths::image_manifest(&wanted.digest);
        client.streams().download(&path, |bytes| manifest.extend_from_slice(bytes)).await?;
        let (images, wanted) = (self.images.clone(), wanted.clone());
        let receive = move || {
            images
                .receive(&manifest, &wanted.digest, wanted.content.as_deref())
                .map_err(Error::from)
        };
        let incoming = Arc::new(blocking(receive).await?);
        let digest = incoming.digest();
        for (part, there) in incoming.missing() {
            let mut meter = Meter::new(report, source, &part, there);
            *received +=
                append_missing(&client, &incoming, digest, &part, there, &mut meter).await?;
            let sealing = incoming.clone();
            blocking(move || sealing.seal(&part).map_err(Error::from)).await?;
        }
        let incoming = Arc::into_inner(incoming).ok_or(InternalError::ImageStillReceived)?;
        blocking(move || incoming.finish().map_err(Error::from)).await
    }
}

/// Appends the missing bytes of a part. Returns how many bytes came.
async fn append_missing(
    client: &Client,
    incoming: &Incoming,
    digest: Digest,
    part: &Part,
    there: u64,
    meter: &mut Meter<'_>,
) -> Result<u64> {
    let path = incoming.partial(&part.name);
    let writing = |e| io(format!("write {}", path.display()), e);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.create(true).append(true).open(&path).map_err(writing)?;
    let (mut came, mut failed) = (0, None);
    let most = part.size.saturating_sub(there);
    let from = paths::image_part(digest, &part.name, there);
    let outcome = client
        .streams()
        .download(&from, |bytes| {
            came += bytes.len() as u64;
            meter.is_at(there + came);
            // Bytes beyond the part's size are not stored: the digest would be wrong anyway.
            if failed.is_none() && came <= most {
                failed = file.write_all(bytes).err();
            }
        })
        .await;
    if let Some(error) = failed {
        return Err(writing(error));
    }
    outcome?;
    Ok(came)
}

/// Reports the progress of a part.
struct Meter<'a> {
    report: &'a UnboundedSender<Progress>,
    source: &'a str,
    part: &'a str,
    size: u64,
    next: Instant,
}

impl<'a> Meter<'a> {
    fn new(
        report: &'a UnboundedSender<Progress>,
        source: &'a str,
        part: &'a Part,
        there: u64,
    ) -> Meter<'a> {
        let (part, size) = (part.name.as_str(), part.size);
        let mut meter = Meter { report, source, part, size, next: Instant::now() };
        meter.is_at(there);
        meter
    }

    fn is_at(&mut self, there: u64) {
        if Instant::now() < self.next {
            return;
        }
        let (there, size) = (there >> 20, self.size.div_ceil(1 << 20));
        let detail = format!("{} from {}, {there} of {size} MiB", self.part, self.source);
        let _ = self.report.send(Progress::Stage { name: "receive", detail });
        self.next = Instant::now() + TELL;
    }
}

fn fetched(image: &mvm_image::Revision, received_bytes: u64, began: Instant) -> FetchedImage {
    FetchedImage {
        digest: image.digest,
        content: image.content(),
        size_bytes: image.size_bytes,
        received_bytes,
        took_ms: began.elapsed().as_millis() as u64,
    }
}
