//! Finds out whether a subnet is free on this host.

use crate::marks::{Marks, root_of};
use crate::netlink::{View, alias_of, name_of};
use crate::surroundings::{self, Route, is_internet};
use crate::{Network, Result};
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// Why a subnet is not free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// The host uses part of the subnet; the text names that part and the interface.
    Host(String),
    /// A tenant of another state directory has it.
    Root {
        /// The tenant's network and the name of its bridge: `10.1.0.1/24 of mva771-b20`.
        what: String,
        /// The state directory, as the bridge's alias says; `None` if an older agent made the
        /// bridge.
        root: Option<PathBuf>,
        /// The four hexadecimal digits that the state directory's id begins with.
        owner: String,
    },
}

/// A link's name, and its owner.
#[derive(Clone, Debug, Default)]
struct Link {
    name: String,
    ours: bool,
    /// The digits and the state directory of another owner; `None` if the link is the host's or
    /// ours.
    other: Option<(String, Option<PathBuf>)>,
}

/// A snapshot of the addresses, routes and links that the host uses.
pub(crate) struct Used {
    addresses: Vec<Route>,
    routes: Vec<Route>,
    links: BTreeMap<u32, Link>,
}

impl Network {
    /// Returns what overlaps with `subnet` on the host: an address, a route, the default gateway,
    /// or one of the DNS servers `resolvers`. Links of this owner do not count. `None` if the
    /// subnet is free.
    pub async fn conflicts(
        &self,
        subnet: Ipv4Net,
        resolvers: &[Ipv4Addr],
    ) -> Result<Option<Conflict>> {
        Ok(used(&self.netlink.view().await?, &self.marks).by(subnet, resolvers))
    }
}

/// Returns what the host uses.
pub(crate) fn used(view: &View, marks: &Marks) -> Used {
    let prefix = marks.prefix();
    let links = view.links.iter().map(|link| {
        let name = name_of(link).unwrap_or_default();
        let ours = name.starts_with(&prefix);
        let other = alias_of(link).and_then(|alias| root_of(&alias)).filter(|_| !ours);
        (link.header.index, Link { name, ours, other })
    });
    let links: BTreeMap<u32, Link> = links.collect();
    let addresses = surroundings::addresses(&view.addresses);
    Used { addresses, routes: surroundings::routes(&view.routes), links }
}

impl Used {
    /// Returns what the subnet overlaps with; `None` if it is free.
    pub(crate) fn by(&self, subnet: Ipv4Net, resolvers: &[Ipv4Addr]) -> Option<Conflict> {
        overlap(subnet, &self.addresses, &self.routes, resolvers, &self.links)
    }

    /// Returns the names of the links that lead to the internet.
    pub(crate) fn uplinks(&self) -> impl Iterator<Item = &str> {
        let ways = self.routes.iter().filter(|route| is_internet(route));
        ways.filter_map(|route| Some(self.links.get(&route.link?)?.name.as_str()))
    }
}

fn overlap(
    subnet: Ipv4Net,
    addresses: &[Route],
    routes: &[Route],
    resolvers: &[Ipv4Addr],
    links: &BTreeMap<u32, Link>,
) -> Option<Conflict> {
    let link = |route: &Route| route.link.and_then(|index| links.get(&index)).cloned();
    let named = |route: &Route| link(route).map_or("an interface".to_owned(), |link| link.name);
    let ours = |route: &&Route| link(route).is_some_and(|link| link.ours);
    let meets = |route: &&Route| route.to.contains(&subnet) || subnet.contains(&route.to);
    let theirs = addresses.iter().chain(routes).filter(|route| !ours(route));
    if let Some(address) = addresses.iter().filter(|a| !ours(a)).find(meets) {
        let what = format!("{} of {}", address.to, named(address));
        return Some(match link(address).and_then(|link| link.other) {
            Some((owner, root)) => Conflict::Root { what, root, owner },
            None => Conflict::Host(what),
        });
    }
    if let Some(route) = theirs.clone().filter(|route| !is_internet(route)).find(meets) {
        return Some(Conflict::Host(format!("the route to {} over {}", route.to, named(route))));
    }
    let gateway = |route: &&Route| route.gateway.is_some_and(|gateway| subnet.contains(&gateway));
    if let Some(route) = theirs.clone().find(gateway) {
        let gateway = route.gateway.unwrap_or(Ipv4Addr::UNSPECIFIED);
        return Some(Conflict::Host(format!("the gateway {gateway} of {}", named(route))));
    }
    let resolver = resolvers.iter().find(|resolver| subnet.contains(*resolver))?;
    let way = theirs.filter(|route| route.to.contains(resolver));
    let over = way.max_by_key(|route| route.to.prefix_len()).map(named);
    let over = over.map_or(String::new(), |name| format!(", reached over {name}"));
    Some(Conflict::Host(format!("the DNS server {resolver}{over}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_the_host_uses_is_named_with_its_interface() {
        let net = |text: &str| text.parse::<Ipv4Net>().expect("net");
        let address = |text: &str| text.parse::<Ipv4Addr>().expect("address");
        let route = |to: &str, link, gateway: Option<&str>| Route {
            to: net(to),
            link: Some(link),
            gateway: gateway.map(address),
        };
        let link = |name: &str, ours, other| Link { name: name.to_owned(), ours, other };
        let root = PathBuf::from("/var/lib/other");
        let links = BTreeMap::from([
            (1, link("eth0", false, None)),
            (2, link("mv00ff-b1", true, None)),
            (3, link("mva771-b20", false, Some(("a771".to_owned(), Some(root.clone()))))),
        ]);
        let addresses = [
            route("192.0.2.0/24", 1, None),
            route("10.1.0.0/24", 2, None),
            route("10.2.0.0/24", 3, None),
        ];
        let routes = [
            route("0.0.0.0/0", 1, Some("198.51.100.1")),
            route("172.16.0.0/12", 1, Some("192.0.2.9")),
            route("10.1.0.0/24", 2, None),
        ];
        let resolvers = [address("203.0.113.53")];
        let of = |subnet: &str| overlap(net(subnet), &addresses, &routes, &resolvers, &links);
        let host = |what: &str| Some(Conflict::Host(what.to_owned()));
        assert_eq!(of("192.0.2.128/25"), host("192.0.2.0/24 of eth0"));
        assert_eq!(of("192.0.0.0/16"), host("192.0.2.0/24 of eth0"));
        assert_eq!(of("172.20.0.0/24"), host("the route to 172.16.0.0/12 over eth0"));
        assert_eq!(of("198.51.100.0/24"), host("the gateway 198.51.100.1 of eth0"));
        assert_eq!(of("203.0.113.0/24"), host("the DNS server 203.0.113.53, reached over eth0"));
        let what = "10.2.0.0/24 of mva771-b20".to_owned();
        let other = Conflict::Root { what, root: Some(root), owner: "a771".to_owned() };
        assert_eq!(of("10.2.0.0/16"), Some(other));
        assert_eq!(of("10.1.0.0/24"), None, "what is ours is found by the records");
        assert_eq!(of("10.3.0.0/24"), None);
    }
}
