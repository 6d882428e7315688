//! The QEMU program: where it is and which version.

use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the QEMU program in `PATH`.
const NAME: &str = "qemu-system-x86_64";
/// The oldest version that the driver's command lines are known to work with.
const OLDEST: Version = Version { major: 7, minor: 2 };

/// The part of QEMU's version that command lines depend on; `Release` holds the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The number before the dot.
    pub major: u32,
    /// The number after the dot.
    pub minor: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A build of QEMU. What another build made is not reused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Release {
    pub(super) version: Version,
    /// The version as QEMU prints it, including the distribution's: `7.2.22 (Debian
    /// 1:7.2+dfsg-7+deb12u18)`.
    pub(super) words: String,
}

/// Returns the first `qemu-system-x86_64` in `PATH`. Error: `qemu_not_found`, which names the
/// package to install.
pub fn find_binary() -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(NAME))
        .find(|file| {
            file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        })
        .ok_or(Error::QemuNotFound)
}

/// Asks the program for its version, within 20 s. Errors: `qemu_not_found`, `qemu_unusable`.
pub(super) async fn release(program: &Path) -> Result<Release> {
    let unusable = |reason: String| Error::QemuUnusable { program: program.to_owned(), reason };
    let asked = tokio::process::Command::new(program).arg("--version").kill_on_drop(true).output();
    let output = match tokio::time::timeout(Duration::from_secs(20), asked).await {
        Ok(Ok(output)) => output,
        Ok(Err(e)) if e.kind() == std::io::ErrorKind::NotFound => return Err(Error::QemuNotFound),
        Ok(Err(e)) => return Err(unusable(e.to_string())),
        Err(_) => return Err(unusable("no answer to --version within 20 s".into())),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    match parse_release(&text) {
        Some(release) if release.version >= OLDEST => Ok(release),
        Some(release) => Err(unusable(format!("it is version {}", release.version))),
        None => Err(unusable(format!("--version says {:?}", text.lines().next().unwrap_or("")))),
    }
}

/// Reads `QEMU emulator version 7.2.22 (Debian …)`: version 7.2, and the words after `version`.
fn parse_release(text: &str) -> Option<Release> {
    let after = text.split_once("version ")?.1;
    let words = after.lines().next()?.trim().chars().filter(|c| !c.is_control()).take(200);
    let mut numbers = after.split(|c: char| !c.is_ascii_digit());
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers.next()?.parse().ok()?;
    Some(Release { version: Version { major, minor }, words: words.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_model::Code;
    use proptest::prelude::*;

    #[test]
    fn versions_are_read() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright";
        let parsed =
            |text: &str| parse_release(text).map(|release| (release.version, release.words));
        let words = "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)".to_owned();
        assert_eq!(parsed(debian), Some((Version { major: 7, minor: 2 }, words)));
        let plain = Some((Version { major: 10, minor: 0 }, "10.0.2".to_owned()));
        assert_eq!(parsed("QEMU emulator version 10.0.2"), plain);
        assert_eq!(parsed("QEMU emulator version x"), None);
        assert!(Version { major: 10, minor: 0 } > Version { major: 9, minor: 1 });
    }

    #[tokio::test]
    async fn a_program_that_is_no_qemu_is_named() {
        let error = release(Path::new("/bin/true")).await.unwrap_err();
        assert_eq!(error.code(), Code::QemuUnusable);
        assert!(error.to_string().contains("/bin/true"), "{error}");
        let error = release(Path::new("/nonexistent/qemu")).await.unwrap_err();
        assert!(error.to_string().contains("apt-get install qemu-system-x86"), "{error}");
    }

    proptest! {
        #[test]
        fn any_answer_is_read_without_panic(text in ".{0,80}") {
            let _ = parse_release(&text);
            let _ = parse_release(&format!("version {text}"));
        }
    }
}
