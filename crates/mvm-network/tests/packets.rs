//! Real packets through bridges and rules: guests are network namespaces at the other ends of links
//! named like taps. Needs root, ip(8) and nft(8).

use mvm_model::{Code, Mac};
use mvm_network::{
    AllowRule, Bridge, Egress, Mode, Network, Proto, Ruleset, TapRules, TenantRules, enter_netns,
};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

const OWNER: &str = "ab12";
/// Beyond the router at the other end of the host's uplink.
const OUTSIDE: &str = "198.51.100.2";
/// The router itself, a machine on another link of the host, and one that is reached over that
/// link.
const UPLINK: &str = "192.0.2.2";
const LAN: &str = "192.168.50.2";
const BEYOND_LAN: &str = "172.30.0.2";
const METADATA: &str = "169.254.169.254";

/// Namespaces: `host`, where mvm runs, guests, `lan`, and `out`, the internet; the last two have no
/// route back to the guests.
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
    /// The connection succeeded; holds our address as the other side sees it.
    From(String),
    Refused,
    Silence,
}

impl Lab {
    fn new() -> Lab {
        let mut lab =
            Lab { prefix: format!("mvm-test-net-{}-", std::process::id()), names: Vec::new() };
        for name in ["host", "out", "lan"] {
            lab.netns(name);
        }
        let (host, out) = (lab.name("host"), lab.name("out"));
        ip(&format!("-n {host} link add wan type veth peer name wan netns {out}"));
        for (netns, address) in [(&host, "192.0.2.1/24"), (&out, "192.0.2.2/24")] {
            ip(&format!("-n {netns} addr add {address} dev wan"));
            ip(&format!("-n {netns} link set wan up"));
        }
        ip(&format!("-n {host} link add lan type veth peer name lan netns {}", lab.name("lan")));
        for (netns, address) in [(&host, "192.168.50.1/24"), (&lab.name("lan"), "192.168.50.2/24")]
        {
            ip(&format!("-n {netns} addr add {address} dev lan"));
            ip(&format!("-n {netns} link set lan up"));
        }
        for address in [OUTSIDE, METADATA] {
            ip(&format!("-n {out} addr add {address}/32 dev lo"));
        }
        ip(&format!("-n {} addr add {BEYOND_LAN}/32 dev lo", lab.name("lan")));
        ip(&format!("-n {host} route add default via {UPLINK}"));
        ip(&format!("-n {host} route add 172.30.0.0/16 via {LAN}"));
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

    /// Makes a guest behind a link that is a port of the tenant's bridge.
    fn guest(&mut self, name: &str, tenant: u16, number: u8) -> TapRules {
        self.netns(name);
        let (host, guest) = (self.name("host"), self.name(name));
        let tap = Network::tap_name(OWNER, &format!("{tenant:04x}{number:04x}"));
        let mac = Mac::from_bytes([2, 0, 0, 0, tenant as u8, number]);
        let bridge = Network::bridge_name(OWNER, tenant);
        ip(&format!(
            "-n {host} link add {tap} type veth peer name eth0 netns {guest} address {mac}"
        ));
        ip(&format!("-n {host} link set {tap} master {bridge} up"));
        let address = Ipv4Addr::new(10, 81, tenant as u8, number);
        ip(&format!("-n {guest} addr add {address}/24 dev eth0"));
        ip(&format!("-n {guest} link set eth0 up"));
        ip(&format!("-n {guest} route add default via 10.81.{tenant}.1"));
        TapRules { tap, mac, address, egress: Egress::default() }
    }

    /// Runs `work` in a thread inside the namespace.
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

    /// Answers every connection to a port with the caller's address, for ever.
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
                Err(e) if e.kind() == ErrorKind::HostUnreachable => return Answer::Refused,
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

/// Applies the rules from inside the host's namespace; twice, since the second time must change
/// nothing.
fn apply(lab: &Lab, rules: Ruleset) {
    lab.within("host", move || {
        block_on(async move {
            let network = Network::open(OWNER).expect("open");
            for _ in 0..2 {
                network.apply(&rules).await.expect("apply");
            }
            Network::open(OWNER).expect("open").apply(&rules).await.expect("apply anew");
        });
    });
}

fn rules(tenants: Vec<TenantRules>) -> Ruleset {
    Ruleset { tenants, ..Ruleset::default() }
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
            let network = Network::open(OWNER).expect("open");
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
    for port in [53, 7000, 7001] {
        lab.listen("out", &format!("0.0.0.0:{port}"));
        lab.listen("lan", &format!("0.0.0.0:{port}"));
    }
    let outside = |port: u16| format!("{OUTSIDE}:{port}");
    let from = |address: &str| Answer::From(address.to_owned());
    let open = rules(vec![tenant(1, &[&one, &two]), tenant(2, &[&other])]);
    apply(&lab, open.clone());

    // A guest reaches its sibling but not another tenant's guest, in either direction.
    assert_eq!(lab.call("one", "10.81.1.3:7000"), from("10.81.1.2"));
    assert_eq!(lab.call("one", "10.81.2.2:7000"), Answer::Refused);
    assert_eq!(lab.call("other", "10.81.1.2:7000"), Answer::Refused);
    // On its own gateway, a guest reaches only the ports that are named.
    assert_eq!(lab.call("one", "10.81.1.1:7022"), from("10.81.1.2"));
    for port in ["10.81.1.1:7023", "10.81.2.1:7022", "192.0.2.1:7022", "192.0.2.1:7023"] {
        assert_eq!(lab.call("one", port), Answer::Refused, "{port}");
    }
    // A guest reaches the outside by NAT; nobody outside reaches a guest.
    assert_eq!(lab.call("one", &outside(7000)), from("192.0.2.1"));
    ip(&format!("-n {} route add 10.81.0.0/16 via 192.0.2.1", lab.name("out")));
    assert_eq!(lab.call("out", "10.81.1.2:7000"), Answer::Silence);

    // Nobody gets through with an address or a MAC that is not its own.
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

    egress(&lab, &one, &two, &other);

    // A machine that is no longer a guest gets no answer.
    apply(&lab, rules(vec![tenant(1, &[&one]), tenant(2, &[&other])]));
    assert_eq!(lab.call("two", "10.81.1.2:7000"), Answer::Silence);
    // Refused rules change nothing.
    let mut faulty = one.clone();
    faulty.tap = "\"} drop".to_owned();
    let bad = rules(vec![tenant(1, &[&faulty])]);
    let refused = lab.within("host", move || {
        block_on(async { Network::open(OWNER).expect("open").apply(&bad).await })
    });
    assert_eq!(refused.expect_err("refused").code(), Code::NftRefused);
    assert_eq!(lab.call("one", &outside(7000)), from("192.0.2.1"));

    let tables = lab.within("host", || {
        block_on(async { Network::open(OWNER).expect("open").clear().await.expect("clear") });
        Command::new("nft").args(["list", "tables"]).output().expect("nft").stdout
    });
    assert!(!String::from_utf8_lossy(&tables).contains("mvm_"), "nothing is left");
}

/// Checks what of the outside is open in each mode, and what is closed in all.
fn egress(lab: &Lab, one: &TapRules, two: &TapRules, other: &TapRules) {
    let rule =
        |cidr: &str, port, proto| AllowRule { cidr: cidr.parse().expect("cidr"), port, proto };
    let with = |guest: &TapRules, mode, lan, allow: &[AllowRule]| TapRules {
        egress: Egress { mode, lan, allow: allow.to_vec() },
        ..guest.clone()
    };
    let put = |a: &TapRules, b: &TapRules, c: &TapRules, resolvers: &[&str]| {
        let resolvers = resolvers.iter().map(|text| text.parse().expect("address")).collect();
        let tenants = vec![tenant(1, &[a, b]), tenant(2, &[c])];
        apply(lab, Ruleset { tenants, resolvers, forwarder: false });
    };
    let open = |from: &str, to: &str, port: u16| {
        let answer = lab.call(from, &format!("{to}:{port}"));
        match answer {
            Answer::From(_) => true,
            // The refusal comes at once: a program need not wait for a timeout.
            Answer::Refused => false,
            Answer::Silence => panic!("{from} waits for {to}:{port} in vain"),
        }
    };
    let reach = |from: &str| {
        let all = [OUTSIDE, UPLINK, LAN, BEYOND_LAN, METADATA, "192.0.2.1", "192.168.50.1"];
        all.into_iter().filter(|to| open(from, to, 7000)).collect::<Vec<_>>()
    };
    lab.listen("host", "0.0.0.0:7000");

    // The internet is open; metadata, the host, its links' networks and what lies behind them are
    // closed.
    put(one, two, other, &[]);
    assert_eq!(reach("one"), [OUTSIDE]);
    // The resolvers that guests are configured with answer DNS wherever they are, and nothing else.
    put(one, two, other, &[LAN, METADATA]);
    assert!(open("one", LAN, 53) && open("one", METADATA, 53));
    assert_eq!(reach("one"), [OUTSIDE]);
    // A closed address opens if it is named alone or as part of a network; a wider network opens
    // nothing that is closed.
    let metadata = rule("169.254.169.254/32", Some(7000), None);
    let part = rule("192.168.50.0/25", Some(7001), Some(Proto::Tcp));
    let all = rule("0.0.0.0/0", None, None);
    let host = rule("192.168.50.1/32", Some(7000), Some(Proto::Tcp));
    put(
        &with(one, Mode::Open, false, &[metadata.clone(), part.clone(), all.clone()]),
        &with(two, Mode::Open, true, std::slice::from_ref(&host)),
        &with(other, Mode::None, false, &[]),
        &[],
    );
    assert_eq!(reach("one"), [OUTSIDE, METADATA]);
    assert!(open("one", LAN, 7001) && !open("one", METADATA, 7001));
    assert_eq!(reach("two"), [OUTSIDE, UPLINK, LAN, BEYOND_LAN, "192.168.50.1"]);
    assert_eq!(reach("other"), [""; 0]);
    assert!(open("one", "10.81.1.3", 7000), "siblings are no outside");
    // Only what is named is open, by its port and protocol.
    let outside = |port, proto| rule("198.51.100.0/24", port, proto);
    put(
        &with(one, Mode::Allow, false, &[outside(Some(7000), Some(Proto::Udp)), all]),
        &with(two, Mode::Allow, false, &[outside(Some(7001), Some(Proto::Tcp)), part]),
        &with(other, Mode::Allow, true, &[rule("192.168.0.0/16", None, None)]),
        &[LAN],
    );
    assert_eq!(reach("one"), [OUTSIDE]);
    assert_eq!(reach("two"), [""; 0]);
    assert!(open("two", OUTSIDE, 7001) && open("two", LAN, 7001) && !open("two", LAN, 53));
    assert_eq!(reach("other"), [LAN]);

    // A change also applies to open connections.
    put(one, two, other, &[]);
    let (mut ours, mut theirs) = held(lab, "one");
    exchange(&mut ours, &mut theirs).expect("it is open");
    put(&with(one, Mode::None, false, &[]), two, other, &[]);
    exchange(&mut ours, &mut theirs).expect_err("it is closed");
    put(one, two, other, &[]);
}

/// Opens a connection from a guest to the outside; returns both ends.
fn held(lab: &Lab, guest: &str) -> (TcpStream, TcpStream) {
    let listener = lab.within("out", || TcpListener::bind("0.0.0.0:7002").expect("bind"));
    let ours = lab.within(guest, || TcpStream::connect((OUTSIDE, 7002)).expect("connect"));
    (ours, listener.accept().expect("accept").0)
}

fn exchange(ours: &mut TcpStream, theirs: &mut TcpStream) -> std::io::Result<()> {
    theirs.set_read_timeout(Some(Duration::from_millis(700)))?;
    std::io::Write::write_all(ours, b"a")?;
    std::io::Read::read_exact(theirs, &mut [0])
}
