//! Runs nft(8), which applies all of a text or nothing.

use crate::{Error, Result};
use std::process::Stdio;
use tokio::io::AsyncWriteExt;

/// Runs `nft -f -` with `text`: either all of it takes effect, or nothing. Errors: `nft_missing`,
/// `nft_refused`, `not_permitted`.
pub(crate) async fn run_nft(text: &str) -> Result<()> {
    nft(&["-f", "-"], text).await
}

pub(crate) async fn nft(arguments: &[&str], text: &str) -> Result<()> {
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => Error::NftMissing,
        _ => Error::io("run nft", &e),
    };
    let mut child = tokio::process::Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
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
