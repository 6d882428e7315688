//! The MTUs of bridges: what the least of their ports takes.

use crate::netlink::{Netlink, controller_of, mtu_of, name_of};
use crate::{Error, Result};
use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::link::LinkMessage;

/// The kernel has a bridge take what the least of its ports does, until somebody has set it by hand.
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

/// Has a link take packets of this size.
pub(crate) async fn resize(netlink: &Netlink, link: &LinkMessage, mtu: u32) -> Result<()> {
    let sized = LinkUnspec::new_with_index(link.header.index).mtu(mtu).build();
    let what = format!("set the MTU of {}", name_of(link).unwrap_or_default());
    netlink.handle.link().set(sized).execute().await.map_err(|e| Error::netlink(what, &e))
}

/// The least of the MTUs of a bridge's ports; nothing where it has none.
pub(crate) fn ports_mtu(links: &[LinkMessage], bridge: u32) -> Option<u32> {
    let ports = links.iter().filter(|link| controller_of(link) == Some(bridge));
    ports.filter_map(mtu_of).min()
}
