//! Listings and single objects as the command line shows them, to the letter, in each format.
//!
//! Values that differ from run to run are replaced. `INSTA_UPDATE=always` updates `snapshots/`.

use crate::lab::{Lab, nixpkgs};

/// Patterns of values that differ, and their replacements.
const VARIES: [(&str, &str); 11] = [
    (r"\b([ijl])-[0-9a-f]{8}\b", "$1-00000000"),
    (r"\b[0-9a-f]{64}\b", "DIGEST"),
    (r"\b[0-9a-f]{12}\b", "DIGEST"),
    (r"\b[0-9a-f]{16}\b", "REQUEST"),
    (r"\b1\d{12}\b", "TIME"),
    (r"\bmv[0-9a-f]{4}-", "mv0000-"),
    (r#"(\bpid"?: )\d+"#, "${1}PID"),
    (r"\b[1-9]\d{7,9}\b", "NUMBER"),
    (r"\b\d+(\.\d+)? (MiB|ms)\b", "N $2"),
    (r"\b\d+(\.\d+)? ?s\b", "N s"),
    (r#"((_us|took_ms|left_s)"?: )\d+"#, "${1}N"),
];

fn is(lab: &Lab, name: &str, words: &[&str]) {
    for format in ["table", "json", "yaml"] {
        let shown = lab.ok(&[words, &["-o", format]].concat());
        let shown = shown.replace(&nixpkgs()["nixpkgs=".len()..], "PACKAGES");
        let shown = shown.replace(&lab.root.display().to_string(), "ROOT");
        let mut settings = insta::Settings::clone_current();
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        VARIES.iter().for_each(|(varies, stands)| settings.add_filter(varies, *stands));
        if format == "table" {
            // The widths of columns depend on the values that were replaced.
            settings.add_filter("(?m) +$", "");
            settings.add_filter(" {2,}", "  ");
        }
        settings.bind(|| insta::assert_snapshot!(format!("{name}-{format}"), shown));
    }
}

#[test]
fn what_there_is_is_shown_as_it_was() {
    let lab = Lab::simulated("shown");
    lab.tenant_and_pool("ci", "41");
    let vm = lab.start("ci/small");
    is(&lab, "tenant-list", &["tenant", "list"]);
    is(&lab, "tenant-info", &["tenant", "info", "ci"]);
    is(&lab, "pool-list", &["pool", "list"]);
    is(&lab, "pool-info", &["pool", "info", "ci/small"]);
    is(&lab, "pool-revisions", &["pool", "revisions", "ci/small"]);
    is(&lab, "instance-list", &["instance", "list"]);
    is(&lab, "instance-info", &["instance", "info", &vm]);
    is(&lab, "lease-list", &["lease", "list"]);
    is(&lab, "image-list", &["image", "list"]);
    is(&lab, "events", &["events"]);
    is(&lab, "audit-list", &["audit", "list", "ci"]);
    is(&lab, "net-verify", &["net", "verify"]);
    let job = lab.ok(&["job", "submit", "ci/small", "--", "echo", "words"]).trim().to_owned();
    lab.ok(&["job", "wait", &job]);
    is(&lab, "job-list", &["job", "list"]);
    is(&lab, "job-info", &["job", "info", &job]);
}
