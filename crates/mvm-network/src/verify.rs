//! Compares what the kernel has with what it should have, and repairs links.

use crate::conflicts::{self, Conflict};
use crate::links::{forward, forward_from, forwards, has_ipv6, is_forwarding, locked};
use crate::netlink::{View, alias_of, controller_of, mtu_of, name_of};
use crate::rules::Ruleset;
use crate::sizes::{self, ports_mtu};
use crate::surroundings::{self, network_of};
use crate::{Bridge, Network, Result, Tap};
use ipnet::Ipv4Net;
use rtnetlink::packet_route::link::{LinkFlags, LinkMessage};
use std::collections::BTreeMap;

/// The links and rules that there should be.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The tenants' bridges.
    pub bridges: Vec<Bridge>,
    /// The taps of live machines.
    pub taps: Vec<Tap>,
    /// Taps that may or may not exist: those of machines that do not live, or that are being
    /// changed.
    pub spare: Vec<String>,
    /// The firewall's rules.
    pub rules: Ruleset,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The kind of thing that differs.
    pub kind: Differs,
    /// Its name: that of a link, or of a part of the firewall's tables.
    pub what: String,
    /// How it differs, for people.
    pub detail: String,
}

/// The kind of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Differs {
    /// A link that is missing, down, attached elsewhere, or superfluous.
    Link,
    /// A bridge's addresses, or an overlap of its subnet with another.
    Address,
    /// Whether the kernel forwards packets.
    Forwarding,
    /// The firewall's rules.
    Rules,
}

/// What was done about links that were not as they should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// Differences that were repaired.
    pub mended: Vec<Difference>,
    /// Names of vanished taps of live machines: the hypervisor still holds the old link, and a new
    /// one of the same name would not reach it.
    pub lost: Vec<String>,
}

/// A link as the kernel has it.
#[derive(Clone, Debug, Default)]
struct Found {
    up: bool,
    port_of: Option<String>,
    addresses: Vec<Ipv4Net>,
    /// Whether its alias is this owner's mark.
    marked: bool,
    /// Whether the kernel forwards what comes in by it.
    forwards: bool,
    ipv6: bool,
    mtu: Option<u32>,
    /// The MTU that it should have; `None` if that is unknown.
    wanted_mtu: Option<u32>,
}

impl Network {
    /// Returns everything that the kernel has otherwise than it should be. Changes nothing.
    pub async fn differences(&self, wanted: &Wanted) -> Result<Vec<Difference>> {
        let view = self.netlink.view().await?;
        let mut all = compare(wanted, &found(self, &view, wanted));
        all.extend(forwarding(self, &view, wanted)?);
        all.extend(overlaps(self, &view, wanted));
        let table = self.firewall.table();
        let rules =
            |detail: String| Difference { kind: Differs::Rules, what: table.clone(), detail };
        let around = surroundings::look(&self.netlink, &self.marks).await?;
        let same = self.firewall.are(&wanted.rules, &around);
        match same {
            None if wanted.bridges.is_empty() => {}
            None => all.push(rules("no rules were put in force".to_owned())),
            Some(false) => {
                all.push(rules("the rules in force are not those of records and host".to_owned()))
            }
            Some(true) => {}
        }
        all.extend(self.firewall.lost()?.into_iter().map(rules));
        Ok(all)
    }

