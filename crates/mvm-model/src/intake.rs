//! Bytes that arrive for a tenant and are kept: the artifacts and inputs of its jobs.
//!
//! They are checked while they arrive. They count against the tenant's disk quota, never use the
//! host's reserve, and never use more of the rest than they leave to others.

use crate::admission::{Quotas, exceeded};
use crate::error::Fault;
use crate::halt::ROOM;
use crate::job::Job;
use crate::mib::Mib;
use crate::name::Name;

const GIB: u64 = 1 << 30;

/// The space on a host's disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The size of the disk.
    pub total: u64,
    /// The space that is free for users other than root.
    pub free: u64,
}

/// What a tenant uses and may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The tenant's name.
    pub tenant: Name,
    /// The tenant's quotas.
    pub quotas: Quotas,
    /// The disk space that it uses according to the records, in bytes, without what is arriving.
    pub used: u64,
}

/// Why bytes are not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The tenant's disk quota does not allow them.
    Quota(Fault),
    /// The host's disk is as full as it may be, or the bytes would take more than they leave to
    /// others.
    NoRoom,
}

/// Returns the part of a disk that files may not use unless the operator names another, in bytes: a
/// twentieth, at least twice what a machine needs to go on, and at most 4 GiB.
pub fn reserve(total: u64) -> u64 {
    (total / 20).clamp((2 * ROOM).bytes(), Mib(4096).bytes())
}

/// Checks whether a tenant may have `arriving` bytes, for all of its copies under way together.
/// They are written as they arrive: the more there are, the less is free. Each tenant may take half
/// of what is free beyond the reserve, so that as much is always left for others, however long the
/// copies go on.
pub fn admit(account: &Account, arriving: u64, room: Room, reserve: u64) -> Result<(), Denied> {
    let limit = account.quotas.max_disk_gib;
    if account.used.saturating_add(arriving) > limit.saturating_mul(GIB) {
        let gib = |bytes: u64| bytes.div_ceil(GIB);
        let (used, asked) = (gib(account.used), gib(arriving));
        let fault = exceeded(&account.tenant, "max_disk_gib", limit, used, asked, " GiB");
        return Err(Denied::Quota(fault));
    }
    if arriving > room.free.saturating_sub(reserve) {
        return Err(Denied::NoRoom);
    }
    Ok(())
}

/// Returns the size of the artifacts that are kept of a job, in bytes.
pub fn kept(job: &Job) -> u64 {
    job.artifacts.iter().filter_map(|artifact| artifact.bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn account(tenant: &str, used: u64) -> Account {
        let tenant = tenant.parse().expect("a name");
        Account { tenant, quotas: Quotas::default(), used }
    }

    #[test]
    fn a_quota_counts_what_is_there_and_what_arrives() {
        let room = Room { total: 1 << 50, free: 1 << 49 };
        let limit = Quotas::default().max_disk_gib << 30;
        let nearly = account("ci", limit - 10);
        assert_eq!(admit(&nearly, 10, room, 0), Ok(()));
        let Err(Denied::Quota(fault)) = admit(&nearly, 11, room, 0) else { panic!("admitted") };
        assert!(fault.message.contains("max_disk_gib of tenant ci: limit 200 GiB"), "{fault:?}");
    }

    #[test]
    fn the_reserve_is_a_part_of_the_disk_within_bounds() {
        let sizes = [(1 << 30, Mib(128)), (10 << 30, Mib(512)), (1 << 40, Mib(4096))];
        for (total, wanted) in sizes {
            assert_eq!(reserve(total), wanted.bytes(), "{total}");
        }
    }

    proptest! {
        /// A tenant that takes what it can, for ever, leaves as much to the next one.
        #[test]
        fn one_tenant_without_end_leaves_room_to_others(
            free in 0u64..1 << 40, reserve in 0u64..1 << 33, step in 1u64..1 << 36,
        ) {
            let (mut greedy, mut modest) = (account("greedy", 0), account("modest", 0));
            greedy.quotas.max_disk_gib = 1 << 20;
            modest.quotas.max_disk_gib = 1 << 20;
            let room = |free| Room { total: 1 << 40, free };
            let (mut arrived, mut left) = (0, free);
            while admit(&greedy, arrived + step, room(left), reserve).is_ok() {
                arrived += step;
                left -= step.min(left);
            }
            let beyond = free.saturating_sub(reserve);
            prop_assert!(arrived <= beyond / 2 + step);
            let others = left.saturating_sub(reserve);
            prop_assert!(others >= (beyond / 2).saturating_sub(step));
            prop_assert_eq!(admit(&modest, others, room(left), reserve), Ok(()));
            prop_assert!(admit(&modest, others + 1, room(left), reserve).is_err());
        }
    }
}
