//! A tenant's network: net id, subnet, and which address an instance gets.

use crate::error::Fault;
use crate::mac::Mac;
use ipnet::Ipv4Net;
use mvm_code::Code;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// The largest net id: 12 bits, as a VLAN id.
pub const MAX_NET_ID: u16 = 4095;

/// Networks that no machine can live in (RFC 6890).
const SPECIAL: &[(&str, &str)] = &[
    ("0.0.0.0/8", "unspecified"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
];

/// Networks that belong to nobody on the internet: private (RFC 1918), shared (RFC 6598), for
/// benchmarks (RFC 2544) and for documentation (RFC 5737).
const PRIVATE: [&str; 8] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "198.18.0.0/15",
    "192.0.2.0/24",
    "198.51.100.0/24",
    "203.0.113.0/24",
];

/// The network of a tenant's machines: one bridge, one subnet, gateway `.1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantNetwork {
    /// The number of the network, 0 to 4095, unique on the node.
    #[schemars(range(min = 0, max = 4095))]
    pub tenant_net_id: u16,
    /// An IPv4 network in CIDR form, /8 to /29, private or otherwise unused. It must not overlap
    /// with another tenant's.
    #[schemars(with = "String")]
    pub ipv4_subnet: Ipv4Net,
    /// Whether the subnet may be a network of the internet. Guests cannot reach the real hosts of
    /// that network then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_public_subnet: bool,
}

impl TenantNetwork {
    /// Checks the ranges of both fields; the JSON path of the fault is relative to the network.
    pub fn validate(&self) -> Result<(), Fault> {
        if self.tenant_net_id > MAX_NET_ID {
            return Err(Fault::new(
                Code::InvalidNetwork,
                format!("net id {} is above {MAX_NET_ID}", self.tenant_net_id),
            )
            .at("tenant_net_id")
            .hint("choose a net id from 0 to 4095 that no other tenant has"));
        }
        let net = self.ipv4_subnet;
        let invalid = |message: String, hint: &str| {
            Err(Fault::new(Code::InvalidNetwork, message).at("ipv4_subnet").hint(hint))
        };
        if net.trunc() != net {
            return invalid(
                format!("{net} has bits set behind its prefix"),
                &format!("did you mean {}?", net.trunc()),
            );
        }
        if !(8..=29).contains(&net.prefix_len()) {
            return invalid(
                format!("the prefix /{} is not between /8 and /29", net.prefix_len()),
                "a /24 holds 253 instances",
            );
        }
        let special = |(text, _): &&(&str, &str)| {
            let special: Ipv4Net = text.parse().expect("a network");
            special.contains(&net) || net.contains(&special)
        };
        if let Some((special, kind)) = SPECIAL.iter().find(special) {
            return invalid(
                format!("{net} overlaps with {special}, which is {kind}"),
                "use a private network (RFC 1918), such as 10.240.20.0/24",
            );
        }
        if self.is_public() && !self.allow_public_subnet {
            return invalid(
                format!("{net} is a network of the internet"),
                "use a private network (RFC 1918), or say --allow-public-subnet (allow_public_subnet)",
            );
        }
        Ok(())
    }

    /// Returns whether the subnet is, or has a part of, the internet.
    pub fn is_public(&self) -> bool {
        let inside =
            |text: &&str| text.parse().is_ok_and(|net: Ipv4Net| net.contains(&self.ipv4_subnet));
        !PRIVATE.iter().any(inside)
    }

    /// Returns whether both have the same net id and subnet, whatever was allowed when they were
    /// made.
    pub fn is_same(&self, other: &TenantNetwork) -> bool {
        (self.tenant_net_id, self.ipv4_subnet) == (other.tenant_net_id, other.ipv4_subnet)
    }

    /// Returns the gateway: the first host address, `.1` of a /24.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.ipv4_subnet.network()) + 1)
    }

    /// Returns how many instances can have an address: all host addresses but the gateway's.
    pub fn capacity(&self) -> u32 {
        let addresses = 1u64 << (32 - self.ipv4_subnet.prefix_len());
        u32::try_from(addresses.saturating_sub(3)).expect("2^32 - 3 at most")
    }

    /// Returns the lowest address that is not in `taken`. Errors: `subnet_full`.
    pub fn allocate(&self, taken: &BTreeSet<Ipv4Addr>) -> Result<Ipv4Addr, Fault> {
        let first = u32::from(self.gateway()) + 1;
        (first..first + self.capacity())
            .map(Ipv4Addr::from)
            .find(|address| !taken.contains(address))
            .ok_or_else(|| {
                Fault::new(
                    Code::SubnetFull,
                    format!("all {} addresses of {} are in use", self.capacity(), self.ipv4_subnet),
                )
                .hint("destroy instances that are not needed, or give the tenant a larger subnet")
            })
    }

    /// Returns why both networks cannot be on one node, if so: they have the same net id, or their
    /// subnets overlap.
    pub fn conflicts_with(&self, other: &TenantNetwork) -> Option<Fault> {
        if self.tenant_net_id == other.tenant_net_id {
            return Some(
                Fault::new(Code::Conflict, format!("net id {} is taken", self.tenant_net_id))
                    .at("tenant_net_id"),
            );
        }
        let (a, b) = (self.ipv4_subnet, other.ipv4_subnet);
        (a.contains(&b) || b.contains(&a))
            .then(|| Fault::new(Code::Conflict, format!("{a} overlaps with {b}")).at("ipv4_subnet"))
    }
}

/// Returns the MAC address of the machine that has `address`: locally administered, and distinct
/// for distinct addresses of one bridge.
pub fn mac_of(net_id: u16, address: Ipv4Addr) -> Mac {
    let [_, b, c, d] = address.octets();
    let [hi, lo] = net_id.to_be_bytes();
    Mac::from_bytes([2, 0x40 | hi, lo, b, c, d])
}
