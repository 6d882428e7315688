//! Bridges and taps.

use crate::error::undisturbed;
use crate::nftables::Nftables;
use crate::walls::Standing;
use crate::{Error, Result, nft, render, tap};
use futures::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::{Handle, LinkBridge, LinkUnspec};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The longest alias of a link (IFALIASZ of linux/if.h, without the zero).
const LONGEST_ALIAS: usize = 255;

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

/// What a link of ours is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A tenant's bridge.
    Bridge,
    /// An instance's tap.
    Tap,
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
    pub(crate) owner: String,
    /// The state directory that the links are for, as they say.
    root: Option<PathBuf>,
    pub(crate) handle: Handle,
    pub(crate) nftables: Nftables,
    /// What was put in force last.
    pub(crate) standing: Mutex<Option<Standing>>,
}

impl Network {
    /// Opens the network namespace that the process is in, for the owner with this id (four
    /// hexadecimal digits).
    pub async fn open(owner: &str) -> Result<Network> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|e| Error::io("open a netlink socket", &e))?;
        tokio::spawn(connection);
        let nftables = Nftables::open()?;
        Ok(Network {
            owner: owner.to_owned(),
            root: None,
            handle,
            nftables,
            standing: Mutex::new(None),
        })
    }

    /// Has links say which state directory they are for, so that others can tell.
    pub fn of_root(self, root: &Path) -> Network {
        Network { root: Some(root.to_owned()), ..self }
    }

    /// The name of a tenant's bridge.
    pub fn bridge_name(owner: &str, net_id: u16) -> String {
        format!("mv{owner}-b{net_id}")
    }

    /// The name of an instance's tap; `instance` is eight hexadecimal digits.
    pub fn tap_name(owner: &str, instance: &str) -> String {
        format!("mv{owner}-{instance}")
    }

    fn mark(&self, kind: LinkKind) -> String {
        let kind = match kind {
            LinkKind::Bridge => "bridge",
            LinkKind::Tap => "tap",
        };
        format!("mvm:{}:{kind}", self.owner)
    }

    /// The mark with the state directory behind it, as far as there is room for it.
    fn full_mark(&self, kind: LinkKind) -> String {
        let mark = self.mark(kind);
        let full = self.root.as_ref().map(|root| format!("{mark}:{}", root.display()));
        full.filter(|full| full.len() <= LONGEST_ALIAS).unwrap_or(mark)
    }

    /// Whether an alias is our mark, with a state directory behind it or without.
    fn is_mark(&self, alias: &str, kind: LinkKind) -> bool {
        let rest = alias.strip_prefix(&self.mark(kind));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
    }

    /// Makes the bridge, or corrects the one that is there.
    pub async fn ensure_bridge(&self, bridge: &Bridge) -> Result<()> {
        let name = &bridge.name;
        let what = format!("make the bridge {name}");
        let link = match self.find(name).await? {
            Some(link) => {
                let link = self.ours(link, LinkKind::Bridge)?;
                // An older agent's says not whose it is, and a state directory may have been moved.
                if alias_of(&link) != Some(self.full_mark(LinkKind::Bridge)) {
                    self.set_mark(link.header.index, LinkKind::Bridge).await?;
                }
                link
            }
            None => {
                // A MAC address of its own: otherwise the bridge takes that of a port, and
                // changes it as ports come and go.
                let [a, b, c, d] = bridge.gateway.addr().octets();
                let message = LinkBridge::new(name).address(vec![0x02, 0xfe, a, b, c, d]).build();
                self.handle
                    .link()
                    .add(message)
                    .execute()
                    .await
                    .map_err(|e| Error::netlink(&what, &e))?;
                let link = self.expect(name).await?;
                self.set_mark(link.header.index, LinkKind::Bridge).await?;
                no_ipv6(name);
                link
            }
        };
        let index = link.header.index;
        self.ensure_address(index, bridge.gateway).await?;
        let up = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(up).execute().await.map_err(|e| Error::netlink(&what, &e))?;
        forward()
    }

    async fn ensure_address(&self, index: u32, wanted: Ipv4Net) -> Result<()> {
        undisturbed(|| self.ensure_address_once(index, wanted)).await
    }

    async fn ensure_address_once(&self, index: u32, wanted: Ipv4Net) -> Result<()> {
        let failed =
            |e: rtnetlink::Error| Error::netlink(format!("give a bridge the address {wanted}"), &e);
        let mut present = false;
        let mut addresses = self.handle.address().get().set_link_index_filter(index).execute();
        while let Some(message) = addresses.try_next().await.map_err(failed)? {
            let is = message.attributes.iter().any(|attribute| {
                *attribute == AddressAttribute::Address(IpAddr::V4(wanted.addr()))
            }) && message.header.prefix_len == wanted.prefix_len();
            if is {
                present = true;
            } else if message.header.family == rtnetlink::packet_route::AddressFamily::Inet {
                self.handle.address().del(message).execute().await.map_err(failed)?;
            }
        }
        if present {
            return Ok(());
        }
        let address = IpAddr::V4(wanted.addr());
        self.handle
            .address()
            .add(index, address, wanted.prefix_len())
            .execute()
            .await
            .map_err(failed)
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
        let bridge = self.expect(&wanted.bridge).await?.header.index;
        let Some(link) = self.find(name).await? else { return Ok(false) };
        let link = self.ours(link, LinkKind::Tap)?;
        let joined = link.attributes.contains(&LinkAttribute::Controller(bridge));
        if joined && link.header.flags.contains(rtnetlink::packet_route::link::LinkFlags::Up) {
            return Ok(true);
        }
        let index = link.header.index;
        self.set_mark(index, LinkKind::Tap).await?;
        no_ipv6(name);
        let up = LinkUnspec::new_with_index(index).controller(bridge).up().build();
        let set = self.handle.link().set(up).execute().await;
        set.map(|()| true).map_err(|e| Error::netlink(&what, &e))
    }

    /// Whether a link of this name is there.
    pub async fn has(&self, name: &str) -> Result<bool> {
        Ok(self.find(name).await?.is_some())
    }

    /// Removes a tap of ours; one that is not there is no error.
    pub async fn remove_tap(&self, name: &str) -> Result<()> {
        self.remove(name, LinkKind::Tap).await
    }

    async fn remove(&self, name: &str, kind: LinkKind) -> Result<()> {
        let Some(link) = self.find(name).await? else { return Ok(()) };
        let link = self.ours(link, kind)?;
        let what = format!("remove the link {name}");
        let removed = self.handle.link().del(link.header.index).execute().await;
        removed.map_err(|e| Error::netlink(what, &e))
    }

    /// All links that carry our mark.
    pub async fn list(&self) -> Result<Vec<OwnedLink>> {
        undisturbed(|| self.list_once()).await
    }

    async fn list_once(&self) -> Result<Vec<OwnedLink>> {
        let mut found = Vec::new();
        let mut links = self.handle.link().get().execute();
        while let Some(link) =
            links.try_next().await.map_err(|e| Error::netlink("list the links", &e))?
        {
            let Some(name) = name_of(&link) else { continue };
            for kind in [LinkKind::Bridge, LinkKind::Tap] {
                if alias_of(&link).is_some_and(|alias| self.is_mark(&alias, kind)) {
                    found.push(OwnedLink { name: name.clone(), kind });
                }
            }
        }
        Ok(found)
    }

    /// Bytes through a link.
    pub async fn counters(&self, name: &str) -> Result<Counters> {
        let link = self.expect(name).await?;
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
        *self.standing() = None;
        nft::run_nft(&render::removal(&self.owner)).await
    }

    async fn find(&self, name: &str) -> Result<Option<LinkMessage>> {
        let mut links = self.handle.link().get().match_name(name.to_owned()).execute();
        match links.try_next().await {
            Ok(link) => Ok(link),
            Err(rtnetlink::Error::NetlinkError(e))
                if e.to_io().raw_os_error() == Some(libc::ENODEV) =>
            {
                Ok(None)
            }
            Err(e) => Err(Error::netlink(format!("look for the link {name}"), &e)),
        }
    }

    pub(crate) async fn expect(&self, name: &str) -> Result<LinkMessage> {
        self.find(name).await?.ok_or_else(|| Error::Kernel {
            what: format!("look for the link {name}"),
            cause: "it is not there".to_owned(),
        })
    }

    /// The link, if it carries our mark; one without any mark is ours too when only we can have
    /// made it: an agent was killed between making and marking.
    fn ours(&self, link: LinkMessage, kind: LinkKind) -> Result<LinkMessage> {
        let name = name_of(&link).unwrap_or_default();
        let mark = alias_of(&link);
        let named = name.starts_with(&format!("mv{}-", self.owner));
        match mark {
            Some(mark) if self.is_mark(&mark, kind) => Ok(link),
            None if named && is_kind(&link, kind) => Ok(link),
            _ => Err(Error::NameTaken { name }),
        }
    }

    async fn set_mark(&self, index: u32, kind: LinkKind) -> Result<()> {
        let marked = LinkUnspec::new_with_index(index).alias(self.full_mark(kind)).build();
        let set = self.handle.link().set(marked).execute().await;
        set.map_err(|e| Error::netlink("mark a link", &e))
    }
}

pub(crate) fn name_of(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

/// What it is marked with (`ip link set … alias`).
pub(crate) fn alias_of(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(alias) => Some(alias.clone()),
        _ => None,
    })
}

/// The owner and the state directory that a mark names; nothing where it is no mark of this make.
pub(crate) fn root_of(alias: &str) -> Option<(String, Option<PathBuf>)> {
    let mut parts = alias.strip_prefix("mvm:")?.splitn(3, ':');
    let (owner, _kind) = (parts.next()?, parts.next()?);
    Some((owner.to_owned(), parts.next().map(PathBuf::from)))
}

fn is_kind(link: &LinkMessage, kind: LinkKind) -> bool {
    let wanted = match kind {
        LinkKind::Bridge => InfoKind::Bridge,
        LinkKind::Tap => InfoKind::Tun,
    };
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(wanted.clone())),
        _ => false,
    })
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
