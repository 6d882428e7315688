//! The services that every other service uses: the process, the records, and the audit logs.

use super::parts::AgentParts;
use crate::Result;
use crate::audit::{Audit, Auditor};
use crate::instances::Slots;
use crate::passes::Passes;
use crate::records::Records;
use crate::stages::Stages;
use crate::state_dir::StateDir;
use crate::wake::Wake;
use mvm_clock::Clock;
use mvm_identity::tls::Credentials;
use mvm_model::Timestamp;
use std::sync::Arc;
use tokio::sync::Notify;

/// The process of an agent.
pub(crate) struct Process {
    /// When the agent started.
    pub started_at: Timestamp,
    /// Notified to stop the agent.
    pub stop: Notify,
    /// The network namespace that the process is in, if one was named.
    pub netns: Option<String>,
    /// The node's identity, where the API is served to other machines.
    pub credentials: Option<Arc<Credentials>>,
    pub stages: Arc<Stages>,
    pub passes: Arc<Passes>,
}

impl Process {
    /// Describes a process that starts now, by this clock.
    pub fn new(parts: &AgentParts, clock: &Clock) -> Process {
        Process {
            started_at: clock.now(),
            stop: Notify::new(),
            netns: parts.settings.netns.clone(),
            credentials: parts.credentials.clone(),
            stages: Arc::new(parts.stages.clone()),
            passes: Arc::default(),
        }
    }
}

/// The records, and the agent's memory of each instance beside them.
pub(crate) struct Base {
    pub state_dir: StateDir,
    pub records: Arc<Records>,
    pub slots: Arc<Slots>,
    pub audit: Arc<Audit>,
    pub auditor: Arc<Auditor>,
    /// Wakes the reconcile loop.
    pub wake: Wake,
}

impl Base {
    /// Reads the records. Puts aside the logs of destroyed tenants.
    pub async fn open(parts: &AgentParts, clock: Clock) -> Result<Base> {
        let records = Arc::new(Records::open(parts.store.clone(), clock.clone()).await?);
        let audit = Arc::new(Audit::open(parts.state_dir.audit(), clock)?);
        records.read(|records| {
            audit.retire_all_but(|log| records.tenants.keys().any(|name| name.as_str() == log))
        })?;
        let auditor = Arc::new(Auditor::new(audit.clone(), records.clone()));
        let (slots, wake) = (Arc::default(), Wake::default());
        Ok(Base { state_dir: parts.state_dir.clone(), records, slots, audit, auditor, wake })
    }
}
