//! The MTU of the way to the internet.

use crate::links::locked;
use crate::netlink::{controller_of, mtu_of};
use crate::surroundings::{is_internet, route_of};
use crate::{Network, Result, sizes};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteMetric};
use std::collections::BTreeMap;

/// Ethernet's MTU, used if there is no way to the internet.
const ETHERNET: u32 = 1500;
/// The range of MTUs, from what every host accepts (RFC 791) to the largest that IPv4 can express.
const BOUNDS: std::ops::RangeInclusive<u32> = 576..=65_535;

impl Network {
    /// Returns the MTU of the way to the internet in bytes: that of the route or else of its link;
    /// of several ways, the smallest.
    pub async fn uplink_mtu(&self) -> Result<u32> {
        let of_link = |link: &LinkMessage| Some((link.header.index, mtu_of(link)?));
        let links: BTreeMap<u32, u32> =
            self.netlink.links().await?.iter().filter_map(of_link).collect();
        let routes = self.netlink.routes().await?;
        let ways = routes.iter().filter_map(|message| {
            let route = route_of(message).filter(is_internet)?;
            metric(message).or_else(|| links.get(&route.link?).copied())
        });
        Ok(ways.min().unwrap_or(ETHERNET).clamp(*BOUNDS.start(), *BOUNDS.end()))
    }

    /// Sets the MTU of a tap, and adapts its bridge's to the smallest of its ports'.
    pub async fn set_mtu(&self, name: &str, mtu: u32) -> Result<()> {
        let link = self.netlink.expect(name).await?;
        locked(&self.sizes).insert(name.to_owned(), mtu);
        if mtu_of(&link) != Some(mtu) {
            sizes::resize(&self.netlink, &link, mtu).await?;
        }
        match controller_of(&link) {
            Some(bridge) => sizes::fit(&self.netlink, bridge).await,
            None => Ok(()),
        }
    }
}

/// Returns the MTU that the route itself has; `None` if it has none.
fn metric(route: &RouteMessage) -> Option<u32> {
    let metrics = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => Some(metrics),
        _ => None,
    })?;
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
        _ => None,
    })
}
