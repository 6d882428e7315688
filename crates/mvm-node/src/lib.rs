//! The agent of a node: instance actors, reconcile loop, leases, recovery
