//! The fleet: one document for many nodes, how it is split over them, and which node a claim gets.
//!
//! A fleet's document ([`FleetState`]) speaks of totals and of rules, never of single nodes.
//! [`place`] splits the totals, [`node_document`] is what one node is told, and [`Claims`] decides
//! who is served next and where.

mod asking;
mod claims;
mod document;
mod image;
mod kept;
mod node;
mod place;
mod placement;
mod room;
mod rules;
mod share;
mod site;

pub use asking::{Asking, Heard, Step};
pub use claims::{Claims, Grant, Limits, Outcome, Refusal, Room, Source, Stand};
pub use document::{FleetPool, FleetState, FleetTenant};
pub use image::{Holder, Offers, builders, hold_back, name_images};
pub use kept::kept_news;
pub use node::{Capacity, Duty, Node, NodeStatus, PoolStatus};
pub use place::place;
pub use placement::{Placement, Share, Unplaced};
pub use room::{Shapes, room, shapes};
pub use rules::{Labels, Preference, Rules, Selector, Spread, check_label};
pub use share::node_document;
pub use site::Why;
