//! `mvm coordinator`: serving a fleet, and what `mvm instance` does on another machine.

use super::context::{Context, LeaseLength};
use super::coordinator_serve::{self, Serve};
use super::instance::{self, Command as OnInstance, Exec, ExecOptions};
use super::remote::Remote;
use super::values::ListScope;
use crate::error::CliError;
use crate::output::Outcome;
use clap::{Args, Subcommand};
use mvm_model::{Code, InstanceId, InstanceRef, Name, PoolRef};

/// Other machines.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves a fleet in the foreground: its nodes' front door
    #[command(
        after_help = "Examples:\n  mvm coordinator serve --fleet ci-fleet\n  mvm coordinator serve --fleet ci --listen 0.0.0.0:4433 --identity ./id --ca ./ca\n  mvm coordinator serve --fleet ci --listen 0.0.0.0:4433 --identity ./id --etcd https://etcd:2379"
    )]
    Serve(Box<Serve>),
    /// Shows a coordinator's state, and which one leads
    #[command(
        after_help = "Examples:\n  mvm coordinator status\n  mvm coordinator status --coordinator 10.0.1.1:4433"
    )]
    Status,
    /// Brings a warm or sleeping instance back, under a lease
    #[command(
        after_help = "Examples:\n  mvm coordinator wake --node 10.0.1.5:4433 --tenant ci --pool runners --instance i-0123abcd"
    )]
    Wake {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        length: LeaseLength,
    },
    /// Boots an instance that is created, stopped or failed, under a lease
    #[command(
        after_help = "Examples:\n  mvm coordinator start --node 10.0.1.5:4433 --tenant ci --pool runners --instance i-0123abcd"
    )]
    Start {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        length: LeaseLength,
    },
    /// Writes a snapshot and ends the process: only disk is used
    #[command(
        after_help = "Examples:\n  mvm coordinator sleep --node 10.0.1.5:4433 --tenant ci --pool runners --instance i-0123abcd"
    )]
    Sleep {
        #[command(flatten)]
        target: Target,
        /// End its process at once, whatever the pool's --linger
        #[arg(long)]
        no_linger: bool,
    },
    /// Pauses the vCPUs: memory is held, no CPU is used
    #[command(
        after_help = "Examples:\n  mvm coordinator warm --node 10.0.1.5:4433 --tenant ci --pool runners --instance i-0123abcd"
    )]
    Warm {
        #[command(flatten)]
        target: Target,
    },
    /// Shuts an instance down; its disks and address stay
    #[command(
        after_help = "Examples:\n  mvm coordinator stop --node 10.0.1.5:4433 --tenant ci --pool runners --instance i-0123abcd"
    )]
    Stop {
        #[command(flatten)]
        target: Target,
    },
    /// Destroys an instance: memory, disks, address
    #[command(
        after_help = "Examples:\n  mvm coordinator destroy --node 10.0.1.5:4433 --tenant ci --pool runners --instance i-0123abcd"
    )]
    Destroy {
        #[command(flatten)]
        target: Target,
    },
    /// Shows an instance
    #[command(
        after_help = "Examples:\n  mvm coordinator info --node 10.0.1.5:4433 --tenant ci --pool runners --instance i-0123abcd"
    )]
    Info {
        #[command(flatten)]
        target: Target,
    },
    /// Lists instances
    #[command(
        after_help = "Examples:\n  mvm coordinator list --node 10.0.1.5:4433\n  mvm coordinator list --node 10.0.1.5:4433 --tenant ci --pool runners"
    )]
    List {
        #[command(flatten)]
        remote: Remote,
        /// Only those of this tenant
        #[arg(long, value_name = "TENANT")]
        tenant: Option<Name>,
        /// Only those of this pool of the tenant
        #[arg(long, value_name = "POOL", requires = "tenant")]
        pool: Option<Name>,
    },
    /// Runs a command through the guest's agent; needs no network; wakes the instance
    #[command(
        after_help = "Examples:\n  mvm coordinator exec --node 10.0.1.5 --tenant ci --pool runners --instance i-0123abcd -- make"
    )]
    Exec {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        options: ExecOptions,
    },
    /// Opens an OpenSSH session, or runs a command over SSH; wakes the instance
    #[command(
        after_help = "Examples:\n  mvm coordinator ssh --node 10.0.1.5:4433 --tenant ci --pool runners --instance i-0123abcd\n  mvm coordinator ssh --node 10.0.1.5 --tenant ci --pool runners --instance i-0123abcd -- id"
    )]
    Ssh {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        length: LeaseLength,
        /// The command and its arguments
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Connects standard input and output with a port of the guest
    #[command(
        hide = true,
        after_help = "Examples:\n  mvm coordinator proxy --node 10.0.1.5 --tenant ci --pool runners --instance i-0123abcd 22"
    )]
    Proxy {
        #[command(flatten)]
        target: Target,
        /// TCP port of the guest's loopback
        port: u16,
        #[command(flatten)]
        length: LeaseLength,
    },
}

