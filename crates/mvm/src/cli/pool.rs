//! `mvm pool`

use super::context::Context;
use super::desired::ReportedFailures;
use super::expose;
use super::flake::{absolute_flake, absolute_inputs};
use super::progress::with_progress;
use super::values::Pair;
use crate::error::CliError;
use crate::output::{self, Format, Outcome};
use clap::{Args, Subcommand, ValueEnum};
use mvm_api::types::{
    BuildPool, BuildResult, CreatePool, PolicyPatch, PoolView, RevisionView, Rollback, ScalePool,
    UpdatePool,
};
use mvm_api::{Client, paths};
use mvm_model::egress::Destination;
use mvm_model::pool::RevisionEntry;
use mvm_model::resources::DEFAULT_SCRATCH;
use mvm_model::runtime_policy::RuntimePolicy;
use mvm_model::{Cache, Code, CpuModel, Egress, EgressMode, Mib, Name, PoolRef, Resources};
use std::time::{Duration, Instant};

/// Pools.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Makes a pool
    #[command(
        after_help = "Examples:\n  mvm pool create ci/runners --flake ./ci-flake --profile ci-runner\n  mvm pool create ci/big --flake ./ci-flake --profile ci-runner --mem 8192 --data-disk 2048\n  mvm pool create ci/cached --flake ./ci-flake --profile ci-runner --cache ccache:/root/.ccache:2048"
    )]
    Create {
        /// tenant/pool
        pool: PoolRef,
        #[command(flatten)]
        shape: Shape,
    },
    /// Lists pools
    #[command(after_help = "Examples:\n  mvm pool list\n  mvm pool list ci")]
    List {
        /// Only those of this tenant
        tenant: Option<Name>,
    },
    /// Shows a pool
    #[command(after_help = "Examples:\n  mvm pool info ci/runners")]
    Info {
        /// tenant/pool
        pool: PoolRef,
    },
    /// Changes a pool; idle instances are replaced to match, leased ones keep their shape
    #[command(
        after_help = "Examples:\n  mvm pool update ci/runners --mem 8192\n  mvm pool update ci/runners --egress allow --allow 10.20.0.0/16:443/tcp --allow 10.20.0.2:53"
    )]
    Update {
        /// tenant/pool
        pool: PoolRef,
        /// Another flake
        #[arg(long)]
        flake: Option<String>,
        /// Another attribute
        #[arg(long)]
        profile: Option<String>,
        /// vCPUs of new instances
        #[arg(long)]
        cpus: Option<u32>,
        /// Memory of new instances, in MiB
        #[arg(long)]
        mem: Option<u64>,
        /// Disk at /data of new instances, in MiB
        #[arg(long)]
        data_disk: Option<u64>,
        /// Disk below the writable root of new instances, in MiB
        #[arg(long)]
        scratch_disk: Option<u64>,
        /// What becomes of an instance after a job
        #[arg(long, value_enum)]
        recycle: Option<Recycle>,
        /// The pool's caches from now on; "" for none. Caches that stay keep their content
        #[arg(long, value_name = "NAME:PATH:SIZE")]
        cache: Vec<String>,
        /// The CPU model of new instances: host, or a name that QEMU knows
        #[arg(long, value_name = "MODEL")]
        cpu_model: Option<CpuModel>,
        /// Shell command that the template's guest runs before the snapshot; "" for none
        #[arg(long, value_name = "COMMAND")]
        prewarm: Option<String>,
        #[command(flatten)]
        egress: EgressOptions,
        #[command(flatten)]
        policy: Policy,
    },
    /// Builds the pool's image and makes it current
    #[command(
        after_help = "Examples:\n  mvm pool build ci/runners\n  mvm pool build ci/runners --override-input nixpkgs=path:/srv/debian-pkgs\n  mvm pool build ci/runners --cancel\n\nThe agent runs the build, which goes on if this command is interrupted (Ctrl-C). `building_since` in\n`mvm pool info` shows a build that is under way."
    )]
    Build {
        /// tenant/pool
        pool: PoolRef,
        /// Replace an input of the flake; remembered for later builds if this one succeeds
        #[arg(long, value_name = "NAME=REF")]
        override_input: Vec<Pair>,
        /// End the build that is under way instead
        #[arg(long, conflicts_with = "override_input")]
        cancel: bool,
    },
    /// Sets how many unleased instances are kept ready
    #[command(
        after_help = "Examples:\n  mvm pool scale ci/runners --running 0 --warm 4 --sleeping 8\n  mvm pool scale ci/runners --warm 2 --wait"
    )]
    Scale {
        /// tenant/pool
        pool: PoolRef,
        /// vCPUs running
        #[arg(long)]
        running: Option<u32>,
        /// vCPUs paused
        #[arg(long)]
        warm: Option<u32>,
        /// Snapshot on disk
        #[arg(long)]
        sleeping: Option<u32>,
        /// Wait until they are there, for at most this many seconds
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "600")]
        wait: Option<u64>,
    },
    /// Lists the builds of a pool
    #[command(after_help = "Examples:\n  mvm pool revisions ci/runners")]
    Revisions {
        /// tenant/pool
        pool: PoolRef,
    },
    /// Makes an earlier build current
    #[command(
        after_help = "Examples:\n  mvm pool rollback ci/runners\n  mvm pool rollback ci/runners --to 1"
    )]
    Rollback {
        /// tenant/pool
        pool: PoolRef,
        /// The build's number [default: the one before the current]
        #[arg(long)]
        to: Option<u32>,
    },
    /// Puts a pool behind a TCP port: a connection wakes an instance, and an idle one sleeps
    #[command(
        after_help = "Examples:\n  mvm pool expose ci/runners --listen 127.0.0.1:8080 --to 80\n  mvm pool expose ci/runners --listen 0.0.0.0:2222 --to 22 --max-connections 4 --idle 300\n  mvm pool expose --list"
    )]
    Expose(expose::Expose),
    /// Closes a pool's ports, and the connections through them
    #[command(
        after_help = "Examples:\n  mvm pool unexpose ci/runners\n  mvm pool unexpose ci/runners --listen 127.0.0.1:8080"
    )]
    Unexpose(expose::Unexpose),
    /// Destroys a pool with all its instances
    #[command(after_help = "Examples:\n  mvm pool destroy ci/runners")]
    Destroy {
        /// tenant/pool
        pool: PoolRef,
    },
}

