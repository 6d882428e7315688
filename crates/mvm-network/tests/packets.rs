//! Real packets through bridges and rules: guests are network namespaces at the other ends of links
//! that are named as taps are. Needs root, ip(8) and nft(8).

use mvm_network::{
    AllowRule, Bridge, Egress, Network, Proto, Ruleset, TapRules, TenantRules, enter_netns,
};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

const OWNER: &str = "ab12";
const OUTSIDE: &str = "192.0.2.2";

/// Namespaces: `host`, where mvm is, guests, and `out`, which knows no way back to the guests.
struct Lab {
    prefix: String,
    names: Vec<String>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().expect("ip");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// Connected; what the other side sees as our address.
    From(String),
    Refused,
    Silence,
}

impl Lab {
    fn new() -> Lab {
        let mut lab =
            Lab { prefix: format!("mvm-test-net-{}-", std::process::id()), names: Vec::new() };
        for name in ["host", "out"] {
            lab.netns(name);
        }
        let (host, out) = (lab.name("host"), lab.name("out"));
        ip(&format!("-n {host} link add wan type veth peer name wan netns {out}"));
        for (netns, address) in [(&host, "192.0.2.1/24"), (&out, "192.0.2.2/24")] {
            ip(&format!("-n {netns} addr add {address} dev wan"));
            ip(&format!("-n {netns} link set wan up"));
        }
        lab
    }

    fn name(&self, netns: &str) -> String {
        format!("{}{netns}", self.prefix)
    }

    fn netns(&mut self, name: &str) {
        let name = self.name(name);
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        self.names.push(name);
    }

    /// A guest behind a link that is a port of the tenant's bridge.
    fn guest(&mut self, name: &str, tenant: u16, number: u8) -> TapRules {
        self.netns(name);
        let (host, guest) = (self.name("host"), self.name(name));
        let tap = Network::tap_name(OWNER, &format!("{tenant:04x}{number:04x}"));
        let mac = format!("02:00:00:00:{tenant:02x}:{number:02x}");
        let bridge = Network::bridge_name(OWNER, tenant);
        ip(&format!(
            "-n {host} link add {tap} type veth peer name eth0 netns {guest} address {mac}"
        ));
        ip(&format!("-n {host} link set {tap} master {bridge} up"));
        let address = Ipv4Addr::new(10, 81, tenant as u8, number);
        ip(&format!("-n {guest} addr add {address}/24 dev eth0"));
        ip(&format!("-n {guest} link set eth0 up"));
        ip(&format!("-n {guest} route add default via 10.81.{tenant}.1"));
        TapRules { tap, mac, address, egress: Egress::Open }
    }

    /// Runs it in a thread of the namespace.
    fn within<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let netns = self.name(name);
        let thread = std::thread::spawn(move || {
            enter_netns(&netns).expect("enter");
            work()
        });
        thread.join().expect("thread")
    }

    /// Answers on a port with the address that the caller comes from, for ever.
    fn listen(&self, name: &str, address: &str) {
        let listener = {
            let address = address.to_owned();
            self.within(name, move || TcpListener::bind(address).expect("bind"))
        };
        std::thread::spawn(move || {
            while let Ok((mut stream, from)) = listener.accept() {
                let _ = std::io::Write::write_all(&mut stream, from.ip().to_string().as_bytes());
            }
        });
    }

    fn call(&self, from: &str, to: &str) -> Answer {
        let to: SocketAddr = to.parse().expect("address");
        self.within(from, move || {
            let stream = TcpStream::connect_timeout(&to, Duration::from_millis(700));
            let mut stream = match stream {
                Ok(stream) => stream,
                Err(e) if e.kind() == ErrorKind::ConnectionRefused => return Answer::Refused,
                Err(_) => return Answer::Silence,
            };
            let mut seen = String::new();
            std::io::Read::read_to_string(&mut stream, &mut seen).expect("answer");
            Answer::From(seen)
        })
    }
}

fn tenant(number: u16, taps: &[&TapRules]) -> TenantRules {
    TenantRules {
        bridge: Network::bridge_name(OWNER, number),
        subnet: format!("10.81.{number}.0/24").parse().expect("subnet"),
        gateway: Ipv4Addr::new(10, 81, number as u8, 1),
        host_ports: vec![(Proto::Tcp, 7022)],
        taps: taps.iter().map(|tap| (*tap).clone()).collect(),
    }
}

/// Applies the rules from inside the host's namespace; twice, since that changes nothing.
fn apply(lab: &Lab, rules: Ruleset) {
    lab.within("host", move || {
        block_on(async move {
            let network = Network::open(OWNER).await.expect("open");
            for _ in 0..2 {
                network.apply(&rules).await.expect("apply");
            }
            Network::open(OWNER).await.expect("open").apply(&rules).await.expect("apply anew");
        });
    });
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("runtime").block_on(work)
}

