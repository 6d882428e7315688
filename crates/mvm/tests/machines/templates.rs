//! Templates and their clones.

use crate::lab::{Lab, text, wait_for};
use serde_json::Value;
use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;

/// Returns the names of the existing templates.
fn templates(lab: &Lab) -> Vec<String> {
    let entries = std::fs::read_dir(lab.root.join("templates")).expect("templates");
    entries.map(|entry| entry.expect("entry").file_name().display().to_string()).collect()
}

/// Returns how the machine maps its memory: the file, and the permissions of the mapping (proc(5)).
fn memory_of(lab: &Lab, vm: &str) -> (String, String) {
    let pid = lab.pid(vm).expect("a process");
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let line = maps.lines().find(|line| line.ends_with("/memory")).expect("a memory file");
    let mut words = line.split_whitespace();
    let permissions = words.nth(1).expect("permissions").to_owned();
    (words.last().expect("path").to_owned(), permissions)
}

#[test]
fn clones_share_memory_and_nothing_else() {
    let lab = Lab::new("clone");
    lab.tenant_and_pool("ci", "40");
    assert_eq!(templates(&lab).len(), 1, "the build made it");
    assert_eq!(lab.json(&["pool", "info", "ci/small"])["template_ready"], true);
    assert_eq!(lab.machines(), 0);
    assert_eq!(lab.json(&["instance", "list"]), Value::Array(Vec::new()));
    lab.ok(&["pool", "scale", "ci/small", "--warm", "2", "--sleeping", "2", "--wait"]);
    assert_eq!(lab.machines(), 2, "a sleeper that never ran needs no process");
    let warm = lab.ids("ci/small", "warm");
    let mut seen: Vec<BTreeSet<String>> = vec![BTreeSet::new(); 6];
    let sleeper = lab.ids("ci/small", "sleeping").remove(0);
    for vm in warm.iter().chain([&sleeper]) {
        lab.ok(&["instance", "wake", vm]);
        let (file, permissions) = memory_of(&lab, vm);
        assert!(file.contains("/templates/") && permissions.ends_with('p'), "{file} {permissions}");
        let info = lab.json(&["instance", "info", vm]);
        let script = "head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo; busybox hostname; \
                      cat /etc/machine-id; cat /sys/class/net/eth*/address; date +%s; \
                      cat /proc/sys/kernel/random/boot_id; busybox ip -o -4 addr show";
        let before = epoch();
        let said = lab.exec(vm, script);
        // The tolerance covers however long the commands take here.
        let between = before - 3..=epoch() + 3;
        let lines: Vec<&str> = said.lines().collect();
        let address = info["address"].as_str().expect("address");
        assert_eq!(lines[3], info["mac"].as_str().expect("mac"), "as its guest sees it");
        assert!(said.contains(&format!("{address}/24")), "{said}");
        let addresses = said.lines().filter(|line| line.contains("inet 10.")).count();
        assert_eq!(addresses, 1, "no address but its own: {said}");
        let host_key = lab.ok(&["instance", "ssh", vm, "--", "cat", "/run/mvm/ssh/host_key"]);
        let clock: i64 = lines[4].parse().expect("clock");
        assert!(between.contains(&clock), "the clock is right: {clock} in {between:?}");
        let own = [lines[0], lines[1], lines[2], lines[3], lines[5], &host_key];
        for (set, value) in seen.iter_mut().zip(own) {
            assert!(!value.trim().is_empty());
            assert!(set.insert(value.to_owned()), "two clones share {value}");
        }
    }
    // A used clone keeps its state across two sleeps and a new agent, in memory of its own.
    let vm = &warm[0];
    lab.start_counter(vm);
    let boot_id = || lab.exec(vm, "cat /proc/sys/kernel/random/boot_id");
    let boot = boot_id();
    let mut count = lab.count(vm);
    for _ in 0..2 {
        lab.ok(&["instance", "sleep", vm]);
        let dir = lab.root.join("instances").join(vm.rsplit('/').next().expect("id"));
        let snapshot = std::fs::metadata(dir.join("snapshot")).expect("snapshot").len();
        assert!(dir.join("memory").exists() && snapshot < 1 << 20, "memory is not in the snapshot");
        lab.kill_agent();
        lab.ok(&["instance", "wake", vm]);
        let (file, permissions) = memory_of(&lab, vm);
        assert!(file.contains("/instances/") && permissions.ends_with('s'), "{file} {permissions}");
        let now = lab.count(vm);
        assert!(now >= count, "the very same machine goes on");
        assert_eq!(boot_id(), boot, "in the same boot");
        count = now;
    }
    lab.ok(&["pool", "destroy", "ci/small"]);
    wait_for("the template to be collected", || templates(&lab).is_empty());
    assert_eq!(lab.machines(), 0);
}

