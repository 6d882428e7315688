//! Builds a revision from a request: `images/DIGEST/{root.erofs, vmlinux, initrd, manifest.json}`.

use crate::clone::clone_file;
use crate::command::{Tool, tail};
use crate::error::{At, Error, Result, free_bytes};
use crate::fs::{blocking, json, write};
use crate::layout::ImageStore;
use crate::nix::Flake;
use crate::revision::{MANIFEST, load, load_whole, parts_of};
use crate::types::{BuildRequest, KernelImport, KernelInfo, Progress, Revision, now};
use crate::workdir::WorkDir;
use crate::{folder, initrd, kernel, stage};
use mvm_model::Digest;
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc::UnboundedSender;

/// A part of every digest: raise it whenever the same inputs would give another image.
const BUILDER_VERSION: u32 = 1;
/// The package of a flake that may hold a kernel, besides the profile.
const KERNEL_PACKAGE: &str = "kernel";
/// Names of Nix's links to its results, in the work directory.
const RESULT: &str = "result";
const KERNEL_RESULT: &str = "result-kernel";

/// Everything that an image is made of.
struct Ingredients {
    profile: PathBuf,
    closure: Vec<String>,
    kernel: KernelInfo,
}

/// Builds the revision that `req` asks for, or finds it built already.
pub(crate) async fn build(
    store: &ImageStore,
    req: &BuildRequest,
    progress: &UnboundedSender<Progress>,
) -> Result<Revision> {
    stage_note(progress, "check", format!("{}#{}", req.flake, req.profile));
    let mut flake = Flake::check(store, req)?;
    // The copy must exist until Nix has read it.
    let source = WorkDir::new_in(&store.images_dir())?;
    flake.works_for(&source);
    flake.check_repositories().await?;
    if let Some(dir) = flake.folder() {
        let to = source.path().to_owned();
        let copied = blocking(move || folder::copy(&dir, &to)).await?;
        stage_note(progress, "flake", copied.to_string());
        flake.is_copied_to(source.path());
    }
    // The kernel is looked up early: a build must not fail with "no such kernel" after minutes.
    let named = req.kernel.as_deref().map(|k| kernel::find(store, k)).transpose()?;
    let of_flake = match named.is_none() && kernel::default(store)?.is_none() {
        true => Some(kernel_of_flake(&flake, req, progress).await?),
        false => None,
    };
    let work = WorkDir::new_in(&store.images_dir())?;
    stage_note(progress, "nix", format!("nix build {}#{}", req.flake, req.profile));
    // The evaluation that looks for a kernel runs alongside the build.
    let wants_kernel = named.is_none() && of_flake.is_none() && req.profile != KERNEL_PACKAGE;
    let look = async { if wants_kernel { flake.packages().await } else { Ok(Vec::new()) } };
    let (built, packages) = tokio::join!(flake.build(&req.profile, &work, RESULT, progress), look);
    let profile = built?;
    let packages = of_flake.map_or(packages, Ok)?;
    let own_kernel = packages.iter().any(|p| p == KERNEL_PACKAGE);
    let kernel = match named {
        Some(kernel) => kernel,
        None if own_kernel => flake_kernel(store, &flake, &work, progress).await?,
        None => kernel::default(store)?.ok_or(Error::KernelMissing { wanted: None })?,
    };
    let closure = flake.closure(&profile).await?;
    stage_note(progress, "closure", format!("{} store paths", closure.len()));
    if let Some(init) = own_init(&profile) {
        let words = format!(
            "{} is not run: PID 1 is mvm's agent, and jobs start what they need",
            init.display()
        );
        stage_note(progress, "init", words);
    }
    let ingredients = Ingredients { profile, closure, kernel };
    let digest = digest(store, &ingredients);
    // One image is assembled at a time: two equal ones would do the work twice, and two different
    // ones share the disk.
    let _turn = store.assembling.lock().await;
    if let Some(revision) = load(&store.images_dir().join(digest.to_string()))? {
        stage_note(progress, "cached", revision.short());
        return Ok(revision);
    }
    assemble(store, req, ingredients, digest, work, progress).await
}

