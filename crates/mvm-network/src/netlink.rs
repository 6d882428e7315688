//! Lists of links, addresses and routes from the kernel (rtnetlink(7)).

use crate::{Error, Result};
use futures::{TryStream, TryStreamExt};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{Handle, LinkGetRequest, RouteMessageBuilder};
use std::net::Ipv4Addr;
use std::time::Duration;

/// How often a list is requested again because something changed while the kernel sent it.
const TRIES: usize = 50;

/// What the kernel has, read at one time.
pub(crate) struct View {
    /// All links, without their counters.
    pub(crate) links: Vec<LinkMessage>,
    /// The addresses of all links.
    pub(crate) addresses: Vec<AddressMessage>,
    /// The IPv4 routes of all tables.
    pub(crate) routes: Vec<RouteMessage>,
}

/// A connection to the kernel, in the process's network namespace.
pub(crate) struct Netlink {
    /// For changes; the methods below request lists.
    pub(crate) handle: Handle,
}

impl Netlink {
    /// Opens a socket and starts the task that reads from it. Errors: `not_permitted`,
    /// `network_failed`.
    pub(crate) fn open() -> Result<Netlink> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|e| Error::io("open a netlink socket", &e))?;
        tokio::spawn(connection);
        Ok(Netlink { handle })
    }

    /// Returns all links, addresses and routes.
    pub(crate) async fn view(&self) -> Result<View> {
        let (links, addresses) = (self.links().await?, self.addresses().await?);
        Ok(View { links, addresses, routes: self.routes().await? })
    }

    /// Returns all links, without their counters.
    pub(crate) async fn links(&self) -> Result<Vec<LinkMessage>> {
        whole("links", || self.plain_links().execute()).await
    }

    /// Asks for links without their counters, which are half of what there is to say of a link.
    fn plain_links(&self) -> LinkGetRequest {
        let without = vec![LinkExtentMask::SkipStats];
        self.handle.link().get().set_filter_mask(AddressFamily::Unspec, without)
    }

    /// Returns the addresses of all links.
    pub(crate) async fn addresses(&self) -> Result<Vec<AddressMessage>> {
        whole("addresses", || self.handle.address().get().execute()).await
    }

    /// Returns the IPv4 routes of all tables.
    pub(crate) async fn routes(&self) -> Result<Vec<RouteMessage>> {
        let wanted = RouteMessageBuilder::<Ipv4Addr>::new().build();
        whole("routes", || self.handle.route().get(wanted.clone()).execute()).await
    }

    /// Returns the link of this name; `None` if it does not exist.
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

    /// Returns the link of this name, which must exist. Error: `network_failed`.
    pub(crate) async fn expect(&self, name: &str) -> Result<LinkMessage> {
        self.find(name).await?.ok_or_else(|| Error::Kernel {
            what: format!("look for the link {name}"),
            cause: "it is not there".to_owned(),
        })
    }

    /// Returns the link with this index, without its counters; `None` if it is gone.
    pub(crate) async fn by_index(&self, index: u32) -> Option<LinkMessage> {
        self.plain_links().match_index(index).execute().try_next().await.ok().flatten()
    }
}

/// Returns a whole list; asks again if the kernel marks it as changed while it was sent
/// (`NLM_F_DUMP_INTR`).
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

/// Returns a link's name.
pub(crate) fn name_of(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

/// Returns a link's alias (`ip link set … alias`).
pub(crate) fn alias_of(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(alias) => Some(alias.clone()),
        _ => None,
    })
}

/// Returns the index of the bridge that the link is a port of; `None` if it is no port.
pub(crate) fn controller_of(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Controller(index) => Some(*index),
        _ => None,
    })
}

/// Returns the link's MTU in bytes.
pub(crate) fn mtu_of(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}
