//! What guests reach, and what they do not.

use crate::lab::Lab;
use std::process::Stdio;
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
    // Port 1 of the gateway has no listener: what is let through is refused at once, what is
    // dropped is not answered at all.
    let began = Instant::now();
    let port = lab
        .mvm(&["instance", "exec", &one, "--", "busybox", "nc", "-w", "3", "10.77.30.1", "1"])
        .output();
    assert!(!port.expect("mvm").status.success());
    assert!(began.elapsed() >= Duration::from_secs(2), "a port that is not named answered");
    // With a neighbour's address a guest is heard by nobody.
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
