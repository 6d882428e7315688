//! Bridges and taps.

use crate::firewall::{Applied, Firewall};
use crate::marks::{LinkKind, Marks};
use crate::netlink::{Netlink, alias_of, controller_of, name_of};
use crate::nftables::Watch;
use crate::rules::Ruleset;
use crate::surroundings::{self, network_of};
use crate::{Error, Result, sizes, tap};
use ipnet::Ipv4Net;
use parking_lot::{Mutex, MutexGuard};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, LinkAttribute, LinkFlags, LinkMessage,
};
use rtnetlink::{LinkBridge, LinkUnspec};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

/// A tenant's bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// The link's name, at most 15 characters.
    pub name: String,
    /// The gateway's address, with the prefix length of the subnet.
    pub gateway: Ipv4Net,
}

/// An instance's tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// The link's name, at most 15 characters.
    pub name: String,
    /// The bridge that it is a port of.
    pub bridge: String,
    /// The guest's address.
    pub address: Ipv4Addr,
    /// The user that may open the tap; `None` leaves it to root.
    pub owner_uid: Option<u32>,
}

/// A link that carries this owner's mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedLink {
    /// The link's name.
    pub name: String,
    /// Whether it is a bridge or a tap.
    pub kind: LinkKind,
}

/// Bytes through a link since it was made, from the host's side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes received, which the guest has sent.
    pub rx_bytes: u64,
    /// Bytes sent, which the guest has received.
    pub tx_bytes: u64,
}

/// The links and tables of one owner.
pub struct Network {
    pub(crate) marks: Marks,
    pub(crate) netlink: Netlink,
    pub(crate) firewall: Firewall,
    /// The MTU set for each tap, by its name.
    pub(crate) sizes: Mutex<BTreeMap<String, u32>>,
    /// The overlaps between the host and subnets that were logged last.
    pub(crate) overlaps: Mutex<Vec<String>>,
}

impl Network {
    /// Opens the network namespace that the process is in, for the owner with this id (four
    /// hexadecimal digits).
    pub fn open(owner: &str) -> Result<Network> {
        let (netlink, firewall) = (Netlink::open()?, Firewall::open(owner)?);
        let (sizes, overlaps) = (Mutex::default(), Mutex::default());
        Ok(Network { marks: Marks::new(owner), netlink, firewall, sizes, overlaps })
    }

    /// Makes links name the state directory that they belong to, so that other agents can tell, and
    /// keeps there which rules are in force, so that the next agent knows.
    pub fn of_root(self, root: &Path) -> Network {
        Network { marks: self.marks.of_root(root), firewall: self.firewall.of_root(root), ..self }
    }

    /// Returns the name of a tenant's bridge.
    pub fn bridge_name(owner: &str, net_id: u16) -> String {
        format!("mv{owner}-b{net_id}")
    }

    /// Returns the name of an instance's tap; `instance` is eight hexadecimal digits.
    pub fn tap_name(owner: &str, instance: &str) -> String {
        format!("mv{owner}-{instance}")
    }

    /// Makes the bridge, or corrects the existing one. Errors: `name_taken`, `not_permitted`,
    /// `network_failed`.
    pub async fn ensure_bridge(&self, bridge: &Bridge) -> Result<()> {
        let name = &bridge.name;
        let what = format!("make the bridge {name}");
        let link = match self.netlink.find(name).await? {
            Some(link) => {
                let link = self.ours(link, LinkKind::Bridge)?;
                // An older agent's mark does not name the state directory, and a state directory
                // may have moved.
                if alias_of(&link) != Some(self.marks.full(LinkKind::Bridge)) {
                    self.set_mark(link.header.index, LinkKind::Bridge).await?;
                }
                link
            }
            None => {
                // The bridge gets a MAC address of its own: otherwise it takes that of a port, and
                // changes it as ports come and go.
                let [a, b, c, d] = bridge.gateway.addr().octets();
                let message = LinkBridge::new(name).address(vec![0x02, 0xfe, a, b, c, d]).build();
                self.netlink
                    .handle
                    .link()
                    .add(message)
                    .execute()
                    .await
                    .map_err(|e| Error::netlink(&what, &e))?;
                let link = self.netlink.expect(name).await?;
                self.set_mark(link.header.index, LinkKind::Bridge).await?;
                link
            }
        };
        no_ipv6(name)?;
        let index = link.header.index;
        self.ensure_address(index, bridge.gateway).await?;
        let up = LinkUnspec::new_with_index(index).up().build();
        self.netlink
            .handle
            .link()
            .set(up)
            .execute()
            .await
            .map_err(|e| Error::netlink(&what, &e))?;
        forward()?;
        // The bridge was made with this host's setting for new links (net.ipv4.conf.default).
        forward_from(name)
    }

