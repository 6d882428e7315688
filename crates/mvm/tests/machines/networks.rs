//! What guests can reach, and what they cannot.

use crate::lab::{Lab, run, text, wait_for};
use std::io::Write;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn tenants_do_not_reach_each_other_nor_the_host() {
    let lab = Lab::new("net");
    lab.tenant_and_pool("a", "30");
    lab.tenant_and_pool("b", "31");
    let (one, two, other) = (lab.start("a/small"), lab.start("a/small"), lab.start("b/small"));
    let address = |vm: &str| {
        lab.json(&["instance", "info", vm])["address"].as_str().expect("address").to_owned()
    };
    let pings = |from: &str, to: &str| {
        let mut ping =
            lab.mvm(&["instance", "exec", from, "--", "busybox", "ping", "-c", "2", "-W", "2", to]);
        ping.stdout(Stdio::null()).status().expect("mvm").success()
    };
    assert!(pings(&one, "10.77.30.1"), "its gateway");
    assert!(pings(&one, &address(&two)), "its sibling");
    assert!(!pings(&one, &address(&other)), "another tenant's guest");
    assert!(!pings(&one, "10.77.31.1"), "another tenant's gateway");
    // The connection is refused at once, so that a program need not wait for a timeout.
    let began = Instant::now();
    let port = lab
        .mvm(&["instance", "exec", &one, "--", "busybox", "nc", "-w", "3", "10.77.30.1", "1"])
        .output();
    assert!(!port.expect("mvm").status.success());
    assert!(began.elapsed() < Duration::from_secs(2), "a port that is not named is silent");
    // Packets with a neighbour's address are dropped.
    lab.exec(&one, "busybox ip addr add 10.77.30.99/24 dev $(basename /sys/class/net/e*)");
    let spoofed = lab
        .mvm(&[
            "instance",
            "exec",
            &one,
            "--",
            "busybox",
            "ping",
            "-I",
            "10.77.30.99",
            "-c",
            "2",
            "-W",
            "2",
            "10.77.30.1",
        ])
        .output();
    assert!(!spoofed.expect("mvm").status.success(), "a false address was let through");
}

/// The other end of the lab's uplink: the internet, a metadata service, and a neighbour on the same
/// link.
struct Uplink(String);

const INTERNET: &str = "198.51.100.2";
const METADATA: &str = "169.254.169.254";
const NEIGHBOUR: &str = "192.0.2.2";