#[test]
fn a_template_is_prewarmed_and_a_command_that_fails_is_told() {
    let lab = Lab::new("prewarm");
    lab.tenant_and_unbuilt_pool("ci", "41");
    lab.ok(&["pool", "update", "ci/small", "--prewarm", "echo no such cache >&2; exit 3"]);
    let build = ["pool", "build", "ci/small", "--override-input", &crate::lab::nixpkgs()];
    let output = lab.mvm(&build).output().expect("mvm");
    let words = text(&output.stderr);
    assert!(output.status.success() && words.contains("status 3: no such cache"), "{words}");
    assert_eq!((templates(&lab).len(), lab.machines()), (0, 0));
    lab.ok(&[
        "pool",
        "update",
        "ci/small",
        "--prewarm",
        "echo hot > /run/cache; echo disk > /var/d",
    ]);
    lab.ok(&build);
    let vm = lab.start("ci/small");
    assert_eq!(lab.exec(&vm, "cat /run/cache /var/d"), "hot\ndisk\n");
    lab.exec(&vm, "echo mine > /var/d");
    let other = lab.start("ci/small");
    assert_eq!(lab.exec(&other, "cat /var/d"), "disk\n", "its disk is its own");
    // Another command means another template. The old one stays until its clones are gone.
    lab.ok(&["pool", "update", "ci/small", "--prewarm", ""]);
    lab.ok(&["pool", "scale", "ci/small", "--warm", "3", "--wait"]);
    wait_for("the old template to stay for its clones", || templates(&lab).len() == 2);
    for vm in [&vm, &other] {
        assert!(lab.exec(vm, "cat /run/cache").contains("hot"));
        lab.ok(&["instance", "destroy", vm]);
    }
    wait_for("the old template to be collected", || templates(&lab).len() == 1);
}

#[test]
fn an_agent_killed_while_it_makes_or_clones_a_template_leaves_nothing() {
    let lab = Lab::new("builder");
    lab.tenant_and_unbuilt_pool("ci", "42");
    let build = ["pool", "build", "ci/small", "--override-input", &crate::lab::nixpkgs()];
    // The first build fails to make a template, so that the builds after it only make the template.
    lab.ok(&["pool", "update", "ci/small", "--prewarm", "false"]);
    lab.ok(&build);
    lab.ok(&["pool", "update", "ci/small", "--prewarm", "sleep 0.2"]);
    for delay in [200, 1500, 3000, 4000] {
        let mut begun = lab.mvm(&build);
        let mut begun = begun.stderr(std::process::Stdio::null()).spawn().expect("mvm");
        std::thread::sleep(std::time::Duration::from_millis(delay));
        lab.kill_agent();
        begun.wait().expect("wait");
        wait_for("the template's builder to be gone", || {
            lab.json(&["instance", "list"]) == Value::Array(vec![])
        });
        assert_eq!(lab.machines(), 0, "after {delay} ms");
        assert!(templates(&lab).iter().all(|name| !name.contains('.')), "after {delay} ms");
    }
    lab.ok(&build);
    for delay in [0, 30, 80, 150, 250, 400] {
        let vm = lab.ok(&["instance", "create", "ci/small"]).trim().to_owned();
        let mut begun = lab.mvm(&["instance", "start", &vm]);
        let begun = begun.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut begun = begun.spawn().expect("mvm");
        std::thread::sleep(std::time::Duration::from_millis(delay));
        lab.kill_agent();
        begun.wait().expect("wait");
        lab.ok(&["instance", "start", &vm]);
        assert_eq!(
            lab.exec(&vm, "busybox hostname").trim(),
            format!("small-{}", &vm[vm.len() - 8..])
        );
        lab.ok(&["instance", "destroy", &vm]);
    }
    assert_eq!(lab.machines(), 0);
}

/// Returns the host's time, in seconds since the Unix epoch.
fn epoch() -> i64 {
    let since = std::time::UNIX_EPOCH.elapsed();
    since.expect("clock").as_secs() as i64
}

/// Each clone of a template with garbled memory dies or hangs. The pool has no desired counts, and
/// without a renewal its jobs would fail forever.
#[test]
fn a_template_that_is_garbled_or_cut_off_is_made_anew_and_says_so() {
    let lab = Lab::new("garbled");
    lab.tenant_and_pool("ci", "43");
    let run = |how: &str| {
        let done = lab.mvm(&["run", "--timings", "ci/small", "--", "echo", "hi"]).output();
        let done = done.expect("mvm");
        let (out, err) = (text(&done.stdout), text(&done.stderr));
        assert!(done.status.success() && out == "hi\n" && err.contains(how), "{out} {err}");
    };
    let renewed = |why: &str| {
        let renewal = || lab.json(&["pool", "info", "ci/small"])["template_renewal"].clone();
        wait_for("the new template", || renewal()["done"] == true);
        assert!(renewal()["reason"].as_str().is_some_and(|r| r.contains(why)), "{}", renewal());
        let events = lab.json(&["events"]);
        let told = |e: &Value| e["reason"].as_str().is_some_and(|reason| reason.contains(why));
        assert!(events.as_array().expect("events").iter().any(told), "{events}");
    };
    run("claim (created, cloned)");
    let file = |name: &str| lab.root.join("templates").join(&templates(&lab)[0]).join(name);
    let memory = std::fs::OpenOptions::new().read(true).write(true).open(file("memory"));
    let memory = memory.expect("memory");
    let (bytes, mut low) = (memory.metadata().expect("metadata").len(), vec![0; 1 << 20]);
    // Everything except the firmware's first megabyte is zero: the snapshot loads, and the guest
    // finds no page tables.
    memory.read_exact_at(&mut low, 0).expect("read");
    memory.set_len(0).and_then(|()| memory.set_len(bytes)).expect("garbled");
    memory.write_all_at(&low, 0).expect("written");
    run("claim (created, booted)");
    renewed("its clones came up dead");
    run("claim (created, cloned)");
    let snapshot = std::fs::OpenOptions::new().write(true).open(file("snapshot"));
    snapshot.and_then(|snapshot| snapshot.set_len(100_000)).expect("cut off");
    run("claim (created, booted)");
    renewed("it could not be loaded");
    run("claim (created, cloned)");
    let told = lab.ok(&["metrics"]);
    let line = "mvm_templates_given_up_total{tenant=\"ci\",pool=\"small\"} 2";
    assert!(told.contains(line), "{told}");
}
