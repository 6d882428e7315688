//! Runs Nix: checks the request, builds, lists the closure, and explains failures in Nix's own
//! words.

use crate::command::{Ended, Tool};
use crate::error::{At, Error, Result};
use crate::layout::ImageStore;
use crate::types::{BuildRequest, Progress};
use crate::workdir::WorkDir;
use std::path::{Path, PathBuf};
use tokio::sync::mpsc::UnboundedSender;

mod program;
mod repository;
pub(crate) mod roots;

use program::{Nix, Users};

/// How many lines of Nix's output an error shows.
const SHOWN_LINES: usize = 40;
/// The attribute of a flake that has its packages for Linux guests.
const PACKAGES: &str = "packages.x86_64-linux";
/// A flake directory that contains this file builds without a network: if all overrides have it, no
/// substituter is asked.
const OFFLINE_MARK: &str = "offline";

/// A request that has been checked, in the form that Nix expects.
#[derive(Clone, Debug)]
pub(crate) struct Flake {
    nix: Nix,
    /// The flake as the user wrote it, for messages.
    written: String,
    reference: String,
    /// The store's copy of the folder; `None` if the flake is not a folder.
    copy: Option<PathBuf>,
    overrides: Vec<(String, String)>,
    offline: bool,
    /// The work directory that Nix works for; `None` before one is set.
    work: Option<WorkDir>,
}

