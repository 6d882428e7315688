//! What is not as it should be yet. Whoever mends one takes it off; nothing is added.

/// Modules in circles, by crate: a module that uses those below it while they use what it defines. What they
/// share is to go to a file below both.
pub const CIRCLES: [(&str, &[&str]); 7] = [
    ("mvm-model", &["desired", "desired::check"]),
    ("mvm-hypervisor", &["sim", "sim::holder", "sim::machine", "sim::world"]),
    ("mvm-store", &["", "error", "etcd", "etcd::cluster", "etcd::commit", "etcd::watch"]),
    (
        "mvm-guest",
        &[
            "agent",
            "agent::adopt",
            "agent::disks",
            "agent::exec",
            "agent::files",
            "agent::kept",
            "agent::net",
            "agent::program",
            "agent::ssh",
        ],
    ),
    (
        "mvm-api",
        &[
            "routes",
            "routes::shape",
            "routes::table",
            "routes::table::fleet",
            "routes::table::instances",
            "routes::table::jobs",
            "routes::table::node",
            "routes::table::tenants",
        ],
    ),
    (
        "mvm-coordinator",
        &[
            "api",
            "api::claims",
            "api::events",
            "api::fleet",
            "api::gather",
            "api::jobs",
            "api::nodes",
            "api::pools",
            "api::proxy",
        ],
    ),
    (
        "mvm",
        &[
            "",
            "cli",
            "cli::agent",
            "cli::audit",
            "cli::bench",
            "cli::ca",
            "cli::cleaning",
            "cli::coordinator",
            "cli::coordinator_serve",
            "cli::desired",
            "cli::doctor",
            "cli::doctor::production",
            "cli::doctor::sandbox",
            "cli::events",
            "cli::expose",
            "cli::fleet",
            "cli::images",
            "cli::instance",
            "cli::job",
            "cli::lease",
            "cli::net",
            "cli::node",
            "cli::pool",
            "cli::run",
            "cli::ssh",
            "cli::tenant",
            "logging",
            "logging::limit",
            "session",
            "session::program",
        ],
    ),
];

/// Structs that are too large, and why they still are.
pub const LARGE: [(&str, &str); 1] = [(
    "mvm-coordinator::KnownNode",
    "what is known of a node: data, each field told by one source",
)];
