//! The log of an agent or coordinator: one line per event, whatever the event contains. A log file
//! has a bounded size.
//!
//! Text from guests gets into the log in errors, and a hostile guest can fail as often as it likes.
//! So warnings about one machine come at a limited rate, and a full file is rotated.

mod file;
mod limit;
mod sink;

pub use file::LogFile;

use crate::error::CliError;
use limit::Limit;
use mvm_model::Code;
use mvm_node::Stages;
use sink::Sink;
use std::io;
use std::path::Path;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::FilterExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The default log levels, which `MVM_LOG` overrides. yamux's messages about a hostile guest's
/// frames are off; the channel's user logs that it broke.
const LEVELS: &str = "info,yamux=off";

/// Starts the logging of this process to standard error or to `file`, as JSON lines where `json` is
/// set, and the timing of stages. Errors: the file cannot be opened.
pub fn begin(json: bool, file: Option<&Path>) -> Result<Stages, CliError> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MVM_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(LEVELS));
    let to = match file {
        None => Sink::new(io::stderr()),
        Some(path) => {
            let opened = LogFile::open(path, file::MOST, file::take_standard_error);
            Sink::new(opened.map_err(|e| {
                let what = format!("cannot open the log {}: {e}", path.display());
                CliError::new(Code::Io, what).hint("name another with --log-file")
            })?)
        }
    };
    let limit = Limit::new(to.clone(), json);
    let log = tracing_subscriber::fmt::layer().with_writer(to);
    let log = match json {
        true => log.json().boxed(),
        false => log.with_ansi(false).boxed(),
    };
    let stages = Stages::default();
    let log = log.with_filter(filter.and(limit));
    tracing_subscriber::registry().with(stages.layer()).with(log).init();
    Ok(stages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_guest::words::said;
    use parking_lot::Mutex;
    use std::io::Write;
    use std::sync::Arc;

    /// The memory that a test's subscriber writes to.
    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Memory {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().clone()).expect("text")
        }
    }

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Runs `work` with its events in a log like an agent's.
    fn logged(to: Sink, work: impl FnOnce()) {
        let limit = Limit::new(to.clone(), false);
        let log = tracing_subscriber::fmt::layer().with_writer(to).with_ansi(false);
        let log = log.with_filter(tracing_subscriber::EnvFilter::new(LEVELS).and(limit));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(log), work);
    }

    #[test]
    fn no_words_begin_a_line_of_their_own() {
        let memory = Memory::default();
        logged(Sink::new(memory.clone()), || {
            let forged = "it failed\r\n2026-01-01 ERROR all is lost\u{1b}[2J\u{9b}A";
            tracing::warn!(instance = "a\nb", "cannot wake: {forged}");
            tracing::warn!("cannot copy: {}", said("x", forged));
        });
        let text = memory.text();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert!(text.contains("it failed\\r\\n2026"), "{text}");
    }

    /// A guest fails as fast as it can, for as long as it likes.
    #[test]
    fn a_hostile_guest_does_not_fill_the_log() {
        let dir = tempfile::tempdir().expect("directory");
        let (path, most) = (dir.path().join("agent.log"), 64 << 10);
        let file = LogFile::open(&path, most, |_| Ok(())).expect("log");
        logged(Sink::new(file), || {
            for number in 0..3000 {
                let error = said("x", &"y".repeat(1 << 16));
                tracing::warn!(instance = "i-1", "{error}");
                tracing::error!(target: "other::crate", "number {number}");
                // These lines are about no machine, or each about another one. Their rate is not
                // limited, but the file's size is.
                tracing::warn!("{error}");
                tracing::warn!(instance = format!("i-{number}"), "ended");
            }
        });
        let sizes = std::fs::read_dir(dir.path()).expect("directory").map(|entry| {
            let entry = entry.expect("entry");
            (entry.file_name(), entry.metadata().expect("file").len())
        });
        let sizes: Vec<_> = sizes.collect();
        let sum: u64 = sizes.iter().map(|(_, size)| size).sum();
        assert!(sum <= 2 * most && sizes.len() == 2, "{sizes:?}");
    }

    #[test]
    fn lines_of_one_machine_come_at_a_bounded_rate_and_are_told_of() {
        let memory = Memory::default();
        logged(Sink::new(memory.clone()), || {
            (0..1000).for_each(|number| tracing::warn!(instance = "i-1", "number {number}"));
            (0..300).for_each(|number| tracing::info!(instance = "i-2", "moved {number}"));
            tracing::warn!(instance = "i-3", "well");
        });
        let text = memory.text();
        let of = |what: &str| text.lines().filter(|line| line.contains(what)).count();
        assert!((50..60).contains(&of("number")), "{}", of("number"));
        // Neither lines below a warning nor another machine's lines are suppressed.
        assert_eq!((of("moved"), of("well")), (300, 1));
    }
}