    /// Repairs bridges, their addresses, the ports of taps, and forwarding. Leaves alone what
    /// belongs to nothing known, and only logs what overlaps with a subnet.
    pub async fn mend(&self, wanted: &Wanted) -> Result<Mended> {
        let view = self.netlink.view().await?;
        let found = found(self, &view, wanted);
        // Forwarding is compared before bridges are repaired, since that turns it on.
        let forwarding = forwarding(self, &view, wanted)?;
        let mut of: BTreeMap<String, Vec<Difference>> = BTreeMap::new();
        for difference in compare(wanted, &found) {
            of.entry(difference.what.clone()).or_default().push(difference);
        }
        let mut done = Mended::default();
        for bridge in &wanted.bridges {
            let Some(differences) = of.remove(&bridge.name) else { continue };
            done.take(differences, mend_bridge(self, bridge).await);
        }
        for tap in &wanted.taps {
            let Some(differences) = of.remove(&tap.name) else { continue };
            match mend_tap(self, tap, &found).await {
                Ok(false) => done.lost.push(tap.name.clone()),
                outcome => done.take(differences, outcome.map(drop)),
            }
        }
        for difference in forwarding {
            let forwarded = match difference.what.as_str() {
                SETTING => forward(),
                setting => forward_from(link_of(setting)),
            };
            done.take(vec![difference], forwarded);
        }
        // Nothing of this owner's counts as an overlap, so the repairs have changed none.
        tell_overlaps(self, &view, wanted);
        Ok(done)
    }
}

async fn mend_bridge(network: &Network, bridge: &Bridge) -> Result<()> {
    network.ensure_bridge(bridge).await?;
    sizes::fit(&network.netlink, network.netlink.expect(&bridge.name).await?.header.index).await
}

/// Repairs a tap; returns false if it is gone.
async fn mend_tap(network: &Network, tap: &Tap, found: &BTreeMap<String, Found>) -> Result<bool> {
    let Some(link) = found.get(&tap.name) else { return Ok(false) };
    if !network.rejoin(tap).await? {
        return Ok(false);
    }
    if let Some(mtu) = link.wanted_mtu {
        network.set_mtu(&tap.name, mtu).await?;
    }
    Ok(true)
}

/// Returns the links that are this owner's by mark or name. For a tap that an earlier agent made,
/// the MTU at the first look counts as the one that was set.
fn found(network: &Network, view: &View, wanted: &Wanted) -> BTreeMap<String, Found> {
    let View { links, addresses, .. } = view;
    let names: BTreeMap<u32, String> =
        links.iter().filter_map(|link| Some((link.header.index, name_of(link)?))).collect();
    let mark = format!("mvm:{}:", network.marks.owner);
    let prefix = network.marks.prefix();
    let mut sizes = locked(&network.sizes);
    sizes.retain(|name, _| wanted.spare.contains(name) || is_tap(wanted, name));
    let found = links.iter().filter_map(|link| {
        let name = name_of(link)?;
        let alias = alias_of(link).unwrap_or_default();
        if !alias.starts_with(&mark) && !name.starts_with(&prefix) {
            return None;
        }
        let (index, mtu) = (link.header.index, mtu_of(link));
        let wanted_mtu = match is_tap(wanted, &name) {
            true => mtu.map(|mtu| *sizes.entry(name.clone()).or_insert(mtu)),
            false => ports_mtu(links, index),
        };
        let own = addresses.iter().filter(|message| message.header.index == index);
        let found = Found {
            up: link.header.flags.contains(LinkFlags::Up),
            port_of: controller_of(link).and_then(|bridge| names.get(&bridge).cloned()),
            addresses: own.filter_map(network_of).collect(),
            marked: network.marks.kind(&alias).is_some(),
            forwards: is_forwarding(link),
            ipv6: has_ipv6(link),
            mtu,
            wanted_mtu,
        };
        Some((name, found))
    });
    found.collect()
}

/// Returns whether the kernel forwards packets at all, and those that come back from the internet.
fn forwarding(network: &Network, view: &View, wanted: &Wanted) -> Result<Vec<Difference>> {
    let mut all = Vec::new();
    if wanted.bridges.is_empty() {
        return Ok(all);
    }
    let mut tell = |what: String, detail: &str| {
        let detail = detail.to_owned();
        all.push(Difference { kind: Differs::Forwarding, what, detail });
    };
    if !forwards()? {
        tell(SETTING.to_owned(), "it is 0: no guest reaches the outside");
    }
    let used = conflicts::used(view, &network.marks);
    let off = |link: &&LinkMessage| !is_forwarding(link);
    for name in view.links.iter().filter(off).filter_map(name_of) {
        if used.uplinks().any(|uplink| uplink == name) {
            tell(setting_of(&name), "it is 0: no answer from outside reaches a guest");
        }
    }
    Ok(all)
}