/// What a pool's instances are made of.
#[derive(Debug, Args)]
pub struct Shape {
    /// Flake to build: a folder or a flake reference
    #[arg(long)]
    flake: String,
    /// Attribute of the flake: packages.x86_64-linux.NAME
    #[arg(long)]
    profile: String,
    /// vCPUs of an instance
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Memory of an instance, in MiB
    #[arg(long, default_value_t = 2048)]
    mem: u64,
    /// Disk at /data, in MiB; 0 is none
    #[arg(long, default_value_t = 0)]
    data_disk: u64,
    /// Disk below the writable root, in MiB
    #[arg(long, default_value_t = DEFAULT_SCRATCH.0)]
    scratch_disk: u64,
    /// What becomes of an instance after a job
    #[arg(long, value_enum, default_value = "reset")]
    recycle: Recycle,
    /// A disk of this many MiB at PATH, whose content jobs pass on to later jobs
    #[arg(long, value_name = "NAME:PATH:SIZE")]
    cache: Vec<Cache>,
    /// The CPU model of its instances: host, or a name of `qemu-system-x86_64 -cpu help` that hosts
    /// with different CPUs can offer alike
    #[arg(long, value_name = "MODEL", default_value_t)]
    cpu_model: CpuModel,
    /// Shell command that the template's guest runs (sh -c) before the snapshot, to warm caches
    #[arg(long, value_name = "COMMAND")]
    prewarm: Option<String>,
    #[command(flatten)]
    egress: EgressOptions,
    #[command(flatten)]
    policy: Policy,
    /// Kernel to boot, by digest or name [default: the default kernel]
    #[arg(long)]
    kernel: Option<String>,
}