/// An instance of a node.
#[derive(Clone, Debug, Args)]
pub struct Target {
    #[command(flatten)]
    remote: Remote,
    /// The instance's tenant
    #[arg(long, value_name = "TENANT")]
    tenant: Name,
    /// Its pool
    #[arg(long, value_name = "POOL")]
    pool: Name,
    /// Its id
    #[arg(long, value_name = "ID")]
    instance: InstanceId,
}

impl Target {
    fn reference(&self) -> InstanceRef {
        let pool = PoolRef { tenant: self.tenant.clone(), pool: self.pool.clone() };
        InstanceRef { pool, id: self.instance }
    }
}

pub async fn run(context: &Context, command: Command) -> Outcome {
    use Command::{
        Destroy, Exec as Execute, Info, List, Proxy, Serve, Sleep, Ssh, Start, Status, Stop, Wake,
        Warm,
    };
    let (remote, command) = match command {
        Serve(_) => return Err(CliError::internal("the coordinator is served elsewhere")),
        Status => return coordinator_serve::status(context).await,
        Wake { target, length } => {
            let instance = target.reference();
            (target.remote, OnInstance::Wake { instance, length })
        }
        Start { target, length } => {
            let instance = target.reference();
            (target.remote, OnInstance::Start { instance, length })
        }
        Sleep { target, no_linger } => {
            let instance = target.reference();
            (target.remote, OnInstance::Sleep { instance, no_linger })
        }
        Warm { target } => {
            let instance = target.reference();
            (target.remote, OnInstance::Warm { instance })
        }
        Stop { target } => {
            let instance = target.reference();
            (target.remote, OnInstance::Stop { instance })
        }
        Destroy { target } => {
            let instances = vec![target.reference()];
            (target.remote, OnInstance::Destroy { instances })
        }
        Info { target } => {
            let instance = target.reference();
            (target.remote, OnInstance::Info { instance })
        }
        List { remote, tenant, pool } => {
            let of = tenant.map(|tenant| match pool {
                Some(pool) => ListScope::Pool(PoolRef { tenant, pool }),
                None => ListScope::Tenant(tenant),
            });
            (remote, OnInstance::List { of })
        }
        Execute { target, options } => {
            let instance = target.reference();
            (target.remote, OnInstance::Exec(Exec { instance, options }))
        }
        Ssh { target, length, command } => {
            let instance = target.reference();
            (target.remote, OnInstance::Ssh { instance, length, command })
        }
        Proxy { target, port, length } => {
            let instance = target.reference();
            (target.remote, OnInstance::Proxy { instance, port, length })
        }
    };
    let remote = match remote.node.clone() {
        Some(node) => Some((node, remote)),
        None if context.coordinator.is_some() => None,
        None => {
            return Err(CliError::new(Code::Usage, "nobody is named to ask")
                .hint("name a node with --node HOST:PORT, or a coordinator with --coordinator"));
        }
    };
    instance::run(&Context { remote, ..context.clone() }, command).await
}
