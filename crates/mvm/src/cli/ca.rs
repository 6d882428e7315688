//! `mvm ca`: the certificate authority of a fleet.

use super::context::Context;
use super::remote::{self, OurIdentity, config_dir};
use super::values::{Address, Coordinators, Lifetime};
use crate::error::CliError;
use crate::output::{self, Outcome};
use crate::time::{clock, wall};
use clap::{Args, Subcommand, ValueEnum};
use mvm_api::identity::Identity;
use mvm_api::types::{IdentityView, Invitation, Invite, RevocationList, Revoke};
use mvm_api::{Client, paths};
use mvm_identity::authority::{NODE_LIFETIME, OPERATOR_LIFETIME};
use mvm_identity::directory::Signers;
use mvm_identity::{Authority, IdentityDir, authority, enrolment, journal};
use mvm_model::{Code, Name};
use mvm_server::{Signer, private, renewal, signer};
use std::net::SocketAddr;
use std::path::PathBuf;

/// The certificate authority.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Makes an authority: a key that all certificates of a fleet are signed with
    #[command(after_help = "Examples:\n  mvm ca init\n  mvm ca init --dir ./ca")]
    Init {
        #[command(flatten)]
        authority: AuthorityDir,
    },
    /// Issues a certificate, on the machine that has the authority's key
    #[command(
        after_help = "Examples:\n  mvm ca issue --role operator --name alice --out ./alice\n  mvm ca issue --role tenant-operator --tenant ci --name bob --out ./bob\n  mvm ca issue --role coordinator --name c1 --out ./c1"
    )]
    Issue(Issue),
    /// Serves joining, renewing and revoking, where no coordinator does
    #[command(
        after_help = "Examples:\n  mvm ca serve --listen 0.0.0.0:4433\n  mvm ca serve --listen 10.0.1.1:4433 --node-lifetime 7d"
    )]
    Serve {
        #[command(flatten)]
        authority: AuthorityDir,
        /// Where to serve, over mutual TLS; several may be given
        #[arg(long, required = true, value_name = "ADDRESS:PORT")]
        listen: Vec<SocketAddr>,
        /// How long nodes' certificates are good [default: 30d]
        #[arg(long, value_name = "TIME")]
        node_lifetime: Option<Lifetime>,
    },
    /// Lists the holders of valid and of revoked certificates
    #[command(after_help = "Examples:\n  mvm ca list\n  mvm ca list --coordinator 10.0.1.1:4433")]
    List {
        #[command(flatten)]
        signer_options: SignerOptions,
    },
    /// Revokes all certificates of one holder
    #[command(
        after_help = "Examples:\n  mvm ca revoke --role operator --name alice\n  mvm ca revoke --role tenant-operator --tenant ci --name bob --coordinator 10.0.1.1:4433"
    )]
    Revoke {
        #[command(flatten)]
        signer_options: SignerOptions,
        #[command(flatten)]
        who: CertificateHolder,
    },
    /// Gets a new certificate for this machine's identity before the present one expires
    #[command(
        after_help = "Examples:\n  mvm ca renew\n  mvm ca renew --identity ./alice --coordinator 10.0.1.1:4433"
    )]
    Renew {
        #[command(flatten)]
        ours: OurIdentity,
        /// The server that signs [default: the one that the identity names]
        #[arg(long, env = "MVM_COORDINATOR", value_name = "HOST:PORT,…")]
        coordinator: Vec<Coordinators>,
    },
}

/// The directory of an authority.
#[derive(Clone, Debug, Args)]
pub struct AuthorityDir {
    /// The authority's directory [default: /etc/mvm/ca as root, else ~/.config/mvm/ca]
    #[arg(long, env = "MVM_CA", value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl AuthorityDir {
    /// Returns the authority's directory as an absolute path.
    fn path(&self) -> PathBuf {
        let dir = self.dir.clone().unwrap_or_else(|| config_dir().join("ca"));
        std::path::absolute(&dir).unwrap_or(dir)
    }
}

/// The roles that are issued by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IssuedRole {
    /// May do everything
    Operator,
    /// May use what is one tenant's
    TenantOperator,
    /// Serves a fleet
    Coordinator,
}

