//! What the firewall allows: a ruleset, as the caller specifies it.

use ipnet::Ipv4Net;
use mvm_model::Mac;
use std::net::Ipv4Addr;

/// Everything that the firewall allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// What each tenant's guests may do.
    pub tenants: Vec<TenantRules>,
    /// The DNS servers that guests are configured with: in [`Mode::Open`] their port 53 is open
    /// wherever they are.
    pub resolvers: Vec<Ipv4Addr>,
    /// Whether gateways answer DNS: in [`Mode::Open`] to all guests, otherwise to those with a rule
    /// for the gateway.
    pub forwarder: bool,
}

/// What one tenant's guests may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantRules {
    /// Name of the tenant's bridge.
    pub bridge: String,
    /// The tenant's subnet.
    pub subnet: Ipv4Net,
    /// The gateway: the host's address on the bridge.
    pub gateway: Ipv4Addr,
    /// Ports of the gateway that guests may reach.
    pub host_ports: Vec<(Proto, u16)>,
    /// The rules of each guest.
    pub taps: Vec<TapRules>,
}

/// A guest's addresses, and what it may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapRules {
    /// Name of the guest's tap.
    pub tap: String,
    /// The guest's MAC address.
    pub mac: Mac,
    /// The guest's IPv4 address.
    pub address: Ipv4Addr,
    /// What the guest may reach outside its tenant.
    pub egress: Egress,
}

/// What a guest may reach outside its tenant. Other tenants never count as outside.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Egress {
    /// How much is open.
    pub mode: Mode,
    /// What else is open in [`Mode::Open`] and [`Mode::Allow`]. A closed network opens where a
    /// rule's network lies within it, but not for a wider one; an address of the host opens if a
    /// rule names it alone.
    pub allow: Vec<AllowRule>,
    /// Whether the networks of the host's own links are treated as the outside.
    pub lan: bool,
}

/// How much of the outside is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Everything that is not closed by default.
    #[default]
    Open,
    /// Nothing.
    None,
    /// Only what [`Egress::allow`] names.
    Allow,
}

/// One permission.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AllowRule {
    /// The network that may be reached.
    pub cidr: Ipv4Net,
    /// The port that may be reached; `None` means every port and protocol.
    pub port: Option<u16>,
    /// The protocol; `None` means TCP and UDP. Ignored without a port.
    pub proto: Option<Proto>,
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Proto {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
        }
    }
}

/// Networks in the network namespace that are closed to guests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Networks of the host's links, and those routed otherwise than the internet.
    pub lan: Vec<Ipv4Net>,
    /// Subnets of other owners' tenants.
    pub foreign: Vec<Ipv4Net>,
}
