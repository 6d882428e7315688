//! A fleet as its users have it: coordinators and agents as processes of their own, each in a
//! network namespace of its own, with certificates, on SQLite and on etcd. The machines are
//! simulated.

mod claims;
mod election;
mod events;
mod lab;
mod life;
mod revoked;
mod through;
