//! `mvm api …`

use crate::output::{self, Outcome};
use clap::{Subcommand, ValueEnum};
use mvm_api::openapi;
use mvm_api::routes::Server;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Prints the description of the API (OpenAPI 3.1), as at /openapi.json; needs no server
    #[command(
        after_help = "Examples:\n  mvm api describe > openapi.json\n  mvm api describe --server agent | jq '.paths | keys'"
    )]
    Describe {
        /// Only what this server serves
        #[arg(long, value_enum)]
        server: Option<ApiServer>,
    },
}

/// Who serves the API.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ApiServer {
    /// A machine's agent
    Agent,
    /// A fleet's coordinator
    Coordinator,
    /// Whoever has the authority's key
    Signer,
}

/// Runs the command.
pub fn run(command: Command) -> Outcome {
    let Command::Describe { server } = command;
    let server = server.map(|which| match which {
        ApiServer::Agent => Server::Agent,
        ApiServer::Coordinator => Server::Coordinator,
        ApiServer::Signer => Server::Signer,
    });
    output::print(format!("{:#}\n", openapi::describe(server)).as_bytes())
}
