//! How large a packet may be on its way to the internet.

use crate::netlink::name_of;
use crate::surroundings::{is_internet, route_of};
use crate::{Error, Network, Result};
use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteMetric};
use std::collections::BTreeMap;

/// Where there is no way to the internet: Ethernet's own.
const ETHERNET: u32 = 1500;
/// What every host takes (RFC 791), and the most that IPv4 can say.
const BOUNDS: std::ops::RangeInclusive<u32> = 576..=65_535;

impl Network {
    /// The MTU of the way to the internet: the route's own or its link's; of several ways the least.
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

    /// Has a tap take packets of this size. Its bridge takes what the least of its ports does.
    pub async fn set_mtu(&self, name: &str, mtu: u32) -> Result<()> {
        let link = self.netlink.expect(name).await?;
        if mtu_of(&link) == Some(mtu) {
            return Ok(());
        }
        let sized = LinkUnspec::new_with_index(link.header.index).mtu(mtu).build();
        let what = format!("set the MTU of {}", name_of(&link).unwrap_or_default());
        let set = self.netlink.handle.link().set(sized).execute().await;
        set.map_err(|e| Error::netlink(what, &e))
    }
}

fn mtu_of(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

/// What the route itself says.
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