/// What becomes of instances that nobody uses. Times are in seconds; 0 is never.
#[derive(Clone, Copy, Debug, Args)]
pub struct Policy {
    /// Pool without counts: an instance idle for this many seconds is made warm [default: 300]
    #[arg(long, value_name = "SECONDS")]
    warm_after: Option<u64>,
    /// Pool without counts: an instance warm for this many seconds is put to sleep [default: 900]
    #[arg(long, value_name = "SECONDS")]
    sleep_after: Option<u64>,
    /// An instance runs for at least this many seconds before it is made warm [default: 10]
    #[arg(long, value_name = "SECONDS")]
    min_running: Option<u64>,
    /// An instance is warm for at least this many seconds before it sleeps [default: 10]
    #[arg(long, value_name = "SECONDS")]
    min_warm: Option<u64>,
    /// Pool with counts: replace instances older than this many seconds [default: 0, never]
    #[arg(long, value_name = "SECONDS")]
    max_age: Option<u64>,
    /// Pool with counts: replace instances after this many leases [default: 0, never]
    #[arg(long, value_name = "LEASES")]
    max_jobs: Option<u32>,
    /// The process of an instance put to sleep is kept for this many seconds, for a quick wake [default: 300]
    #[arg(long, value_name = "SECONDS")]
    linger: Option<u64>,
    /// A running guest that fails its liveness probe for this many seconds is dead: its machine is ended,
    /// its job lost [default: 30]
    #[arg(long, value_name = "SECONDS")]
    guest_timeout: Option<u64>,
}

impl Policy {
    fn patch(self) -> PolicyPatch {
        PolicyPatch {
            warm_after_s: self.warm_after,
            sleep_after_s: self.sleep_after,
            min_running_s: self.min_running,
            min_warm_s: self.min_warm,
            max_age_s: self.max_age,
            max_jobs: self.max_jobs,
            linger_s: self.linger,
            guest_timeout_s: self.guest_timeout,
        }
    }
}

/// What of the outside instances may reach.
#[derive(Clone, Debug, Args)]
pub struct EgressOptions {
    /// What instances may reach outside; applies to running instances at once [default: open]
    #[arg(long, value_enum)]
    egress: Option<Mode>,
    /// With --egress allow, what may be reached; with open, exceptions to the closed networks
    #[arg(long, value_name = "CIDR[:PORT[/PROTO]]", requires = "egress")]
    allow: Vec<Destination>,
    /// Also allow the networks of the host's own links
    #[arg(long, requires = "egress")]
    allow_lan: bool,
}

impl EgressOptions {
    /// Returns the egress setting, if one was given.
    fn setting(self) -> Option<Egress> {
        let EgressOptions { egress, allow, allow_lan } = self;
        egress.map(|mode| Egress { mode: mode.into(), allow, allow_lan })
    }
}

/// How much of the outside is open.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Mode {
    /// The internet: all but the host, its networks and metadata services
    Open,
    /// Nothing
    None,
    /// What --allow names
    Allow,
}

impl From<Mode> for EgressMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Open => EgressMode::Open,
            Mode::None => EgressMode::None,
            Mode::Allow => EgressMode::Allow,
        }
    }
}

/// What becomes of an instance after a job.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Recycle {
    /// Destroy it; the pool refills with fresh ones
    Reset,
    /// Put it to sleep, caches and all
    Sleep,
    /// Leave it running
    Keep,
}

impl From<Recycle> for mvm_model::Recycle {
    fn from(recycle: Recycle) -> Self {
        match recycle {
            Recycle::Reset => mvm_model::Recycle::Reset,
            Recycle::Sleep => mvm_model::Recycle::Sleep,
            Recycle::Keep => mvm_model::Recycle::Keep,
        }
    }
}

