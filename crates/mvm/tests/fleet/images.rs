//! Images that travel between agents: automatically when a pool comes to a node, and by hand;
//! interrupted, and from a node whose copy is damaged.

use crate::lab::{Engine, Kind, Lab, SIM, address, pool, run, text, wait_for};
use crate::machine_faults::CutDirection;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// A node that sends images at 12 MiB per second, slowly enough to be interrupted.
const SLOW: Kind = Kind { options: &["--label", "made=here", "--image-rate", "12"], ..SIM };

#[test]
fn images_travel_from_node_to_node() {
    let mut lab = Lab::new("fleet-images", Engine::Sqlite);
    lab.small_images();
    lab.coordinator("c1");
    lab.node_of("n1", SLOW);
    lab.node("n2");
    lab.node("n3");
    wait_for("the nodes", || ["n1", "n2", "n3"].iter().all(|node| lab.alive(node)));
    let here = json!({ "require": { "made": ["here"] } });
    lab.apply_pools(&[pool("runners", &json!({ "warm": 1 }), &here)], true);
    let images = Images::new(&lab);

    a_transfer_goes_on_where_it_was_cut_off(&lab, &images);
    images.forget("n2");
    a_person_sees_how_far_it_is(&lab, &images);
    images.forget("n2");
    a_damaged_copy_is_refused(&images);
    images.forget("n2");
    images.forget("n3");
    a_pool_brings_its_image(&lab, &images);
}

fn a_transfer_goes_on_where_it_was_cut_off(lab: &Lab, images: &Images<'_>) {
    let cut_off = images.fetch("n2", &["n1"], None);
    let begun = images.path("n2", &format!(".incoming-{}/vmlinux.partial", images.digest));
    let there = || std::fs::metadata(&begun).map_or(0, |file| file.len());
    wait_for("some of it", || there() > 2 << 20);
    lab.cut("n1", CutDirection::Out);
    let refused = images.refused(cut_off);
    assert!(["connection_broken", "agent_unreachable"].contains(&&*refused), "{refused}");
    let there = there();
    lab.join("n1");
    let done = images.done(images.fetch("n2", &["n1"], None));
    let (size, received) = (done["size_bytes"].as_u64(), done["received_bytes"].as_u64());
    let (size, received) = (size.expect("bytes"), received.expect("bytes"));
    // No byte came twice, neither of the interrupted part nor of the parts before it.
    assert!(received + there <= size, "{received} received, {there} there, of {size}");
    assert!(received > 0 && there > 2 << 20, "{received} received, {there} there");
    assert_eq!(images.on("n2")["content"], images.content);
}

fn a_person_sees_how_far_it_is(lab: &Lab, images: &Images<'_>) {
    let from = format!("{}:4433", address("n1"));
    let words = ["image", "fetch", &images.digest, "--from", &from];
    let said = text(&run(lab.local("n2", &words).stderr(Stdio::piped())).stderr);
    let root = format!("==> receive: root.erofs from {from}, 0 of ");
    assert!(said.lines().any(|line| line.starts_with(&root) && line.ends_with(" MiB")), "{said}");
}

fn a_damaged_copy_is_refused(images: &Images<'_>) {
    // One bit of the root file system differs from the manifest's digest.
    run(Command::new("cp")
        .arg("-r")
        .arg(images.path("n1", &images.digest))
        .arg(images.path("n3", "")));
    let root = images.path("n3", &format!("{}/root.erofs", images.digest));
    run(Command::new("chmod").arg("u+w").arg(&root));
    let mut bytes = std::fs::read(&root).expect("root.erofs");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&root, bytes).expect("root.erofs");
    assert_eq!(images.refused(images.fetch("n2", &["n3"], None)), "image_corrupt");
    // An image whose manifest differs from the request is refused as well.
    let manifest = images.path("n3", &format!("{}/manifest.json", images.digest));
    run(Command::new("chmod").arg("u+w").arg(&manifest));
    let mut said: Value =
        serde_json::from_slice(&std::fs::read(&manifest).expect("manifest")).expect("JSON");
    let part =
        said["parts"].as_array_mut().expect("parts").iter_mut().find(|p| p["name"] == "root.erofs");
    let sum = run(Command::new("sha256sum").arg(&root)).stdout;
    part.expect("a root")["sha256"] = text(&sum)[..64].into();
    std::fs::write(&manifest, said.to_string()).expect("manifest");
    assert_eq!(images.refused(images.fetch("n2", &["n3"], Some(&images.content))), "image_refused");
    assert!(images.list("n2").is_empty());
    // The next source is asked, and its good copy is taken.
    let done = images.done(images.fetch("n2", &["n3", "n1"], Some(&images.content)));
    assert_eq!(done["content"], images.content);
}