    async fn ensure_address(&self, index: u32, wanted: Ipv4Net) -> Result<()> {
        let failed =
            |e: rtnetlink::Error| Error::netlink(format!("give a bridge the address {wanted}"), &e);
        let all = self.netlink.addresses().await?;
        let own = all.into_iter().filter(|message| message.header.index == index);
        let (present, others): (Vec<_>, Vec<_>) = own
            .filter(|message| message.header.family == AddressFamily::Inet)
            .partition(|message| network_of(message) == Some(wanted));
        for other in others {
            self.netlink.handle.address().del(other).execute().await.map_err(failed)?;
        }
        if !present.is_empty() {
            return Ok(());
        }
        let (address, length) = (IpAddr::V4(wanted.addr()), wanted.prefix_len());
        self.netlink.handle.address().add(index, address, length).execute().await.map_err(failed)
    }

    /// Removes a bridge of this owner; a missing one is no error.
    pub async fn remove_bridge(&self, name: &str) -> Result<()> {
        self.remove(name, LinkKind::Bridge).await
    }

    /// Makes the tap, and makes it a port of its bridge. Idempotent.
    pub async fn ensure_tap(&self, wanted: &Tap) -> Result<()> {
        let name = &wanted.name;
        let what = format!("make the tap {name}");
        if self.rejoin(wanted).await? {
            return Ok(());
        }
        tap::persist(name, wanted.owner_uid).map_err(|e| Error::io(&what, &e))?;
        self.rejoin(wanted).await.map(drop)
    }

    /// Makes an existing tap a port of its bridge; returns false if the tap does not exist.
    pub(crate) async fn rejoin(&self, wanted: &Tap) -> Result<bool> {
        let name = &wanted.name;
        let what = format!("make the tap {name} a port of {}", wanted.bridge);
        let bridge = self.netlink.expect(&wanted.bridge).await?.header.index;
        let Some(link) = self.netlink.find(name).await? else { return Ok(false) };
        let link = self.ours(link, LinkKind::Tap)?;
        let joined = link.attributes.contains(&LinkAttribute::Controller(bridge));
        let marked = alias_of(&link).is_some();
        if joined && marked && link.header.flags.contains(LinkFlags::Up) && !has_ipv6(&link) {
            return Ok(true);
        }
        let index = link.header.index;
        self.set_mark(index, LinkKind::Tap).await?;
        no_ipv6(name)?;
        let up = LinkUnspec::new_with_index(index).controller(bridge).up().build();
        let set = self.netlink.handle.link().set(up).execute().await;
        set.map(|()| true).map_err(|e| Error::netlink(&what, &e))
    }

    /// Returns whether a link of this name exists.
    pub async fn has(&self, name: &str) -> Result<bool> {
        Ok(self.netlink.find(name).await?.is_some())
    }

    /// Removes a tap of this owner; a missing one is no error.
    pub async fn remove_tap(&self, name: &str) -> Result<()> {
        locked(&self.sizes).remove(name);
        self.remove(name, LinkKind::Tap).await
    }

    async fn remove(&self, name: &str, kind: LinkKind) -> Result<()> {
        let Some(link) = self.netlink.find(name).await? else { return Ok(()) };
        let link = self.ours(link, kind)?;
        let what = format!("remove the link {name}");
        let removed = self.netlink.handle.link().del(link.header.index).execute().await;
        removed.map_err(|e| Error::netlink(what, &e))?;
        match controller_of(&link) {
            Some(bridge) => sizes::fit(&self.netlink, bridge).await,
            None => Ok(()),
        }
    }

    /// Returns all links that carry this owner's mark.
    pub async fn list(&self) -> Result<Vec<OwnedLink>> {
        let owned = |link: &LinkMessage| {
            let kind = self.marks.kind(&alias_of(link)?)?;
            Some(OwnedLink { name: name_of(link)?, kind })
        };
        Ok(self.netlink.links().await?.iter().filter_map(owned).collect())
    }

    /// Puts the rules in force in place of the former ones, all at once, and reports whether the
    /// former ones were still in force.
    pub async fn apply(&self, rules: &Ruleset) -> Result<Applied> {
        let around = surroundings::look(&self.netlink, &self.marks).await?;
        let machines =
            self.firewall.knows_nothing() && has_machines(&self.netlink, &self.marks).await?;
        self.firewall.apply(rules, &around, machines).await
    }

