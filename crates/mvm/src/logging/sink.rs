//! The destination of log lines.

use parking_lot::Mutex;
use std::io::{self, Write};
use std::sync::Arc;
use tracing_subscriber::fmt::MakeWriter;

/// The destination of log lines. Each event is written as a whole, as one line.
#[derive(Clone)]
pub struct Sink(Arc<Mutex<dyn Write + Send>>);

impl Sink {
    /// Makes a sink that writes lines to `to`.
    pub fn new(to: impl Write + Send + 'static) -> Sink {
        Sink(Arc::new(Mutex::new(to)))
    }
}

impl Write for Sink {
    /// Writes one event. All control characters except the final line end are escaped.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let words = String::from_utf8_lossy(event.strip_suffix(b"\n").unwrap_or(event));
        let mut line = mvm_archive::plain(&words, usize::MAX);
        line.push('\n');
        self.0.lock().write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.lock().flush()
    }
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Sink;

    fn make_writer(&'a self) -> Sink {
        self.clone()
    }
}
