//! `mvm coordinator serve` and `status`.

use super::context::Context;
use super::globals::Globals;
use super::remote::OurIdentity;
use super::values::{Address, Lifetime};
use crate::error::CliError;
use crate::output::{self, Outcome};
use clap::Args;
use mvm_api::client::Patience;
use mvm_api::fleet::CoordinatorInfo;
use mvm_api::paths;
use mvm_coordinator::{ApiOptions, ServeOptions, StoreOptions};
use mvm_model::Name;
use mvm_store::{EtcdOptions, EtcdTls};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// How the coordinator is to serve.
#[derive(Clone, Debug, Args)]
pub struct Serve {
    /// The fleet's name, as in its document
    #[arg(long, value_name = "NAME", env = "MVM_FLEET", default_value = "fleet")]
    fleet: Name,
    /// This coordinator's name [default: that of its identity]
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,
    /// Where to serve, over mutual TLS; several may be given [default: on the Unix socket
    /// coordinator.sock in the root only]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<SocketAddr>,
    /// Where other coordinators reach it [default: the first address that it listens on]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<Address>,
    /// The authority's directory, where this coordinator is to sign (join, renew, revoke)
    #[arg(long, env = "MVM_CA", value_name = "DIR")]
    ca: Option<PathBuf>,
    /// Members of the etcd cluster that holds the fleet's state, which other coordinators share
    /// [default: SQLite in the root, for this coordinator alone]
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    etcd: Vec<String>,
    /// The authority of etcd's certificates (PEM)
    #[arg(long, value_name = "FILE", requires = "etcd")]
    etcd_cacert: Option<PathBuf>,
    /// Our certificate for etcd (PEM)
    #[arg(long, value_name = "FILE", requires_all = ["etcd_cacert", "etcd_key"])]
    etcd_cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "etcd_cert")]
    etcd_key: Option<PathBuf>,
    /// How long after its death another coordinator takes the lead
    #[arg(long, value_name = "TIME", default_value = "10s")]
    ttl: Lifetime,
    /// How long a claim waits for a machine
    #[arg(long, value_name = "TIME", default_value = "120s")]
    claim_patience: Lifetime,
    /// Log as JSON lines
    #[arg(long)]
    log_json: bool,
}

/// Serves until the process is told to stop.
pub fn serve(globals: &Globals, serve: &Serve) -> Result<(), CliError> {
    crate::logging::begin(serve.log_json, None)?;
    // A coordinator that serves only this machine needs no identity.
    let named = globals.identity.is_some() || !serve.listen.is_empty();
    let ours = OurIdentity { identity: globals.identity.clone(), is_named: globals.identity_named };
    let options = options(&globals.root(), named.then_some(&ours), serve);
    mvm_coordinator::serve(options).map_err(CliError::from)
}

fn options(root: &Path, ours: Option<&OurIdentity>, serve: &Serve) -> ServeOptions {
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let tls = match (&serve.etcd_cacert, &serve.etcd_cert, &serve.etcd_key) {
        (Some(authority), Some(certificate), Some(key)) => Some(EtcdTls {
            authority: absolute(authority),
            certificate: absolute(certificate),
            key: absolute(key),
        }),
        _ => None,
    };
    let store = match serve.etcd.is_empty() {
        true => StoreOptions::Sqlite,
        false => {
            let prefix = format!("mvm/{}", serve.fleet);
            StoreOptions::Etcd(EtcdOptions::new(serve.etcd.clone(), &prefix, tls))
        }
    };
    ServeOptions {
        root: root.to_owned(),
        fleet_id: serve.fleet.clone(),
        name: serve.name.clone(),
        api: ApiOptions {
            listen: serve.listen.clone(),
            advertise: serve.advertise.as_ref().map(ToString::to_string),
            identity: ours.map(OurIdentity::dir),
        },
        store,
        ca: serve.ca.as_ref().map(absolute),
        ttl: serve.ttl.duration(),
        patience: serve.claim_patience.duration(),
    }
}

/// Shows the coordinator's information.
pub async fn status(context: &Context) -> Outcome {
    // A status command reports at once that the coordinator does not answer.
    let client = context.coordinator()?.patient(Patience::none());
    let info: CoordinatorInfo = client.get(paths::COORDINATOR).await?;
    output::describe(context.format, &info)
}