/// Returns the init that the image contains and no guest runs; `None` if there is none, or if it is
/// a multi-call binary, which starts nothing by itself.
fn own_init(profile: &Path) -> Option<PathBuf> {
    let multi_call = |path: &Path| {
        let real = path.canonicalize().ok();
        real.is_some_and(|real| ["busybox", "toybox"].iter().any(|name| real.ends_with(name)))
    };
    let mut paths = ["init", "sbin/init", "bin/init"].iter().map(|name| profile.join(name));
    paths.find(|path| path.exists() && !multi_call(path))
}

/// Returns the flake's packages; used when the flake must have a kernel because the store has none.
async fn kernel_of_flake(
    flake: &Flake,
    req: &BuildRequest,
    progress: &UnboundedSender<Progress>,
) -> Result<Vec<String>> {
    let missing = || Error::KernelMissing { wanted: None };
    if req.profile == KERNEL_PACKAGE {
        return Err(missing());
    }
    stage_note(
        progress,
        "kernel",
        "there is none in the store: does the flake have one?".to_owned(),
    );
    let packages = flake.packages_or_why().await?;
    if packages.iter().any(|package| package == KERNEL_PACKAGE) {
        return Ok(packages);
    }
    // If profile and kernel are both missing, the error names the profile: most often it is a
    // typing mistake.
    let first = req.profile.split('.').next().unwrap_or_default();
    if !packages.is_empty() && !packages.iter().any(|package| package == first) {
        let (flake, profile) = (req.flake.clone(), req.profile.clone());
        return Err(Error::ProfileMissing { flake, profile, available: packages });
    }
    Err(missing())
}

fn stage_note(progress: &UnboundedSender<Progress>, name: &'static str, detail: String) {
    let _ = progress.send(Progress::Stage { name, detail });
}

fn digest(store: &ImageStore, from: &Ingredients) -> Digest {
    let mut hash = Sha256::new();
    let profile = from.profile.to_string_lossy();
    hash.update(format!(
        "builder {BUILDER_VERSION}\nguest {}\nkernel {}\nprofile {profile}\n",
        store.guest.sha256, from.kernel.digest
    ));
    for path in &from.closure {
        hash.update(format!("path {path}\n"));
    }
    Digest::from_bytes(hash.finalize().into())
}

/// Builds the flake's `kernel` package and imports it into the store, once per store path.
async fn flake_kernel(
    store: &ImageStore,
    flake: &Flake,
    work: &WorkDir,
    progress: &UnboundedSender<Progress>,
) -> Result<KernelInfo> {
    let out = flake.build(KERNEL_PACKAGE, work, KERNEL_RESULT, progress).await?;
    let origin = out.to_string_lossy().into_owned();
    if let Some(known) = kernel::list(store)?.into_iter().find(|k| k.origin == origin) {
        return Ok(known);
    }
    stage_note(progress, "kernel", origin.clone());
    let file = kernel_file(&out)?;
    let versions = std::fs::read_dir(out.join("lib/modules")).into_iter().flatten().flatten();
    let initrd_modules = versions.map(|e| e.path()).find(|p| p.is_dir());
    let name: String = origin.rsplit('/').next().unwrap_or_default().chars().take(64).collect();
    let opts = KernelImport { initrd_modules, name: Some(name) };
    kernel::import(store, &file, opts, &origin).await
}

fn kernel_file(out: &Path) -> Result<PathBuf> {
    let names = ["vmlinux", "bzImage", "vmlinuz", "boot/vmlinux", "boot/bzImage", "boot/vmlinuz"];
    if out.is_file() {
        return Ok(out.to_owned());
    }
    names.into_iter().map(|n| out.join(n)).find(|p| p.is_file()).ok_or_else(|| Error::NotAKernel {
        path: out.to_owned(),
        looks_like: format!("the flake's `kernel` package has none of {}", names.join(", ")),
    })
}