/// The holder of a certificate.
#[derive(Debug, Args)]
pub struct CertificateHolder {
    /// What they may do
    #[arg(long, value_enum)]
    role: IssuedRole,
    /// Their name
    #[arg(long)]
    name: Name,
    /// The tenant that a tenant operator is confined to
    #[arg(long, required_if_eq("role", "tenant-operator"))]
    tenant: Option<Name>,
}

impl CertificateHolder {
    fn identity(&self) -> Result<Identity, CliError> {
        let name = self.name.clone();
        match (self.role, &self.tenant) {
            (IssuedRole::Operator, None) => Ok(Identity::Operator(name)),
            (IssuedRole::Coordinator, None) => Ok(Identity::Coordinator(name)),
            (IssuedRole::TenantOperator, Some(tenant)) => {
                Ok(Identity::TenantOperator { tenant: tenant.clone(), name })
            }
            _ => Err(CliError::new(Code::Usage, "only a tenant operator is of a tenant")
                .hint("leave --tenant out, or say --role tenant-operator")),
        }
    }
}

/// A certificate to be issued.
#[derive(Debug, Args)]
pub struct Issue {
    #[command(flatten)]
    authority: AuthorityDir,
    #[command(flatten)]
    who: CertificateHolder,
    /// Directory to write the identity to: certificate, key, and the authority to trust
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How long the certificate is good [default: 1y, a coordinator's 30d]
    #[arg(long, value_name = "TIME")]
    lifetime: Option<Lifetime>,
    /// Where the certificate is renewed later; several may be given
    #[arg(long, value_name = "HOST:PORT")]
    address: Vec<Address>,
}

/// Who signs: somebody at an address, or the authority on this machine.
#[derive(Clone, Debug, Args)]
pub struct SignerOptions {
    /// The coordinator (or another server) that signs; of several, the first that is able to.
    /// Without it, the authority on this machine signs
    #[arg(long, env = "MVM_COORDINATOR", value_name = "HOST:PORT,…")]
    coordinator: Option<Coordinators>,
    #[command(flatten)]
    ours: OurIdentity,
    #[command(flatten)]
    authority: AuthorityDir,
}

/// The authority that answers an authority's commands.
enum Signing {
    /// Coordinators, of which at least one has the authority's key.
    Remote(Vec<Client>),
    Local(Box<Signer>),
}

impl SignerOptions {
    fn open(&self) -> Result<Signing, CliError> {
        let Some(list) = &self.coordinator else {
            let signer = Signer::embedded(&self.authority.path()).map_err(|error| {
                let served = error.code() == Code::StoreLocked;
                let error = CliError::from(error);
                match served {
                    true => error.hint("it is being served: name it with --coordinator"),
                    false => error,
                }
            })?;
            return Ok(Signing::Local(Box::new(signer)));
        };
        Ok(Signing::Remote(remote::coordinators(list, &self.ours)?))
    }

    /// Makes a join token. This needs the authority's key, but no records.
    pub async fn invite(&self, mut invite: Invite) -> Result<Invitation, CliError> {
        if let Some(list) = &self.coordinator {
            if invite.addresses.is_empty() {
                invite.addresses = list.addresses().iter().map(ToString::to_string).collect();
            }
            let all = remote::coordinators(list, &self.ours)?;
            let invite = &invite;
            let post = |client: Client| async move { client.post(paths::CA_INVITES, invite).await };
            return Ok(enrolment::first_of(all, post).await?);
        }
        let dir = self.authority.path();
        let (invitation, facts) = signer::invitation(&Authority::open(&dir)?, &invite, wall())?;
        journal::append(&dir, &facts)?;
        Ok(invitation)
    }

    /// Lists the identities that have certificates.
    pub async fn identities(&self) -> Result<Vec<IdentityView>, CliError> {
        match self.open()? {
            Signing::Remote(all) => {
                let list = |client: Client| async move { client.list(paths::CA_IDENTITIES).await };
                Ok(enrolment::first_of(all, list).await?)
            }
            Signing::Local(signer) => Ok(signer.identities(wall()).await?),
        }
    }

