//! Egress: a destination survives being written and read, and invalid destinations and
//! contradictory settings are refused.

mod support;

use mvm_model::Code;
use mvm_model::egress::{Destination, Egress, EgressMode, MAX_ALLOWED, Protocol};
use proptest::prelude::*;
use std::net::Ipv4Addr;

fn destinations() -> impl Strategy<Value = Destination> {
    let protocol = prop_oneof![Just(None), Just(Some(Protocol::Tcp)), Just(Some(Protocol::Udp))];
    (any::<u32>(), 0u8..=32, proptest::option::of((1u16.., protocol))).prop_map(
        |(address, length, port)| Destination {
            cidr: ipnet::Ipv4Net::new_assert(Ipv4Addr::from(address), length).trunc(),
            port: port.map(|(port, _)| port),
            protocol: port.and_then(|(_, protocol)| protocol),
        },
    )
}

proptest! {
    #![proptest_config(support::cases(512))]

    #[test]
    fn every_destination_comes_back_from_its_text(destination in destinations()) {
        let text = destination.to_string();
        prop_assert_eq!(text.parse::<Destination>().unwrap(), destination);
        let json = serde_json::to_string(&destination).unwrap();
        prop_assert_eq!(json.clone(), format!("{text:?}"));
        prop_assert_eq!(serde_json::from_str::<Destination>(&json).unwrap(), destination);
    }

    /// An accepted text has the same meaning after it was written and read again. Nothing panics.
    #[test]
    fn what_is_taken_has_one_meaning(text in "[0-9./:tcpud]{0,24}") {
        if let Ok(destination) = text.parse::<Destination>() {
            prop_assert_eq!(destination.to_string().parse::<Destination>().unwrap(), destination);
            prop_assert_eq!(destination.cidr, destination.cidr.trunc());
            prop_assert!(destination.port.is_some() || destination.protocol.is_none());
        }
    }

    #[test]
    fn a_setting_is_taken_exactly_where_its_parts_fit(
        mode in prop_oneof![Just(EgressMode::Open), Just(EgressMode::None), Just(EgressMode::Allow)],
        allow in proptest::collection::vec(destinations(), 0..4),
        allow_lan: bool,
    ) {
        let twice = (1..allow.len()).any(|n| allow[..n].contains(&allow[n]));
        let fits = match mode {
            EgressMode::Open => true,
            EgressMode::None => allow.is_empty() && !allow_lan,
            EgressMode::Allow => !allow.is_empty(),
        };
        // This host and loopback; multicast and reserved addresses.
        let nobodys = |d: &Destination| match (d.cidr.addr().octets()[0], d.cidr.prefix_len()) {
            (0 | 127, 8..) => true,
            (first, length) => first >= 224 && length >= 4,
        };
        let nobody = allow.iter().any(nobodys);
        let egress = Egress { mode, allow, allow_lan };
        prop_assert_eq!(egress.validate().is_ok(), fits && !twice && !nobody);
        let json = serde_json::to_string(&egress).unwrap();
        prop_assert_eq!(serde_json::from_str::<Egress>(&json).unwrap(), egress);
    }
}

#[test]
fn what_is_no_destination_is_refused_with_its_reason() {
    let cases = [
        ("", "IPv4 network"),
        ("example.com", "IPv4 network"),
        ("10.0.0.0/33", "IPv4 network"),
        ("010.0.0.1", "IPv4 network"),
        ("10.0.0.1/8", "bits set behind its prefix"),
        ("2001:db8::/32", "IPv6"),
        ("10.0.0.0/8:", "the port"),
        ("10.0.0.0/8:0", "the port"),
        ("10.0.0.0/8:65536", "the port"),
        ("10.0.0.0/8:+1", "the port"),
        ("10.0.0.0/8:80-90", "the port"),
        ("10.0.0.0/8:/tcp", "the port"),
        ("10.0.0.0/8:443/sctp", "neither tcp nor udp"),
        ("10.0.0.0/8:443/TCP", "neither tcp nor udp"),
        ("10.0.0.0/8:443/tcp ", "neither tcp nor udp"),
    ];
    for (text, why) in cases {
        let fault = text.parse::<Destination>().expect_err(text);
        assert_eq!(fault.code, Code::InvalidValue, "{text}");
        assert!(fault.message.contains(why), "{text}: {}", fault.message);
    }
}

#[test]
fn a_setting_is_strict_about_its_fields() {
    let egress: Egress =
        serde_json::from_str(r#"{"mode":"allow","allow":["10.0.0.0/8:443/tcp","1.1.1.1"]}"#)
            .unwrap();
    assert_eq!(egress.allow[1].to_string(), "1.1.1.1/32");
    for text in [r#"{"mode":"closed"}"#, r#"{"modus":"open"}"#, r#"{"allow":["x"]}"#, r#""open""#] {
        assert!(serde_json::from_str::<Egress>(text).is_err(), "{text}");
    }
    assert_eq!(serde_json::from_str::<Egress>("{}").unwrap(), Egress::default());
    let many = (0..=MAX_ALLOWED as u32).map(|n| Destination {
        cidr: Ipv4Addr::from(0x0b00_0000 + n).into(),
        port: None,
        protocol: None,
    });
    let many = Egress { mode: EgressMode::Allow, allow: many.collect(), allow_lan: false };
    assert_eq!(many.validate().expect_err("too many").path, "egress.allow");
}

#[test]
fn what_nothing_opens_is_refused_by_name() {
    let of = |allow: &str| Egress {
        mode: EgressMode::Allow,
        allow: vec!["9.9.9.9".parse().unwrap(), allow.parse().unwrap()],
        allow_lan: false,
    };
    for nobody in ["224.0.0.251:5353/udp", "255.255.255.255", "127.0.0.0/8", "240.0.0.0/4"] {
        let fault = of(nobody).validate().unwrap_err();
        assert_eq!((fault.code, fault.path.as_str()), (Code::InvalidValue, "egress.allow[1]"));
        assert!(fault.to_string().contains("multicast"), "{fault}");
    }
    // A wide range stands for its addresses outside. Metadata services are open if they are named.
    for outside in ["0.0.0.0/0", "128.0.0.0/1", "169.254.169.254:80/tcp"] {
        of(outside).validate().unwrap();
    }
    let others = ["10.1.0.0/24".parse().unwrap(), "10.2.0.0/24".parse().unwrap()];
    for allow in ["10.2.0.0/24", "10.1.0.7:22/tcp"] {
        let fault = of(allow).admit(others.into_iter()).unwrap_err();
        assert_eq!((fault.code, fault.path.as_str()), (Code::InvalidValue, "egress.allow[1]"));
        assert!(fault.to_string().contains("another tenant"), "{fault}");
    }
    of("10.0.0.0/8").admit(others.into_iter()).unwrap();
}
