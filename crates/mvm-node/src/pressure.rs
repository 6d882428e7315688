//! The host's memory pressure.

use mvm_model::policy::Pressure;
use std::path::PathBuf;

/// The file where the host's kernel reports its memory pressure. proc(5)
pub(crate) const HOST_PRESSURE: &str = "/proc/pressure/memory";

/// The file where the kernel reports how much the host waits for memory (proc(5), PSI).
#[derive(Clone, Debug)]
pub(crate) struct HostPressure(pub PathBuf);

impl HostPressure {
    /// Returns whether the host is short of memory; false where the kernel does not report it.
    pub fn is_high(&self) -> bool {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        Pressure::parse(&text).is_high()
    }
}
