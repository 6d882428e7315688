//! Running Nix: the request made sure of, the build, the closure, and Nix's own words on failure.

use std::path::{Path, PathBuf};

use tokio::sync::mpsc::UnboundedSender;

use crate::error::{At, Error, Result};
use crate::layout::ImageStore;
use crate::run::{Ended, Tool};
use crate::types::{BuildRequest, Progress};
use crate::workdir::WorkDir;

mod program;
mod repository;
pub(crate) mod roots;

use program::{Nix, Users};

/// Lines of Nix's output in an error.
const SHOWN_LINES: usize = 40;
/// Where Nix on Linux says a flake's packages for these guests are.
const PACKAGES: &str = "packages.x86_64-linux";
/// A flake directory with this file in it says that whatever it is used for builds without a
/// network: no substituter is asked then.
const OFFLINE_MARK: &str = "offline";

/// A request that has been checked, in the form that Nix takes.
#[derive(Clone, Debug)]
pub(crate) struct Flake {
    nix: Nix,
    /// What the user wrote, for messages.
    written: String,
    reference: String,
    /// Our copy of the folder that it is.
    copy: Option<PathBuf>,
    overrides: Vec<(String, String)>,
    offline: bool,
    /// What Nix works for, while it is under way.
    work: Option<WorkDir>,
}

impl Flake {
    /// Checks that Nix is there, then that the flake is, then the names.
    pub fn check(store: &ImageStore, req: &BuildRequest) -> Result<Self> {
        let program = store.tools.nix.clone();
        if !is_program(&program) {
            return Err(Error::NixMissing { tried: program });
        }
        let nix = Nix { program, sandbox: store.sandbox, users: Users::of(store)? };
        check_attribute(&req.profile)?;
        let reference = reference(&req.flake)?;
        let mut overrides = Vec::new();
        for (input, target) in &req.override_inputs {
            let plain = |c: char| c.is_ascii_alphanumeric() || "_-/".contains(c);
            if input.is_empty() || input.starts_with('-') || !input.chars().all(plain) {
                let why = "it is no name of a flake input".to_owned();
                return Err(Error::Invalid { what: format!("override input `{input}`"), why });
            }
            overrides.push((input.clone(), override_reference(target)?));
        }
        let marked = |r: &str| local_path(r).is_some_and(|p| p.join(OFFLINE_MARK).exists());
        let offline = !overrides.is_empty() && overrides.iter().all(|(_, r)| marked(r));
        let (written, copy, work) = (req.flake.clone(), None, None);
        Ok(Self { nix, written, reference, copy, overrides, offline, work })
    }

    /// Checks that git reads the repositories that it names. Errors: `flake_foreign`.
    pub async fn check_repositories(&self) -> Result<()> {
        repository::check(&self.reference).await?;
        for (_, reference) in &self.overrides {
            repository::check(reference).await?;
        }
        Ok(())
    }

    /// This work directory stays while Nix is under way, and Nix no longer than its process does.
    pub fn works_for(&mut self, work: &WorkDir) {
        self.work = Some(work.clone());
    }

    /// `nix build` of one package: its store path. `link` in `work` becomes a garbage collector's
    /// root, so that the path stays until the caller is done with it.
    pub async fn build(
        &self,
        attribute: &str,
        work: &WorkDir,
        link: &str,
        progress: &UnboundedSender<Progress>,
    ) -> Result<PathBuf> {
        let link = work.path().join(link);
        let target = format!("{}#{attribute}", self.reference);
        let tool = self.command("build").args(["-L", "--out-link"]).arg(&link).arg(target);
        let ended = tool
            .writes_to(work)
            .run(|line| {
                let _ = progress.send(Progress::Line(self.in_users_words(line)));
            })
            .await;
        let ended = self.nix_is_there(ended)?;
        if !ended.status.success() {
            return Err(self.explain(attribute, &ended).await);
        }
        std::fs::read_link(&link).at("read the result of nix at", &link)
    }

    /// The names of the flake's packages for guests. Errors: it has no such set, or Nix makes no sense of it.
    pub async fn packages_or_why(&self) -> Result<Vec<String>> {
        let ended = self.nix_is_there(self.attributes().run(|_| {}).await)?;
        match ended.status.success() {
            true => Ok(serde_json::from_slice(&ended.stdout).unwrap_or_default()),
            false => Err(self.explain(PACKAGES, &ended).await),
        }
    }

