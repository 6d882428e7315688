//! What every engine must do, on SQLite and on a real etcd, and what only a cluster can do.

mod cluster;
mod contract;
mod elections;
mod lost;
mod model;
mod sessions;
mod support;
mod watches;
