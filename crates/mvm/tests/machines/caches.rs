//! Caches: what a job leaves to the next job, and what it does not.

use crate::lab::{Lab, text};

/// Runs a script as a job. Returns its exit status and its output.
fn job(lab: &Lab, options: &[&str], script: &str) -> (i32, String) {
    let words = [&["run", "ci/small"], options, &["--", "sh", "-c", script]].concat();
    let output = lab.mvm(&words).output().expect("mvm");
    (output.status.code().expect("status"), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn a_cache_is_handed_on_by_those_who_commit_it_and_succeed() {
    let lab = Lab::new("cache");
    lab.tenant_and_unbuilt_pool("ci", "35");
    let update = |cache: &'static str| ["pool", "update", "ci/small", "--cache", cache];
    lab.ok(&update("store:/var/cache/store:64"));
    lab.build("ci/small");
    lab.ok(&["pool", "scale", "ci/small", "--warm", "1", "--sleeping", "1", "--wait"]);
    let seen = "cat /var/cache/store/x 2>/dev/null || echo nothing";
    let commit: &[&str] = &["--cache-commit", "store"];
    assert_eq!(job(&lab, &[], seen), (0, "nothing\n".to_owned()));
    // A cache is not committed after a failure, or without being asked for.
    let write =
        |what: &str, status: u8| format!("echo {what} > /var/cache/store/x && exit {status}");
    assert_eq!(job(&lab, commit, &write("failed", 3)), (3, String::new()));
    assert_eq!(job(&lab, &[], &write("unasked", 0)), (0, String::new()));
    assert_eq!(job(&lab, &[], seen), (0, "nothing\n".to_owned()));
    assert_eq!(job(&lab, commit, &write("one", 0)), (0, String::new()));
    let cache = lab.json(&["pool", "info", "ci/small"])["caches"][0].clone();
    assert_eq!(
        (cache["generation"].as_u64(), cache["cache"]["size_mib"].as_u64()),
        (Some(2), Some(64))
    );
    // All spares that were ready before get the new content: warm, sleeping and new ones.
    for _ in 0..3 {
        assert_eq!(job(&lab, &[], seen), (0, "one\n".to_owned()));
    }
    // A job that holds a file of the cache open has succeeded, but its cache is not committed.
    let holds = format!(
        "{} ; (exec 3>/var/cache/store/y; sleep 600) & sleep 1",
        "echo two > /var/cache/store/x"
    );
    let (status, words) = job(&lab, commit, &holds);
    assert!(status == 0 && words.contains("cache store was not committed"), "{status} {words}");
    lab.kill_agent();
    assert_eq!(job(&lab, &[], seen), (0, "one\n".to_owned()));
    // A machine that is used again gets a clean copy each time.
    lab.ok(&["pool", "update", "ci/small", "--recycle", "keep"]);
    assert_eq!(job(&lab, &[], &write("mine", 0)), (0, String::new()));
    assert_eq!(job(&lab, &[], seen), (0, "one\n".to_owned()));
    assert_eq!(job(&lab, commit, &write("three", 0)), (0, String::new()));
    assert_eq!(job(&lab, &[], seen), (0, "three\n".to_owned()));
    let files = || std::fs::read_dir(lab.root.join("caches/ci/small")).map_or(0, Iterator::count);
    assert_eq!(files(), 1, "one content is kept");
    lab.refused(&["job", "submit", "ci/small", "--cache-commit", "no", "--", "true"], "not_found");
    lab.refused(&update("store:/var/cache/store:128"), "conflict");
    lab.refused(&update("store:relative:64"), "invalid_value");
    // The cache is mounted elsewhere with its content; then it is removed.
    lab.ok(&update("store:/srv/store:64"));
    assert_eq!(job(&lab, &[], "cat /srv/store/x"), (0, "three\n".to_owned()));
    lab.ok(&update(""));
    assert_eq!((job(&lab, &[], "test ! -e /srv/store").0, files()), (0, 0));
    lab.ok(&["pool", "destroy", "ci/small"]);
    assert_eq!(lab.machines(), 0);
    assert!(!lab.root.join("caches/ci/small").exists());
}
