//! Changes to rules and links by somebody else are seen, reported and repaired. In network
//! namespaces that the tests make; needs root, ip(8) and nft(8).

use mvm_model::{Code, Mac};
use mvm_network::{
    Applied, Bridge, Egress, Network, Ruleset, Tap, TapRules, TenantRules, Wanted, enter_netns,
};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const OWNER: &str = "ab13";

/// A network namespace with an uplink, and a state directory.
struct Lab {
    netns: String,
    root: PathBuf,
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.netns]).status();
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

fn run(words: &str) {
    let mut words = words.split(' ');
    let output = Command::new(words.next().expect("a program")).args(words).output().expect("run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn set(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{name}"), value).expect(name);
}

/// Makes a namespace, and runs `work` in a thread inside it.
fn in_a_lab<F: Future<Output = ()>>(name: &str, work: impl FnOnce(PathBuf) -> F + Send + 'static) {
    let netns = format!("mvm-test-{name}-{}", std::process::id());
    let root = std::env::temp_dir().join(&netns);
    std::fs::create_dir(&root).expect("state directory");
    run(&format!("ip netns add {netns}"));
    let lab = Lab { netns, root };
    let (netns, root) = (lab.netns.clone(), lab.root.clone());
    let thread = std::thread::spawn(move || {
        enter_netns(&netns).expect("enter");
        run("ip link add wan type bridge");
        run("ip addr add 192.0.2.1/24 dev wan");
        run("ip link set wan up");
        run("ip route add default via 192.0.2.2");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(work(root));
    });
    let outcome = thread.join();
    drop(lab);
    outcome.expect("all goes well");
}

fn bridge(number: u16) -> Bridge {
    let gateway = format!("10.82.{number}.1/24").parse().expect("gateway");
    Bridge { name: Network::bridge_name(OWNER, number), gateway }
}

fn tap() -> Tap {
    Tap {
        name: Network::tap_name(OWNER, "00010002"),
        bridge: Network::bridge_name(OWNER, 1),
        address: "10.82.1.2".parse().expect("address"),
        owner_uid: None,
    }
}

fn rules() -> Ruleset {
    let Tap { name, address, .. } = tap();
    let mac = Mac::from_bytes([2, 0, 0, 0, 1, 2]);
    let guest = TapRules { tap: name, mac, address, egress: Egress::default() };
    let Bridge { name, gateway } = bridge(1);
    let (subnet, gateway) = (gateway.trunc(), gateway.addr());
    let tenant =
        TenantRules { bridge: name, subnet, gateway, host_ports: vec![], taps: vec![guest] };
    Ruleset { tenants: vec![tenant], ..Ruleset::default() }
}

fn agent(root: &std::path::Path) -> Network {
    Network::open(OWNER).expect("open").of_root(root)
}

#[test]
fn rules_that_went_while_no_agent_ran_are_told_by_the_next() {
    in_a_lab("gone", async |root| {
        let restored = async |root: &std::path::Path| match agent(root).apply(&rules()).await {
            Ok(Applied::Restored(lost)) => lost.join(", "),
            outcome => format!("{outcome:?}"),
        };
        let (changed, already) = ("Ok(Changed)", "Ok(Already)");
        assert_eq!(restored(&root).await, changed, "nothing was ever in force");
        assert_eq!(restored(&root).await, already, "all is as the agent before has left it");
        run("nft flush ruleset");
        assert_eq!(restored(&root).await, "all tables are gone");
        assert_eq!(restored(&root).await, already);
        // The part is named after its table, not by the kernel's name for an unnamed set.
        run(&format!("nft flush chain inet mvm_{OWNER} refuse"));
        assert_eq!(restored(&root).await, "chain inet refuse was changed");
        run(&format!("nft delete table bridge mvm_{OWNER}"));
        assert_eq!(restored(&root).await, format!("table bridge mvm_{OWNER} is gone"));

        // Records and host may have changed as well, which does not count as a loss.
        run("ip addr add 192.0.3.1/24 dev wan");
        assert_eq!(restored(&root).await, changed);
        // An agent with no record reports nothing if no machine runs.
        std::fs::remove_file(root.join("walls")).expect("removed");
        run("nft flush ruleset");
        assert_eq!(restored(&root).await, changed);
        agent(&root).clear().await.expect("clear");
        assert!(!root.join("walls").exists());
        assert_eq!(restored(&root).await, changed, "they were removed by ourselves");
    });
}

