//! Checks whether Nix can sandbox its builders here: it makes namespaces for each of them.

use super::check::{Check, Status};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

const NAME: &str = "build sandbox";
/// The namespaces of Nix's sandbox (unshare(1)).
const NAMESPACES: [&str; 6] = ["--mount", "--pid", "--fork", "--net", "--ipc", "--uts"];
/// How long `unshare` may take. It normally needs milliseconds.
const LIMIT: Duration = Duration::from_secs(5);

/// Makes the namespaces, and runs `true` in them.
pub async fn check() -> Check {
    let mut unshare = Command::new("unshare");
    unshare.args(NAMESPACES).args(["--", "true"]).stdin(Stdio::null()).kill_on_drop(true);
    let why = match tokio::time::timeout(LIMIT, unshare.output()).await {
        Ok(Ok(output)) if output.status.success() => return found(),
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Ok(Err(cause)) => format!("cannot run unshare: {cause}"),
        Err(_) => format!("unshare did not end within {} s", LIMIT.as_secs()),
    };
    Check {
        name: NAME,
        status: Status::Missing,
        detail: format!("no namespaces for builders, and nothing is built without: {why}"),
        why: "",
        remedy: "allow namespaces (sysctl user.max_mnt_namespaces over 0; in a container: \
                 CAP_SYS_ADMIN), or build on another node; unshare is of util-linux",
    }
}

fn found() -> Check {
    let detail = "mount, pid, net, ipc and uts namespaces".to_owned();
    Check { name: NAME, status: Status::Ok, detail, why: "", remedy: "" }
}
