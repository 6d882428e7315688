//! Support for tests of this crate and others: a real etcd cluster in a temporary directory, and a
//! proxy that loses what goes through it.

mod authority;
mod cluster;
mod proxy;

pub use authority::Authority;
pub use cluster::{EtcdCluster, MemberOptions};
pub use proxy::{Loses, Proxy};
