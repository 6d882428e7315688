//! The hypervisor trait and its drivers
