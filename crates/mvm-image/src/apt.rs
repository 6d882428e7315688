//! Fetches the distribution's cloud kernel: downloads and unpacks the package, but never installs
//! it.

use crate::command::{Tool, tail};
use crate::error::{At, Error, Result};
use crate::kernel;
use crate::layout::ImageStore;
use crate::types::{KernelImport, KernelInfo, Progress};
use crate::workdir::WorkDir;
use std::path::{Path, PathBuf};
use tokio::sync::mpsc::UnboundedSender;

/// The package that always depends on the newest cloud kernel.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Fetches, unpacks and imports the kernel, and makes it the default.
pub(crate) async fn fetch(
    store: &ImageStore,
    progress: &UnboundedSender<Progress>,
) -> Result<KernelInfo> {
    stage(progress, "resolve", META_PACKAGE.to_owned());
    let package = match resolve(store).await? {
        Some(package) => package,
        None => {
            stage(progress, "resolve", "apt-get update: no package lists yet".to_owned());
            let update = apt_get(store).arg("update");
            step(update, "apt-get update", progress).await?;
            resolve(store).await?.ok_or_else(|| Error::FetchFailed {
                step: format!("looking up {META_PACKAGE}"),
                why: "apt does not know it: is the distribution's main archive, for amd64, among \
                      apt's sources?"
                    .to_owned(),
            })?
        }
    };
    let work = WorkDir::new_in(&store.kernels_dir())?;
    stage(progress, "download", package.clone());
    let download = apt_get(store).args(["download", &package]).dir(work.path()).writes_to(&work);
    step(download, "apt-get download", progress).await?;
    let archive = only_file(work.path(), ".deb")?;
    stage(progress, "unpack", package.clone());
    let tree = work.path().join("tree");
    let unpack = Tool::new(&store.tools.dpkg_deb, "dpkg").arg("-x").arg(&archive).arg(&tree);
    step(unpack.writes_to(&work), "dpkg-deb -x", progress).await?;
    let version = package.trim_start_matches("linux-image-").to_owned();
    let file = tree.join("boot").join(format!("vmlinuz-{version}"));
    stage(progress, "import", version.clone());
    let modules = [tree.join("lib/modules"), tree.join("usr/lib/modules")];
    let modules = modules.into_iter().map(|d| d.join(&version)).find(|d| d.is_dir());
    let opts = KernelImport { initrd_modules: modules, name: None };
    let origin = archive.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let info = match kernel::import(store, &file, opts.clone(), &origin).await {
        // The store has this version already, from an older package (this one is a rebuild), so the
        // kernel is named after the package.
        Err(Error::Invalid { .. }) => {
            let name = origin.split('_').nth(1).unwrap_or("newer").replace("%3a", "-");
            let opts = KernelImport { name: Some(format!("{version}-{name}")), ..opts };
            kernel::import(store, &file, opts, &origin).await?
        }
        other => other?,
    };
    kernel::set_default(store, info.digest)?;
    Ok(KernelInfo { default: true, ..info })
}

fn stage(progress: &UnboundedSender<Progress>, name: &'static str, detail: String) {
    let _ = progress.send(Progress::Stage { name, detail });
}

fn apt_get(store: &ImageStore) -> Tool {
    // The _apt user may not write to the store's directories.
    Tool::new(&store.tools.apt_get, "apt").args(["-q", "-y", "-o", "APT::Sandbox::User=root"])
}

/// Returns the package of the newest cloud kernel; `None` if apt knows none.
async fn resolve(store: &ImageStore) -> Result<Option<String>> {
    let query = Tool::new(&store.tools.apt_cache, "apt").args(["depends", META_PACKAGE]);
    let ended = query.run(|_| {}).await?;
    Ok(parse_depends(&String::from_utf8_lossy(&ended.stdout)))
}

/// Reads apt-cache(8)'s `  Depends: linux-image-6.1.0-41-cloud-amd64`.
fn parse_depends(text: &str) -> Option<String> {
    let depends = text.lines().filter_map(|l| l.trim().strip_prefix("Depends:"));
    let name = depends.map(|d| d.split_whitespace().next().unwrap_or_default());
    let plain = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    let mut images = name.filter(|n| n.starts_with("linux-image-") && n.chars().all(plain));
    images.next().map(str::to_owned)
}

async fn step(tool: Tool, what: &str, progress: &UnboundedSender<Progress>) -> Result<()> {
    let ended = tool
        .run(|line| {
            let _ = progress.send(Progress::Line(line.to_owned()));
        })
        .await?;
    if ended.status.success() {
        return Ok(());
    }
    let why = tail(&ended.stderr, 20);
    if why.contains("No space left on device") {
        return Err(Error::no_space(what, Path::new("/"), 0));
    }
    Err(Error::FetchFailed { step: what.to_owned(), why })
}

fn only_file(dir: &Path, suffix: &str) -> Result<PathBuf> {
    for entry in std::fs::read_dir(dir).at("list", dir)? {
        let path = entry.at("list", dir)?.path();
        if path.to_string_lossy().ends_with(suffix) {
            return Ok(path);
        }
    }
    let why = format!("no {suffix} file arrived");
    Err(Error::FetchFailed { step: "apt-get download".to_owned(), why })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_dependency_is_found() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-41-cloud-amd64\n";
        assert_eq!(parse_depends(text).as_deref(), Some("linux-image-6.1.0-41-cloud-amd64"));
        assert_eq!(parse_depends("x\n  Depends: <virtual>\n"), None);
    }

    proptest! {
        #[test]
        fn garbage_gives_no_odd_package_name(text: String) {
            if let Some(name) = parse_depends(&text) {
                prop_assert!(name.starts_with("linux-image-") && !name.contains('/'));
            }
        }
    }
}
