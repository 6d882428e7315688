//! What is not as it should be yet. Whoever mends one takes it off; nothing is added.

/// Modules in circles, by crate.
pub const CIRCLES: [(&str, &[&str]); 0] = [];

/// Structs that are too large, and why they still are.
pub const LARGE: [(&str, &str); 6] = [
    ("mvm-node::Node", "to be taken apart into services"),
    ("mvm-node::Parts", "goes with Node"),
    ("mvm-node::Front", "a port's connections, its limits and its figures: to be parted"),
    ("mvm-node::ServeOptions", "a command line's words, as they are"),
    ("mvm-coordinator::ServeOptions", "a command line's words, as they are"),
    ("mvm-coordinator::KnownNode", "what is known of a node: data, each field told by one source"),
];
