//! One check and its verdict.

use serde::Serialize;
use std::path::Path;

/// The verdict of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Ok,
    /// mvm cannot work without it.
    Missing,
    /// This machine is not ready for production.
    Mend,
    /// A remark, not a fault.
    Note,
}

#[derive(Debug, Serialize)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) status: Status,
    pub(super) detail: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) why: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) remedy: &'static str,
}

pub(super) fn check(
    name: &'static str,
    ok: bool,
    detail: impl Into<String>,
    remedy: &'static str,
) -> Check {
    let status = if ok { Status::Ok } else { Status::Missing };
    Check { name, status, detail: detail.into(), why: "", remedy }
}

/// Makes a check whose failure is only a remark.
pub(super) fn note(
    name: &'static str,
    ok: bool,
    detail: impl Into<String>,
    remedy: &'static str,
) -> Check {
    let status = if ok { Status::Ok } else { Status::Note };
    Check { name, status, detail: detail.into(), why: "", remedy }
}

/// Returns the path, or its nearest ancestor that exists.
pub(super) fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

/// Returns the free space of the file system: in GiB, and in percent of the whole.
pub(super) fn free_room(at: &Path) -> rustix::io::Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(at)?;
    Ok(((stat.f_bavail * stat.f_frsize) >> 30, stat.f_bavail * 100 / stat.f_blocks.max(1)))
}
