//! Networks of tenants: overlaps, ranges, addresses and MAC addresses.

mod support;

use ipnet::Ipv4Net;
use mvm_model::network::{MAX_NET_ID, TenantNetwork, mac_of};
use mvm_model::{Code, Mac};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

fn network(tenant_net_id: u16, address: u32, prefix: u8) -> TenantNetwork {
    let subnet = Ipv4Net::new(Ipv4Addr::from(address), prefix).unwrap();
    TenantNetwork { tenant_net_id, ipv4_subnet: subnet, allow_public_subnet: true }
}

/// Subnets that a tenant may have.
fn valid() -> impl Strategy<Value = TenantNetwork> {
    (0..=MAX_NET_ID, any::<u32>(), 8u8..=29)
        .prop_map(|(id, address, prefix)| {
            let mut network = network(id, address, prefix);
            network.ipv4_subnet = network.ipv4_subnet.trunc();
            network
        })
        .prop_filter("a network that is refused", |network| network.validate().is_ok())
}

/// Subnets that lie close together, so that many overlap.
fn crowded() -> impl Strategy<Value = TenantNetwork> {
    (0..=40u16, 0u32..=0xfff, 20u8..=29).prop_map(|(id, low, prefix)| {
        let mut network = network(id, 0x0af0_0000 | low, prefix);
        network.ipv4_subnet = network.ipv4_subnet.trunc();
        network
    })
}

fn hosts(network: &TenantNetwork) -> BTreeSet<u32> {
    let net = network.ipv4_subnet;
    (u32::from(net.network())..=u32::from(net.broadcast())).collect()
}

/// Returns whether the registries forbid a network for any tenant.
fn forbidden(net: Ipv4Net) -> bool {
    ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4"].iter().any(
        |text| {
            let special: Ipv4Net = text.parse().unwrap();
            special.contains(&net) || net.contains(&special)
        },
    )
}

