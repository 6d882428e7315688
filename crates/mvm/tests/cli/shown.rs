//! What the command line shows, to the letter: help, errors.
//!
//! A change of it is shown by the test, and taken with `INSTA_UPDATE=always`; the files are
//! in `snapshots/`, to be read like code.

use super::{Desk, help, subcommands};

/// Compares with the file of this name.
fn is(desk: &Desk, name: &str, shown: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let dir = desk.dir.path().display().to_string();
    settings.bind(|| insta::assert_snapshot!(name, shown.replace(&dir, "DIR")));
}

#[test]
fn help_of_every_command_is_as_it_was() {
    let desk = Desk::new();
    for path in subcommands(&desk) {
        let name = [&["mvm".to_owned()], &path[..]].concat().join("-");
        is(&desk, &format!("help-{name}"), &help(&desk, &path, "--help"));
    }
}

/// What is wrong, by the name of its file, and the command.
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
    let desk = Desk::new();
    for (name, words) in ERRORS {
        for format in ["table", "json", "yaml"] {
            // One for people shows how nothing at all is answered.
            let asked = match format {
                "table" => words.to_vec(),
                _ if words.contains(&"xml") => continue,
                _ => [&["-o", format], words].concat(),
            };
            let ran = desk.run_absent(&asked);
            assert_eq!(ran.out, "", "{words:?}");
            let shown = format!("$ mvm {}\n{}\n[status {}]", asked.join(" "), ran.err, ran.status);
            is(&desk, &format!("error-{name}-{format}"), &shown);
        }
    }
}
