//! `mvm node`: the machines of a fleet.

use super::ca::{self, SignerOptions};
use super::context::Context;
use super::values::{Address, Lifetime};
use crate::error::CliError;
use crate::output::{self, Outcome};
use crate::time::wall;
use clap::{Args, Subcommand};
use mvm_api::identity::{Identity, Role};
use mvm_api::paths;
use mvm_api::types::Invite;
use mvm_identity::{JoinToken, enrolment};
use mvm_model::{Code, Name};
use mvm_server::private;
use std::io::Read;
use std::path::PathBuf;

/// Nodes.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Prints a token with which one machine can become a node
    #[command(
        after_help = "Examples:\n  mvm node invite node-1 --address 10.0.1.1:4433 > token\n  mvm node invite node-1 --ttl 15m --coordinator 10.0.1.1:4433 | ssh node-1 mvm node join -"
    )]
    Invite {
        /// The name that the node will have
        name: Name,
        /// How long the token is good: seconds, or with s, m, h or d
        #[arg(long, value_name = "TIME", default_value = "1h")]
        ttl: Lifetime,
        /// Where the node reaches the coordinator; several may be given [default: --coordinator]
        #[arg(long, value_name = "HOST:PORT")]
        address: Vec<Address>,
        #[command(flatten)]
        signer_options: SignerOptions,
    },
    /// Makes this machine a node
    #[command(
        after_help = "Examples:\n  mvm node join - < token\n  mvm node join --token-file /run/token\n  mvm node join --identity ./node-1 - < token\n\nThe identity is written below the root, where the agent finds it, or to --identity DIR."
    )]
    Join(Join),
    /// Lists the nodes that have joined
    #[command(
        after_help = "Examples:\n  mvm node list\n  mvm node list --coordinator 10.0.1.1:4433 -o json"
    )]
    List {
        #[command(flatten)]
        signer_options: SignerOptions,
    },
    /// Makes this machine leave its fleet, so that another one, or one that was made anew, may take
    /// it. What the machine holds stays
    #[command(after_help = "Examples:\n  mvm node leave")]
    Leave,
    /// Removes a node: no certificate of it, and no token for it, is accepted any more
    #[command(
        after_help = "Examples:\n  mvm node remove node-1\n  mvm node remove node-1 --coordinator 10.0.1.1:4433"
    )]
    Remove {
        /// Its name
        name: Name,
        #[command(flatten)]
        signer_options: SignerOptions,
    },
}

/// Where the token is.
#[derive(Debug, Args)]
pub struct Join {
    /// The token; - reads it from the standard input, where nobody else sees it
    #[arg(required_unless_present = "token_file", conflicts_with = "token_file")]
    token: Option<String>,
    /// A file that holds the token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl Join {
    fn token(&self) -> Result<JoinToken, CliError> {
        let failed = |what: String, cause: std::io::Error| {
            CliError::file(format!("cannot read the token from {what}: {cause}"))
        };
        let text = match (&self.token_file, self.token.as_deref()) {
            (Some(file), _) => std::fs::read_to_string(file)
                .map_err(|cause| failed(file.display().to_string(), cause))?,
            (None, Some("-") | None) => {
                let mut text = String::new();
                // The bound keeps a file that is no token from being read whole.
                std::io::stdin()
                    .take(64 * 1024)
                    .read_to_string(&mut text)
                    .map_err(|cause| failed("the standard input".to_owned(), cause))?;
                text
            }
            (None, Some(token)) => token.to_owned(),
        };
        Ok(text.parse()?)
    }
}

/// Runs the command.
pub async fn run(context: &Context, command: Command) -> Outcome {
    match command {
        Command::Invite { name, ttl, address, signer_options } => {
            let addresses = address.iter().map(ToString::to_string).collect();
            let invite = Invite { name, ttl_s: ttl.duration().as_secs(), addresses };
            let invitation = signer_options.invite(invite).await?;
            output::say(context.format, &invitation, &invitation.token)
        }
        Command::Join(join) => {
            private::narrow_umask();
            let token = join.token()?;
            let dir = context.ours.named().unwrap_or_else(|| mvm_node::identity_dir(&context.root));
            if dir.exists() {
                let facts = dir.load()?.facts;
                let detail = format!("this machine is {} already", facts.identity.holder());
                return Err(CliError::new(Code::Exists, detail)
                    .hint(format!("to join anew, remove {} first", dir.path().display())));
            }
            if context.ours.named().is_none() {
                private::own_dir(&context.root)?;
            }
            let name = enrolment::join(&token, &dir, wall()).await?;
            // The agent finds the identity without an option only in its own state directory.
            let place = match context.ours.named() {
                Some(dir) => format!(" --identity {}", dir.path().display()),
                None => String::new(),
            };
            let line = format!(
                "this machine is node {name}; serve it with: mvm agent serve{place} --listen 0.0.0.0:4433"
            );
            output::say(context.format, &serde_json::json!({ "node": name }), &line)
        }
        Command::List { signer_options } => {
            let mut views = signer_options.identities().await?;
            views.retain(|view| view.identity.role() == Role::Node);
            ca::list(context, &views)
        }
        Command::Leave => {
            let done: serde_json::Value = context.agent()?.delete(paths::NODE_LEADER).await?;
            output::say(context.format, &done, "this machine is of no fleet any more")
        }
        Command::Remove { name, signer_options } => {
            let list = signer_options.revoke(Identity::Node(name.clone())).await?;
            output::say(context.format, &list, &format!("node {name} is let in nowhere"))
        }
    }
}
