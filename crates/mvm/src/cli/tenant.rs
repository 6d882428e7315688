//! `mvm tenant`

use super::context::Context;
use crate::output::{self, Outcome};
use clap::{Args, Subcommand};
use mvm_api::paths;
use mvm_api::types::{CreateTenant, QuotaPatch, TenantView};
use mvm_model::network::TenantNetwork;
use mvm_model::{Mib, Name, Quotas};

/// Tenants.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Makes a tenant with its network
    #[command(
        after_help = "Examples:\n  mvm tenant create ci --net-id 20 --subnet 10.240.20.0/24 --max-vcpus 64 --max-mem 131072"
    )]
    Create {
        /// 1 to 63 of a-z, 0-9 and '-'
        name: Name,
        /// 0 to 4095, unique on the node
        #[arg(long)]
        net_id: u16,
        /// IPv4 network, /8 to /29; .1 is the gateway
        #[arg(long, value_name = "CIDR")]
        subnet: ipnet::Ipv4Net,
        /// Allow a subnet of the internet; guests then cannot reach the real hosts in it
        #[arg(long)]
        allow_public_subnet: bool,
        #[command(flatten)]
        quotas: QuotaArgs,
    },
    /// Lists the tenants
    #[command(after_help = "Examples:\n  mvm tenant list\n  mvm tenant list -o json")]
    List,
    /// Shows a tenant, its quotas and what it uses
    #[command(after_help = "Examples:\n  mvm tenant info ci")]
    Info {
        /// The tenant
        name: Name,
    },
    /// Changes quotas; those not given stay as they are
    #[command(after_help = "Examples:\n  mvm tenant update ci --max-running 32")]
    Update {
        /// The tenant
        name: Name,
        #[command(flatten)]
        quotas: QuotaArgs,
    },
    /// Removes a tenant that has no pools
    #[command(after_help = "Examples:\n  mvm tenant destroy ci")]
    Destroy {
        /// The tenant
        name: Name,
    },
}

/// Quotas; those left out take their defaults, or stay as they are.
#[derive(Clone, Debug, Args)]
pub struct QuotaArgs {
    /// vCPUs of running and warm instances [default: 64]
    #[arg(long)]
    max_vcpus: Option<u64>,
    /// Memory of running and warm instances, in MiB [default: 131072]
    #[arg(long)]
    max_mem: Option<u64>,
    /// Running instances [default: 16]
    #[arg(long)]
    max_running: Option<u64>,
    /// Warm instances [default: 4]
    #[arg(long)]
    max_warm: Option<u64>,
    /// Pools [default: 2]
    #[arg(long)]
    max_pools: Option<u64>,
    /// Instances of one pool [default: 32]
    #[arg(long)]
    max_instances_per_pool: Option<u64>,
    /// Disk that all instances may grow to, in GiB [default: 200]
    #[arg(long)]
    max_disk: Option<u64>,
    /// Jobs that wait in the queue of one pool [default: 1000]
    #[arg(long)]
    max_queued_jobs: Option<u64>,
}

impl QuotaArgs {
    fn patch(&self) -> QuotaPatch {
        QuotaPatch {
            max_vcpus: self.max_vcpus,
            max_mem_mib: self.max_mem.map(Mib),
            max_running: self.max_running,
            max_warm: self.max_warm,
            max_pools: self.max_pools,
            max_instances_per_pool: self.max_instances_per_pool,
            max_disk_gib: self.max_disk,
            max_queued_jobs: self.max_queued_jobs,
        }
    }
}

/// Runs the command.
pub async fn run(context: &Context, command: Command) -> Outcome {
    let client = context.client()?;
    match command {
        Command::Create { name, net_id, subnet, allow_public_subnet, quotas } => {
            let network =
                TenantNetwork { tenant_net_id: net_id, ipv4_subnet: subnet, allow_public_subnet };
            let quotas = quotas.patch().apply(Quotas::default());
            let body = CreateTenant { name, network, quotas };
            let view: TenantView = client.post(paths::TENANTS, &body).await?;
            let line =
                format!("tenant {} is there: {subnet}, gateway {}", view.tenant_id, view.gateway);
            output::say(context.format, &view, &line)
        }
        Command::List => {
            let views: Vec<TenantView> = client.list(paths::TENANTS).await?;
            let rows = views.iter().map(|view| {
                let (usage, quotas) = (&view.usage, &view.quotas);
                vec![
                    view.tenant_id.to_string(),
                    view.network.tenant_net_id.to_string(),
                    view.network.ipv4_subnet.to_string(),
                    format!("{}/{}", usage.pools, quotas.max_pools),
                    usage.instances.to_string(),
                    format!("{}/{}", usage.running, quotas.max_running),
                    format!("{}/{}", usage.warm, quotas.max_warm),
                    format!("{}/{}", usage.vcpus, quotas.max_vcpus),
                    format!("{}/{}", usage.mem_mib.0, quotas.max_mem_mib.0),
                    output::age(view.created_at),
                ]
            });
            let head = [
                "TENANT",
                "NET",
                "SUBNET",
                "POOLS",
                "INSTANCES",
                "RUNNING",
                "WARM",
                "VCPUS",
                "MEM MIB",
                "AGE",
            ];
            output::show(context.format, &views, &head, rows)
        }
        Command::Info { name } => {
            let view: TenantView = client.get(&paths::tenant(&name)).await?;
            output::describe(context.format, &view)
        }
        Command::Update { name, quotas } => {
            let view: TenantView = client.patch(&paths::tenant(&name), &quotas.patch()).await?;
            output::describe(context.format, &view)
        }
        Command::Destroy { name } => {
            let done: serde_json::Value = client.delete(&paths::tenant(&name)).await?;
            output::say(context.format, &done, &format!("tenant {name} is gone"))
        }
    }
}