impl Flake {
    /// Checks that Nix exists, then that the flake does, then the names. Errors: `nix_missing`,
    /// `invalid`, `flake_missing`.
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
                let why = "it is not a valid name of a flake input".to_owned();
                return Err(Error::Invalid { what: format!("override input `{input}`"), why });
            }
            overrides.push((input.clone(), override_reference(target)?));
        }
        let marked = |r: &str| local_path(r).is_some_and(|p| p.join(OFFLINE_MARK).exists());
        let offline = !overrides.is_empty() && overrides.iter().all(|(_, r)| marked(r));
        let (written, copy, work) = (req.flake.clone(), None, None);
        Ok(Self { nix, written, reference, copy, overrides, offline, work })
    }

    /// Checks that git agrees to read the repositories that the request names. Error:
    /// `flake_foreign`.
    pub async fn check_repositories(&self) -> Result<()> {
        repository::check(&self.reference).await?;
        for (_, reference) in &self.overrides {
            repository::check(reference).await?;
        }
        Ok(())
    }

    /// Sets the work directory that Nix works for: it stays while Nix runs, and Nix ends when its
    /// owner is killed.
    pub fn works_for(&mut self, work: &WorkDir) {
        self.work = Some(work.clone());
    }

    /// Runs `nix build` for one package and returns its store path. `link` in `work` becomes a
    /// garbage collector's root, so that the path stays until the caller is done with it.
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

    /// Returns the names of the flake's packages for guests. Errors: the flake has no such set, or
    /// Nix cannot evaluate it.
    pub async fn packages_or_why(&self) -> Result<Vec<String>> {
        let ended = self.nix_is_there(self.attributes().run(|_| {}).await)?;
        match ended.status.success() {
            true => Ok(serde_json::from_slice(&ended.stdout).unwrap_or_default()),
            false => Err(self.explain(PACKAGES, &ended).await),
        }
    }

    /// Like [`Flake::packages_or_why`], but a flake without such a set has no packages.
    pub async fn packages(&self) -> Result<Vec<String>> {
        let ended = self.nix_is_there(self.attributes().run(|_| {}).await)?;
        Ok(serde_json::from_slice(&ended.stdout).unwrap_or_default())
    }

    fn attributes(&self) -> Tool {
        self.command("eval")
            .args(["--json", "--apply", "builtins.attrNames"])
            .arg(format!("{}#{PACKAGES}", self.reference))
    }

    /// Returns the folder that Nix would copy into its store as it is; `None` if the flake is not a
    /// plain folder.
    pub fn folder(&self) -> Option<PathBuf> {
        self.reference.starts_with("path:").then(|| local_path(&self.reference)).flatten()
    }

    /// Makes Nix use this copy of the folder.
    pub fn is_copied_to(&mut self, copy: &Path) {
        let query = self.reference.split_once('?').map(|(_, q)| format!("?{q}"));
        self.reference = format!("path:{}{}", copy.display(), query.unwrap_or_default());
        self.copy = Some(copy.to_owned());
    }

    /// Replaces the copy's path in Nix's output by the folder that the user named.
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

    /// Returns all store paths that `path` needs at run time, including itself, sorted.
    pub async fn closure(&self, path: &Path) -> Result<Vec<String>> {
        let stdout = self.tool().args(["path-info", "-r"]).arg(path).output().await?;
        let text = String::from_utf8_lossy(&stdout);
        let mut paths: Vec<String> = text.lines().map(str::to_owned).collect();
        paths.sort_unstable();
        paths.dedup();
        if let Some(odd) = paths.iter().find(|p| !is_store_path(p)) {
            let why = "nix path-info named it, but it is not a path in /nix/store".to_owned();
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
        // Nothing in the user's folder is changed, not even its lock file.
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

    /// Turns a failed build into an error.
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
    let why = "it is not a valid attribute path; give one such as `ci-runner`".to_owned();
    Err(Error::Invalid { what: format!("profile `{name}`"), why })
}

/// Returns the directory that a reference names; `None` if it names something else.
fn local_path(reference: &str) -> Option<PathBuf> {
    let path = reference.strip_prefix("path:").unwrap_or(reference);
    let path = path.split('?').next().unwrap_or(path);
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// Turns the user's flake into the reference that Nix gets.
fn reference(flake: &str) -> Result<String> {
    let invalid = |why: &str| Error::Invalid { what: format!("flake `{flake}`"), why: why.into() };
    if flake.is_empty() || flake.starts_with('-') || flake.chars().any(char::is_control) {
        return Err(invalid("it is not a valid flake reference"));
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
    // A flake that is a whole repository is read by git, so that ignored build directories are not
    // copied. Any other directory is used as it is: git would fail for one that is not committed
    // yet.
    if flake.starts_with("path:") || !dir.join(".git").exists() {
        let query = flake.split_once('?').map(|(_, q)| format!("?{q}")).unwrap_or_default();
        return Ok(format!("path:{}{query}", dir.display()));
    }
    Ok(flake.to_owned())
}

/// Turns a replacement for an input into a reference. Nix wants paths absolute; a relative one is
/// resolved against this process's working directory.
fn override_reference(target: &str) -> Result<String> {
    let relative = target.strip_prefix("path:").unwrap_or(target);
    let is_path = target.starts_with("path:") || target.starts_with(['/', '.']);
    if !is_path {
        return match target.is_empty() || target.starts_with('-') {
            true => Err(Error::Invalid {
                what: format!("override `{target}`"),
                why: "it is not a valid flake reference".to_owned(),
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

/// Returns the real path of a directory that has a flake.nix.
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

/// Returns whether Nix could not evaluate the flake, which would fail again the next time. Errors
/// of fetching may stand in the same output, and count as temporary.
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
        // Matches "is forbidden in pure eval mode" and "is not allowed in pure evaluation mode".
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
    // Only errors in a flake's text have a position in it; for a missing file, Nix names its path.
    let place = |line: &String| {
        let place = line.trim().strip_prefix("at /nix/store/").and_then(|l| l.strip_suffix(':'));
        place.is_some_and(|place| place.rsplit(':').take(2).all(|n| n.parse::<u32>().is_ok()))
            || line.contains("getting status of '/nix/store/") && line.contains("-source/")
    };
    (has(&SENSE) || stderr.iter().any(place)) && !has(&ELSEWHERE)
}

/// Returns whether the sandbox could not be set up, by Nix or before it ([`Users`]). A builder that
/// has not begun cannot say so itself.
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

/// Returns what Nix wrote, in at most [`SHOWN_LINES`] lines: from its `error:` on, then what came
/// before.
fn own_words(stderr: &[String], status: &str) -> String {
    let lines: Vec<&str> = stderr.iter().map(|l| l.trim_end()).filter(|l| !l.is_empty()).collect();
    let start = lines.iter().position(|l| l.trim_start().starts_with("error:"));
    let (before, error) = lines.split_at(start.unwrap_or(0));
    let mut shown: Vec<&str> = error.to_vec();
    if shown.len() > SHOWN_LINES {
        // The cause stands at the head or, with a trace, at the tail.
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