#[test]
fn packets_go_where_they_may_and_nowhere_else() {
    let mut lab = Lab::new();
    lab.within("host", || {
        block_on(async {
            let network = Network::open(OWNER).await.expect("open");
            for number in [1, 2] {
                let gateway = format!("10.81.{number}.1/24").parse().expect("gateway");
                let name = Network::bridge_name(OWNER, number);
                network.ensure_bridge(&Bridge { name, gateway }).await.expect("bridge");
            }
        });
    });
    let one = lab.guest("one", 1, 2);
    let two = lab.guest("two", 1, 3);
    let other = lab.guest("other", 2, 2);
    for name in ["one", "two", "other"] {
        lab.listen(name, "0.0.0.0:7000");
    }
    lab.listen("host", "0.0.0.0:7022");
    lab.listen("host", "0.0.0.0:7023");
    for port in [7000, 7001] {
        lab.listen("out", &format!("0.0.0.0:{port}"));
    }
    let outside = |port: u16| format!("{OUTSIDE}:{port}");
    let from = |address: &str| Answer::From(address.to_owned());
    let open = Ruleset { tenants: vec![tenant(1, &[&one, &two]), tenant(2, &[&other])] };
    apply(&lab, open.clone());

    // Its sibling; not another tenant's guest, in neither direction.
    assert_eq!(lab.call("one", "10.81.1.3:7000"), from("10.81.1.2"));
    assert_eq!(lab.call("one", "10.81.2.2:7000"), Answer::Silence);
    assert_eq!(lab.call("other", "10.81.1.2:7000"), Answer::Silence);
    // Of the host what is named, on its own gateway.
    assert_eq!(lab.call("one", "10.81.1.1:7022"), from("10.81.1.2"));
    for port in ["10.81.1.1:7023", "10.81.2.1:7022", "192.0.2.1:7022", "192.0.2.1:7023"] {
        assert_eq!(lab.call("one", port), Answer::Silence, "{port}");
    }
    // The outside, by NAT; nobody of it comes in.
    assert_eq!(lab.call("one", &outside(7000)), from("192.0.2.1"));
    ip(&format!("-n {} route add 10.81.0.0/16 via 192.0.2.1", lab.name("out")));
    assert_eq!(lab.call("out", "10.81.1.2:7000"), Answer::Silence);

    // Nobody speaks with an address or a MAC that is not its own.
    let guest = lab.name("two");
    let is = |address: &str| {
        ip(&format!("-n {guest} addr flush dev eth0"));
        ip(&format!("-n {guest} addr add {address}/24 dev eth0"));
    };
    is("10.81.1.99");
    assert_eq!(lab.call("two", "10.81.1.2:7000"), Answer::Silence, "another's address");
    is("10.81.1.3");
    let route = format!("-n {guest} route replace default via 10.81.1.1");
    ip(&route);
    assert_eq!(lab.call("two", "10.81.1.2:7000"), from("10.81.1.3"));
    ip(&format!("-n {guest} link set eth0 address 02:00:00:00:01:02"));
    assert_eq!(lab.call("two", "10.81.1.2:7000"), Answer::Silence, "another's MAC");
    ip(&format!("-n {guest} link set eth0 address {}", two.mac));
    ip(&route);
    assert_eq!(lab.call("two", "10.81.1.2:7000"), from("10.81.1.3"));

    // Egress: nothing, or what is named.
    let rule = AllowRule {
        cidr: "192.0.2.2/32".parse().expect("cidr"),
        proto: Some(Proto::Tcp),
        ports: vec![7001],
    };
    let (mut shut, mut narrow) = (one.clone(), other.clone());
    (shut.egress, narrow.egress) = (Egress::None, Egress::Allow(vec![rule]));
    apply(&lab, Ruleset { tenants: vec![tenant(1, &[&shut, &two]), tenant(2, &[&narrow])] });
    assert_eq!(lab.call("one", &outside(7000)), Answer::Silence);
    assert_eq!(lab.call("one", "10.81.1.3:7000"), from("10.81.1.2"), "siblings are no outside");
    assert_eq!(lab.call("two", &outside(7000)), from("192.0.2.1"));
    assert_eq!(lab.call("other", &outside(7000)), Answer::Silence);
    assert_eq!(lab.call("other", &outside(7001)), from("192.0.2.1"));

    // One that is no guest any more is not heard.
    apply(&lab, Ruleset { tenants: vec![tenant(1, &[&one]), tenant(2, &[&other])] });
    assert_eq!(lab.call("two", "10.81.1.2:7000"), Answer::Silence);
    // Refused rules change nothing.
    let mut faulty = one.clone();
    faulty.mac = "} drop".to_owned();
    let bad = Ruleset { tenants: vec![tenant(1, &[&faulty])] };
    let refused = lab.within("host", move || {
        block_on(async { Network::open(OWNER).await.expect("open").apply(&bad).await })
    });
    assert_eq!(refused.expect_err("refused").code(), "nft_refused");
    assert_eq!(lab.call("one", &outside(7000)), from("192.0.2.1"));

    let tables = lab.within("host", || {
        block_on(async { Network::open(OWNER).await.expect("open").clear().await.expect("clear") });
        Command::new("nft").args(["list", "tables"]).output().expect("nft").stdout
    });
    assert!(!String::from_utf8_lossy(&tables).contains("mvm_"), "nothing is left");
}