    /// Revokes an identity's certificates. The new list is in force for our own identity at once.
    pub async fn revoke(&self, identity: Identity) -> Result<RevocationList, CliError> {
        match self.open()? {
            Signing::Remote(all) => {
                let revoke = &Revoke { identity };
                let post =
                    |client: Client| async move { client.post(paths::CA_REVOKE, revoke).await };
                let list: RevocationList = enrolment::first_of(all, post).await?;
                // A client on the coordinator's socket on this machine may have no identity.
                if let Ok(ours) = self.ours.credentials() {
                    ours.revoke(&list.crl)?;
                }
                Ok(list)
            }
            Signing::Local(signer) => {
                Ok(RevocationList { crl: signer.revoke(&identity, wall()).await? })
            }
        }
    }
}

/// Runs the command.
pub async fn run(context: &Context, command: Command) -> Outcome {
    // All files that these commands write belong to an authority or an identity.
    private::narrow_umask();
    match command {
        Command::Init { authority } => {
            let dir = authority.path();
            Authority::create(&dir, wall())?;
            let shown = dir.display().to_string();
            let line = format!("made an authority in {shown}; keep {shown}/ca-key.pem secret");
            output::say(context.format, &serde_json::json!({ "dir": shown }), &line)
        }
        Command::Issue(issue) => self::issue(context, &issue),
        Command::Serve { authority, listen, node_lifetime } => {
            crate::logging::begin(false, None)?;
            let lifetime = node_lifetime.map_or(NODE_LIFETIME, |lifetime| lifetime.duration());
            signer::serve(&authority.path(), &listen, lifetime, clock()).await?;
            Ok(0)
        }
        Command::List { signer_options } => list(context, &signer_options.identities().await?),
        Command::Revoke { signer_options, who } => {
            let identity = who.identity()?;
            let list = signer_options.revoke(identity.clone()).await?;
            output::say(context.format, &list, &format!("{} is let in nowhere", identity.holder()))
        }
        Command::Renew { ours, coordinator } => {
            let credentials = ours.credentials()?;
            if !coordinator.is_empty() {
                let all = coordinator.iter().flat_map(Coordinators::addresses);
                let addresses = all.map(ToString::to_string).collect();
                credentials.ask_at(Signers { addresses })?;
            }
            renewal::renew(&credentials, &renewal::Source::Remote, wall()).await?;
            let facts = credentials.credential().facts;
            let until = output::time(facts.validity.not_after);
            let line = format!("{} is good until {until}", facts.identity.holder());
            output::say(context.format, &facts, &line)
        }
    }
}

fn issue(context: &Context, issue: &Issue) -> Outcome {
    let identity = issue.who.identity()?;
    let dir = issue.authority.path();
    let authority = Authority::open(&dir)?;
    let usual = match issue.who.role {
        IssuedRole::Coordinator => NODE_LIFETIME,
        IssuedRole::Operator | IssuedRole::TenantOperator => OPERATOR_LIFETIME,
    };
    let lifetime = issue.lifetime.as_ref().map_or(usual, Lifetime::duration);
    let key = authority::new_key()?;
    let issued = authority.issue(&identity, &key, lifetime, wall())?;
    journal::append(&dir, &issued.facts)?;
    let signers = Signers { addresses: issue.address.iter().map(ToString::to_string).collect() };
    let out = IdentityDir::new(&issue.out);
    let roots = authority.certificate();
    out.store(&issued.pem, &key.serialize_pem(), roots, None, &signers)?;
    let until = output::time(issued.facts.validity.not_after);
    let line = format!("{} is in {}, good until {until}", identity.holder(), issue.out.display());
    output::say(context.format, &issued.facts, &line)
}

/// Shows the identities that have certificates.
pub fn list(context: &Context, views: &[IdentityView]) -> Outcome {
    let rows = views.iter().flat_map(|view| {
        view.certificates.iter().map(|one| {
            vec![
                view.identity.holder(),
                one.facts.serial.to_string(),
                output::time(one.facts.validity.not_after),
                one.revoked_at.map_or("-".to_owned(), output::time),
            ]
        })
    });
    output::show(context.format, &views, &["IDENTITY", "CERTIFICATE", "UNTIL", "REVOKED"], rows)
}
