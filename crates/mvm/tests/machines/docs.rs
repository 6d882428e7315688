//! The documentation's examples, exactly as they are printed.

use crate::lab::{FLAKE, Lab, run, text, wait_for};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The pages with examples, in the order in which their examples build on each other.
const PAGES: &[&str] = &[
    "tenants",
    "pools",
    "network",
    "templates",
    "instances",
    "jobs",
    "expose",
    "audit",
    "identity",
    "simulation",
    "api",
    "operations",
    "desired-state",
    "fleet",
    "production",
];
/// The pages without examples.
const PROSE: [&str; 2] = ["chaos", "errors"];

/// Commands of the README for a large machine, and the smaller ones that run here in their place.
const TOUR: [(&str, &str); 6] = [
    ("mvm doctor ", "mvm doctor || true "),
    // The lab already has a kernel.
    ("mvm kernel fetch", "mvm kernel list"),
    ("--cpus 4 --mem 4096 --data-disk 2048", "--cpus 1 --mem 256 --data-disk 64"),
    ("pool build ci/runners ", "pool build ci/runners --override-input nixpkgs=path:$DEBIAN_PKGS "),
    ("--warm 4 --sleeping 8", "--warm 1 --sleeping 1"),
    ("make -C src test", "sh -c 'cp src/words src/report.txt'"),
];

#[test]
fn every_example_of_the_documentation_works() {
    let folder = repository().join("docs");
    let files = std::fs::read_dir(&folder).expect("docs");
    let mut pages: Vec<String> = files
        .map(|file| file.expect("page").path())
        .filter(|path| path.extension().is_some_and(|end| end == "md"))
        .map(|path| path.file_stem().expect("name").display().to_string())
        .collect();
    pages.sort();
    let mut known = [PAGES, &PROSE[..]].concat();
    known.sort();
    assert_eq!(pages, known, "every page is run here, or said to have no examples");
    let shelf = Shelf::new("docs");
    for page in PAGES {
        let page = std::fs::read_to_string(folder.join(format!("{page}.md"))).expect("page");
        shelf.run(&blocks(&page, "```sh").join("\n"));
    }
    for page in PROSE {
        let page = std::fs::read_to_string(folder.join(format!("{page}.md"))).expect("page");
        assert!(blocks(&page, "```sh").is_empty(), "an example that nothing runs");
    }
    assert_eq!(shelf.lab.machines(), 0, "the last page tears down");
}

#[test]
fn every_decision_is_listed_and_says_what_would_change_it() {
    let folder = repository().join("docs/decisions");
    let index = std::fs::read_to_string(folder.join("README.md")).expect("the list of decisions");
    let files = std::fs::read_dir(&folder).expect("decisions");
    let mut pages: Vec<_> = files.map(|file| file.expect("page").file_name()).collect();
    pages.sort();
    let pages: Vec<_> = pages.iter().filter_map(|page| page.to_str()).collect();
    assert_eq!(pages.last(), Some(&"README.md"));
    for (number, page) in pages[..pages.len() - 1].iter().enumerate() {
        assert!(page.starts_with(&format!("{:04}-", number + 1)), "{page} is out of order");
        let text = std::fs::read_to_string(folder.join(page)).expect("page");
        let (title, body) = text.split_once("\n\n").expect("a title");
        let (name, title) = title[2..].split_once(". ").expect("a number");
        assert!(index.contains(&format!("[{name}]({page}) {title}\n")), "{page} is not listed");
        let date = body.split_once('\n').expect("a date").0;
        assert!(date.len() == 10 && date.starts_with("20"), "{page} has no date");
        let change = body.split_once("## What would change our mind\n\n").expect("a way back").1;
        assert!(change.len() > 20, "{page} does not say what would change our mind");
    }
}

#[test]
fn the_tour_of_the_readme_works() {
    let readme = std::fs::read_to_string(repository().join("README.md")).expect("README");
    let tour = readme.split("## A tour").nth(1).expect("a tour");
    let mut tour = blocks(tour, "```").remove(0);
    for (there, here) in TOUR {
        assert!(tour.contains(there), "the tour does not say {there:?} any more");
        tour = tour.replace(there, here);
    }
    let shelf = Shelf::new("tour");
    std::fs::create_dir(shelf.desk.join("src")).expect("folder");
    std::fs::write(shelf.desk.join("src/words"), "words").expect("file");
    let (before, after) = tour.split_once("mvm instance wake").expect("a wake");
    shelf.run(before);
    let mut id = String::new();
    // The job has taken a spare, which the pool replaces.
    wait_for("a sleeper", || {
        let mut sleepers = shelf.lab.ids("ci/runners", "sleeping");
        id = sleepers
            .pop()
            .and_then(|vm| Some(vm.rsplit('/').next()?.to_owned()))
            .unwrap_or_default();
        !id.is_empty()
    });
    let after = after.replace("<id>", &id).replace("bench", "bench --number 1");
    let after =
        after.replacen(&format!("ssh ci/runners/{id}"), &format!("ssh ci/runners/{id} -- true"), 1);
    shelf.run(&format!("mvm instance wake{after}"));
}

/// A lab, and a folder in it in which the reader types.
struct Shelf {
    lab: Lab,
    desk: PathBuf,
}

impl Shelf {
    fn new(name: &str) -> Shelf {
        let lab = Lab::new(name);
        run(Command::new("ip").args(["-n", &lab.netns, "link", "set", "lo", "up"]));
        let desk = lab.root.join("desk");
        std::fs::create_dir_all(desk.join("ci-flake")).expect("folder");
        let flake = FLAKE.replace("small", "ci-runner");
        std::fs::write(desk.join("ci-flake/flake.nix"), flake).expect("flake");
        Shelf { lab, desk }
    }

    /// Runs the example in bash, which stops at the first command that fails and ends the processes
    /// that it has started. Runs inside the namespace, so nothing else can reach its servers.
    fn run(&self, example: &str) {
        let example = format!("trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{example}");
        let binary = Path::new(env!("CARGO_BIN_EXE_mvm")).parent().expect("folder");
        let path = format!("{}:{}", binary.display(), std::env::var("PATH").expect("PATH"));
        let packages = std::env::var("MVM_TEST_DEBIAN_PKGS").expect("MVM_TEST_DEBIAN_PKGS");
        let output = Command::new("ip")
            .args(["netns", "exec", &self.lab.netns, "bash"])
            .args(["-euo", "pipefail", "-c", &example])
            .current_dir(&self.desk)
            .env("PATH", path)
            .env("MVM_ROOT", &self.lab.root)
            .env("MVM_NETNS", &self.lab.netns)
            .env("DEBIAN_PKGS", packages)
            .env("MVM_NIX_SANDBOX", "relaxed")
            .stdin(Stdio::null())
            .output()
            .expect("bash");
        let words = (text(&output.stdout), text(&output.stderr));
        assert!(
            output.status.success(),
            "{example}\n--- printed\n{}\n--- and\n{}",
            words.0,
            words.1
        );
    }
}

/// Returns the fenced blocks that open with exactly this line.
fn blocks(page: &str, opening: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.by_ref().find(|line| line.starts_with("```")) {
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        if line == opening {
            found.push(block.join("\n"));
        }
    }
    found
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("workspace").to_owned()
}
