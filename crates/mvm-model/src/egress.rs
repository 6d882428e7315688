//! What a pool's guests may reach outside.

use crate::error::Fault;
use crate::text::{shown, string_conversions};
use ipnet::Ipv4Net;
use mvm_code::Code;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// The most destinations of one pool.
pub const MAX_ALLOWED: usize = 256;

/// Addresses that no machine has: this host, loopback, multicast, reserved and broadcast (RFC
/// 6890).
const NOBODY: [Ipv4Net; 4] = [
    Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4),
    Ipv4Net::new_assert(Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// The outside addresses that a pool's guests may reach. Other tenants never count as outside, and
/// IPv6 is closed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Egress {
    /// How much is open: everything that is not closed, nothing, or what `allow` names.
    #[serde(default)]
    pub mode: EgressMode,
    /// The destinations that are open in mode `allow`. In every mode but `none`, they also open
    /// parts of networks that are closed otherwise: `10.0.0.0/8:443/tcp`. At most 256.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub allow: Vec<Destination>,
    /// Whether the networks of the host's own links count as outside. They are closed otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_lan: bool,
}

/// How much of the outside is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EgressMode {
    /// The internet: everything that is not closed.
    #[default]
    Open,
    /// Nothing.
    None,
    /// The destinations in `allow`, and nothing else.
    Allow,
}

/// `CIDR[:PORT[/PROTO]]`: a network; all its ports or one; one protocol, or TCP and UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = r"^[0-9.]+(/[0-9]{1,2})?(:[0-9]{1,5}(/(tcp|udp))?)?$"))]
pub struct Destination {
    /// The destination network.
    pub cidr: Ipv4Net,
    /// The port, 1 to 65535; all ports and protocols where absent.
    pub port: Option<u16>,
    /// The port's protocol; TCP and UDP where absent.
    pub protocol: Option<Protocol>,
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

string_conversions!(Destination);

impl Egress {
    /// Checks that the parts fit together; the fault's JSON path is relative to the object that has
    /// this as `egress`.
    pub fn validate(&self) -> Result<(), Fault> {
        let wrong = |what: String, at: String, hint: &str| {
            Err(Fault::new(Code::InvalidValue, what).at(at).hint(hint))
        };
        let named = self.allow.len();
        match self.mode {
            EgressMode::None if named > 0 => wrong(
                "mode is none, and allow names destinations".to_owned(),
                "egress.allow".to_owned(),
                "say mode allow: only what is named is open then",
            )?,
            EgressMode::None if self.allow_lan => wrong(
                "mode is none, and allow_lan opens the host's networks".to_owned(),
                "egress.allow_lan".to_owned(),
                "say mode allow, and name the networks",
            )?,
            EgressMode::Allow if named == 0 => wrong(
                "mode is allow, and nothing is allowed".to_owned(),
                "egress.allow".to_owned(),
                "name what may be reached, such as 10.0.0.0/8:443/tcp, or say mode none",
            )?,
            _ => {}
        }
        if named > MAX_ALLOWED {
            let what = format!("{named} destinations");
            wrong(what, "egress.allow".to_owned(), "at most 256; wider networks need fewer")?;
        }
        for (index, destination) in self.allow.iter().enumerate() {
            if NOBODY.iter().any(|nobody| nobody.contains(&destination.cidr)) {
                let what = format!(
                    "{destination} is not allowed: loopback, multicast, broadcast and reserved addresses are \
                     nobody's outside, and closed whatever a pool says"
                );
                wrong(what, format!("egress.allow[{index}]"), "leave it out")?;
            }
            if self.allow[..index].contains(destination) {
                let what = format!("{destination} stands twice");
                return Err(Fault::new(Code::Duplicate, what).at(format!("egress.allow[{index}]")));
            }
        }
        Ok(())
    }

    /// Refuses a destination in the subnet of another tenant, which nothing opens. The fault does
    /// not say which tenant it is.
    pub fn admit(&self, others: impl Iterator<Item = Ipv4Net> + Clone) -> Result<(), Fault> {
        for (index, destination) in self.allow.iter().enumerate() {
            if others.clone().any(|subnet| subnet.contains(&destination.cidr)) {
                let what = format!(
                    "{destination} is not allowed: it lies in another tenant's subnet, and tenants never reach \
                     each other"
                );
                return Err(Fault::new(Code::InvalidValue, what)
                    .at(format!("egress.allow[{index}]"))
                    .hint(
                        "leave it out; what tenants share has an address outside of their subnets",
                    ));
            }
        }
        Ok(())
    }
}

impl FromStr for Destination {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let shown = shown(text);
        let wrong = |why: &str| {
            Fault::new(Code::InvalidValue, format!("{shown:?} is not a destination: {why}"))
                .hint("write it as CIDR[:PORT[/PROTO]], such as 10.0.0.0/8:443/tcp")
        };
        if text.matches(':').count() > 1 {
            return Err(wrong("it has more than one colon; IPv6 is closed to guests"));
        }
        let (network, port) = match text.split_once(':') {
            Some((network, port)) => (network, Some(port)),
            None => (text, None),
        };
        let cidr =
            network_of(network).ok_or_else(|| wrong("it does not begin with an IPv4 network"))?;
        if cidr.trunc() != cidr {
            let what = format!("{shown:?} has bits set behind its prefix");
            return Err(Fault::new(Code::InvalidValue, what).hint(format!(
                "did you mean {}?",
                Destination { cidr: cidr.trunc(), port: None, protocol: None }
            )));
        }
        let Some(port) = port else { return Ok(Destination { cidr, port: None, protocol: None }) };
        let (port, protocol) = match port.split_once('/') {
            Some((port, "tcp")) => (port, Some(Protocol::Tcp)),
            Some((port, "udp")) => (port, Some(Protocol::Udp)),
            Some(_) => return Err(wrong("the protocol is neither tcp nor udp")),
            None => (port, None),
        };
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let number = port.parse::<u16>().ok().filter(|number| digits && *number > 0);
        let port = number.ok_or_else(|| wrong("the port is not 1 to 65535"))?;
        Ok(Destination { cidr, port: Some(port), protocol })
    }
}

/// Reads a network; an address alone is a network of one.
fn network_of(text: &str) -> Option<Ipv4Net> {
    match text.contains('/') {
        true => text.parse().ok(),
        false => text.parse::<Ipv4Addr>().ok().map(Ipv4Net::from),
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cidr)?;
        let Some(port) = self.port else { return Ok(()) };
        write!(f, ":{port}")?;
        match self.protocol {
            Some(protocol) => write!(f, "/{}", protocol.name()),
            None => Ok(()),
        }
    }
}

impl Protocol {
    /// Returns `tcp` or `udp`.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}