impl Uplink {
    fn new(lab: &Lab) -> Uplink {
        let (host, out) = (&lab.netns, format!("{}-out", lab.netns));
        let ip = |words: String| drop(run(Command::new("ip").args(words.split(' '))));
        ip(format!("netns add {out}"));
        let uplink = Uplink(out.clone());
        ip(format!("-n {host} link add wan type veth peer name wan netns {out}"));
        for (netns, address) in [(host, "192.0.2.1/24"), (&out, "192.0.2.2/24")] {
            ip(format!("-n {netns} addr add {address} dev wan"));
            ip(format!("-n {netns} link set wan up"));
            ip(format!("-n {netns} link set lo up"));
        }
        for address in [INTERNET, METADATA] {
            ip(format!("-n {out} addr add {address}/32 dev lo"));
        }
        ip(format!("-n {host} route add default via {NEIGHBOUR}"));
        uplink
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

#[test]
fn a_pools_egress_holds_on_a_running_machine_at_once() {
    let lab = Lab::new("egress");
    let _uplink = Uplink::new(&lab);
    lab.tenant_and_pool("a", "32");
    let vm = lab.start("a/small");
    let reaches = || {
        let pings = |to: &&str| {
            let ping = ["instance", "exec", &vm, "--", "busybox", "ping", "-c", "1", "-W", "2", to];
            lab.mvm(&ping).stdout(Stdio::null()).status().expect("mvm").success()
        };
        [INTERNET, METADATA, NEIGHBOUR, "192.0.2.1"].into_iter().filter(pings).collect::<Vec<_>>()
    };
    let set = |options: &[&str]| {
        lab.ok(&[&["pool", "update", "a/small", "--egress"], options].concat());
    };
    assert_eq!(reaches(), [INTERNET], "as a pool is made");
    set(&["none"]);
    assert_eq!(reaches(), [""; 0]);
    set(&["allow", "--allow", METADATA, "--allow", "198.51.100.0/24:443/tcp"]);
    assert_eq!(reaches(), [METADATA]);
    let info = lab.json(&["pool", "info", "a/small"]);
    assert_eq!(info["egress"]["allow"][1], "198.51.100.0/24:443/tcp");
    set(&["open", "--allow-lan"]);
    assert_eq!(reaches(), [INTERNET, NEIGHBOUR]);
    lab.refused(&["pool", "update", "a/small", "--egress", "none", "--allow-lan"], "invalid_value");
    assert_eq!(reaches(), [INTERNET, NEIGHBOUR], "what is refused changes nothing");
}

/// The size of the file that a guest fetches from the other end of the uplink, in bytes.
const BIG: usize = 3 << 20;

/// Sends that file to every client of port 80 in this network namespace.
fn server(netns: &str) {
    let file = std::fs::File::open(format!("/run/netns/{netns}")).expect("namespace");
    let (ready, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(file.as_fd(), kind).expect("enter");
        let listener = std::net::TcpListener::bind("0.0.0.0:80").expect("listen");
        ready.send(()).expect("ready");
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(&vec![b'x'; BIG]);
        }
    });
    wait.recv().expect("ready");
}

#[test]
fn guests_have_the_uplinks_mtu_and_big_transfers_pass() {
    let lab = Lab::new("mtu");
    let uplink = Uplink::new(&lab);
    // The link drops larger packets, and sends no ICMP error.
    run(Command::new("ip").args(["-n", &lab.netns, "link", "set", "wan", "mtu", "1400"]));
    server(&uplink.0);
    lab.tenant_and_pool("a", "38");
    let vm = lab.start("a/small");
    let mtu = || lab.exec(&vm, "cat /sys/class/net/e*/mtu").trim().to_owned();
    assert_eq!(mtu(), "1400");
    for suffix in ["-b38", vm.rsplit("i-").next().expect("digits")] {
        let link = lab.links().into_iter().find(|link| link.ends_with(suffix)).expect("a link");
        let shown = run(Command::new("ip").args(["-n", &lab.netns, "-o", "link", "show", &link]));
        assert!(text(&shown.stdout).contains(" mtu 1400 "), "{}", text(&shown.stdout));
    }
    let fetch = format!("busybox nc -w 20 {INTERNET} 80 < /dev/null | wc -c");
    assert_eq!(lab.exec(&vm, &fetch).trim(), BIG.to_string());
    // If a guest has a larger MTU, the host clamps the segment size of its connections.
    lab.exec(&vm, "busybox ip link set $(basename /sys/class/net/e*) mtu 1500");
    assert_eq!(mtu(), "1500");
    assert_eq!(lab.exec(&vm, &fetch).trim(), BIG.to_string());
}

/// A resolver on the loopback of this network namespace, like systemd-resolved's, that answers
/// every name with [`INTERNET`].
fn resolver(netns: &str) {
    let file = std::fs::File::open(format!("/run/netns/{netns}")).expect("namespace");
    let (ready, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(file.as_fd(), kind).expect("enter");
        let socket = std::net::UdpSocket::bind("127.0.0.53:53").expect("listen");
        ready.send(()).expect("ready");
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let mut answer = buffer[..length].to_vec();
            answer[2..4].copy_from_slice(&[0x81, 0x80]);
            // The query type is the last word but one of the question. Queries for IPv6 get an
            // empty answer.
            if answer[length - 3] == 1 {
                answer[7] = 1;
                answer.extend([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 198, 51, 100, 2]);
            }
            let _ = socket.send_to(&answer, from);
        }
    });
    wait.recv().expect("ready");
}