/// Makes the image's files in `work` and renames the directory into place.
async fn assemble(
    store: &ImageStore,
    req: &BuildRequest,
    from: Ingredients,
    digest: Digest,
    work: WorkDir,
    progress: &UnboundedSender<Progress>,
) -> Result<Revision> {
    let (dir, tree) = (work.path().to_owned(), work.path().join("tree"));
    stage_note(progress, "stage", format!("{} store paths", from.closure.len()));
    let images = store.images_dir();
    let (profile, closure, root) = (from.profile.clone(), from.closure.clone(), tree.clone());
    // If this future is dropped, the thread still writes to the directory, so it holds it as well.
    let writes_to = work.clone();
    blocking(move || {
        check_room(&images, &closure)?;
        stage::stage(&root, &profile, &closure)?;
        drop(writes_to);
        Ok(())
    })
    .await?;
    stage_note(progress, "erofs", "root.erofs".to_owned());
    make_erofs(store, digest, &work, &tree).await?;
    stage_note(progress, "initrd", format!("kernel {}", from.kernel.name));
    let mut revision = describe(store, req, &from, digest);
    let (store, kernel) = (store.clone(), from.kernel);
    let note = progress.clone();
    blocking(move || {
        put_kernel(&kernel, &dir)?;
        let modules =
            kernel.modules.iter().map(|m| (m.clone(), kernel.dir.join("modules").join(m)));
        initrd::write(&dir.join("initrd"), store.guest.bytes, &modules.collect::<Vec<_>>())?;
        for leftover in [RESULT, KERNEL_RESULT] {
            let _ = std::fs::remove_file(dir.join(leftover));
        }
        std::fs::remove_dir_all(&tree).at("remove", &tree)?;
        revision.parts = parts_of(&dir)?;
        revision.size_bytes = revision.parts.iter().map(|part| part.size).sum();
        write(&dir.join(MANIFEST), &json(&revision))?;
        stage_note(&note, "publish", revision.short());
        let to = store.images_dir().join(revision.digest.to_string());
        work.publish(&to)?;
        load_whole(&to)
    })
    .await
}

/// Refuses early what cannot fit: an image needs about as many bytes as its closure.
fn check_room(images: &Path, closure: &[String]) -> Result<()> {
    let needed = stage::closure_bytes(closure) + (64 << 20);
    match free_bytes(images) {
        Some(free) if free < needed => Err(Error::no_space("the image", images, needed)),
        _ => Ok(()),
    }
}

fn describe(
    store: &ImageStore,
    req: &BuildRequest,
    from: &Ingredients,
    digest: Digest,
) -> Revision {
    Revision {
        digest,
        dir: PathBuf::new(),
        root: PathBuf::new(),
        kernel: PathBuf::new(),
        initrd: PathBuf::new(),
        platform: from.kernel.platform,
        kernel_digest: from.kernel.digest,
        kernel_version: from.kernel.version.clone(),
        built_at: now(),
        size_bytes: 0,
        flake: req.flake.clone(),
        profile: req.profile.clone(),
        guest_sha256: store.guest.sha256.clone(),
        out_path: from.profile.to_string_lossy().into_owned(),
        closure: from.closure.clone(),
        parts: Vec::new(),
    }
}

/// Puts the kernel into the image, sharing the store's file by a hard link: if the kernel is
/// removed from the store, the revision keeps it.
fn put_kernel(kernel: &KernelInfo, dir: &Path) -> Result<()> {
    let to = dir.join("vmlinux");
    if std::fs::hard_link(&kernel.path, &to).is_ok() {
        return Ok(());
    }
    clone_file(&kernel.path, &to)
}

/// Runs mkfs.erofs(1) without compression: decompressing costs a guest, above all an emulated one,
/// more than the disk costs the host, where one image in the page cache serves a whole pool.
async fn make_erofs(store: &ImageStore, digest: Digest, work: &WorkDir, tree: &Path) -> Result<()> {
    let to = &work.path().join("root.erofs");
    // The same tree must give the same file: no times, owners, attributes or random UUID.
    let digits = digest.to_string();
    let uuid = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]).join("-");
    let ended = Tool::new(&store.tools.mkfs_erofs, "erofs-utils")
        .args(["--quiet", "-T1", "-x-1", "--all-root", "-U", &uuid])
        .args([to.as_path(), tree])
        .writes_to(work)
        .run(|_| {})
        .await?;
    if ended.status.success() {
        return Ok(());
    }
    let output = tail(&ended.stderr, 20);
    let full = output.contains("No space left on device") || output.contains("errno 28");
    if full || free_bytes(to).is_some_and(|free| free < 1 << 20) {
        return Err(Error::no_space("root.erofs", to, 0));
    }
    let status = ended.status.to_string();
    Err(Error::ToolFailed { tool: "mkfs.erofs".to_owned(), status, output })
}
