//! From a ruleset to nft's own language (nft(8)), applied in one transaction.

use crate::{Error, Result};
use ipnet::Ipv4Net;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::process::Stdio;
use tokio::io::AsyncWriteExt;

/// Everything that is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// By tenant.
    pub tenants: Vec<TenantRules>,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Egress {
    /// Everything.
    Open,
    /// Nothing.
    None,
    /// What is named.
    Allow(Vec<AllowRule>),
}

/// One permission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowRule {
    /// Where to.
    pub cidr: Ipv4Net,
    /// By which protocol; any where absent.
    pub proto: Option<Proto>,
    /// To which ports; all where empty. Needs a protocol.
    pub ports: Vec<u16>,
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Proto {
    fn name(self) -> &'static str {
        match self {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
        }
    }
}

/// The text that removes the owner's tables. Each is made first, so that removing never fails.
pub(crate) fn removal(owner: &str) -> String {
    format!(
        "table bridge mvm_{owner}\ndelete table bridge mvm_{owner}\n\
         table inet mvm_{owner}\ndelete table inet mvm_{owner}\n"
    )
}

/// The text that puts `rules` in force in place of whatever the owner's tables hold.
pub(crate) fn render(owner: &str, rules: &Ruleset) -> String {
    let mut text = removal(owner);
    bridge_table(&mut text, owner, rules);
    inet_table(&mut text, owner, rules);
    text
}

/// Between ports of a bridge: every frame from a guest carries its own addresses, every frame to a
/// guest is for it. Nothing but IPv4 and ARP passes.
fn bridge_table(text: &mut String, owner: &str, rules: &Ruleset) {
    let guests = || rules.tenants.iter().flat_map(|tenant| &tenant.taps);
    let who = guests().map(|g| format!("\"{}\" . {} . {}", g.tap, g.mac, g.address));
    let homes = guests().map(|g| format!("\"{}\" . {}", g.tap, g.address));
    let who = set("guests", "ifname . ether_addr . ipv4_addr", who);
    let homes = set("homes", "ifname . ipv4_addr", homes);
    let _ = write!(
        text,
        "table bridge mvm_{owner} {{
{who}{homes}
  chain prerouting {{
    type filter hook prerouting priority -300; policy accept;
    iifname \"mv{owner}-*\" jump from_guest
  }}
  chain from_guest {{
    meta protocol ip iifname . ether saddr . ip saddr @guests accept
    meta protocol arp iifname . arp saddr ether . arp saddr ip @guests iifname . ether saddr . arp saddr ip @guests accept
    drop
  }}
  chain postrouting {{
    type filter hook postrouting priority 0; policy accept;
    oifname \"mv{owner}-*\" jump to_guest
  }}
  chain to_guest {{
    meta protocol arp accept
    meta protocol ip oifname . ip daddr @homes accept
    drop
  }}
}}
"
    );
}

/// Between bridges, the host and the outside.
fn inet_table(text: &mut String, owner: &str, rules: &Ruleset) {
    let tenants = &rules.tenants;
    let gateways = tenants.iter().map(|t| format!("\"{}\" . {}", t.bridge, t.gateway));
    let gateways = set("gateways", "ifname . ipv4_addr", gateways);
    let services = tenants.iter().flat_map(|t| {
        t.host_ports.iter().map(move |(proto, port)| {
            format!("\"{}\" . {} . {} . {port}", t.bridge, t.gateway, proto.name())
        })
    });
    let services = set("services", "ifname . ipv4_addr . inet_proto . inet_service", services);
    let subnets = tenants.iter().map(|t| t.subnet.to_string());
    let subnets = set_with("subnets", "ipv4_addr", "flags interval;", subnets);
    // Where br_netfilter is loaded, frames between siblings come by here as well.
    let within = tenants.iter().map(|t| format!("\"{0}\" . \"{0}\"", t.bridge));
    let within = set("within", "ifname . ifname", within);
    let guests = || tenants.iter().flat_map(|tenant| &tenant.taps);
    let open = guests().filter(|g| g.egress == Egress::Open).map(|g| g.address.to_string());
    let open = set("open", "ipv4_addr", open);
    let mut allowed = String::new();
    for guest in guests() {
        if let Egress::Allow(rules) = &guest.egress {
            for rule in rules {
                let _ = writeln!(allowed, "    ip saddr {} {}", guest.address, allow(rule));
            }
        }
    }
    let _ = write!(
        text,
        "table inet mvm_{owner} {{
{gateways}{services}{subnets}{within}{open}
  chain input {{
    type filter hook input priority -10; policy accept;
    iifname \"mv{owner}-b*\" jump from_tenant
  }}
  chain from_tenant {{
    ct state established,related accept
    icmp type echo-request iifname . ip daddr @gateways accept
    iifname . ip daddr . meta l4proto . th dport @services accept
    drop
  }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    iifname \"mv{owner}-b*\" jump out_of_tenant
    oifname \"mv{owner}-b*\" jump into_tenant
  }}
  chain out_of_tenant {{
    iifname . oifname @within accept
    oifname \"mv{owner}-b*\" drop
    ct state established,related accept
    ip saddr @open accept
{allowed}    drop
  }}
  chain into_tenant {{
    ct state established,related accept
    drop
  }}
  chain source_nat {{
    type nat hook postrouting priority 100; policy accept;
    ip saddr @subnets oifname != \"mv{owner}-b*\" masquerade
  }}
}}
"
    );
}

