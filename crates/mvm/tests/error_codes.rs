//! The page on errors against the codes that the sources name.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Where a code stands after these words.
const BEFORE: [&str; 2] = ["Problem::new(", "Fault::new("];

#[test]
fn every_error_code_is_documented() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("workspace");
    let page = std::fs::read_to_string(workspace.join("docs/errors.md")).expect("docs/errors.md");
    let documented: BTreeSet<&str> = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .flat_map(|line| line.split('|').nth(1).unwrap_or_default().split('`'))
        .filter(|word| is_code(word))
        .collect();
    let mut named = BTreeSet::new();
    for file in sources(&workspace.join("crates")) {
        let text = std::fs::read_to_string(&file).expect("source");
        named.extend(problems(&text));
        if file.ends_with("src/error.rs") {
            named.extend(table(&text));
        }
    }
    assert!(named.contains("quota_exceeded") && named.contains("wrong_state"), "{named:?}");
    let missing: Vec<_> = named.iter().filter(|code| !documented.contains(code.as_str())).collect();
    assert!(missing.is_empty(), "docs/errors.md does not say what these mean: {missing:?}");
}

/// `Problem::new(409, "wrong_state", …)`
fn problems(text: &str) -> Vec<String> {
    let calls = BEFORE.iter().flat_map(|before| text.split(before).skip(1));
    let literal = |call: &str| {
        let mut arguments = call.splitn(3, ',');
        let first = arguments.next()?.trim();
        let second = arguments.next()?.trim();
        let quoted = if first.parse::<u16>().is_ok() { second } else { first };
        Some(quoted.strip_prefix('"')?.strip_suffix('"')?.to_owned())
    };
    calls.filter_map(literal).filter(|code| is_code(code)).collect()
}

/// `Error::NoSpace { .. } => "no_space",`
fn table(text: &str) -> Vec<String> {
    let arms = text.lines().filter_map(|line| line.split_once("=> \"")?.1.strip_suffix("\","));
    arms.filter(|code| is_code(code)).map(str::to_owned).collect()
}

fn is_code(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
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
