//! A removed node is cut off everywhere, at once.

use crate::lab::{Engine, Lab, address, text, wait_for};
use serde_json::json;
use std::process::{Child, Stdio};

/// Opens a connection from the hub to `to` with the identity in this directory, and keeps it open.
fn connected(lab: &Lab, identity: &str, to: &str) -> Child {
    let (ours, ca) = (format!("{identity}/identity.pem"), format!("{identity}/ca.pem"));
    let to = format!("{}:4433", address(to));
    let mut client = std::process::Command::new("ip");
    client.args(["netns", "exec", &lab.netns("hub"), "openssl", "s_client", "-quiet"]);
    client.args(["-connect", &to, "-cert", &ours, "-key", &ours, "-CAfile", &ca]);
    client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    client.spawn().expect("openssl")
}

/// Returns whether a server answers a request with this identity.
fn asked(lab: &Lab, identity: &str, to: &str) -> bool {
    let at = format!("mvm.internal:443:{}:4433", address(to));
    let mut curl = std::process::Command::new("ip");
    curl.args(["netns", "exec", &lab.netns("hub"), "curl", "--silent", "--show-error", "--fail"]);
    curl.args(["--connect-to", &at, "--cacert", &format!("{identity}/ca.pem")]);
    curl.args(["--cert", &format!("{identity}/identity.pem")]);
    let output = curl.arg("https://mvm.internal/openapi.json").output().expect("curl");
    output.status.success() && text(&output.stdout).starts_with('{')
}

#[test]
fn a_node_that_is_removed_is_cut_off_by_all() {
    let mut lab = Lab::new("fleet-revoked", Engine::Etcd(1));
    lab.coordinator("c1");
    lab.coordinator("c2");
    lab.nodes(&["n1", "n2"]);
    // The revocation must be pushed: no node has a signer to ask, and c2 never had one.
    for node in ["n1", "n2"] {
        lab.kill(node);
        let signers = lab.root.join(format!("{node}/identity/signers.json"));
        std::fs::write(signers, r#"{"addresses":[]}"#).expect("written");
        lab.node(node);
    }
    wait_for("the nodes", || lab.alive("n1") && lab.alive("n2"));
    lab.apply(&json!({ "warm": 2 }), &json!({ "spread": { "key": "node" } }), true);
    let identity = lab.path("n1/identity");
    let places = ["c1", "c2", "n2"];
    assert!(places.iter().all(|place| asked(&lab, &identity, place)));
    let mut standing = places.map(|place| connected(&lab, &identity, place));
    std::thread::sleep(std::time::Duration::from_millis(500));
    for (place, client) in places.iter().zip(&mut standing) {
        assert!(client.try_wait().expect("wait").is_none(), "{place} keeps the connection");
    }
    let began = std::time::Instant::now();
    lab.ok("hub", &["node", "remove", "n1"]);
    for (place, client) in places.iter().zip(&mut standing) {
        wait_for(place, || client.try_wait().expect("wait").is_some());
        println!("{place} has cut the connection after {:?}", began.elapsed());
    }
    assert!(!places.iter().any(|place| asked(&lab, &identity, place)), "nor is it let in again");
    // The connections to the node are cut as well: no coordinator reaches it any more.
    wait_for("the node to be lost", || !lab.alive("n1"));
    println!("it is out of reach after {:?}", began.elapsed());
    assert!(lab.alive("n2"));
    lab.refused(&["instance", "info", "ci/runners/i-00000000"], "node_unreachable");
}