    /// The same; none where it has no such set.
    pub async fn packages(&self) -> Result<Vec<String>> {
        let ended = self.nix_is_there(self.attributes().run(|_| {}).await)?;
        Ok(serde_json::from_slice(&ended.stdout).unwrap_or_default())
    }

    fn attributes(&self) -> Tool {
        self.command("eval")
            .args(["--json", "--apply", "builtins.attrNames"])
            .arg(format!("{}#{PACKAGES}", self.reference))
    }

    /// The folder that Nix would copy into its store as it is, where it is one.
    pub fn folder(&self) -> Option<PathBuf> {
        self.reference.starts_with("path:").then(|| local_path(&self.reference)).flatten()
    }

    /// Has Nix take this copy of the folder.
    pub fn is_copied_to(&mut self, copy: &Path) {
        let query = self.reference.split_once('?').map(|(_, q)| format!("?{q}"));
        self.reference = format!("path:{}{}", copy.display(), query.unwrap_or_default());
        self.copy = Some(copy.to_owned());
    }

    /// What Nix says, of the folder that the user named instead of our copy.
    fn in_users_words(&self, line: &str) -> String {
        match &self.copy {
            Some(copy) => {
                let named =
                    local_path(&self.written).unwrap_or_else(|| self.written.clone().into());
                line.replace(&copy.display().to_string(), &named.display().to_string())
            }
            None => line.to_owned(),
        }
    }

    /// All store paths that `path` needs at run time, itself among them, sorted.
    pub async fn closure(&self, path: &Path) -> Result<Vec<String>> {
        let stdout = self.tool().args(["path-info", "-r"]).arg(path).output().await?;
        let text = String::from_utf8_lossy(&stdout);
        let mut paths: Vec<String> = text.lines().map(str::to_owned).collect();
        paths.sort_unstable();
        paths.dedup();
        if let Some(odd) = paths.iter().find(|p| !is_store_path(p)) {
            let why = "nix path-info named it, but it is no path in /nix/store".to_owned();
            return Err(Error::Invalid { what: format!("store path `{odd}`"), why });
        }
        Ok(paths)
    }

    fn tool(&self) -> Tool {
        let tool = self.nix.tool();
        match &self.work {
            Some(work) => tool.writes_to(work),
            None => tool,
        }
    }

    fn command(&self, verb: &str) -> Tool {
        // Of the user's folder nothing is changed, not even its lock file.
        let mut tool = self.tool().args([verb, "--no-write-lock-file"]);
        if self.offline {
            tool = tool.arg("--offline");
        }
        for (input, reference) in &self.overrides {
            tool = tool.args(["--override-input", input, reference]);
        }
        tool
    }

    fn nix_is_there(&self, ended: Result<Ended>) -> Result<Ended> {
        ended.map_err(|e| match e {
            Error::ToolMissing { .. } => Error::NixMissing { tried: self.nix.program.clone() },
            e => e,
        })
    }

    /// Makes an error out of a failed build.
    async fn explain(&self, attribute: &str, ended: &Ended) -> Error {
        let has = |words: &str| ended.stderr.iter().any(|l| l.contains(words));
        if has("No space left on device") {
            return Error::no_space("nix build", Path::new("/nix/store"), 0);
        }
        let dir = local_path(&self.reference).unwrap_or_else(|| PathBuf::from(&self.written));
        if let Some(error) = repository::foreign(&ended.stderr, &dir) {
            return error;
        }
        if has("does not provide attribute") {
            let available = self.packages().await.unwrap_or_default();
            let (flake, profile) = (self.written.clone(), attribute.to_owned());
            return Error::ProfileMissing { flake, profile, available };
        }
        let (flake, profile) = (self.written.clone(), attribute.to_owned());
        let output = own_words(&ended.stderr, &ended.status.to_string());
        let output = self.in_users_words(&output);
        if has("__noChroot") && has("not allowed when") {
            return Error::SandboxRefused { flake, profile, output };
        }
        if is_without_sandbox(&ended.stderr) {
            return Error::SandboxUnavailable { flake, profile, output };
        }
        match is_evaluation(&ended.stderr) {
            true => Error::FlakeEvaluationFailed { flake, profile, output },
            false => Error::FlakeBuildFailed { flake, profile, output },
        }
    }
}

