//! Whether the host is short of memory.

use mvm_model::policy::Pressure;
use std::path::PathBuf;

/// The host's own account of what waits for memory. proc(5)
pub(crate) const HOST_PRESSURE: &str = "/proc/pressure/memory";

/// Where the kernel says how much the host waits for memory (proc(5), PSI).
#[derive(Clone, Debug)]
pub(crate) struct HostPressure(pub PathBuf);

impl HostPressure {
    /// Whether the host is short of memory. A host that does not say is not.
    pub fn is_high(&self) -> bool {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        Pressure::parse(&text).is_high()
    }
}
