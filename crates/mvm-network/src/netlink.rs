//! What the kernel tells of links, addresses and routes (rtnetlink(7)).

use crate::{Error, Result};
use futures::{TryStream, TryStreamExt};
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{Handle, RouteMessageBuilder};
use std::net::Ipv4Addr;
use std::time::Duration;

/// How often a list is asked for again where something was changed while the kernel told it.
const TRIES: usize = 50;

/// A connection to the kernel, in the network namespace that the process is in.
pub(crate) struct Netlink {
    /// For changes; lists are asked for below.
    pub(crate) handle: Handle,
}

impl Netlink {
    /// Opens a socket; what it receives is read by a task. Errors: `not_permitted`, `network_failed`.
    pub(crate) fn open() -> Result<Netlink> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|e| Error::io("open a netlink socket", &e))?;
        tokio::spawn(connection);
        Ok(Netlink { handle })
    }

    /// All links.
    pub(crate) async fn links(&self) -> Result<Vec<LinkMessage>> {
        whole("links", || self.handle.link().get().execute()).await
    }

    /// The addresses of all links.
    pub(crate) async fn addresses(&self) -> Result<Vec<AddressMessage>> {
        whole("addresses", || self.handle.address().get().execute()).await
    }

    /// The IPv4 routes of all tables.
    pub(crate) async fn routes(&self) -> Result<Vec<RouteMessage>> {
        let wanted = RouteMessageBuilder::<Ipv4Addr>::new().build();
        whole("routes", || self.handle.route().get(wanted.clone()).execute()).await
    }

    /// The link of this name, if there is one.
    pub(crate) async fn find(&self, name: &str) -> Result<Option<LinkMessage>> {
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

    /// The link of this name, which must be there. Errors: `network_failed`.
    pub(crate) async fn expect(&self, name: &str) -> Result<LinkMessage> {
        self.find(name).await?.ok_or_else(|| Error::Kernel {
            what: format!("look for the link {name}"),
            cause: "it is not there".to_owned(),
        })
    }

    /// The link with this index; nothing where it is gone.
    pub(crate) async fn by_index(&self, index: u32) -> Option<LinkMessage> {
        self.handle.link().get().match_index(index).execute().try_next().await.ok().flatten()
    }
}

/// A whole list. The kernel calls one busy (`NLM_F_DUMP_INTR`) that was changed while it was told.
async fn whole<S>(of: &str, ask: impl Fn() -> S) -> Result<Vec<S::Ok>>
where
    S: TryStream<Error = rtnetlink::Error>,
{
    let mut tries = TRIES;
    loop {
        match ask().try_collect().await {
            Err(error) if tries > 0 && is_busy(&error) => {
                tries -= 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            list => return list.map_err(|e| Error::netlink(format!("list the {of}"), &e)),
        }
    }
}

fn is_busy(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(message) = error else { return false };
    message.to_io().raw_os_error() == Some(libc::EBUSY)
}

/// A link's name.
pub(crate) fn name_of(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

/// What a link is marked with (`ip link set … alias`).
pub(crate) fn alias_of(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(alias) => Some(alias.clone()),
        _ => None,
    })
}

/// The bridge that the link is a port of.
pub(crate) fn controller_of(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Controller(index) => Some(*index),
        _ => None,
    })
}

/// The largest packet that the link takes.
pub(crate) fn mtu_of(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}