/// Returns which tenants' subnets now overlap with something of the host.
fn overlaps(network: &Network, view: &View, wanted: &Wanted) -> Vec<Difference> {
    let used = conflicts::used(view, &network.marks);
    let of = |bridge: &Bridge| {
        let what = match used.by(bridge.gateway.trunc(), &[])? {
            Conflict::Host(what) | Conflict::Root { what, .. } => what,
        };
        let detail = format!(
            "its subnet {} overlaps with {what}: packets to its guests may go there; take that away, \
             or give the tenant another subnet",
            bridge.gateway.trunc()
        );
        Some(Difference { kind: Differs::Address, what: bridge.name.clone(), detail })
    };
    wanted.bridges.iter().filter_map(of).collect()
}

/// Logs each overlap once for as long as it lasts: there is nothing that could be repaired.
fn tell_overlaps(network: &Network, view: &View, wanted: &Wanted) {
    let now = overlaps(network, view, wanted);
    let now: Vec<String> = now.into_iter().map(|d| format!("{}: {}", d.what, d.detail)).collect();
    let mut told = locked(&network.overlaps);
    now.iter().filter(|line| !told.contains(line)).for_each(|line| tracing::error!("{line}"));
    *told = now;
}

impl Mended {
    /// Records the outcome of a repair. A failed one is only logged, so that the others are still
    /// done.
    fn take(&mut self, differences: Vec<Difference>, outcome: Result<()>) {
        match outcome {
            Ok(()) => self.mended.extend(differences),
            Err(error) => tracing::error!(code = %error.code(), "a link stays as it is: {error}"),
        }
    }
}

fn is_tap(wanted: &Wanted, name: &str) -> bool {
    wanted.taps.iter().any(|tap| tap.name == name)
}

fn setting_of(link: &str) -> String {
    format!("net.ipv4.conf.{link}.forwarding")
}

fn link_of(setting: &str) -> &str {
    let link =
        setting.strip_prefix("net.ipv4.conf.").and_then(|rest| rest.strip_suffix(".forwarding"));
    link.unwrap_or(setting)
}

/// The kernel parameter for forwarding, as sysctl(8) names it.
const SETTING: &str = "net.ipv4.ip_forward";

fn compare(wanted: &Wanted, found: &BTreeMap<String, Found>) -> Vec<Difference> {
    let mut all = Vec::new();
    let mut tell = |kind, what: &str, detail: String| {
        all.push(Difference { kind, what: what.to_owned(), detail });
    };
    for bridge in &wanted.bridges {
        let Some(link) = found.get(&bridge.name) else {
            tell(Differs::Link, &bridge.name, "it is not there".to_owned());
            continue;
        };
        if !link.up {
            tell(Differs::Link, &bridge.name, "it is down".to_owned());
        }
        if !link.addresses.contains(&bridge.gateway) {
            tell(Differs::Address, &bridge.name, format!("it has not {}", bridge.gateway));
        }
        for other in link.addresses.iter().filter(|address| **address != bridge.gateway) {
            tell(Differs::Address, &bridge.name, format!("it has {other} as well"));
        }
        if !link.forwards {
            let detail = format!("{} is 0: no guest reaches the outside", setting_of(&bridge.name));
            tell(Differs::Link, &bridge.name, detail);
        }
        link.marks_and_sizes().for_each(|detail| tell(Differs::Link, &bridge.name, detail));
    }
    for tap in &wanted.taps {
        match found.get(&tap.name) {
            None => tell(Differs::Link, &tap.name, "it is not there".to_owned()),
            Some(link) if link.port_of.as_ref() != Some(&tap.bridge) => {
                tell(Differs::Link, &tap.name, format!("it is not a port of {}", tap.bridge));
            }
            Some(link) if !link.up => tell(Differs::Link, &tap.name, "it is down".to_owned()),
            Some(link) => {
                link.marks_and_sizes().for_each(|detail| tell(Differs::Link, &tap.name, detail));
            }
        }
    }
    let known = |name: &String| {
        wanted.bridges.iter().any(|bridge| bridge.name == *name)
            || is_tap(wanted, name)
            || wanted.spare.contains(name)
    };
    for name in found.keys().filter(|name| !known(name)) {
        tell(Differs::Link, name, "it belongs to nothing that mvm knows".to_owned());
    }
    all
}

