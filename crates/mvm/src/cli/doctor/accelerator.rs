//! Whether new machines use KVM where the host has it.

use super::check::{Check, Status};
use super::host::{Host, without_kvm};
use mvm_api::types::AgentInfo;
use mvm_model::accelerator::next_step;

/// Checks that new machines use KVM where the host has it.
pub(super) fn check(host: &Host, agent: &AgentInfo) -> Check {
    let (name, why) = ("accelerator", "emulated guests are ten times slower");
    let detail = format!("{}: {}", agent.accelerator, agent.accelerator_reason);
    let made = |status, remedy| Check { name, status, detail, why, remedy };
    if agent.accelerator == "kvm" {
        return made(Status::Ok, "");
    }
    match unused_kvm(host, agent) {
        Some(remedy) => made(Status::Mend, remedy),
        None => made(Status::Note, ""),
    }
}

/// Returns what to do about an agent that emulates machines although nothing on the host is against
/// KVM; `None` where there is nothing to do.
pub(super) fn unused_kvm(host: &Host, agent: &AgentInfo) -> Option<&'static str> {
    let emulates = agent.accelerator != "kvm" && !agent.simulated;
    let step = || next_step(agent.accelerator_wanted, agent.accelerator_standing);
    (emulates && without_kvm(host).is_none()).then(step).flatten()
}
