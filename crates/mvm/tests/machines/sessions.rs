//! Sessions with a guest: programs, files, terminals and the console.

use crate::lab::{Lab, run, text, wait_for};
use std::io::Read;
use std::io::Write;
use std::process::{Command, Stdio};

#[test]
fn a_session_ends_with_its_machines_sleep() {
    let lab = Lab::new("open");
    lab.tenant_and_pool("ci", "61");
    let vm = lab.start("ci/small");
    for verb in ["sleep", "stop", "destroy"] {
        let script = "echo in; sleep 600";
        let words = [
            vec!["instance", "exec", &vm, "--", "sh", "-c", script],
            vec!["instance", "ssh", &vm, "--", script],
        ];
        let mut open = words.map(|words| {
            let mut session = lab.mvm(&words);
            session.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("mvm")
        });
        for session in &mut open {
            let mut said = [0; 3];
            session.stdout.as_mut().expect("stdout").read_exact(&mut said).expect("in");
        }
        lab.ok(&["instance", verb, &vm]);
        for session in &mut open {
            let ended = session.wait().expect("wait");
            assert!(!ended.success(), "after {verb}: {ended}");
        }
        if verb != "destroy" {
            lab.ok(&["instance", if verb == "sleep" { "wake" } else { "start" }, &vm]);
        }
    }
}

#[test]
fn files_programs_and_terminals() {
    let lab = Lab::new("talk");
    lab.tenant_and_pool("ci", "60");
    let vm = lab.start("ci/small");

    let bytes: Vec<u8> =
        (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let source = lab.root.join("source");
    std::fs::create_dir_all(source.join("deep")).expect("directory");
    std::fs::write(source.join("deep/data"), &bytes).expect("write");
    let there = format!("{vm}:/tmp");
    lab.ok(&["instance", "cp", source.to_str().expect("path"), &there]);
    let back = lab.root.join("back");
    lab.ok(&["instance", "cp", &format!("{vm}:/tmp/source"), back.to_str().expect("path")]);
    assert!(std::fs::read(back.join("source/deep/data")).expect("read") == bytes);
    lab.refused(&["instance", "cp", &format!("{vm}:/no/such"), "."], "not_found");

    let mut cat = lab
        .mvm(&["instance", "exec", "-i", &vm, "--", "sh", "-c", "cat; echo to-stderr >&2; exit 3"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mvm");
    cat.stdin.take().expect("stdin").write_all(b"through").expect("write");
    let output = cat.wait_with_output().expect("wait");
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(
        (text(&output.stdout), text(&output.stderr)),
        ("through".into(), "to-stderr\n".into())
    );
    let absent =
        lab.mvm(&["instance", "exec", &vm, "--", "no-such-program"]).output().expect("mvm");
    assert_eq!(absent.status.code(), Some(127));

    // script(1) gives the client a terminal, whose size the guest's program must see too.
    let mvm = env!("CARGO_BIN_EXE_mvm");
    let root = lab.root.display();
    let line = format!(
        "stty rows 33 cols 99; {mvm} --root {root} instance exec -it {vm} -- \
         sh -c 'test -t 0 && test -t 1 && busybox stty size'"
    );
    let seen = run(Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()));
    assert!(text(&seen.stdout).contains("33 99"), "{}", text(&seen.stdout));

    lab.exec(&vm, "echo said on the console > /dev/console");
    wait_for("the console", || lab.ok(&["instance", "logs", &vm]).contains("said on the console"));
    // On a terminal, console output must not move the cursor unless `--raw` is given.
    lab.exec(&vm, "printf 'a\\033[2Jb\\n' > /dev/console");
    wait_for("the console", || lab.ok(&["instance", "logs", &vm]).contains("a\x1b[2Jb"));
    for (raw, shown, other) in [("", "a\\u{1b}[2Jb", "\x1b[2J"), (" --raw", "a\x1b[2Jb", "\\u{1b}")]
    {
        let command = format!(
            "'{}' --root '{}' instance logs {vm}{raw}",
            env!("CARGO_BIN_EXE_mvm"),
            lab.root.display()
        );
        let mut script = Command::new("script");
        script.args(["-qec", &command, "/dev/null"]).stdin(Stdio::null());
        let output = script.output().expect("script");
        let words = text(&output.stdout);
        assert!(words.contains(shown) && !words.contains(other), "{raw}: {words}");
    }
    let stats = lab.json(&["instance", "stats", &vm]);
    assert!(stats["resident_kib"].as_u64().expect("resident") > 10_000, "{stats}");
    assert!(
        stats["guest"]["mem_total_kib"].as_u64().expect("memory of the guest") > 100_000,
        "{stats}"
    );
}