#[test]
fn what_somebody_changes_of_links_is_named_and_put_back() {
    in_a_lab("links", async |root| {
        let network = agent(&root);
        // The host's setting for new links.
        set("ipv4/ip_forward", "1");
        set("ipv4/conf/default/forwarding", "0");
        network.ensure_bridge(&bridge(1)).await.expect("bridge");
        network.apply(&rules()).await.expect("rules");
        network.ensure_tap(&tap()).await.expect("tap");
        network.set_mtu(&tap().name, 1400).await.expect("MTU");
        let wanted =
            Wanted { bridges: vec![bridge(1)], taps: vec![tap()], spare: vec![], rules: rules() };
        let seen = async || {
            let found = network.differences(&wanted).await.expect("differences");
            found.iter().map(|d| format!("{} {}", d.what, d.detail)).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(seen().await, "");
        let (bridge, tap) = (bridge(1).name, tap().name);
        let wounds: [(&str, &dyn Fn()); 9] = [
            ("is 0: no guest reaches", &|| set(&format!("ipv4/conf/{bridge}/forwarding"), "0")),
            ("net.ipv4.conf.wan.forwarding it is 0", &|| set("ipv4/conf/wan/forwarding", "0")),
            ("net.ipv4.ip_forward it is 0", &|| set("ipv4/ip_forward", "0")),
            ("its MTU is 600 and not 1400", &|| run(&format!("ip link set {bridge} mtu 600"))),
            ("its MTU is 700 and not 1400", &|| run(&format!("ip link set {tap} mtu 700"))),
            ("it has IPv6", &|| set(&format!("ipv6/conf/{bridge}/disable_ipv6"), "0")),
            ("it has IPv6", &|| set(&format!("ipv6/conf/{tap}/disable_ipv6"), "0")),
            ("its alias is not", &|| unmark(&bridge)),
            ("its alias is not", &|| unmark(&tap)),
        ];
        for (said, wound) in wounds {
            wound();
            let told = seen().await;
            assert!(told.contains(said), "{said}: {told}");
            // A bridge whose MTU somebody set by hand follows its ports one pass later.
            let mut mended = network.mend(&wanted).await.expect("mend").mended;
            mended.extend(network.mend(&wanted).await.expect("mend").mended);
            let put_back = mended.iter().any(|d| format!("{} {}", d.what, d.detail).contains(said));
            assert!(put_back, "{said}: {mended:?}");
            assert_eq!(seen().await, "", "{said}");
        }

        // A route that the host gets later is reported, but not removed.
        run("ip route add 10.82.1.128/25 via 192.0.2.9");
        let told = seen().await;
        assert!(told.contains("overlaps with the route to 10.82.1.128/25 over wan"), "{told}");
        assert_eq!(network.mend(&wanted).await.expect("mend").mended, []);
        run("ip route del 10.82.1.128/25 via 192.0.2.9");
        network.apply(&rules()).await.expect("rules");
        assert_eq!(seen().await, "");
        network.clear().await.expect("clear");
    });
}

fn unmark(link: &str) {
    let output = Command::new("ip").args(["link", "set", link, "alias", ""]).output().expect("ip");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_table_that_another_process_holds_is_told_so() {
    in_a_lab("held", async |root| {
        let mut holder = Command::new("nft");
        holder.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null());
        let mut holder = holder.spawn().expect("nft");
        let mut words = holder.stdin.take().expect("stdin");
        writeln!(words, "add table inet mvm_{OWNER} {{ flags owner; }}").expect("told");
        words.flush().expect("told");
        let tables = || Command::new("nft").args(["list", "tables"]).output().expect("nft").stdout;
        while tables().is_empty() {
            assert!(holder.try_wait().expect("nft").is_none(), "it has ended");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let error = agent(&root).apply(&rules()).await.expect_err("it is held");
        let said = error.to_string();
        assert!(
            said.contains(&format!("another process holds the table inet mvm_{OWNER}")),
            "{said}"
        );
        assert!(said.contains("owner flag") && !said.contains("CAP_NET_ADMIN"), "{said}");
        drop(words);
        holder.wait().expect("nft");
        agent(&root).apply(&rules()).await.expect("nobody holds it");
    });
}

#[test]
fn a_path_is_no_namespaces_name_and_is_told_so() {
    for name in ["../x", "", ".", "a/b"] {
        let error = enter_netns(name).expect_err("refused");
        assert_eq!(error.code(), Code::NetnsNotFound);
        let said = error.to_string();
        assert!(said.contains("is not the name of") && !said.contains("netns add"), "{said}");
    }
}
