//! Turns a ruleset into nft's own language (nft(8)), applied in one transaction.

use crate::rules::{AllowRule, Egress, Mode, Proto, Ruleset, Surroundings, TenantRules};
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Where clouds answer their machines with credentials: the link-local network, and the addresses
/// of Alibaba's and Azure's services. Closed unless a rule names them.
const METADATA: [&str; 3] = ["169.254.0.0/16", "100.100.100.200/32", "168.63.129.16/32"];
/// Addresses that no machine has: this host, loopback, multicast, reserved and broadcast (RFC
/// 6890).
const NOBODY: &str = "0.0.0.0/8, 127.0.0.0/8, 224.0.0.0/4, 240.0.0.0/4";

/// Returns the text that removes the owner's tables. Each table is made first, so that removing it
/// never fails.
pub(crate) fn removal(owner: &str) -> String {
    format!(
        "table bridge mvm_{owner}\ndelete table bridge mvm_{owner}\n\
         table inet mvm_{owner}\ndelete table inet mvm_{owner}\n"
    )
}

/// Returns the text that puts `rules` in force in place of whatever the owner's tables hold.
pub(crate) fn render(owner: &str, rules: &Ruleset, around: &Surroundings) -> String {
    let mut text = removal(owner);
    bridge_table(&mut text, owner, rules);
    inet_table(&mut text, owner, rules, around);
    text
}

/// Appends the table for frames between the ports of a bridge: every frame from a guest carries the
/// guest's own addresses, and every frame to a guest is for that guest. Only IPv4 and ARP pass.
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

/// Appends the table for packets between bridges, the host and the outside. A refused packet is
/// answered at once, unless it comes from a machine outside or is sent to many.
fn inet_table(text: &mut String, owner: &str, rules: &Ruleset, around: &Surroundings) {
    let policies = Policies::of(rules, around);
    let _ = write!(
        text,
        "table inet mvm_{owner} {{
{sets}{chains}
  chain refuse {{
    ip daddr {{ {NOBODY} }} drop
    meta pkttype != host drop
    meta l4proto tcp reject with tcp reset
    reject with icmpx type admin-prohibited
  }}
  chain input {{
    type filter hook input priority -10; policy accept;
    iifname \"mv{owner}-b*\" jump from_tenant
  }}
  chain from_tenant {{
    ct direction reply ct state established accept
    icmp type {{ destination-unreachable, time-exceeded, parameter-problem }} ct state related accept
    icmp type echo-request iifname . ip daddr @gateways accept
    iifname . ip daddr . meta l4proto . th dport @services accept
    iifname . ip daddr @gateways meta l4proto {{ tcp, udp }} th dport 53 ip saddr . meta l4proto @askers accept
    ip daddr @subnets goto refuse
    ip saddr vmap @to_host
    goto refuse
  }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    iifname \"mv{owner}-b*\" tcp flags syn tcp option maxseg size set rt mtu
    oifname \"mv{owner}-b*\" tcp flags syn tcp option maxseg size set rt mtu
    iifname \"mv{owner}-b*\" jump out_of_tenant
    oifname \"mv{owner}-b*\" jump into_tenant
  }}
  chain out_of_tenant {{
    iifname . oifname @within accept
    oifname \"mv{owner}-b*\" goto refuse
    ip daddr {{ {NOBODY} }} drop
    ip daddr @subnets goto refuse
    ip daddr @foreign goto refuse
    ct direction reply ct state established accept
    icmp type {{ destination-unreachable, time-exceeded, parameter-problem }} ct state related accept
    ip saddr vmap @to_outside
    goto refuse
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
",
        sets = sets(rules, around) + &policies.maps(rules),
        chains = policies.chains(),
    );
}

fn sets(rules: &Ruleset, around: &Surroundings) -> String {
    let tenants = &rules.tenants;
    let gateways = tenants.iter().map(|t| format!("\"{}\" . {}", t.bridge, t.gateway));
    let services = tenants.iter().flat_map(|t| {
        t.host_ports.iter().map(move |(proto, port)| {
            format!("\"{}\" . {} . {} . {port}", t.bridge, t.gateway, proto.name())
        })
    });
    let subnets = tenants.iter().map(|t| t.subnet.to_string());
    // With br_netfilter loaded, frames between siblings pass this chain, too.
    let within = tenants.iter().map(|t| format!("\"{0}\" . \"{0}\"", t.bridge));
    let askers = tenants.iter().filter(|_| rules.forwarder).flat_map(askers);
    let resolvers = rules.resolvers.iter().map(|address| address.to_string());
    [
        set("gateways", "ifname . ipv4_addr", gateways),
        set("services", "ifname . ipv4_addr . inet_proto . inet_service", services),
        set("askers", "ipv4_addr . inet_proto", askers),
        networks("subnets", subnets),
        set("within", "ifname . ifname", within),
        set("resolvers", "ipv4_addr", resolvers),
        networks("metadata", METADATA.iter().map(|net| (*net).to_owned())),
        networks("lan", around.lan.iter().map(Ipv4Net::to_string)),
        networks("foreign", around.foreign.iter().map(Ipv4Net::to_string)),
    ]
    .concat()
}

/// Returns which of the tenant's guests may ask the gateway for names, and by which protocol.
fn askers(tenant: &TenantRules) -> impl Iterator<Item = String> {
    let names = |egress: &Egress, proto: Proto| {
        let here = |rule: &AllowRule| {
            rule.cidr == Ipv4Net::from(tenant.gateway)
                && rule.port.is_none_or(|port| port == 53)
                && rule.proto.is_none_or(|named| named == proto)
        };
        match egress.mode {
            Mode::Open => true,
            Mode::None => false,
            Mode::Allow => egress.allow.iter().any(here),
        }
    };
    let all = tenant.taps.iter().flat_map(|guest| [(guest, Proto::Tcp), (guest, Proto::Udp)]);
    let may = all.filter(move |(guest, proto)| names(&guest.egress, *proto));
    may.map(|(guest, proto)| format!("{} . {}", guest.address, proto.name()))
}

/// The distinct egress settings of all guests, each with a number.
struct Policies<'a> {
    numbers: BTreeMap<&'a Egress, usize>,
    /// Networks that are open only where a rule lies within them.
    closed: Vec<Ipv4Net>,
}

