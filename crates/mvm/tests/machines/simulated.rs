//! An agent whose hypervisor is simulated. Everything else is real.

use crate::lab::{Lab, nixpkgs, text, wait_for};

/// The specification's example, to the letter except for the flake's packages.
#[test]
fn the_specifications_workflow_runs_on_a_simulation() {
    let lab = Lab::simulated("sim");
    let flake = lab.root.join("flake");
    let flake = flake.to_str().expect("path");
    let subnet = ["tenant", "create", "ci", "--net-id", "20", "--subnet", "10.240.20.0/24"];
    let quotas = ["--max-vcpus", "64", "--max-mem", "131072", "--max-running", "16"];
    lab.ok(&[&subnet[..], &quotas, &["--max-warm", "4"]].concat());
    let pool = ["pool", "create", "ci/runners", "--flake", flake, "--profile", "small"];
    let shape = ["--cpus", "4", "--mem", "4096", "--data-disk", "2048", "--recycle", "sleep"];
    lab.ok(&[&pool[..], &shape, &["--prewarm", "echo hot > /cache"]].concat());
    lab.ok(&["pool", "build", "ci/runners", "--override-input", &nixpkgs()]);
    let scale = ["pool", "scale", "ci/runners", "--running", "0", "--warm", "4", "--sleeping", "8"];
    lab.ok(&[&scale[..], &["--wait"]].concat());

    assert_eq!(lab.json(&["agent", "status"])["simulated"], true);
    let listed = lab.ok(&["instance", "list"]);
    assert_eq!(listed.matches("(simulated)").count(), 12, "{listed}");
    assert_eq!(lab.machines(), 0, "nothing runs on the host");
    // Four warm instances' taps and the bridge: the network is real, and sleepers that never ran
    // need no tap.
    assert_eq!(lab.links().len(), 5);

    let vm = lab.ids("ci/runners", "sleeping").remove(0);
    lab.ok(&["instance", "wake", &vm]);
    assert_eq!(lab.exec(&vm, "cat /cache"), "hot\n", "it is a clone of the template");
    let name = lab.exec(&vm, "cat /etc/hostname");
    assert_eq!(name.trim(), format!("runners-{}", &vm[vm.len() - 8..]));
    lab.exec(&vm, "echo built > /work/cache");
    lab.ok(&["instance", "sleep", &vm]);
    assert_eq!(lab.state(&vm), "sleeping");
    // Simulated machines outlive the agent, as real ones do.
    let warm = lab.ids("ci/runners", "warm");
    let pid = lab.pid(&warm[0]);
    lab.kill_agent();
    assert_eq!((lab.pid(&warm[0]), lab.state(&warm[0])), (pid, "warm".to_owned()));
    lab.ok(&["instance", "wake", &vm]);
    assert_eq!(lab.exec(&vm, "cat /work/cache"), "built\n", "memory survives sleep and agents");
    let unknown = lab.mvm(&["instance", "exec", &vm, "--", "make"]).output().expect("mvm");
    assert_eq!(unknown.status.code(), Some(127), "{}", text(&unknown.stderr));
    lab.ok(&["instance", "sleep", &vm]);

    std::fs::write(lab.root.join("input"), "from outside").expect("input");
    let (input, out) = (lab.root.join("input"), lab.root.join("out"));
    let back = format!("/work/result:{}", out.display());
    let files = ["--in", input.to_str().expect("path"), "--out", &back];
    let job = ["--", "sh", "-c", "cat input > result; echo said; exit 7"];
    let output = lab.mvm(&[&["run", "ci/runners"], &files[..], &job].concat()).output();
    let output = output.expect("mvm");
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "said\n");
    assert_eq!(std::fs::read_to_string(out.join("result")).expect("result"), "from outside");
    let timed = lab.mvm(&["run", "ci/runners", "--timeout", "1", "--", "sleep", "60"]).output();
    assert_eq!(timed.expect("mvm").status.code(), Some(124));

    lab.ok(&["instance", "destroy", &vm]);
    wait_for("the pool to be whole", || {
        let pool = lab.json(&["pool", "info", "ci/runners"]);
        pool["ready_counts"] == pool["desired_counts"]
    });
    lab.ok(&["pool", "destroy", "ci/runners"]);
    lab.ok(&["tenant", "destroy", "ci"]);
    assert_eq!(lab.links(), [""; 0]);
    let kept = std::fs::read_dir(lab.root.join("sim")).expect("folder").count();
    assert_eq!(kept, 0, "no simulated machine is left");
}