/// Runs the command.
pub async fn run(context: &Context, command: Command) -> Outcome {
    let format = context.format;
    match command {
        Command::Create { pool, shape } => create(context, &pool, shape).await,
        Command::List { tenant } => {
            let path = tenant.map_or_else(|| paths::POOLS.to_owned(), |t| paths::pools(&t));
            let views: Vec<PoolView> = context.client()?.list(&path).await?;
            list(format, &views)
        }
        Command::Info { pool } => {
            let view: PoolView = context.client()?.get(&paths::pool(&pool)).await?;
            output::describe(format, &view)
        }
        Command::Update {
            pool,
            flake,
            profile,
            cpus,
            mem,
            data_disk,
            scratch_disk,
            recycle,
            cache,
            cpu_model,
            prewarm,
            egress,
            policy,
        } => {
            let body = UpdatePool {
                flake_ref: flake.as_deref().map(absolute_flake).transpose()?,
                profile,
                vcpus: cpus,
                mem_mib: mem.map(Mib),
                data_disk_mib: data_disk.map(Mib),
                scratch_disk_mib: scratch_disk.map(Mib),
                recycle: recycle.map(Into::into),
                caches: caches(&cache)?,
                override_inputs: None,
                runtime_policy: policy.patch(),
                egress: egress.setting(),
                cpu_model,
                prewarm,
            };
            let view: PoolView = context.client()?.patch(&paths::pool(&pool), &body).await?;
            output::describe(format, &view)
        }
        Command::Build { pool, cancel: true, .. } => {
            let path = paths::pool_part(&pool, "build");
            let done: mvm_api::types::Done = context.client()?.delete(&path).await?;
            output::say(context.format, &done, &format!("the build of pool {pool} ends"))
        }
        Command::Build { pool, override_input, .. } => build(context, &pool, &override_input).await,
        Command::Scale { pool, running, warm, sleeping, wait } => {
            scale(context, &pool, ScalePool { running, warm, sleeping }, wait).await
        }
        Command::Revisions { pool } => revisions(context, &pool).await,
        Command::Rollback { pool, to } => {
            let path = paths::pool_part(&pool, "rollback");
            let entry: RevisionEntry = context.client()?.post(&path, &Rollback { to }).await?;
            output::say(format, &entry, &format!("pool {pool} is at revision {}", entry.number))
        }
        Command::Expose(asked) => expose::expose(context, asked).await,
        Command::Unexpose(asked) => expose::unexpose(context, asked).await,
        Command::Destroy { pool } => {
            let done: serde_json::Value = context.client()?.delete(&paths::pool(&pool)).await?;
            output::say(format, &done, &format!("pool {pool} is gone"))
        }
    }
}

/// Returns the caches that `--cache` names, if it was given.
fn caches(given: &[String]) -> Result<Option<Vec<Cache>>, CliError> {
    let named = given.iter().filter(|text| !text.is_empty());
    let caches = named.map(|text| text.parse()).collect::<Result<Vec<Cache>, _>>()?;
    Ok((!given.is_empty()).then_some(caches))
}

async fn create(context: &Context, pool: &PoolRef, shape: Shape) -> Outcome {
    let body = CreatePool {
        name: pool.pool.clone(),
        flake_ref: absolute_flake(&shape.flake)?,
        profile: shape.profile,
        resources: Resources {
            vcpus: shape.cpus,
            mem_mib: Mib(shape.mem),
            data_disk_mib: Mib(shape.data_disk),
            scratch_disk_mib: Mib(shape.scratch_disk),
        },
        caches: shape.cache,
        recycle: shape.recycle.into(),
        override_inputs: Default::default(),
        runtime_policy: shape.policy.patch().apply(RuntimePolicy::default()),
        egress: shape.egress.setting().unwrap_or_default(),
        cpu_model: shape.cpu_model,
        prewarm: shape.prewarm,
        kernel: shape.kernel,
    };
    let path = paths::pools(&pool.tenant);
    let view: PoolView = context.client()?.post(&path, &body).await?;
    let line = format!("pool {pool} is there; build it with: mvm pool build {pool}");
    output::say(context.format, &view, &line)
}

async fn scale(context: &Context, pool: &PoolRef, body: ScalePool, wait: Option<u64>) -> Outcome {
    let client = context.client()?;
    let path = paths::pool_part(pool, "scale");
    let mut view: PoolView = client.post(&path, &body).await?;
    if let Some(seconds) = wait {
        view = converge(&client, pool, Duration::from_secs(seconds)).await?;
    }
    for lack in &view.shortfalls {
        output::note(format_args!("note: {}", lack.detail));
    }
    let ready = view.ready_counts;
    let line = format!(
        "pool {pool}: {} running, {} warm, {} sleeping",
        ready.running, ready.warm, ready.sleeping
    );
    output::say(context.format, &view, &line)
}

