//! How Nix is run: with which settings, and with which users for its builders.

use crate::command::Tool;
use crate::error::{At, Result};
use crate::layout::ImageStore;
use crate::types::Sandbox;
use std::path::{Path, PathBuf};

/// The group of the builders' users, whose ids follow it; no tenant's machines use them. They are
/// on no list of the host: Nix finds them in files that only it sees.
const FIRST_ID: u32 = 478_000;
/// How many builders may run at once.
const USERS: u32 = 16;
const GROUP: &str = "mvmbuild";
/// Prefix of the group's line in a multi-user installation of Nix.
const USUAL_GROUP: &str = "nixbld:";
/// Runs a program that sees /etc/passwd and /etc/group with the builders' users in them: $1 is a
/// directory to mount them in, $2 and $3 are the lines. The tmpfs and its mount namespace end with
/// the program.
const WITH_USERS: &str = r#"set -e
mount -t tmpfs -o mode=0755,size=4m mvm-build "$1"
cat /etc/passwd - > "$1/passwd" <<END
$2
END
cat /etc/group - > "$1/group" <<END
$3
END
chmod 0644 "$1/passwd" "$1/group"
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/group" /etc/group
shift 3
exec "$@""#;

/// Nix as this store runs it.
#[derive(Clone, Debug)]
pub(super) struct Nix {
    pub program: PathBuf,
    pub sandbox: Sandbox,
    pub users: Users,
}

/// The users that builders run as.
#[derive(Clone, Debug)]
pub(super) enum Users {
    /// Those of Nix's own settings, or the present user if that is not root.
    Own,
    /// mvm's own; the path is the directory in which Nix is shown them.
    Ours(PathBuf),
}

impl Users {
    /// Chooses the users. Debian's nix-bin comes without users for builders, which without any
    /// would run as root.
    pub fn of(store: &ImageStore) -> Result<Users> {
        let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
        if !rustix::process::geteuid().is_root() || has_usual(&groups) {
            return Ok(Users::Own);
        }
        let dir = store.build_users_dir();
        std::fs::create_dir_all(&dir).at("create", &dir)?;
        Ok(Users::Ours(dir))
    }
}

/// Returns whether the usual group exists and has members.
fn has_usual(groups: &str) -> bool {
    groups.lines().any(|line| line.starts_with(USUAL_GROUP) && !line.ends_with(':'))
}

/// Returns the lines for passwd(5) and group(5).
fn lines() -> (String, String) {
    let names: Vec<String> = (1..=USERS).map(|number| format!("{GROUP}{number}")).collect();
    let user = |(name, id): (&String, u32)| {
        format!("{name}:x:{id}:{FIRST_ID}:builder of mvm:/var/empty:/usr/sbin/nologin")
    };
    let users: Vec<String> = names.iter().zip(FIRST_ID + 1..).map(user).collect();
    (users.join("\n"), format!("{GROUP}:x:{FIRST_ID}:{}", names.join(",")))
}

impl Nix {
    /// Returns the program, ready for its arguments.
    pub fn tool(&self) -> Tool {
        let tool = match &self.users {
            Users::Own => Tool::new(&self.program, "nix-bin"),
            Users::Ours(dir) => {
                let (users, group) = lines();
                Tool::new(Path::new("unshare"), "util-linux")
                    .args([
                        "--mount",
                        "--propagation",
                        "private",
                        "--",
                        "sh",
                        "-c",
                        WITH_USERS,
                        "sh",
                    ])
                    .arg(dir)
                    .args([users, group])
                    .arg(&self.program)
            }
        };
        tool.env("NIX_CONFIG", self.config())
    }

    /// Returns Nix's settings for these runs, added to those of the environment.
    fn config(&self) -> String {
        let mut lines = vec![std::env::var("NIX_CONFIG").unwrap_or_default()];
        lines.push("extra-experimental-features = nix-command flakes".to_owned());
        if matches!(self.users, Users::Ours(_)) {
            lines.push(format!("build-users-group = {GROUP}"));
        }
        let sandbox = match self.sandbox {
            Sandbox::Strict => "true",
            Sandbox::Relaxed => "relaxed",
        };
        // If no sandbox can be set up, the build must fail; and a flake must change none of these
        // settings.
        lines.push(format!("sandbox = {sandbox}\nsandbox-fallback = false"));
        lines.push("accept-flake-config = false\nwarn-dirty = false".to_owned());
        lines.retain(|line| !line.is_empty());
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builders_have_users_of_their_own() {
        assert!(has_usual("root:x:0:\nnixbld:x:30000:nixbld1,nixbld2\n"));
        assert!(!has_usual("nixbld:x:30000:\n") && !has_usual("xnixbld:x:1:a\n"));
        let (users, group) = lines();
        assert_eq!(users.lines().count(), 16);
        assert!(users.starts_with("mvmbuild1:x:478001:478000:"), "{users}");
        assert!(
            group.ends_with(",mvmbuild16") && group.starts_with("mvmbuild:x:478000:mvmbuild1,")
        );
    }

    #[test]
    fn nothing_falls_back_to_no_sandbox() {
        for (sandbox, word) in [(Sandbox::Strict, "true"), (Sandbox::Relaxed, "relaxed")] {
            let nix = Nix { program: "nix".into(), sandbox, users: Users::Own };
            let config = nix.config();
            assert!(config.contains(&format!("\nsandbox = {word}\n")), "{config}");
            assert!(config.contains("\nsandbox-fallback = false\n"), "{config}");
        }
    }
}
