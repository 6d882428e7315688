//! Seeds that have found faults of mvm, and what they found. `--kept` runs them one after the
//! other.

/// The seed, the number of etcd's members, the length of the run in seconds, and what was found.
pub const KEPT: [(u64, usize, u64, &str); 5] = [
    (2, 1, 60, "a coordinator that had just been started said of a job that there was none"),
    (105, 1, 120, "a claim was said to be under way while its machine was given back"),
    (106, 3, 300, "a new leader gave a machine in use back whose agent was being restarted"),
    (108, 3, 240, "the same two"),
    (110, 1, 210, "the same two"),
];
