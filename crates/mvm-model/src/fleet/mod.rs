//! The fleet: one document for many nodes, how it is split over them, and which node a claim gets.
//!
//! A fleet's document ([`FleetState`]) holds totals and rules, never single nodes. [`place()`] splits
//! the totals, [`node_document`] computes one node's part, and [`Claims`] decides who is served
//! next and where.

mod asking;
mod claims;
mod document;
mod image;
mod node;
mod node_offer;
mod place;
mod placement;
mod placement_board;
mod quota_split;
mod reach;
mod retained_pools;
mod rules;

pub use asking::{Asking, CallOutcome, Step};
pub use claims::{ClaimDenied, Claims, Grant, Limits, NodeOffer, Outcome, PoolOffer, Source};
pub use document::{FleetPool, FleetState, FleetTenant};
pub use image::{Holder, Offers, builders, hold_back, name_images};
pub use node::{Capacity, Duty, FleetNode, NodeStatus, PoolStatus};
pub use node_offer::{Shapes, node_offer, shapes};
pub use place::place;
pub use placement::{Placement, Share, Unplaced};
pub use placement_board::UnfitReason;
pub use quota_split::node_document;
pub use reach::{least_leased, lost_since};
pub use retained_pools::kept_news;
pub use rules::{Labels, Preference, Rules, Selector, Spread, check_label};
