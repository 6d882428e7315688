//! Runs nft(8), which applies all of a text or nothing.

use crate::{Error, Result};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// How long nft may take: milliseconds on an idle host, even for thousands of rules.
const WITHIN: Duration = Duration::from_secs(60);

/// Runs `nft -f -` with `text`: either all of it takes effect, or nothing. Errors: `nft_missing`,
/// `nft_refused`, `not_permitted`.
pub(crate) async fn run_nft(text: &str) -> Result<()> {
    nft(&["-f", "-"], text).await
}

pub(crate) async fn nft(arguments: &[&str], text: &str) -> Result<()> {
    run("nft", arguments, text, WITHIN).await
}

/// Runs a program within a deadline, at which it is killed.
async fn run(program: &str, arguments: &[&str], text: &str, within: Duration) -> Result<()> {
    tokio::time::timeout(within, run_on(program, arguments, text)).await.unwrap_or_else(|_| {
        let cause = format!(
            "it has not ended within {within:?} and was killed: does another program hold the \
             kernel's firewall?"
        );
        Err(Error::Kernel { what: "run nft".to_owned(), cause })
    })
}

async fn run_on(program: &str, arguments: &[&str], text: &str) -> Result<()> {
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => Error::NftMissing,
        _ => Error::io("run nft", &e),
    };
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // If nft ends before it has read everything, its standard error says why.
        let _ = stdin.write_all(text.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    if words.contains("Operation not permitted") {
        return Err(Error::NotPermitted { what: "set firewall rules".to_owned() });
    }
    Err(Error::NftRefused(words.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_model::Code;

    /// It neither reads its input nor ends.
    #[tokio::test]
    async fn a_program_that_hangs_is_killed() {
        let note = std::env::temp_dir().join(format!("mvm-nft-{}", std::process::id()));
        let script = format!("echo $$ > {}; exec sleep 600", note.display());
        let text = "x".repeat(1 << 20);
        let hangs = tokio::spawn(async move {
            run("sh", &["-c", &script], &text, Duration::from_secs(1)).await
        });
        let pid = loop {
            match std::fs::read_to_string(&note) {
                Ok(pid) if pid.ends_with('\n') => break pid.trim().to_owned(),
                _ => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        };
        std::fs::remove_file(&note).expect("removed");
        let error = hangs.await.expect("the task").expect_err("it hangs");
        assert_eq!(error.code(), Code::NetworkFailed);
        assert!(error.to_string().contains("within 1s"), "{error}");
        while std::path::Path::new("/proc").join(&pid).exists() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    #[tokio::test]
    async fn what_the_program_says_is_told() {
        let said = run("sh", &["-c", "echo no such table >&2; exit 1"], "", WITHIN).await;
        let error = said.expect_err("it failed");
        assert_eq!(
            (error.code(), error.to_string().contains("no such table")),
            (Code::NftRefused, true)
        );
    }
}
