//! `mvm kernel` and `mvm image`

use super::context::Context;
use super::progress::with_progress;
use crate::error::CliError;
use crate::output::{self, Outcome};
use clap::Subcommand;
use mvm_api::paths;
use mvm_api::types::{FetchImage, FetchedImage, Gc, GcResult, ImageView, ImportKernel, KernelView};
use std::path::{Path, PathBuf};

/// Kernels.
#[derive(Debug, Subcommand)]
pub enum KernelCommand {
    /// Takes a vmlinux or bzImage into the store
    #[command(
        after_help = "Examples:\n  mvm kernel import ./vmlinux\n  mvm kernel import /boot/vmlinuz-6.1 --modules /lib/modules/6.1"
    )]
    Import {
        /// The kernel
        file: PathBuf,
        /// Folder with its modules (lib/modules/VERSION), where virtio or erofs are not built in
        #[arg(long, value_name = "DIR")]
        modules: Option<PathBuf>,
        /// What to call it [default: its version]
        #[arg(long)]
        name: Option<String>,
    },
    /// Downloads the distribution's cloud kernel, unpacks it (it is not installed), and imports it
    #[command(after_help = "Examples:\n  mvm kernel fetch")]
    Fetch,
    /// Removes a kernel; images that were built with it keep their copy
    #[command(
        after_help = "Examples:\n  mvm kernel remove 6.1.0-18-cloud-amd64\n  mvm kernel remove 3f0c64d1\n\nA kernel that a pool names is kept (`in_use`). If it was the default, the first of the others\nby name becomes the default."
    )]
    Remove {
        /// Its name, its digest, or the first digits of that
        kernel: String,
    },
    /// Lists the kernels
    #[command(after_help = "Examples:\n  mvm kernel list")]
    List,
}

/// Images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Lists the images
    #[command(after_help = "Examples:\n  mvm image list")]
    List,
    /// Fetches an image from another node of the fleet; resumes a transfer that was cut off
    #[command(
        after_help = "Examples:\n  mvm image list -o json\n  mvm image fetch $DIGEST --from 10.0.1.5:4433"
    )]
    Fetch {
        /// The image's whole digest, 64 hexadecimal digits, as `mvm image list -o json` shows it
        digest: String,
        /// A node that has the image; of several, the first that delivers it
        #[arg(long, required = true, value_name = "HOST:PORT")]
        from: Vec<String>,
        /// The content that it must have, as `mvm image list -o json` shows it on a trusted node
        #[arg(long, value_name = "DIGEST")]
        content: Option<String>,
    },
    /// Removes images that no pool and no instance needs
    #[command(after_help = "Examples:\n  mvm image gc --dry-run\n  mvm image gc")]
    Gc {
        /// Only show what would be removed
        #[arg(long)]
        dry_run: bool,
    },
}

fn absolute(path: &Path) -> Result<String, CliError> {
    let found = path
        .canonicalize()
        .map_err(|cause| CliError::file(format!("cannot read {}: {cause}", path.display())))?;
    Ok(found.display().to_string())
}

/// Runs `mvm kernel`.
pub async fn kernel(context: &Context, command: KernelCommand) -> Outcome {
    let kernel: KernelView = match command {
        KernelCommand::Import { file, modules, name } => {
            let modules = modules.as_deref().map(absolute).transpose()?;
            let body = ImportKernel { file: absolute(&file)?, modules, name };
            context.agent()?.post(paths::KERNEL_IMPORT, &body).await?
        }
        KernelCommand::Fetch => {
            with_progress(&context.agent()?, context.format, paths::KERNEL_FETCH, &()).await?
        }
        KernelCommand::Remove { kernel } => {
            let client = context.agent()?;
            let gone: KernelView = client.delete(&paths::kernel(&kernel)).await?;
            let line = format!("kernel {} ({}) is removed", gone.name, gone.version);
            return output::say(context.format, &gone, &line);
        }
        KernelCommand::List => {
            let client = context.agent()?;
            let kernels: Vec<KernelView> = client.list(paths::KERNELS).await?;
            let rows = kernels.iter().map(|kernel| {
                let mark = if kernel.default { "*" } else { "" };
                vec![
                    format!("{}{mark}", kernel.name),
                    kernel.version.clone(),
                    kernel.platform.clone(),
                    kernel.digest.short(),
                    output::mib(kernel.size_bytes),
                ]
            });
            let head = ["KERNEL", "VERSION", "PLATFORM", "DIGEST", "SIZE"];
            return output::show(context.format, &kernels, &head, rows);
        }
    };
    let line = format!("kernel {} ({}) is there", kernel.name, kernel.version);
    output::say(context.format, &kernel, &line)
}

/// Runs `mvm image`.
pub async fn image(context: &Context, command: ImageCommand) -> Outcome {
    let client = context.agent()?;
    match command {
        ImageCommand::List => {
            let images: Vec<ImageView> = client.list(paths::IMAGES).await?;
            let rows = images.iter().map(|image| {
                let pools: Vec<String> = image.pools.iter().map(ToString::to_string).collect();
                vec![
                    image.digest.short(),
                    format!("{}#{}", image.flake_ref, image.profile),
                    output::mib(image.size_bytes),
                    pools.join(", "),
                ]
            });
            output::show(context.format, &images, &["DIGEST", "FLAKE", "SIZE", "POOLS"], rows)
        }
        ImageCommand::Fetch { digest, from, content } => {
            let wanted = FetchImage { digest, content, sources: from };
            let done: FetchedImage =
                with_progress(&client, context.format, paths::IMAGES_FETCH, &wanted).await?;
            let line = format!(
                "image {:.12} is there ({}, {} received, {} ms)",
                done.digest,
                output::mib(done.size_bytes),
                output::mib(done.received_bytes),
                done.took_ms
            );
            output::say(context.format, &done, &line)
        }
        ImageCommand::Gc { dry_run } => {
            let result: GcResult = client.post(paths::IMAGES_GC, &Gc { dry_run }).await?;
            let verb = if dry_run { "would remove" } else { "removed" };
            let line = format!(
                "{verb} {} images, {}, and {} roots of the Nix store; left: {} images, {}\n\
                 what builds have put into the Nix store is Nix's to collect: nix-collect-garbage",
                result.removed.len(),
                output::mib(result.freed_bytes),
                result.store_roots,
                result.left,
                output::mib(result.left_bytes),
            );
            output::say(context.format, &result, &line)
        }
    }
}