proptest! {
    #![proptest_config(support::cases(1000))]

    #[test]
    fn overlaps_are_found_in_every_pair(networks in prop::collection::vec(crowded(), 2..5)) {
        for a in &networks {
            for b in &networks {
                let shared = !hosts(a).is_disjoint(&hosts(b));
                let same_id = a.tenant_net_id == b.tenant_net_id;
                match a.conflicts_with(b) {
                    None => prop_assert!(!shared && !same_id, "{:?} {:?}", a, b),
                    Some(fault) => {
                        prop_assert_eq!(fault.code, Code::Conflict);
                        let field = if same_id { "tenant_net_id" } else { "ipv4_subnet" };
                        prop_assert!(same_id || shared);
                        prop_assert_eq!(fault.path, field);
                    }
                }
            }
        }
    }

    #[test]
    fn validation_takes_what_is_documented(id: u16, address: u32, prefix in 0u8..=32, trunc: bool) {
        let mut network = network(id, address, prefix);
        if trunc {
            network.ipv4_subnet = network.ipv4_subnet.trunc();
        }
        let net = network.ipv4_subnet;
        let good = id <= 4095 && net == net.trunc() && (8..=29).contains(&prefix) && !forbidden(net);
        let verdict = network.validate();
        prop_assert_eq!(verdict.is_ok(), good, "{:?}: {:?}", network, verdict);
        if let Err(fault) = verdict {
            prop_assert_eq!(fault.code, Code::InvalidNetwork);
            let field = if id > 4095 { "tenant_net_id" } else { "ipv4_subnet" };
            prop_assert_eq!(fault.path, field);
            prop_assert!(!fault.hint.is_empty());
        }
    }

    /// Special networks and their surroundings.
    #[test]
    fn special_networks_are_refused(pick in 0usize..5, prefix in 8u8..=29, low: u32) {
        let first = [0u32, 0x7f00_0000, 0xa9fe_0000, 0xe000_0000, 0xf000_0000][pick];
        let mut network = network(1, first | (low & 0xffff), prefix);
        network.ipv4_subnet = network.ipv4_subnet.trunc();
        prop_assert!(network.validate().is_err(), "{}", network.ipv4_subnet);
    }

    #[test]
    fn capacity_is_hosts_without_the_gateway(network in valid()) {
        let net = network.ipv4_subnet;
        let all = u32::from(net.broadcast()) - u32::from(net.network()) + 1;
        // Without the network's, the broadcast and the gateway's address.
        prop_assert_eq!(network.capacity(), all - 3);
        prop_assert_eq!(u32::from(network.gateway()), u32::from(net.network()) + 1);
        prop_assert!(net.contains(&network.gateway()));
    }

    /// Even an unvalidated network gets an answer, not a panic.
    #[test]
    fn capacity_has_an_answer_for_any_prefix(address: u32, prefix in 0u8..=32) {
        let capacity = u64::from(network(1, address, prefix).capacity());
        prop_assert_eq!(capacity, (1u64 << (32 - prefix)).saturating_sub(3));
    }

    #[test]
    fn an_address_is_free_and_a_hosts(network in valid(), taken in prop::collection::vec(0u32..64, 0..64)) {
        let net = network.ipv4_subnet;
        let taken: BTreeSet<Ipv4Addr> =
            taken.iter().map(|offset| Ipv4Addr::from(u32::from(net.network()).wrapping_add(*offset))).collect();
        match network.allocate(&taken) {
            Ok(address) => {
                prop_assert!(net.contains(&address));
                prop_assert!(!taken.contains(&address));
                prop_assert!(![net.network(), net.broadcast(), network.gateway()].contains(&address));
            }
            Err(fault) => {
                prop_assert_eq!(fault.code, Code::SubnetFull);
                let free = net.hosts().filter(|a| *a != network.gateway() && !taken.contains(a)).count();
                prop_assert_eq!(free, 0);
            }
        }
    }

    /// Addresses are taken and given back in any order: none is given twice, there are exactly
    /// `capacity` of them, and each has a MAC address of its own, which is unicast and locally
    /// administered.
    #[test]
    fn a_subnet_gives_all_its_addresses_once(
        seed in crowded(),
        prefix in 24u8..=29,
        give_back in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let mut network = seed;
        network.ipv4_subnet = Ipv4Net::new(network.ipv4_subnet.addr(), prefix).unwrap().trunc();
        let mut taken = BTreeSet::new();
        for index in give_back {
            let address = network.allocate(&taken);
            if let Ok(address) = address {
                prop_assert!(taken.insert(address));
            }
            if taken.len() > 3 {
                let gone = *index.get(&taken.iter().copied().collect::<Vec<_>>());
                taken.remove(&gone);
            }
        }
        while let Ok(address) = network.allocate(&taken) {
            prop_assert!(taken.insert(address));
        }
        prop_assert_eq!(taken.len(), network.capacity() as usize);
        let macs: BTreeSet<Mac> = taken.iter().map(|a| mac_of(network.tenant_net_id, *a)).collect();
        prop_assert_eq!(macs.len(), taken.len());
    }

    #[test]
    fn no_two_machines_share_a_mac_address(
        networks in prop::collection::vec(valid(), 1..4),
        offsets in prop::collection::vec(any::<u32>(), 1..20),
    ) {
        let mut owners: BTreeMap<Mac, (u16, Ipv4Addr)> = BTreeMap::new();
        let mut ids = BTreeMap::new();
        for network in networks {
            // A net id stands for one subnet.
            let network = ids.entry(network.tenant_net_id).or_insert(network).clone();
            let id = network.tenant_net_id;
            for offset in &offsets {
                let address = Ipv4Addr::from(u32::from(network.gateway()) + 1 + offset % network.capacity());
                let mac = mac_of(id, address);
                prop_assert_eq!(mac.bytes()[0] & 0b11, 0b10, "unicast, locally administered");
                let owner = owners.entry(mac).or_insert((id, address));
                prop_assert_eq!(*owner, (id, address));
            }
        }
    }
}

#[test]
fn a_network_of_the_internet_has_to_be_allowed() {
    for (subnet, public) in [
        ("10.0.0.0/8", false),
        ("172.31.255.0/24", false),
        ("172.32.0.0/24", true),
        ("192.168.0.0/16", false),
        ("192.0.0.0/8", true),
        ("100.64.7.0/24", false),
        ("8.8.8.0/24", true),
    ] {
        let ipv4_subnet = subnet.parse().unwrap();
        let network = TenantNetwork { tenant_net_id: 1, ipv4_subnet, allow_public_subnet: false };
        assert_eq!(network.is_public(), public, "{subnet}");
        assert_eq!(network.validate().is_err(), public, "{subnet}");
        let allowed = TenantNetwork { allow_public_subnet: true, ..network.clone() };
        allowed.validate().unwrap();
        assert!(allowed.is_same(&network));
        // A default value is not written, so that records and documents stay as they were.
        let text = serde_json::to_string(&network).unwrap();
        assert!(!text.contains("public"), "{text}");
    }
}