fn a_pool_brings_its_image(lab: &Lab, images: &Images<'_>) {
    // From now on no node can build the image.
    std::fs::remove_dir_all(lab.root.join("flake")).expect("flake");
    std::fs::create_dir(lab.root.join("flake")).expect("flake");
    let spread = json!({ "spread": { "key": "node" } });
    lab.apply_pools(&[pool("runners", &json!({ "warm": 3 }), &spread)], true);
    for node in ["n1", "n2", "n3"] {
        assert_eq!(lab.held(node), json!([1, 0, 0]), "{node}");
        assert_eq!(images.on(node)["content"], images.content, "{node}");
    }
    assert_eq!(lab.ok("hub", &["run", "ci/runners", "--", "echo", "hello"]), "hello\n");
}

/// The image of the test's pool, which the first node has built.
struct Images<'a> {
    lab: &'a Lab,
    digest: String,
    content: String,
}

impl<'a> Images<'a> {
    fn new(lab: &'a Lab) -> Images<'a> {
        let mut images = Images { lab, digest: String::new(), content: String::new() };
        let built = images.on("n1");
        let word = |key: &str| built[key].as_str().expect("a word").to_owned();
        (images.digest, images.content) = (word("digest"), word("content"));
        images
    }

    fn path(&self, node: &str, what: &str) -> PathBuf {
        self.lab.root.join(node).join("images").join(what)
    }

    /// Returns an `mvm` command that runs on the node and prints JSON.
    fn local(&self, node: &str, words: &[&str]) -> Command {
        let mut local = self.lab.local(node, &[words, &["-o", "json"]].concat());
        local.stdout(Stdio::piped()).stderr(Stdio::piped());
        local
    }

    fn list(&self, node: &str) -> Vec<Value> {
        let output = run(&mut self.local(node, &["image", "list"]));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Returns the one image of a node.
    fn on(&self, node: &str) -> Value {
        let images = self.list(node);
        assert_eq!(images.len(), 1, "{node}: {images:?}");
        images[0].clone()
    }

    fn forget(&self, node: &str) {
        run(&mut self.local(node, &["image", "gc"]));
        assert!(self.list(node).is_empty());
    }

    /// Starts the fetching of the image on a node.
    fn fetch(&self, node: &str, from: &[&str], content: Option<&str>) -> std::process::Child {
        let sources: Vec<String> =
            from.iter().map(|node| format!("{}:4433", address(node))).collect();
        let mut words = vec!["image", "fetch", &self.digest];
        sources.iter().for_each(|source| words.extend(["--from", source]));
        content.iter().for_each(|content| words.extend(["--content", content]));
        self.local(node, &words).spawn().expect("mvm")
    }

    fn done(&self, fetching: std::process::Child) -> Value {
        let Output { status, stdout, stderr } = fetching.wait_with_output().expect("mvm");
        assert!(status.success(), "{}", text(&stderr));
        serde_json::from_slice(&stdout).expect("JSON")
    }

    /// Returns the code with which the fetch was refused.
    fn refused(&self, fetching: std::process::Child) -> String {
        let Output { status, stderr, .. } = fetching.wait_with_output().expect("mvm");
        assert!(!status.success(), "it was received");
        let said: Value =
            serde_json::from_slice(&stderr).unwrap_or_else(|_| panic!("{}", text(&stderr)));
        said["code"].as_str().expect("a code").to_owned()
    }
}
