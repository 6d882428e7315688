//! Reports on standard error how far a long copy is.

use crate::output;
use indicatif::{ProgressBar, ProgressStyle};
use mvm_archive::Tally;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A copy that takes no longer than this is not reported.
const MOMENT: Duration = Duration::from_secs(1);
/// How often the line on a terminal changes.
const OFTEN: Duration = Duration::from_millis(200);
/// How often a line is written to a file or a pipe.
const SELDOM: Duration = Duration::from_secs(10);

/// Reports until it is dropped.
pub struct Progress {
    /// The counters of the copy.
    pub tally: Arc<Tally>,
    bar: Option<ProgressBar>,
    task: tokio::task::JoinHandle<()>,
}

impl Progress {
    /// Begins to report on a copy of `what`.
    pub fn of(what: &str) -> Progress {
        let (tally, began, what) = (Arc::new(Tally::default()), Instant::now(), what.to_owned());
        let bar = std::io::stderr().is_terminal().then(|| {
            let plain = ProgressStyle::with_template("{wide_msg}");
            ProgressBar::new_spinner()
                .with_style(plain.unwrap_or_else(|_| ProgressStyle::default_spinner()))
        });
        let (counted, shown) = (tally.clone(), bar.clone());
        let task = tokio::spawn(async move {
            let (first, every) = if shown.is_some() { (MOMENT, OFTEN) } else { (SELDOM, SELDOM) };
            tokio::time::sleep(first).await;
            loop {
                let line = line(&what, &counted, began.elapsed());
                match &shown {
                    Some(bar) => bar.set_message(line),
                    None => output::note(format_args!("mvm: {line}")),
                }
                tokio::time::sleep(every).await;
            }
        });
        Progress { tally, bar, task }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(bar) = self.bar.take().filter(|bar| !bar.message().is_empty()) {
            bar.finish_and_clear();
        }
    }
}

fn line(what: &str, tally: &Tally, took: Duration) -> String {
    let (bytes, entries) = (tally.bytes(), tally.entries());
    let rate = output::mib((bytes as f64 / took.as_secs_f64().max(0.001)) as u64);
    format!("copying {what}: {}, {rate}/s, {entries} files", output::mib(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_bytes_rate_and_files() {
        let tally = Arc::new(Tally::default());
        let mut packer = mvm_archive::Packer::counted(Vec::new(), tally.clone());
        let dir = tempfile::tempdir().expect("directory");
        std::fs::write(dir.path().join("a"), vec![7; 3 << 20]).expect("file");
        packer.add(dir.path(), b"d").expect("pack");
        assert_eq!(
            line("d", &tally, Duration::from_secs(2)),
            "copying d: 3.0 MiB, 1.5 MiB/s, 2 files"
        );
    }
}
