//! What is not as it should be yet. Whoever mends one takes it off; nothing is added.

/// Modules in circles, by crate.
pub const CIRCLES: [(&str, &[&str]); 0] = [];

/// Structs that are too large, and why they still are.
pub const LARGE: [(&str, &str); 1] = [(
    "mvm-coordinator::KnownNode",
    "what is known of a node: data, each field told by one source",
)];
