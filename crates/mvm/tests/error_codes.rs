//! Compares the page on errors with the table of all codes, and the codes with the sources.

use mvm_api::status::status;
use mvm_model::Code;
use std::path::{Path, PathBuf};

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("workspace")
}

/// The page's text before its tables.
const INTRODUCTION: &str = "\
# Errors

An error names what was tried, on what, why it failed and the next step. On a terminal:
`error[code]: …`; with `--output json` and over the API: a problem document (RFC 9457) with `status`,
`code`, `detail`, `request_id` (of the API), and where they help `hint` and `path` (the JSON path of the
fault). A code keeps its meaning and has one status everywhere; new ones may come.
";

/// Returns the page as it follows from the table of codes.
fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    for (topic, codes) in Code::BY_TOPIC {
        page.push_str(&format!("\n## {topic}\n\n"));
        page.push_str(
            "| code | status | what it means | what to do |\n| --- | --- | --- | --- |\n",
        );
        for code in *codes {
            let [meaning, advice] = [code.meaning(), code.advice()].map(|s| s.replace('|', "\\|"));
            page.push_str(&format!("| `{code}` | {} | {meaning} | {advice} |\n", status(*code)));
        }
    }
    page
}

#[test]
fn the_page_on_errors_is_made_of_the_codes() {
    let path = workspace().join("docs/errors.md");
    let made = page();
    if std::env::var_os("MVM_WRITE_ERRORS").is_some() {
        std::fs::write(&path, &made).expect("written");
    }
    let shipped = std::fs::read_to_string(path).expect("docs/errors.md");
    let how = "write it again: MVM_WRITE_ERRORS=1 cargo test --test error_codes";
    assert!(made == shipped, "{how}");
}

#[test]
fn each_code_has_a_meaning_an_advice_and_a_status_of_an_error() {
    for code in Code::all() {
        for text in [code.meaning(), code.advice()] {
            assert!(text.len() > 6 && text.ends_with('.'), "{code}: {text:?} is no sentence");
        }
        assert!((400..600).contains(&status(code)), "{code}: {}", status(code));
    }
}

#[test]
fn each_code_is_given_by_somebody() {
    let mut sources = sources(&workspace().join("crates"));
    sources
        .retain(|file| !["mvm-code/src/lib.rs", "src/status.rs"].iter().any(|t| file.ends_with(t)));
    let text: String =
        sources.iter().map(|file| std::fs::read_to_string(file).expect("source")).collect();
    let given = |code: &Code| {
        let variant = format!("Code::{code:?}");
        let mut named = text
            .split(&variant)
            .skip(1)
            .filter(|rest| !rest.starts_with(|c: char| c.is_alphanumeric()));
        named.next().is_some()
    };
    let dead: Vec<_> = Code::all().filter(|code| !given(code)).collect();
    assert!(dead.is_empty(), "nobody gives these codes: {dead:?}");
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() && !path.ends_with("tests") {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}
