//! Caches: disks that outlive the machines of a pool. A job works on a copy of its own, which
//! becomes the pool's if the job succeeds and says so.

use crate::error::Fault;
use crate::mib::Mib;
use crate::name::Name;
use crate::text::invalid;
use crate::timestamp::Timestamp;
use mvm_code::Code;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::str::FromStr;

/// The most caches of a pool: as many more disks as any machine has slots for.
pub const MAX_CACHES: usize = 2;
/// Paths that the guest itself needs.
const TAKEN: [&str; 7] = ["/", "/proc", "/sys", "/dev", "/run", "/nix", "/data"];

/// One cache of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// The cache's name, unique in the pool.
    pub name: Name,
    /// The absolute path of the cache in the guest.
    #[schemars(length(min = 2, max = 255))]
    pub path: String,
    /// Size of the cache's disk in MiB.
    #[schemars(range(min = 16, max = 16777216))]
    pub size_mib: Mib,
}

/// `NAME:PATH:SIZE`, the size in MiB.
impl FromStr for Cache {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let form = || {
            invalid(text, "cache")
                .hint("write it as NAME:PATH:SIZE, the size in MiB: ccache:/root/.ccache:2048")
        };
        let (rest, size) = text.rsplit_once(':').ok_or_else(form)?;
        let (name, path) = rest.split_once(':').ok_or_else(form)?;
        let size_mib = Mib(size.parse().map_err(|_| form())?);
        let cache = Cache { name: name.parse()?, path: path.to_owned(), size_mib };
        validate(std::slice::from_ref(&cache))?;
        Ok(cache)
    }
}

/// Checks a pool's caches: their number, paths and sizes, and that no name or path occurs twice.
/// Error: `invalid_value`.
pub fn validate(caches: &[Cache]) -> Result<(), Fault> {
    let wrong = |what: String, hint: &str| {
        Err(Fault::new(Code::InvalidValue, what).at("caches").hint(hint))
    };
    if caches.len() > MAX_CACHES {
        return wrong(format!("{} caches", caches.len()), "a pool has at most 2");
    }
    let mut seen = BTreeSet::new();
    for Cache { name, path, size_mib } in caches {
        let plain = path.starts_with('/')
            && path.len() <= 255
            && !path.chars().any(char::is_control)
            && path.split('/').skip(1).all(|part| !matches!(part, "" | "." | ".."));
        if !plain {
            return wrong(
                format!("cache {name} is at {path:?}"),
                "name an absolute path without empty parts and dots",
            );
        }
        if TAKEN.contains(&path.as_str()) || TAKEN[1..5].iter().any(|t| below(path, t)) {
            return wrong(
                format!("cache {name} is at {path}"),
                "the guest itself needs that place",
            );
        }
        if !(16..=1 << 24).contains(&size_mib.0) {
            let what = format!("cache {name} has {size_mib}");
            return wrong(what, "allowed are 16 to 16777216 MiB");
        }
        let other = caches.iter().filter(|other| other.name != *name);
        if let Some(other) = other.clone().find(|o| o.path == *path || below(&o.path, path)) {
            let what = format!("caches {name} and {} lie in one place", other.name);
            return wrong(what, "give each a place of its own");
        }
        if !seen.insert(name) {
            return wrong(format!("cache {name} stands twice"), "give each a name of its own");
        }
    }
    Ok(())
}

fn below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

/// A cache's disk: the pool's own, or an instance's copy of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CacheDisk {
    /// The cache.
    pub cache: Cache,
    /// The version of the contents: one more with each commit. 0 for an instance's disk that has
    /// been written to, or that does not exist yet.
    pub generation: u64,
    /// When a job's copy became the pool's, ms since the Unix epoch; absent while the disk is
    /// blank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed_at: Option<Timestamp>,
}

/// Returns a pool's caches after a change to `wanted`: those that it has already keep their
/// content. Errors: `invalid_value`, `conflict` if a size would change.
pub fn change(known: &[CacheDisk], wanted: Vec<Cache>) -> Result<Vec<CacheDisk>, Fault> {
    validate(&wanted)?;
    let disk = |cache: Cache| match known.iter().find(|disk| disk.cache.name == cache.name) {
        Some(disk) if disk.cache.size_mib != cache.size_mib => {
            let (name, size) = (&cache.name, disk.cache.size_mib);
            Err(Fault::new(Code::Conflict, format!("cache {name} has {size}"))
                .at("caches")
                .hint("a size is not changed: remove the cache, then make it anew, empty"))
        }
        Some(disk) => Ok(CacheDisk { cache, ..disk.clone() }),
        None => Ok(CacheDisk { cache, generation: 1, committed_at: None }),
    };
    wanted.into_iter().map(disk).collect()
}

impl CacheDisk {
    /// Returns whether both disks have the same content. A number alone does not show it: a cache
    /// that was removed and made again counts from the beginning.
    pub fn has_content_of(&self, other: &CacheDisk) -> bool {
        (self.generation, self.committed_at) == (other.generation, other.committed_at)
    }
}

/// Returns whether machines with these disks have the same shape.
pub fn same(one: &[CacheDisk], other: &[CacheDisk]) -> bool {
    one.iter().map(|disk| &disk.cache).eq(other.iter().map(|disk| &disk.cache))
}

/// Returns what the disks may come to use.
pub fn disk_mib(disks: &[CacheDisk]) -> Mib {
    disks.iter().map(|disk| disk.cache.size_mib).sum()
}