impl<'a> Policies<'a> {
    fn of(rules: &'a Ruleset, around: &Surroundings) -> Policies<'a> {
        let mut numbers = BTreeMap::new();
        for guest in rules.tenants.iter().flat_map(|tenant| &tenant.taps) {
            let next = numbers.len();
            numbers.entry(&guest.egress).or_insert(next);
        }
        let metadata = METADATA.iter().filter_map(|net| net.parse().ok());
        Policies { numbers, closed: metadata.chain(around.lan.iter().copied()).collect() }
    }

    /// Returns the maps from each guest to the chains of its setting.
    fn maps(&self, rules: &Ruleset) -> String {
        let map = |name: &str, chain: &str| {
            let guests = rules.tenants.iter().flat_map(|tenant| &tenant.taps);
            let verdicts = guests.map(|guest| {
                format!("{} : goto {chain}_{}", guest.address, self.numbers[&guest.egress])
            });
            declare("map", name, "ipv4_addr : verdict", "", verdicts)
        };
        map("to_outside", "egress") + &map("to_host", "host")
    }

    fn chains(&self) -> String {
        self.numbers.iter().fold(String::new(), |mut text, (egress, number)| {
            let host = egress.allow.iter().filter(|rule| rule.cidr.prefix_len() == 32).map(accept);
            chain(&mut text, &format!("host_{number}"), host.collect());
            chain(&mut text, &format!("egress_{number}"), self.outside(egress));
            text
        })
    }

    fn outside(&self, egress: &Egress) -> Vec<String> {
        let inside = |rule: &&AllowRule| self.closed.iter().any(|net| net.contains(&rule.cidr));
        let mut lines: Vec<String> = egress.allow.iter().filter(inside).map(accept).collect();
        if egress.mode == Mode::Open {
            let dns = "ip daddr @resolvers meta l4proto { tcp, udp } th dport 53 accept";
            lines.push(dns.to_owned());
        }
        lines.push("ip daddr @metadata goto refuse".to_owned());
        if !egress.lan {
            lines.push("ip daddr @lan goto refuse".to_owned());
        }
        match egress.mode {
            Mode::Open => lines.push("accept".to_owned()),
            Mode::None => {}
            Mode::Allow => {
                lines.extend(egress.allow.iter().filter(|rule| !inside(rule)).map(accept));
            }
        }
        lines
    }
}

/// Appends a chain that refuses whatever its lines do not decide.
fn chain(text: &mut String, name: &str, lines: Vec<String>) {
    let _ = writeln!(text, "  chain {name} {{");
    for line in lines {
        let _ = writeln!(text, "    {line}");
    }
    let _ = writeln!(text, "    goto refuse\n  }}");
}

fn accept(rule: &AllowRule) -> String {
    let to = format!("ip daddr {}", rule.cidr);
    match (rule.port, rule.proto) {
        (None, _) => format!("{to} accept"),
        (Some(port), Some(proto)) => format!("{to} {} dport {port} accept", proto.name()),
        (Some(port), None) => format!("{to} meta l4proto {{ tcp, udp }} th dport {port} accept"),
    }
}

fn networks(name: &str, elements: impl Iterator<Item = String>) -> String {
    declare("set", name, "ipv4_addr", "flags interval; auto-merge;", elements)
}

fn set(name: &str, kind: &str, elements: impl Iterator<Item = String>) -> String {
    declare("set", name, kind, "", elements)
}

fn declare(
    what: &str,
    name: &str,
    kind: &str,
    flags: &str,
    elements: impl Iterator<Item = String>,
) -> String {
    let elements: Vec<String> = elements.collect();
    let elements = match elements.is_empty() {
        true => String::new(),
        false => format!("elements = {{ {} }}", elements.join(", ")),
    };
    format!("  {what} {name} {{ type {kind}; {flags} {elements} }}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Network;
    use crate::nft::nft;
    use crate::rules::TapRules;
    use mvm_model::Mac;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn egress(guest: u8) -> Egress {
        let rule =
            |cidr: &str, port, proto| AllowRule { cidr: cidr.parse().expect("cidr"), port, proto };
        let allow = vec![
            rule("1.2.3.0/24", Some(80), Some(Proto::Tcp)),
            rule("192.168.7.0/24", Some(53), None),
            rule("0.0.0.0/0", Some(443), Some(Proto::Udp)),
            rule("9.9.9.9/32", None, None),
        ];
        match guest % 4 {
            0 => Egress::default(),
            1 => Egress { mode: Mode::None, ..Egress::default() },
            2 => Egress { mode: Mode::Open, lan: true, allow },
            _ => Egress { mode: Mode::Allow, lan: false, allow },
        }
    }

    fn around() -> Surroundings {
        let nets = |all: &[&str]| all.iter().map(|net| net.parse().expect("net")).collect();
        Surroundings {
            lan: nets(&["192.168.0.0/16", "192.168.7.0/24", "172.17.0.0/16"]),
            foreign: nets(&["10.9.0.0/24"]),
        }
    }

    fn rules(tenants: &[(u16, Vec<u8>)]) -> Ruleset {
        let tenants: Vec<_> = tenants
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
                        mac: Mac::from_bytes([2, 0x40, 0, 0, *net_id as u8, *guest]),
                        address: Ipv4Addr::new(10, (*net_id >> 8) as u8, *net_id as u8, *guest),
                        egress: egress(*guest),
                    })
                    .collect(),
            })
            .collect();
        let forwarder = tenants.len() % 2 == 1;
        let resolvers = vec![Ipv4Addr::new(169, 254, 169, 253)];
        Ruleset { tenants, resolvers, forwarder }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        /// Needs root: nft asks the kernel even when it only checks.
        #[test]
        fn nft_accepts_whatever_is_rendered(
            tenants in prop::collection::btree_map(0..=4095u16, prop::collection::btree_set(2..255u8, 0..12), 0..5),
        ) {
            let tenants: Vec<_> = tenants.into_iter().map(|(id, guests)| (id, guests.into_iter().collect())).collect();
            let text = render("00ff", &rules(&tenants), &around());
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