#[test]
fn guests_resolve_names_where_the_hosts_resolver_is_on_its_loopback() {
    let lab = Lab::new("names");
    let _uplink = Uplink::new(&lab);
    run(Command::new("ip").args(["-n", &lab.netns, "link", "set", "lo", "up"]));
    resolver(&lab.netns);
    let names = lab.root.join("resolv.conf");
    std::fs::write(&names, "nameserver 127.0.0.53\nsearch corp.example\n").expect("file");
    let mut agent = lab.agent_with_names(&names);
    lab.tenant_and_pool("a", "39");
    let vm = lab.start("a/small");
    let told = lab.exec(&vm, "cat /etc/resolv.conf");
    assert_eq!(told, "nameserver 10.77.39.1\nsearch corp.example\n");
    let resolves = || {
        let lookup = ["instance", "exec", &vm, "--", "busybox", "nslookup", "some.example"];
        let said = lab.mvm(&lookup).output().expect("mvm");
        text(&said.stdout).contains(INTERNET)
    };
    let set = |options: &[&str]| {
        lab.ok(&[&["pool", "update", "a/small", "--egress"], options].concat());
    };
    assert!(resolves(), "as a pool is made");
    set(&["none"]);
    assert!(!resolves(), "nothing but siblings");
    set(&["allow", "--allow", "198.51.100.0/24"]);
    assert!(!resolves(), "what is not named");
    set(&["allow", "--allow", "10.77.39.1:53"]);
    assert!(resolves(), "what is named");
    lab.ok(&["agent", "stop"]);
    agent.wait().expect("agent");
}

#[test]
fn walls_stand_again_after_a_flush_and_differences_are_named() {
    let lab = Lab::simulated("verify");
    lab.ok(&["tenant", "create", "a", "--net-id", "33", "--subnet", "10.77.33.0/24"]);
    let within = |words: &[&str]| {
        run(Command::new("ip").args(["netns", "exec", &lab.netns]).args(words));
    };
    within(&["nft", "flush", "ruleset"]);
    // The rules may be back before the agent has noticed their loss.
    wait_for("the walls", || lab.ok(&["metrics"]).contains("mvm_walls_restored_total 1"));
    assert!(lab.json(&["net", "verify"])["differences"].as_array().expect("list").is_empty());

    let bridge = lab.links().into_iter().find(|link| link.ends_with("-b33")).expect("a bridge");
    let stray = bridge.replace("-b33", "-b99");
    within(&["ip", "link", "add", &stray, "type", "bridge"]);
    let all = [
        format!("{bridge} it is down"),
        format!("{bridge} it has 10.9.9.9/24 as well"),
        format!("{stray} it belongs to nothing that mvm knows"),
    ];
    // The agent checks every two seconds and may repair its own bridge first.
    wait_for("all differences to be named", || {
        within(&["ip", "addr", "replace", "10.9.9.9/24", "dev", &bridge]);
        within(&["ip", "link", "set", &bridge, "down"]);
        let verify = lab.mvm(&["net", "verify", "-o", "json"]).output().expect("mvm");
        assert_eq!(verify.status.code(), Some(1), "the stray stays");
        let report: serde_json::Value = serde_json::from_slice(&verify.stdout).expect("JSON");
        let told = report["differences"].as_array().expect("list").iter();
        let told: Vec<String> = told.map(|d| format!("{} {}", d["what"], d["detail"])).collect();
        let told = told.join("\n").replace('"', "");
        all.iter().all(|said| told.contains(said))
    });
}

