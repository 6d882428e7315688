//! A host's capacity: which machines cannot run there at all, and what pools lack there although
//! they work.

use crate::error::Fault;
use crate::fleet::Capacity;
use crate::mib::Mib;
use crate::pool::Counts;
use crate::resources::Resources;
use mvm_code::Code;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Something that a pool lacks on its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Shortfall {
    /// The kind of what is lacking.
    pub code: ShortfallKind,
    /// What the shortfall means here, and how to remove it, for a person.
    pub detail: String,
}

/// The kinds of what is lacking.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ShortfallKind {
    /// No KVM: machines are emulated.
    Kvm,
    /// No DNS server that guests can reach.
    Dns,
    /// Less memory than the running and warm machines of the pools need.
    Memory,
    /// Fewer processors than one machine has.
    Vcpus,
    /// A smaller disk than one machine may use.
    Disk,
}

impl ShortfallKind {
    /// Returns the name in JSON and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            ShortfallKind::Kvm => "kvm",
            ShortfallKind::Dns => "dns",
            ShortfallKind::Memory => "memory",
            ShortfallKind::Vcpus => "vcpus",
            ShortfallKind::Disk => "disk",
        }
    }
}

/// Refuses a shape of which not a single machine can run on a host with this capacity. Only memory
/// prevents that: more vCPUs than processors are slow, and disks grow as they are written to.
/// Error: `exceeds_host`.
pub fn admit_shape(shape: &Resources, host: &Capacity) -> Result<(), Fault> {
    if shape.mem_mib <= host.mem_mib {
        return Ok(());
    }
    let message = format!(
        "a machine with {} of memory cannot fit this host, which has {}",
        shape.mem_mib, host.mem_mib
    );
    let hint = "give the pool less memory (--mem), or use a larger host; see `mvm doctor`";
    Err(Fault::new(Code::ExceedsHost, message).at("mem_mib").hint(hint))
}

/// Returns what one machine of this shape lacks on a host with this capacity.
pub fn lacks_of_shape(shape: &Resources, host: &Capacity) -> Vec<Shortfall> {
    let mut lacks = Vec::new();
    if u64::from(shape.vcpus) > host.vcpus {
        let detail = format!(
            "a machine has {} vCPUs, and the host has {} processors: the vCPUs take turns",
            shape.vcpus, host.vcpus
        );
        lacks.push(Shortfall { code: ShortfallKind::Vcpus, detail });
    }
    // Capacity is in whole GiB, rounded down: a disk of less than one is not judged.
    if host.disk_gib > 0 && shape.disk_mib().gib() > host.disk_gib {
        let detail = format!(
            "a machine may come to use {} GiB of disk, and the host's file system has {} GiB",
            shape.disk_mib().gib(),
            host.disk_gib
        );
        lacks.push(Shortfall { code: ShortfallKind::Disk, detail });
    }
    lacks
}

/// Returns a shortfall if the machines that pools keep running and warm need more memory than the
/// host has.
pub fn lacks_memory<'a>(
    pools: impl IntoIterator<Item = (&'a Resources, &'a Counts)>,
    host: &Capacity,
) -> Option<Shortfall> {
    let (mut machines, mut mem_mib) = (0_u64, Mib(0));
    for (shape, counts) in pools {
        let count = u64::from(counts.running) + u64::from(counts.warm);
        machines += count;
        mem_mib = mem_mib.saturating_add(shape.mem_mib.saturating_mul(count));
    }
    if mem_mib <= host.mem_mib {
        return None;
    }
    let detail = format!(
        "the pools of this node keep {machines} machines running and warm that have {mem_mib} of \
         memory together, and the host has {}: they fit as long as their guests use less, or keep \
         more of them asleep",
        host.mem_mib
    );
    Some(Shortfall { code: ShortfallKind::Memory, detail })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOST: Capacity = Capacity { vcpus: 2, mem_mib: Mib(24_000), disk_gib: 100 };

    fn shape(vcpus: u32, mem_mib: u64, data_disk_mib: u64) -> Resources {
        let (mem_mib, data_disk_mib) = (Mib(mem_mib), Mib(data_disk_mib));
        Resources { vcpus, mem_mib, data_disk_mib, ..Resources::default() }
    }

    #[test]
    fn a_machine_that_has_more_memory_than_the_host_is_refused() {
        let fault = admit_shape(&shape(2, 65_536, 0), &HOST).expect_err("refused");
        assert_eq!((fault.code, fault.path.as_str()), (Code::ExceedsHost, "mem_mib"));
        assert!(fault.message.contains("65536") && fault.message.contains("24000"), "{fault:?}");
        assert_eq!(admit_shape(&shape(255, 24_000, 1 << 24), &HOST), Ok(()));
    }

    #[test]
    fn what_runs_with_a_lack_says_so() {
        let codes = |shape: Resources| {
            lacks_of_shape(&shape, &HOST).iter().map(|lack| lack.code).collect::<Vec<_>>()
        };
        assert_eq!(codes(shape(2, 2048, 90 << 10)), []);
        assert_eq!(codes(shape(3, 2048, 0)), [ShortfallKind::Vcpus]);
        assert_eq!(codes(shape(3, 2048, 110 << 10)), [ShortfallKind::Vcpus, ShortfallKind::Disk]);
    }

    proptest! {
        #[test]
        fn pools_lack_memory_just_when_what_they_keep_up_has_more(
            pools in prop::collection::vec((128_u64..9000, 0_u32..4, 0_u32..4, 0_u32..40), 0..5),
        ) {
            let pools: Vec<(Resources, Counts)> = pools
                .into_iter()
                .map(|(mem, running, warm, sleeping)| (shape(1, mem, 0), Counts { running, warm, sleeping }))
                .collect();
            let up: Mib = pools.iter().map(|(s, c)| u64::from(c.running + c.warm) * s.mem_mib).sum();
            let lacks = lacks_memory(pools.iter().map(|(s, c)| (s, c)), &HOST);
            prop_assert_eq!(lacks.is_some(), up > HOST.mem_mib);
            if let Some(lack) = lacks {
                prop_assert!(lack.detail.contains(&up.to_string()), "{}", lack.detail);
            }
        }
    }
}