    /// Returns whether rules were put in force and still are. Takes microseconds as long as nobody
    /// has changed nftables.
    pub fn stands(&self) -> Result<bool> {
        self.firewall.stand()
    }

    /// Opens a watch of changes to nftables and links.
    pub fn watch(&self) -> Result<Watch> {
        Watch::open()
    }

    /// Returns the bytes through a link; zero if the kernel does not count them.
    pub async fn counters(&self, name: &str) -> Result<Counters> {
        let link = self.netlink.expect(name).await?;
        let counters = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Stats64(stats) => {
                Some(Counters { rx_bytes: stats.rx_bytes, tx_bytes: stats.tx_bytes })
            }
            _ => None,
        });
        Ok(counters.unwrap_or_default())
    }

    /// Removes all links and tables of this owner.
    pub async fn clear(&self) -> Result<()> {
        for link in self.list().await? {
            self.remove(&link.name, link.kind).await?;
        }
        self.firewall.remove().await
    }

    /// Returns the link if it carries this owner's mark. Error: `name_taken`.
    fn ours(&self, link: LinkMessage, kind: LinkKind) -> Result<LinkMessage> {
        if self.marks.is_ours(&link, kind) {
            return Ok(link);
        }
        Err(Error::NameTaken { name: name_of(&link).unwrap_or_default() })
    }

    async fn set_mark(&self, index: u32, kind: LinkKind) -> Result<()> {
        let marked = LinkUnspec::new_with_index(index).alias(self.marks.full(kind)).build();
        let set = self.netlink.handle.link().set(marked).execute().await;
        set.map_err(|e| Error::netlink("mark a link", &e))
    }
}

/// Returns whether a process has one of this owner's taps open.
async fn has_machines(netlink: &Netlink, marks: &Marks) -> Result<bool> {
    let used = |link: &LinkMessage| {
        marks.is_ours(link, LinkKind::Tap) && link.header.flags.contains(LinkFlags::LowerUp)
    };
    Ok(netlink.links().await?.iter().any(used))
}

/// Turns IPv6 off: guests have none yet, and without it a bridge answers nothing that the rules do
/// not name.
fn no_ipv6(name: &str) -> Result<()> {
    set(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1")
}

const FORWARDING: &str = "net/ipv4/ip_forward";

/// Lets the kernel route packets of guests to the outside and back.
pub(crate) fn forward() -> Result<()> {
    set(FORWARDING, "1")
}

/// Lets the kernel forward what comes in by this link.
pub(crate) fn forward_from(name: &str) -> Result<()> {
    set(&format!("net/ipv4/conf/{name}/forwarding"), "1")
}

/// Returns whether the kernel forwards packets in this network namespace.
pub(crate) fn forwards() -> Result<bool> {
    let path = format!("{SETTINGS}/{FORWARDING}");
    let text = std::fs::read_to_string(&path);
    let text = text.map_err(|e| Error::io(format!("read {path}"), &e))?;
    Ok(text.trim() != "0")
}

const SETTINGS: &str = "/proc/sys";

/// Sets a kernel parameter unless it has this value already. A host without IPv6 has none of its
/// parameters, which is no error.
fn set(name: &str, value: &str) -> Result<()> {
    let path = format!("{SETTINGS}/{name}");
    if std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    match std::fs::write(&path, value) {
        Err(e) if e.kind() == ErrorKind::NotFound && name.starts_with("net/ipv6/") => Ok(()),
        outcome => outcome.map_err(|e| Error::io(format!("set {path} to {value}"), &e)),
    }
}

/// Returns whether IPv6 is on for the link; false if the kernel does not say.
pub(crate) fn has_ipv6(link: &LinkMessage) -> bool {
    families(link).any(|family| match family {
        AfSpecUnspec::Inet6(all) => all.iter().any(
            |about| matches!(about, AfSpecInet6::DevConf(settings) if settings.disable_ipv6 == 0),
        ),
        _ => false,
    })
}

/// Returns whether the kernel forwards what comes in by the link; true if the kernel does not say.
pub(crate) fn is_forwarding(link: &LinkMessage) -> bool {
    !families(link).any(|family| match family {
        AfSpecUnspec::Inet(all) => all.iter().any(
            |about| matches!(about, AfSpecInet::DevConf(settings) if settings.forwarding == 0),
        ),
        _ => false,
    })
}

fn families(link: &LinkMessage) -> impl Iterator<Item = &AfSpecUnspec> {
    let all = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::AfSpecUnspec(all) => Some(all),
        _ => None,
    });
    all.flatten()
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}
