//! The structure of the code: which modules import which, and how large the parts are.
//!
//! A module imports another one if its code, except tests, names an item that the other module
//! defines, by `use` or by a path that begins with `crate`, `self`, `super` or a module below it. A
//! re-exported name (`pub use`) counts as a name of the module that defines it; the re-exporting
//! module imports it only if it uses it itself.

mod blocking;
mod blocks;
mod clocks;
mod exceptions;
mod imports;
mod problems;
mod sizes;

use imports::Crate;
use std::path::{Path, PathBuf};

/// The floors, as in ARCHITECTURE.md: a crate uses only crates on lower floors, so those on one
/// floor are independent of each other.
const FLOORS: [&[&str]; 9] = [
    &["mvm-code"],
    &["mvm-model", "mvm-archive"],
    &["mvm-hypervisor", "mvm-network", "mvm-image", "mvm-store", "mvm-guest", "mvm-clock"],
    &["mvm-api"],
    &["mvm-identity"],
    &["mvm-server"],
    &["mvm-node"],
    &["mvm-coordinator"],
    &["mvm"],
];

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("crates").to_owned()
}

fn all() -> Vec<Crate> {
    FLOORS.concat().iter().map(|name| Crate::read(&crates().join(name))).collect()
}

#[test]
fn no_modules_import_each_other_in_a_circle() {
    let mut faults = Vec::new();
    for one in all() {
        let known = exceptions::CIRCLES.iter().find(|(name, _)| *name == one.name);
        let known: &[&str] = known.map_or(&[], |(_, modules)| modules);
        let found: Vec<String> = one.circles().into_iter().flatten().collect();
        let new: Vec<&String> = found.iter().filter(|m| !known.contains(&m.as_str())).collect();
        if !new.is_empty() {
            let edges = one.edges_among(&found).join("\n");
            faults.push(format!("{}: {new:?} are in a circle of modules:\n{edges}", one.name));
        }
        let mended: Vec<_> = known.iter().filter(|m| !found.iter().any(|f| f == **m)).collect();
        if !mended.is_empty() {
            faults.push(format!("{}: {mended:?} are in no circle: take them off", one.name));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn crates_use_lower_floors_only() {
    let floor = |name: &str| FLOORS.iter().position(|floor| floor.contains(&name));
    let mut seen = 0;
    for entry in std::fs::read_dir(crates()).expect("crates").flatten() {
        let name = entry.file_name().into_string().expect("a name");
        let Some(ours) = floor(&name) else { panic!("{name} is on no floor") };
        let manifest = std::fs::read_to_string(entry.path().join("Cargo.toml")).expect("manifest");
        let from = manifest.find("[dependencies]").expect("dependencies");
        let section = manifest[from + 1..].split("\n[").next().unwrap_or_default();
        let used = section.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
        for used in used.filter(|used| used.starts_with("mvm-")) {
            seen += 1;
            assert!(floor(used).is_some_and(|theirs| theirs < ours), "{name} uses {used}");
        }
    }
    assert!(seen > 20, "the manifests are read wrongly: {seen} dependencies");
}

#[test]
fn problem_documents_are_made_at_the_edge_of_the_api_alone() {
    let mut at_the_edge = 0;
    for name in ["mvm-node", "mvm-coordinator"] {
        let one = Crate::read(&crates().join(name));
        for (path, module) in &one.modules {
            let made = problems::made_in(&module.items);
            match path == "api" || path.starts_with("api::") {
                true => at_the_edge += made.len(),
                false => assert!(made.is_empty(), "{name}: {path} makes problems: {made:?}"),
            }
        }
    }
    assert!(at_the_edge > 1, "the modules are read wrongly");
}

#[test]
fn imports_stand_in_one_block() {
    let mut folders = vec![crates(), crates().join("../fuzz")];
    let (mut read, mut faults) = (0, Vec::new());
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).expect("folder").flatten().map(|e| e.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                read += 1;
                let text = std::fs::read_to_string(&path).expect("a file");
                let lines = blocks::parted(&text).into_iter();
                faults.extend(lines.map(|line| format!("{}:{line}", path.display())));
            }
        }
    }
    assert!(read > 300, "the tree is read wrongly: {read} files");
    assert!(faults.is_empty(), "remove the blank line before:\n{}", faults.join("\n"));
}

/// Fails where something was found that is no exception, and where an exception was not found.
fn but_for(found: &[String], exceptions: &[(&str, &str)], what: &str) {
    let known = |line: &String| exceptions.iter().any(|(name, _)| line.starts_with(name));
    let new: Vec<&String> = found.iter().filter(|line| !known(line)).collect();
    assert!(new.is_empty(), "{what}: {new:#?}");
    let there = |name: &str| found.iter().any(|line| line.starts_with(name));
    let mended: Vec<_> = exceptions.iter().filter(|(name, _)| !there(name)).collect();
    assert!(mended.is_empty(), "mended, take them off the exceptions: {mended:#?}");
}

#[test]
fn no_struct_holds_everything() {
    // The model's structs are data, namely records and documents, with as many fields as they need.
    let crates = all().into_iter().filter(|one| one.name != "mvm-model");
    let found: Vec<String> = crates.flat_map(|one| sizes::too_large(&one)).collect();
    but_for(&found, &exceptions::LARGE, "too large");
}

#[test]
fn nothing_blocks_the_executor() {
    let servers = ["mvm-server", "mvm-node", "mvm-coordinator"];
    let servers = all().into_iter().filter(|one| servers.contains(&one.name.as_str()));
    let found: Vec<String> = servers.flat_map(|one| blocking::blocked(&one)).collect();
    but_for(&found, &exceptions::BLOCKING, "give these to `blocking`");
}

#[test]
fn only_who_makes_a_clock_asks_the_system_for_the_time() {
    let others = all().into_iter().filter(|one| one.name != "mvm-clock");
    let found: Vec<String> = others.flat_map(|one| clocks::asked(&one)).collect();
    but_for(&found, &clocks::MAKERS, "have a `Clock` handed in, or the time");
}