async fn revisions(context: &Context, pool: &PoolRef) -> Outcome {
    let path = paths::pool_part(pool, "revisions");
    let views: Vec<RevisionView> = context.client()?.list(&path).await?;
    let rows = views.iter().map(|view| {
        let mark = if view.current { "*" } else { "" };
        let state = if view.present { "present" } else { "collected" };
        vec![
            format!("{}{mark}", view.entry.number),
            view.entry.digest.short(),
            state.to_owned(),
            view.instances.to_string(),
            output::age(view.entry.built_at),
        ]
    });
    output::show(context.format, &views, &["REVISION", "DIGEST", "IMAGE", "INSTANCES", "AGE"], rows)
}

fn list(format: Format, views: &[PoolView]) -> Outcome {
    let rows = views.iter().map(|view| {
        let (ready, shape) = (view.ready_counts, view.instance_resources);
        let of = |have: u32, want: Option<u32>| {
            want.map_or(have.to_string(), |want| format!("{have}/{want}"))
        };
        let want = view.desired_counts;
        vec![
            format!("{}/{}", view.tenant_id, view.pool_id),
            view.revision.as_ref().map_or("-".to_owned(), |r| r.number.to_string()),
            shape.vcpus.to_string(),
            shape.mem_mib.0.to_string(),
            of(ready.running, want.map(|w| w.running)),
            of(ready.warm, want.map(|w| w.warm)),
            of(ready.sleeping, want.map(|w| w.sleeping)),
            view.leased.to_string(),
            view.failed.to_string(),
            output::age(view.created_at),
        ]
    });
    let head = [
        "POOL", "REVISION", "VCPUS", "MEM MIB", "RUNNING", "WARM", "SLEEPING", "LEASED", "FAILED",
        "AGE",
    ];
    output::show(format, &views, &head, rows)
}

async fn build(context: &Context, pool: &PoolRef, overrides: &[Pair]) -> Outcome {
    let body = BuildPool { override_inputs: absolute_inputs(overrides)? };
    let path = paths::pool_part(pool, "build");
    let client = context.client()?;
    let result: BuildResult = tokio::select! {
        built = with_progress(&client, context.format, &path, &body) => built?,
        Ok(()) = tokio::signal::ctrl_c() => {
            output::note(format_args!(
                "the agent goes on building pool {pool}: `mvm pool info {pool}` says `building_since` \
                 as long as it does; end it with `mvm pool build {pool} --cancel`"
            ));
            return Ok(130);
        }
    };
    let line = format!(
        "pool {pool} is at revision {} ({}, {}, {:.1} s)",
        result.revision.number,
        result.revision.digest.short(),
        output::mib(result.size_bytes),
        result.took_ms as f64 / 1000.0
    );
    if let (Some(why), Format::Table) = (&result.template_failure, context.format) {
        output::note(format_args!(
            "warning: no template yet, instances are booted meanwhile: {why}"
        ));
    }
    output::say(context.format, &result, &line)
}

/// Waits until the pool holds its counts.
async fn converge(
    client: &Client,
    pool: &PoolRef,
    patience: Duration,
) -> Result<PoolView, CliError> {
    let deadline = Instant::now() + patience;
    let mut reported = ReportedFailures::default();
    loop {
        let view: PoolView = client.get(&paths::pool(pool)).await?;
        if Some(view.ready_counts) == view.desired_counts {
            return Ok(view);
        }
        reported.report(view.last_failure.as_deref());
        if Instant::now() >= deadline {
            let why = view.last_failure.unwrap_or_else(|| "it is still at work".to_owned());
            let ready = view.ready_counts;
            let detail = format!(
                "pool {pool} has {} running, {} warm, {} sleeping after {} s: {why}",
                ready.running,
                ready.warm,
                ready.sleeping,
                patience.as_secs()
            );
            return Err(CliError::new(Code::NotConverged, detail)
                .hint(format!("see: mvm pool info {pool}")));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
