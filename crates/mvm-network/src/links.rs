//! Bridges and taps.

use crate::marks::{LinkKind, Marks};
use crate::netlink::{Netlink, alias_of, name_of};
use crate::nftables::Watch;
use crate::rules::Ruleset;
use crate::surroundings::{self, network_of};
use crate::walls::{Applied, Walls};
use crate::{Error, Result, tap};
use ipnet::Ipv4Net;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{LinkBridge, LinkUnspec};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

/// A tenant's bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Its name, at most 15 characters.
    pub name: String,
    /// Its address: the gateway's, with the length of the subnet's prefix.
    pub gateway: Ipv4Net,
}

/// An instance's tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// Its name, at most 15 characters.
    pub name: String,
    /// The bridge that it is a port of.
    pub bridge: String,
    /// The guest's MAC address.
    pub mac: String,
    /// The guest's address.
    pub address: Ipv4Addr,
    /// The user that may open it.
    pub owner_uid: Option<u32>,
}

/// A link that carries our mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedLink {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
}

/// Bytes through a link since it was made, from the host's side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Received: what the guest has sent.
    pub rx_bytes: u64,
    /// Sent: what the guest has received.
    pub tx_bytes: u64,
}

/// The links and tables of one owner.
pub struct Network {
    pub(crate) marks: Marks,
    pub(crate) netlink: Netlink,
    pub(crate) walls: Walls,
}

impl Network {
    /// Opens the network namespace that the process is in, for the owner with this id (four
    /// hexadecimal digits).
    pub async fn open(owner: &str) -> Result<Network> {
        let (netlink, walls) = (Netlink::open()?, Walls::open(owner)?);
        Ok(Network { marks: Marks::new(owner), netlink, walls })
    }

    /// Has links say which state directory they are for, so that others can tell.
    pub fn of_root(self, root: &Path) -> Network {
        Network { marks: self.marks.of_root(root), ..self }
    }

    /// The name of a tenant's bridge.
    pub fn bridge_name(owner: &str, net_id: u16) -> String {
        format!("mv{owner}-b{net_id}")
    }

    /// The name of an instance's tap; `instance` is eight hexadecimal digits.
    pub fn tap_name(owner: &str, instance: &str) -> String {
        format!("mv{owner}-{instance}")
    }

    /// Makes the bridge, or corrects the one that is there.
    pub async fn ensure_bridge(&self, bridge: &Bridge) -> Result<()> {
        let name = &bridge.name;
        let what = format!("make the bridge {name}");
        let link = match self.netlink.find(name).await? {
            Some(link) => {
                let link = self.ours(link, LinkKind::Bridge)?;
                // An older agent's says not whose it is, and a state directory may have been moved.
                if alias_of(&link) != Some(self.marks.full(LinkKind::Bridge)) {
                    self.set_mark(link.header.index, LinkKind::Bridge).await?;
                }
                link
            }
            None => {
                // A MAC address of its own: otherwise the bridge takes that of a port, and
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
                no_ipv6(name);
                link
            }
        };
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
        forward()
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

    /// Removes a bridge of ours; one that is not there is no error.
    pub async fn remove_bridge(&self, name: &str) -> Result<()> {
        self.remove(name, LinkKind::Bridge).await
    }

    /// Makes the tap a port of its bridge; idempotent.
    pub async fn ensure_tap(&self, wanted: &Tap) -> Result<()> {
        let name = &wanted.name;
        let what = format!("make the tap {name}");
        if self.rejoin(wanted).await? {
            return Ok(());
        }
        tap::persist(name, wanted.owner_uid).map_err(|e| Error::io(&what, &e))?;
        self.rejoin(wanted).await.map(drop)
    }

    /// Makes a tap that is there a port of its bridge; false where it is not there.
    pub(crate) async fn rejoin(&self, wanted: &Tap) -> Result<bool> {
        let name = &wanted.name;
        let what = format!("make the tap {name} a port of {}", wanted.bridge);
        let bridge = self.netlink.expect(&wanted.bridge).await?.header.index;
        let Some(link) = self.netlink.find(name).await? else { return Ok(false) };
        let link = self.ours(link, LinkKind::Tap)?;
        let joined = link.attributes.contains(&LinkAttribute::Controller(bridge));
        if joined && link.header.flags.contains(LinkFlags::Up) {
            return Ok(true);
        }
        let index = link.header.index;
        self.set_mark(index, LinkKind::Tap).await?;
        no_ipv6(name);
        let up = LinkUnspec::new_with_index(index).controller(bridge).up().build();
        let set = self.netlink.handle.link().set(up).execute().await;
        set.map(|()| true).map_err(|e| Error::netlink(&what, &e))
    }

    /// Whether a link of this name is there.
    pub async fn has(&self, name: &str) -> Result<bool> {
        Ok(self.netlink.find(name).await?.is_some())
    }

    /// Removes a tap of ours; one that is not there is no error.
    pub async fn remove_tap(&self, name: &str) -> Result<()> {
        self.remove(name, LinkKind::Tap).await
    }

    async fn remove(&self, name: &str, kind: LinkKind) -> Result<()> {
        let Some(link) = self.netlink.find(name).await? else { return Ok(()) };
        let link = self.ours(link, kind)?;
        let what = format!("remove the link {name}");
        let removed = self.netlink.handle.link().del(link.header.index).execute().await;
        removed.map_err(|e| Error::netlink(what, &e))
    }

    /// All links that carry our mark.
    pub async fn list(&self) -> Result<Vec<OwnedLink>> {
        let owned = |link: &LinkMessage| {
            let kind = self.marks.kind(&alias_of(link)?)?;
            Some(OwnedLink { name: name_of(link)?, kind })
        };
        Ok(self.netlink.links().await?.iter().filter_map(owned).collect())
    }

    /// Puts the rules in force, in place of those of before; all at once. Looks whether those of before
    /// were still in force.
    pub async fn apply(&self, rules: &Ruleset) -> Result<Applied> {
        let around = surroundings::look(&self.netlink, &self.marks).await?;
        self.walls.apply(rules, &around).await
    }

    /// Whether rules were put in force, and still are. Takes microseconds where nobody has changed
    /// nftables meanwhile.
    pub fn stands(&self) -> Result<bool> {
        self.walls.stand()
    }

    /// Hears of changes of nftables and links.
    pub fn watch(&self) -> Result<Watch> {
        Watch::open()
    }

    /// Bytes through a link.
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
        self.walls.remove().await
    }

    /// The link, if it is ours. Errors: `name_taken`.
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

/// Guests have no IPv6 yet; without it a bridge answers to nothing that the rules do not name.
/// A host without IPv6 has no such file.
fn no_ipv6(name: &str) {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
}

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// Packets of guests are routed to the outside and back.
pub(crate) fn forward() -> Result<()> {
    std::fs::write(FORWARDING, "1").map_err(|e| Error::io("enable IPv4 forwarding", &e))
}

/// Whether they are, in this network namespace.
pub(crate) fn forwards() -> Result<bool> {
    let text = std::fs::read_to_string(FORWARDING);
    let text = text.map_err(|e| Error::io(format!("read {FORWARDING}"), &e))?;
    Ok(text.trim() != "0")
}