fn is_program(name: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let runs = |p: &Path| {
        std::fs::metadata(p).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    if name.components().count() > 1 {
        return runs(name);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| runs(&dir.join(name)))
}

fn is_store_path(path: &str) -> bool {
    path.strip_prefix("/nix/store/").is_some_and(|n| !n.is_empty() && !n.contains('/'))
}

fn check_attribute(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+-'\"".contains(c);
    if !name.is_empty() && !name.starts_with('-') && name.chars().all(plain) {
        return Ok(());
    }
    let why = "it is no attribute path; give one such as `ci-runner`".to_owned();
    Err(Error::Invalid { what: format!("profile `{name}`"), why })
}

/// The directory that a reference names, if it names one.
fn local_path(reference: &str) -> Option<PathBuf> {
    let path = reference.strip_prefix("path:").unwrap_or(reference);
    let path = path.split('?').next().unwrap_or(path);
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// The user's flake as Nix shall take it.
fn reference(flake: &str) -> Result<String> {
    let invalid = |why: &str| Error::Invalid { what: format!("flake `{flake}`"), why: why.into() };
    if flake.is_empty() || flake.starts_with('-') || flake.chars().any(char::is_control) {
        return Err(invalid("it is no flake reference"));
    }
    if flake.contains('#') {
        return Err(invalid("name the attribute as the profile, not after a `#`"));
    }
    let Some(path) = local_path(flake) else {
        if flake.starts_with('.') || flake.starts_with("path:") {
            return Err(invalid("a path must be absolute here"));
        }
        return Ok(flake.to_owned()); // github:…, git+https:…, a name of the registry
    };
    let dir = flake_dir(&path)?;
    // A flake that is a whole repository is Nix's to read by git, so that what git ignores (build
    // directories) is not copied. Any other directory is taken as it is: asking git about it
    // would fail for one that is not yet committed.
    if flake.starts_with("path:") || !dir.join(".git").exists() {
        let query = flake.split_once('?').map(|(_, q)| format!("?{q}")).unwrap_or_default();
        return Ok(format!("path:{}{query}", dir.display()));
    }
    Ok(flake.to_owned())
}

/// A replacement for an input. Nix wants paths absolute; a relative one is taken from our own
/// working directory.
fn override_reference(target: &str) -> Result<String> {
    let relative = target.strip_prefix("path:").unwrap_or(target);
    let is_path = target.starts_with("path:") || target.starts_with(['/', '.']);
    if !is_path {
        return match target.is_empty() || target.starts_with('-') {
            true => Err(Error::Invalid {
                what: format!("override `{target}`"),
                why: "it is no flake reference".to_owned(),
            }),
            false => Ok(target.to_owned()),
        };
    }
    let (path, query) = match relative.split_once('?') {
        Some((path, query)) => (path, format!("?{query}")),
        None => (relative, String::new()),
    };
    let dir = flake_dir(Path::new(path))?;
    Ok(format!("path:{}{query}", dir.display()))
}

/// The real path of a directory that has a flake.nix.
fn flake_dir(path: &Path) -> Result<PathBuf> {
    let missing = |why: String| Error::FlakeMissing { path: path.to_owned(), why };
    let dir = std::fs::canonicalize(path).map_err(|e| missing(e.to_string()))?;
    if !dir.is_dir() {
        return Err(missing("it is not a directory".to_owned()));
    }
    if !dir.join("flake.nix").is_file() {
        return Err(missing("it has no flake.nix".to_owned()));
    }
    Ok(dir)
}

/// Whether Nix could not make sense of the flake, which it will not the next time either. What it could not
/// fetch meanwhile it says in the same breath.
fn is_evaluation(stderr: &[String]) -> bool {
    const SENSE: [&str; 21] = [
        "syntax error",
        "parse error",
        "undefined variable",
        "while evaluating",
        "while calling",
        "infinite recursion",
        "error: attribute ",
        "error: required attribute ",
        "error: assertion ",
        "error: evaluation aborted",
        "error: expected ",
        "error: cannot add ",
        "error: cannot coerce ",
        "error: cannot compare ",
        "error: attempt to call something",
        "called without required argument",
        "called with unexpected argument",
        "is not a derivation",
        "contains illegal character",
        "refusing to evaluate",
        // "is forbidden in pure eval mode", "is not allowed in pure evaluation mode"
        "in pure eval",
    ];
    const ELSEWHERE: [&str; 9] = [
        "unable to download",
        "while fetching",
        "resolve host",
        "onnection",
        "timed out",
        "HTTP error",
        "builder for ",
        "substitute",
        "error: program '",
    ];
    let has = |all: &[&str]| stderr.iter().any(|line| all.iter().any(|words| line.contains(words)));
    // A place in a flake's text is said of errors in it alone; of a file that is not there, its path.
    let place = |line: &String| {
        let place = line.trim().strip_prefix("at /nix/store/").and_then(|l| l.strip_suffix(':'));
        place.is_some_and(|place| place.rsplit(':').take(2).all(|n| n.parse::<u32>().is_ok()))
            || line.contains("getting status of '/nix/store/") && line.contains("-source/")
    };
    (has(&SENSE) || stderr.iter().any(place)) && !has(&ELSEWHERE)
}

/// Whether the sandbox could not be made, by Nix or before it ([`Users`]). Before a builder has begun
/// nothing of it can say so.
fn is_without_sandbox(stderr: &[String]) -> bool {
    const WORDS: [&str; 5] = [
        "unable to start build process",
        "cloning builder process",
        "required for sandboxing",
        "setgroups failed",
        "unshare: unshare failed",
    ];
    stderr.iter().any(|line| WORDS.iter().any(|words| line.contains(words)))
        || stderr.iter().any(|line| line.starts_with("mount: "))
}

/// What Nix said, in at most [`SHOWN_LINES`] lines: from its `error:` on, then what came before.
fn own_words(stderr: &[String], status: &str) -> String {
    let lines: Vec<&str> = stderr.iter().map(|l| l.trim_end()).filter(|l| !l.is_empty()).collect();
    let start = lines.iter().position(|l| l.trim_start().starts_with("error:"));
    let (before, error) = lines.split_at(start.unwrap_or(0));
    let mut shown: Vec<&str> = error.to_vec();
    if shown.len() > SHOWN_LINES {
        // The cause is at the head or, with a trace, at the tail.
        let tail = shown.split_off(shown.len() - SHOWN_LINES / 2);
        shown.truncate(SHOWN_LINES / 2);
        shown.push("…");
        shown.extend(tail);
    }
    let room = SHOWN_LINES.saturating_sub(shown.len());
    let earlier = &before[before.len().saturating_sub(room)..];
    if !earlier.is_empty() {
        shown.push("before that:");
        shown.extend(earlier);
    }
    if shown.is_empty() {
        return format!("nix said nothing ({status})");
    }
    shown.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_model::Code;
    use proptest::prelude::*;

    #[test]
    fn the_error_comes_first() {
        let lines = ["warning: x", "pkg> cc failed", "error: builder failed", "  log"];
        let lines: Vec<String> = lines.iter().map(|s| (*s).to_owned()).collect();
        let words = own_words(&lines, "exit status: 1");
        assert!(words.starts_with("error: builder failed\n  log\nbefore that:\n"), "{words}");
        assert!(words.ends_with("pkg> cc failed"));
    }

    #[test]
    fn references() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        let written = path.to_str().unwrap();
        assert_eq!(reference(written).unwrap_err().code(), Code::FlakeMissing);
        std::fs::write(path.join("flake.nix"), "{ }").unwrap();
        assert_eq!(reference(written).unwrap(), format!("path:{written}"));
        std::fs::create_dir(path.join(".git")).unwrap();
        assert_eq!(reference(written).unwrap(), written);
        assert_eq!(reference("github:a/b").unwrap(), "github:a/b");
        for bad in ["", "-x", "./x", "path:x", "/x#y"] {
            assert!(reference(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn error_texts_are_short(lines: Vec<String>) {
            let words = own_words(&lines, "exit status: 1");
            prop_assert!(!words.is_empty());
        }
    }
}
