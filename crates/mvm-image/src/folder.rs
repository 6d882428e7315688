//! What Nix copies into its store of a flake that is a folder: all of it, for everybody to read.

use std::path::Path;

/// Beyond so many files the rest is not counted: looking is to cost nothing.
const MOST: u64 = 100_000;
/// Names of files that often hold secrets.
const SECRET: [&str; 5] = [".env", ".netrc", "id_rsa", "id_ed25519", "credentials"];

/// How much is in a folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Measure {
    bytes: u64,
    files: u64,
    /// Files in it that should perhaps not be copied, by their paths in it.
    secret: Vec<String>,
}

impl std::fmt::Display for Measure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let more = if self.files >= MOST { " and more" } else { "" };
        write!(
            f,
            "{} files{more}, {:.1} MiB, are copied into the Nix store, where all users can read them",
            self.files,
            self.bytes as f64 / f64::from(1 << 20)
        )?;
        match self.secret.is_empty() {
            true => Ok(()),
            false => write!(
                f,
                "; among them {}: keep such files elsewhere, or make the folder a git repository that ignores them",
                self.secret.join(", ")
            ),
        }
    }
}

/// Looks through a folder; what cannot be read is not counted.
pub(crate) fn measure(dir: &Path) -> Measure {
    let mut measure = Measure::default();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                folders.push(entry.path());
                continue;
            }
            measure.files += 1;
            measure.bytes += meta.len();
            if measure.files >= MOST {
                return measure;
            }
            let name = entry.file_name();
            if measure.secret.len() < 5 && SECRET.iter().any(|secret| name == **secret) {
                let path = entry.path();
                let inside = path.strip_prefix(dir).unwrap_or(&path);
                measure.secret.push(inside.display().to_string());
            }
        }
    }
    measure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_copied_is_counted_and_secrets_are_named() {
        let dir = tempfile::tempdir().expect("directory");
        std::fs::create_dir_all(dir.path().join("a/b")).expect("folders");
        std::fs::write(dir.path().join("flake.nix"), vec![0; 1 << 20]).expect("file");
        let plain = measure(dir.path());
        assert_eq!((plain.files, plain.bytes), (1, 1 << 20));
        assert!(plain.to_string().ends_with("where all users can read them"), "{plain}");
        std::fs::write(dir.path().join("a/b/.env"), "TOKEN=x").expect("file");
        let words = measure(dir.path()).to_string();
        assert!(words.starts_with("2 files, 1.0 MiB") && words.contains("a/b/.env"), "{words}");
    }
}