#[test]
fn a_subnet_that_the_host_or_another_root_uses_is_refused_by_name() {
    let (lab, mut other) = (Lab::simulated("subnet"), Lab::simulated("subnet-other"));
    let ip = |words: &str| {
        let words = ["-n", &lab.netns].into_iter().chain(words.split(' '));
        run(Command::new("ip").args(words));
    };
    ip("link add lan0 type bridge");
    ip("addr add 10.55.1.1/24 dev lan0");
    ip("link set lan0 up");
    ip("route add 10.56.0.0/16 via 10.55.1.9");
    ip("route add default via 10.55.1.254");
    let create = |lab: &Lab, subnet: &str| {
        let words = ["tenant", "create", "a", "--net-id", "34", "--subnet", subnet];
        lab.refused(
            &words,
            if subnet.starts_with("8.") { "invalid_network" } else { "subnet_taken" },
        )
    };
    let said = create(&lab, "10.55.0.0/16");
    assert!(said.contains("10.55.1.0/24 of lan0"), "{said}");
    let said = create(&lab, "10.56.3.0/24");
    assert!(said.contains("the route to 10.56.0.0/16 over lan0"), "{said}");
    let said = create(&lab, "8.8.8.0/24");
    assert!(said.contains("--allow-public-subnet"), "{said}");
    let public = ["tenant", "create", "p", "--net-id", "35", "--subnet", "8.8.8.0/24"];
    lab.ok(&[&public[..], &["--allow-public-subnet"]].concat());
    lab.ok(&["tenant", "destroy", "p"]);

    // Another root in the same network: first it is alive, then its folder is deleted.
    let own = std::mem::replace(&mut other.netns, lab.netns.clone());
    other.ok(&["tenant", "create", "b", "--net-id", "36", "--subnet", "10.57.1.0/24"]);
    let said = create(&lab, "10.57.1.0/24");
    let path = other.root.to_str().expect("path");
    assert!(said.contains(&format!("another mvm root on this host holds: {path}")), "{said}");
    let id = other.root.join("root-id");
    std::fs::rename(&id, other.root.join("was")).expect("moved");
    let said = create(&lab, "10.57.1.0/24");
    assert!(said.contains("an orphan: its state directory"), "{said}");
    std::fs::rename(other.root.join("was"), id).expect("moved");
    run(Command::new("ip").args(["netns", "del", &own]));
}

#[test]
fn a_machine_whose_tap_is_deleted_fails_with_that_reason_and_a_spare_is_replaced() {
    let lab = Lab::new("unplugged");
    lab.tenant_and_pool("a", "37");
    let vm = lab.start("a/small");
    lab.ok(&["pool", "scale", "a/small", "--warm", "1"]);
    wait_for("a spare", || lab.ids("a/small", "warm").len() == 1);
    let spare = lab.ids("a/small", "warm")[0].clone();
    let unplug = |instance: &str| {
        let digits = instance.rsplit("i-").next().expect("digits");
        let tap = lab.links().into_iter().find(|link| link.ends_with(digits)).expect("a tap");
        run(Command::new("ip").args(["-n", &lab.netns, "link", "del", &tap]));
    };
    unplug(&vm);
    wait_for("the machine to fail", || lab.state(&vm) == "failed");
    let reason = lab.json(&["instance", "info", &vm])["reason"].clone();
    assert!(
        reason.as_str().is_some_and(|reason| reason.contains("was deleted under it")),
        "{reason}"
    );
    unplug(&spare);
    wait_for("another spare", || {
        let warm = lab.ids("a/small", "warm");
        warm.len() == 1 && warm[0] != spare
    });
    lab.ok(&["instance", "start", &vm]);
    lab.exec(&vm, "busybox ping -c 1 -W 2 10.77.37.1");

    // Deletes the bridge while a machine is connected to it.
    let bridge = lab.links().into_iter().find(|link| link.ends_with("-b37")).expect("a bridge");
    run(Command::new("ip").args(["-n", &lab.netns, "link", "del", &bridge]));
    wait_for("the bridge", || lab.links().contains(&bridge));
    wait_for("the network", || {
        let ping =
            ["instance", "exec", &vm, "--", "busybox", "ping", "-c", "1", "-W", "1", "10.77.37.1"];
        lab.mvm(&ping).stdout(Stdio::null()).status().expect("mvm").success()
    });
}
