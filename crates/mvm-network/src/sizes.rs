//! The MTUs of bridges: the smallest of their ports'.

use crate::netlink::{Netlink, controller_of, mtu_of, name_of};
use crate::{Error, Result};
use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::link::LinkMessage;

/// Sets a bridge's MTU to the smallest of its ports'. The kernel does so by itself until somebody
/// has set the MTU by hand.
pub(crate) async fn fit(netlink: &Netlink, bridge: u32) -> Result<()> {
    let links = netlink.links().await?;
    let Some(link) = links.iter().find(|link| link.header.index == bridge) else {
        return Ok(());
    };
    match ports_mtu(&links, bridge) {
        Some(least) if mtu_of(link) != Some(least) => resize(netlink, link, least).await,
        _ => Ok(()),
    }
}

/// Sets the MTU of a link, in bytes.
pub(crate) async fn resize(netlink: &Netlink, link: &LinkMessage, mtu: u32) -> Result<()> {
    let sized = LinkUnspec::new_with_index(link.header.index).mtu(mtu).build();
    let what = format!("set the MTU of {}", name_of(link).unwrap_or_default());
    netlink.handle.link().set(sized).execute().await.map_err(|e| Error::netlink(what, &e))
}

/// Returns the smallest MTU of a bridge's ports; `None` if it has none.
pub(crate) fn ports_mtu(links: &[LinkMessage], bridge: u32) -> Option<u32> {
    let ports = links.iter().filter(|link| controller_of(link) == Some(bridge));
    ports.filter_map(mtu_of).min()
}