fn allow(rule: &AllowRule) -> String {
    let ports: Vec<String> = rule.ports.iter().map(u16::to_string).collect();
    match rule.proto {
        Some(proto) if !ports.is_empty() => {
            format!(
                "ip daddr {} {} dport {{ {} }} accept",
                rule.cidr,
                proto.name(),
                ports.join(", ")
            )
        }
        Some(proto) => format!("ip daddr {} meta l4proto {} accept", rule.cidr, proto.name()),
        None => format!("ip daddr {} accept", rule.cidr),
    }
}

fn set(name: &str, kind: &str, elements: impl Iterator<Item = String>) -> String {
    set_with(name, kind, "", elements)
}

fn set_with(name: &str, kind: &str, flags: &str, elements: impl Iterator<Item = String>) -> String {
    let elements: Vec<String> = elements.collect();
    let elements = match elements.is_empty() {
        true => String::new(),
        false => format!("elements = {{ {} }}", elements.join(", ")),
    };
    format!("  set {name} {{ type {kind}; {flags} {elements} }}\n")
}

/// Runs `nft -f -` with `text`: all of it takes effect, or nothing.
pub(crate) async fn run_nft(text: &str) -> Result<()> {
    nft(&["-f", "-"], text).await
}

async fn nft(arguments: &[&str], text: &str) -> Result<()> {
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => Error::NftMissing,
        _ => Error::io("run nft", &e),
    };
    let mut child = tokio::process::Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends before it has read all says why on its standard error.
        let _ = stdin.write_all(text.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    if words.contains("Operation not permitted") {
        return Err(Error::NotPermitted { what: "set firewall rules".to_owned() });
    }
    Err(Error::NftRefused(words.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Network;
    use proptest::prelude::*;

    fn rules(tenants: &[(u16, Vec<u8>)]) -> Ruleset {
        let tenants = tenants
            .iter()
            .map(|(net_id, guests)| TenantRules {
                bridge: Network::bridge_name("00ff", *net_id),
                subnet: Ipv4Net::new_assert(
                    Ipv4Addr::new(10, (*net_id >> 8) as u8, *net_id as u8, 0),
                    24,
                ),
                gateway: Ipv4Addr::new(10, (*net_id >> 8) as u8, *net_id as u8, 1),
                host_ports: if guests.len() % 2 == 0 {
                    vec![]
                } else {
                    vec![(Proto::Tcp, 80), (Proto::Udp, 53)]
                },
                taps: guests
                    .iter()
                    .map(|guest| TapRules {
                        tap: Network::tap_name("00ff", &format!("{net_id:04x}00{guest:02x}")),
                        mac: format!(
                            "02:40:00:00:{net_id:02x}:{guest:02x}",
                            net_id = net_id & 0xff
                        ),
                        address: Ipv4Addr::new(10, (*net_id >> 8) as u8, *net_id as u8, *guest),
                        egress: match guest % 3 {
                            0 => Egress::Open,
                            1 => Egress::None,
                            _ => Egress::Allow(vec![
                                AllowRule {
                                    cidr: "1.2.3.0/24".parse().expect("cidr"),
                                    proto: Some(Proto::Tcp),
                                    ports: vec![80, 443],
                                },
                                AllowRule {
                                    cidr: "9.9.9.9/32".parse().expect("cidr"),
                                    proto: None,
                                    ports: vec![],
                                },
                            ]),
                        },
                    })
                    .collect(),
            })
            .collect();
        Ruleset { tenants }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        /// Needs root: nft asks the kernel even when it only checks.
        #[test]
        fn nft_accepts_whatever_is_rendered(
            tenants in prop::collection::btree_map(0..=4095u16, prop::collection::btree_set(2..255u8, 0..12), 0..5),
        ) {
            let tenants: Vec<_> = tenants.into_iter().map(|(id, guests)| (id, guests.into_iter().collect())).collect();
            let text = render("00ff", &rules(&tenants));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            let outcome = runtime.block_on(nft(&["-c", "-f", "-"], &text));
            prop_assert!(outcome.is_ok(), "{:?}\n{}", outcome, text);
        }
    }

    #[test]
    fn names_fit_into_an_interface_name() {
        assert_eq!(Network::tap_name("00ff", "01234567").len(), 15);
        assert!(Network::bridge_name("00ff", 4095).len() <= 15);
    }
}
