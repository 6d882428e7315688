//! What the kernel has, against what it should have.

use crate::links::{forward, forwards};
use crate::netlink::{alias_of, name_of};
use crate::rules::Ruleset;
use crate::surroundings::{self, network_of};
use crate::{Bridge, Network, Result, Tap};
use ipnet::Ipv4Net;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use std::collections::BTreeMap;

/// What there should be.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The tenants' bridges.
    pub bridges: Vec<Bridge>,
    /// The taps of machines that live.
    pub taps: Vec<Tap>,
    /// Taps that may be there or not: of machines that do not live, or that something is done with.
    pub spare: Vec<String>,
    /// The firewall's rules.
    pub rules: Ruleset,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What kind of thing.
    pub kind: Differs,
    /// Its name: a link's, or a part's of the firewall's tables.
    pub what: String,
    /// How it differs.
    pub detail: String,
}

/// What differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Differs {
    /// A link that is missing, down, elsewhere or too many.
    Link,
    /// A bridge's addresses.
    Address,
    /// Whether the kernel passes packets on.
    Forwarding,
    /// The firewall's rules.
    Rules,
}

/// What was done about links that were not as they should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// What was, and is as it should be.
    pub mended: Vec<Difference>,
    /// Taps of machines that live, which are gone: their hypervisor holds what is no link any more, and a
    /// new one of the same name is none of theirs.
    pub lost: Vec<String>,
}

/// A link as the kernel has it.
#[derive(Clone, Debug, Default)]
struct Found {
    up: bool,
    port_of: Option<String>,
    addresses: Vec<Ipv4Net>,
}

impl Network {
    /// Everything that the kernel has otherwise than it should be. Changes nothing.
    pub async fn differences(&self, wanted: &Wanted) -> Result<Vec<Difference>> {
        let mut all = compare(wanted, &found(self).await?);
        all.extend(forwarding(wanted)?);
        let table = self.walls.table();
        let rules =
            |detail: String| Difference { kind: Differs::Rules, what: table.clone(), detail };
        let around = surroundings::look(&self.netlink, &self.marks).await?;
        let same = self.walls.are(&wanted.rules, &around);
        match same {
            None if wanted.bridges.is_empty() => {}
            None => all.push(rules("no rules were put in force".to_owned())),
            Some(false) => {
                all.push(rules("the rules in force are not those of records and host".to_owned()))
            }
            Some(true) => {}
        }
        all.extend(self.walls.lost()?.into_iter().map(rules));
        Ok(all)
    }

    /// Puts back bridges, their addresses, taps' places and the forwarding of packets. What belongs to
    /// nobody is left alone.
    pub async fn mend(&self, wanted: &Wanted) -> Result<Mended> {
        let found = found(self).await?;
        let mut differences = compare(wanted, &found);
        differences.extend(forwarding(wanted)?);
        let mut of: BTreeMap<String, Vec<Difference>> = BTreeMap::new();
        for difference in differences {
            of.entry(difference.what.clone()).or_default().push(difference);
        }
        let mut done = Mended::default();
        for bridge in &wanted.bridges {
            if let Some(differences) = of.remove(&bridge.name) {
                self.ensure_bridge(bridge).await?;
                done.mended.extend(differences);
            }
        }
        for tap in &wanted.taps {
            let Some(differences) = of.remove(&tap.name) else { continue };
            if found.contains_key(&tap.name) && self.rejoin(tap).await? {
                done.mended.extend(differences);
            } else {
                done.lost.push(tap.name.clone());
            }
        }
        if let Some(differences) = of.remove(SETTING) {
            forward()?;
            done.mended.extend(differences);
        }
        Ok(done)
    }
}

/// The links that are ours by mark or name.
async fn found(network: &Network) -> Result<BTreeMap<String, Found>> {
    let (links, addresses) = (network.netlink.links().await?, network.netlink.addresses().await?);
    let names: BTreeMap<u32, String> =
        links.iter().filter_map(|link| Some((link.header.index, name_of(link)?))).collect();
    let mark = format!("mvm:{}:", network.marks.owner);
    let prefix = network.marks.prefix();
    let found = links.iter().filter_map(|link| {
        let name = name_of(link)?;
        let ours = alias_of(link).is_some_and(|alias| alias.starts_with(&mark));
        if !ours && !name.starts_with(&prefix) {
            return None;
        }
        let port_of = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Controller(index) => names.get(index).cloned(),
            _ => None,
        });
        let own = addresses.iter().filter(|message| message.header.index == link.header.index);
        let addresses = own.filter_map(network_of).collect();
        let up = link.header.flags.contains(LinkFlags::Up);
        Some((name, Found { up, port_of, addresses }))
    });
    Ok(found.collect())
}

/// What the forwarding of packets is called.
const SETTING: &str = "net.ipv4.ip_forward";

fn forwarding(wanted: &Wanted) -> Result<Option<Difference>> {
    let off = !wanted.bridges.is_empty() && !forwards()?;
    let (kind, detail) = (Differs::Forwarding, "it is 0: no guest reaches the outside".to_owned());
    Ok(off.then(|| Difference { kind, what: SETTING.to_owned(), detail }))
}

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
    }
    for tap in &wanted.taps {
        match found.get(&tap.name) {
            None => tell(Differs::Link, &tap.name, "it is not there".to_owned()),
            Some(link) if link.port_of.as_ref() != Some(&tap.bridge) => {
                tell(Differs::Link, &tap.name, format!("it is no port of {}", tap.bridge));
            }
            Some(link) if !link.up => tell(Differs::Link, &tap.name, "it is down".to_owned()),
            Some(_) => {}
        }
    }
    let known = |name: &String| {
        wanted.bridges.iter().any(|bridge| bridge.name == *name)
            || wanted.taps.iter().any(|tap| tap.name == *name)
            || wanted.spare.contains(name)
    };
    for name in found.keys().filter(|name| !known(name)) {
        tell(Differs::Link, name, "it belongs to nothing that mvm knows".to_owned());
    }
    all
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
            mac: String::new(),
            address: "10.1.0.2".parse().expect("address"),
            owner_uid: None,
        };
        let link = |up, port_of: Option<&str>, addresses: &[&str]| Found {
            up,
            port_of: port_of.map(str::to_owned),
            addresses: addresses.iter().map(|text| net(text)).collect(),
        };
        let wanted = Wanted {
            bridges: vec![bridge("b1"), bridge("b2"), bridge("b3")],
            taps: vec![tap("t1"), tap("t2"), tap("t3"), tap("t4")],
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
            "t2 it is no port of b1",
            "t3 it is down",
            "t4 it is not there",
            "t9 it belongs to nothing that mvm knows",
        ];
        assert_eq!(told, said);
    }
}
