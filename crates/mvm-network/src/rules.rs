//! What is allowed: a ruleset, as the caller says it.

use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

/// Everything that is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// By tenant.
    pub tenants: Vec<TenantRules>,
    /// The DNS servers that guests are told of: with [`Mode::Open`] their port 53 is open wherever they
    /// are.
    pub resolvers: Vec<Ipv4Addr>,
    /// Whether gateways answer to DNS: with [`Mode::Open`] all guests, else those that name the gateway.
    pub forwarder: bool,
}

/// What one tenant's guests may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantRules {
    /// The tenant's bridge.
    pub bridge: String,
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// The gateway: the host's address on the bridge.
    pub gateway: Ipv4Addr,
    /// Ports of the gateway that guests may reach.
    pub host_ports: Vec<(Proto, u16)>,
    /// The guests.
    pub taps: Vec<TapRules>,
}

/// What one guest is and may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapRules {
    /// Its tap.
    pub tap: String,
    /// Its MAC address.
    pub mac: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// What of the outside it may reach.
    pub egress: Egress,
}

/// What of the outside a guest may reach. Other tenants never count as outside.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Egress {
    /// How much is open.
    pub mode: Mode,
    /// What is open beside: with [`Mode::Open`] and [`Mode::Allow`]. A closed network opens where a rule's
    /// network lies in it, and not where it is the wider one; an address of the host where it is named alone.
    pub allow: Vec<AllowRule>,
    /// Whether the networks of the host's own links are open as the outside is.
    pub lan: bool,
}

/// How much of the outside is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Everything that is not closed.
    #[default]
    Open,
    /// Nothing.
    None,
    /// What is named.
    Allow,
}

/// One permission.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AllowRule {
    /// Where to.
    pub cidr: Ipv4Net,
    /// To which port; everything where absent.
    pub port: Option<u16>,
    /// By which protocol; by TCP and UDP where absent. Of no account without a port.
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

/// What is around us in the network namespace, and closed to guests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Networks of the host's links, and those that are routed otherwise than the internet is.
    pub lan: Vec<Ipv4Net>,
    /// Subnets of tenants of other owners.
    pub foreign: Vec<Ipv4Net>,
}
