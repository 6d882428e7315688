//! A tenant's bridge, an instance's tap, and the firewall, in the process's network namespace.
//!
//! What lives here: names, bridges, taps, addresses (rtnetlink(7)) and the rules that keep tenants
//! apart and guests honest (nft(8), in tables of mvm's own).
//!
//! What never may: the decision who may talk to whom. It comes in as a [`Ruleset`].

mod conflicts;
mod error;
mod firewall;
mod links;
mod marks;
mod memory;
mod netlink;
mod netns;
mod nft;
mod nftables;
mod remains;
mod render;
mod rules;
mod sizes;
mod surroundings;
mod tap;
mod uplink;
mod verify;

pub use conflicts::Conflict;
pub use error::Error;
pub use firewall::Applied;
pub use links::{Bridge, Counters, Network, OwnedLink, Tap};
pub use marks::LinkKind;
pub use netns::enter_netns;
pub use nftables::Watch;
pub use remains::Remains;
pub use rules::{AllowRule, Egress, Mode, Proto, Ruleset, Surroundings, TapRules, TenantRules};
pub use verify::{Difference, Differs, Mended, Wanted};

/// The result of every fallible call of this crate.
pub type Result<T> = std::result::Result<T, Error>;