impl Found {
    /// Returns the differences that any link may have: mark, IPv6, MTU.
    fn marks_and_sizes(&self) -> impl Iterator<Item = String> {
        let unmarked = (!self.marked).then(|| "its alias is not mvm's mark".to_owned());
        let ipv6 = self.ipv6.then(|| "it has IPv6 (its disable_ipv6 is 0)".to_owned());
        let size = match (self.mtu, self.wanted_mtu) {
            (Some(is), Some(wanted)) if is != wanted => {
                Some(format!("its MTU is {is} and not {wanted}"))
            }
            _ => None,
        };
        [unmarked, ipv6, size].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_difference_of_a_link_is_named() {
        let net = |text: &str| text.parse::<Ipv4Net>().expect("net");
        let bridge = |name: &str| Bridge { name: name.to_owned(), gateway: net("10.1.0.1/24") };
        let tap = |name: &str| Tap {
            name: name.to_owned(),
            bridge: "b1".to_owned(),
            address: "10.1.0.2".parse().expect("address"),
            owner_uid: None,
        };
        let link = |up, port_of: Option<&str>, addresses: &[&str]| Found {
            up,
            port_of: port_of.map(str::to_owned),
            addresses: addresses.iter().map(|text| net(text)).collect(),
            marked: true,
            forwards: true,
            ..Found::default()
        };
        let closed = Found {
            marked: false,
            forwards: false,
            ipv6: true,
            ..link(true, None, &["10.1.0.1/24"])
        };
        let small = Found { mtu: Some(900), wanted_mtu: Some(1500), ..link(true, Some("b1"), &[]) };
        let wanted = Wanted {
            bridges: vec![bridge("b1"), bridge("b2"), bridge("b3"), bridge("b4")],
            taps: vec![tap("t1"), tap("t2"), tap("t3"), tap("t4"), tap("t6")],
            spare: vec!["t5".to_owned()],
            rules: Ruleset::default(),
        };
        let found = [
            ("b1", link(true, None, &["10.1.0.1/24"])),
            ("b2", link(false, None, &["10.1.0.1/16"])),
            ("t1", link(true, Some("b1"), &[])),
            ("t2", link(true, Some("b2"), &[])),
            ("t3", link(false, Some("b1"), &[])),
            ("t5", link(true, None, &[])),
            ("b4", closed),
            ("t6", small),
            ("t9", link(true, None, &[])),
        ];
        let found = found.into_iter().map(|(name, found)| (name.to_owned(), found)).collect();
        let told = compare(&wanted, &found);
        let told: Vec<String> = told.iter().map(|d| format!("{} {}", d.what, d.detail)).collect();
        let said = [
            "b2 it is down",
            "b2 it has not 10.1.0.1/24",
            "b2 it has 10.1.0.1/16 as well",
            "b3 it is not there",
            "b4 net.ipv4.conf.b4.forwarding is 0: no guest reaches the outside",
            "b4 its alias is not mvm's mark",
            "b4 it has IPv6 (its disable_ipv6 is 0)",
            "t2 it is not a port of b1",
            "t3 it is down",
            "t4 it is not there",
            "t6 its MTU is 900 and not 1500",
            "t9 it belongs to nothing that mvm knows",
        ];
        assert_eq!(told, said);
    }
}
