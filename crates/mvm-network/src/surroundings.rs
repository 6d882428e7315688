//! Addresses and routes in the network namespace (rtnetlink(7)).

use crate::Result;
use crate::marks::Marks;
use crate::netlink::{Netlink, alias_of, name_of};
use crate::rules::Surroundings;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, Ipv4Addr};

/// Routes with a prefix of at most this many bits count as the internet: VPNs split it in two, to
/// take precedence over the default route.
const INTERNET: u8 = 1;

/// A network that the host reaches over one of its links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// The network that the route leads to.
    pub(crate) to: Ipv4Net,
    /// Index of the link that the route goes over.
    pub(crate) link: Option<u32>,
    /// The router; `None` if the network is the link's own.
    pub(crate) gateway: Option<Ipv4Addr>,
}

/// The owner of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// The host.
    Host,
    /// The owner whose marks are asked for.
    Ours,
    /// Another owner, with links of mvm.
    Foreign,
}

/// Reads addresses and routes, and sorts them by the owners of their links.
pub(crate) async fn look(netlink: &Netlink, marks: &Marks) -> Result<Surroundings> {
    let mut found = addresses(&netlink.addresses().await?);
    found.extend(routes(&netlink.routes().await?));
    let mut links = BTreeMap::new();
    for index in found.iter().filter_map(|route| route.link) {
        if let Entry::Vacant(entry) = links.entry(index) {
            // A link that vanished meanwhile has no networks.
            let link = netlink.by_index(index).await;
            entry.insert(link.and_then(|link| whose(&link, marks)));
        }
    }
    Ok(sort(&found, |link| links.get(&link).copied().flatten()))
}

/// Returns which networks are closed to guests. `whose` returns `None` for loopback and for a link
/// that is gone.
pub(crate) fn sort(routes: &[Route], whose: impl Fn(u32) -> Option<Whose>) -> Surroundings {
    let uplinks: Vec<&Route> = routes.iter().filter(|route| is_internet(route)).collect();
    let mut around = Surroundings::default();
    for route in routes.iter().filter(|route| !is_internet(route)) {
        // This network is reached over the same router as the internet, so it counts as the
        // internet.
        let by_gateway = |up: &&&Route| up.gateway == route.gateway && up.link == route.link;
        if route.gateway.is_some() && uplinks.iter().any(|up| by_gateway(&up)) {
            continue;
        }
        match route.link.map_or(Some(Whose::Host), &whose) {
            Some(Whose::Host) => around.lan.push(route.to),
            Some(Whose::Foreign) => around.foreign.push(route.to),
            Some(Whose::Ours) | None => {}
        }
    }
    for networks in [&mut around.lan, &mut around.foreign] {
        networks.sort();
        networks.dedup();
    }
    around
}

/// Returns whether the route leads to the internet.
pub(crate) fn is_internet(route: &Route) -> bool {
    route.to.prefix_len() <= INTERNET
}

fn whose(link: &LinkMessage, marks: &Marks) -> Option<Whose> {
    let name = name_of(link).unwrap_or_default();
    let foreign = || alias_of(link).is_some_and(|alias| alias.starts_with("mvm:"));
    match name.as_str() {
        "lo" => None,
        name if name.starts_with(&marks.prefix()) => Some(Whose::Ours),
        _ if foreign() => Some(Whose::Foreign),
        _ => Some(Whose::Host),
    }
}

/// Returns the networks that the host has addresses in.
pub(crate) fn addresses(messages: &[AddressMessage]) -> Vec<Route> {
    let network = |message: &AddressMessage| {
        let to = network_of(message)?.trunc();
        Some(Route { to, link: Some(message.header.index), gateway: None })
    };
    messages.iter().filter_map(network).collect()
}

/// Returns an IPv4 address with the prefix length of its network; `None` for another family.
pub(crate) fn network_of(message: &AddressMessage) -> Option<Ipv4Net> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(IpAddr::V4(address)) => {
            Ipv4Net::new(*address, message.header.prefix_len).ok()
        }
        _ => None,
    })
}

/// Returns the networks that the host has routes to, in any table.
pub(crate) fn routes(messages: &[RouteMessage]) -> Vec<Route> {
    let remote = |message: &&RouteMessage| message.header.kind == RouteType::Unicast;
    messages.iter().filter(remote).filter_map(route_of).collect()
}

/// Returns the network that a route leads to; `None` if it is not an IPv4 route.
pub(crate) fn route_of(message: &RouteMessage) -> Option<Route> {
    let mut route = Route { to: Ipv4Net::default(), link: None, gateway: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                route.to = Ipv4Net::new(*address, message.header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Oif(index) => route.link = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => route.gateway = Some(*address),
            _ => {}
        }
    }
    Some(route)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_the_way_to_the_internet_is_closed() {
        let route = |to: &str, link, gateway: Option<&str>| Route {
            to: to.parse().expect("net"),
            link: Some(link),
            gateway: gateway.map(|address| address.parse().expect("address")),
        };
        let routes = [
            route("0.0.0.0/0", 1, Some("192.0.2.1")),
            route("128.0.0.0/1", 5, Some("10.8.0.1")),
            route("192.0.2.0/24", 1, None),
            route("198.51.100.0/24", 1, Some("192.0.2.1")),
            route("198.51.101.0/24", 1, Some("192.0.2.9")),
            route("172.17.0.0/16", 2, None),
            route("172.17.0.0/16", 2, None),
            route("10.81.1.0/24", 3, None),
            route("10.82.1.0/24", 4, None),
            route("127.0.0.0/8", 6, None),
        ];
        let whose = |link| match link {
            3 => Some(Whose::Ours),
            4 => Some(Whose::Foreign),
            6 => None,
            _ => Some(Whose::Host),
        };
        let texts = |nets: Vec<Ipv4Net>| nets.iter().map(Ipv4Net::to_string).collect::<Vec<_>>();
        let around = sort(&routes, whose);
        assert_eq!(texts(around.lan), ["172.17.0.0/16", "192.0.2.0/24", "198.51.101.0/24"]);
        assert_eq!(texts(around.foreign), ["10.82.1.0/24"]);
        assert_eq!(sort(&[], whose), Surroundings::default());
    }
}
