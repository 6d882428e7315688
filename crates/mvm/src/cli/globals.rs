//! Options that every command takes.

use super::values::{Coordinators, Wait};
use crate::agent_process;
use crate::output::Format;
use clap::Args;
use std::path::PathBuf;

/// Options that every command takes.
#[derive(Clone, Debug, Args)]
pub struct Globals {
    /// State directory [default: /var/lib/mvm as root, else ~/.local/state/mvm]
    #[arg(long, global = true, env = "MVM_ROOT", value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Ask this coordinator of a fleet instead of this machine's agent; of several
    /// (HOST:PORT,HOST:PORT), whichever answers
    #[arg(long, global = true, env = "MVM_COORDINATOR", value_name = "HOST:PORT,…")]
    pub coordinator: Option<Coordinators>,
    /// How long a command waits for a fleet that has no leader, or whose coordinators do not answer;
    /// 0 gives up at once
    #[arg(
        long,
        global = true,
        env = "MVM_PATIENCE",
        value_name = "DURATION",
        default_value = "60s"
    )]
    pub patience: Wait,
    /// Directory of the identity to show to the coordinator [default: /etc/mvm/identity as root,
    /// else ~/.config/mvm/identity]
    #[arg(long, global = true, env = "MVM_IDENTITY", value_name = "DIR")]
    pub identity: Option<PathBuf>,
    /// Whether that was on the command line, and not in the environment.
    #[arg(skip)]
    pub identity_named: bool,
    /// How to show results
    #[arg(long, short, global = true, value_enum, default_value_t)]
    pub output: Format,
}

impl Globals {
    /// Returns the state directory as an absolute path.
    pub fn root(&self) -> PathBuf {
        let root = self.root.clone().unwrap_or_else(agent_process::default_root);
        std::path::absolute(&root).unwrap_or(root)
    }
}
