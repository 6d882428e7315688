//! The texts of the command line, to the letter: help and errors.
//!
//! The test shows a change, and `INSTA_UPDATE=always` accepts it. The files are in `snapshots/`, to
//! be reviewed like code.

use super::{TestDir, help, subcommands};

/// Compares the text with the snapshot of this name.
fn is(test_dir: &TestDir, name: &str, shown: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let dir = test_dir.dir.path().display().to_string();
    settings.bind(|| insta::assert_snapshot!(name, shown.replace(&dir, "DIR")));
}

#[test]
fn help_of_every_command_is_as_it_was() {
    let test_dir = TestDir::new();
    for path in subcommands(&test_dir) {
        let name = [&["mvm".to_owned()], &path[..]].concat().join("-");
        is(&test_dir, &format!("help-{name}"), &help(&test_dir, &path, "--help"));
    }
}

/// Wrong commands, each with the name of its snapshot.
const ERRORS: [(&str, &[&str]); 14] = [
    ("nothing", &[]),
    ("no-verb", &["pool"]),
    ("no-such-verb", &["pool", "bild", "ci/runners"]),
    ("no-such-format", &["pool", "list", "--output", "xml"]),
    ("tenant-name", &["pool", "info", "Ci/runners"]),
    ("not-a-pool", &["pool", "info", "ci"]),
    ("not-an-instance", &["instance", "info", "ci/runners/.."]),
    ("variable", &["run", "ci/runners", "-e", "1X=a", "--", "a"]),
    ("no-command", &["run", "ci/runners"]),
    ("duration", &["run", "ci/runners", "--timeout", "soon", "--", "a"]),
    ("copy", &["instance", "cp", "a", "b"]),
    ("flake", &["pool", "create", "ci/x", "--flake", "./no", "--profile", "p"]),
    ("no-input", &["run", "ci/x", "--in", "./no", "--", "true"]),
    ("no-agent", &["agent", "status"]),
];

#[test]
fn errors_are_as_they_were() {
    let test_dir = TestDir::new();
    for (name, words) in ERRORS {
        for format in ["table", "json", "yaml"] {
            // Without `-o`, so that the case `nothing` is an empty command line.
            let asked = match format {
                "table" => words.to_vec(),
                _ if words.contains(&"xml") => continue,
                _ => [&["-o", format], words].concat(),
            };
            let ran = test_dir.run_absent(&asked);
            assert_eq!(ran.out, "", "{words:?}");
            let shown = format!("$ mvm {}\n{}\n[status {}]", asked.join(" "), ran.err, ran.status);
            is(&test_dir, &format!("error-{name}-{format}"), &shown);
        }
    }
}
