//! A fleet as its users have it: coordinators and agents as separate processes, each in a network
//! namespace of its own, with certificates, on SQLite and on etcd. Most machines are simulated.

mod claims;
mod clients;
mod election;
mod events;
mod failures;
#[path = "../machines/guard.rs"]
mod guard;
mod images;
mod lab;
mod life;
mod machine_faults;
mod revoked;
mod several;
mod through;
mod upgrade;
