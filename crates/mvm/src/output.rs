//! Output: tables for people, JSON and YAML for programs, errors for both.

use crate::error::CliError;
use crate::time::wall;
use clap::ValueEnum;
use comfy_table::{Table, presets};
use mvm_archive::plain;
use mvm_model::Code;
use serde::Serialize;
use std::cell::RefCell;
use std::io::Write;
use std::process::ExitCode;
use tokio::sync::Notify;

/// How results are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// The API's own JSON.
    Json,
    /// The same as YAML.
    Yaml,
}

/// The result of a command: its exit status, or an error.
pub type Outcome = Result<u8, CliError>;

/// Prints `value`; for people as a table of `rows` below `head`.
pub fn show(
    format: Format,
    value: &impl Serialize,
    head: &[&str],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> Outcome {
    let text = match format {
        Format::Table => {
            let mut table = Table::new();
            table.load_style(presets::NOTHING);
            if !head.is_empty() {
                table.set_header(head);
            }
            for row in rows {
                table.add_row(row.iter().map(|cell| plain(cell, usize::MAX)));
            }
            for column in table.column_iter_mut() {
                column.set_padding((0, 2));
            }
            let lines = table.to_string();
            lines.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
        }
        _ => structured(format, value)?,
    };
    print(text.as_bytes())
}

/// Prints `value`; for people as these lines.
pub fn say_lines(format: Format, value: &impl Serialize, lines: &[String]) -> Outcome {
    match format {
        Format::Table => {
            let lines = lines.iter().map(|line| plain(line, usize::MAX) + "\n");
            print(lines.collect::<String>().as_bytes())
        }
        _ => print(structured(format, value)?.as_bytes()),
    }
}

/// Prints `value`; for people as one line.
pub fn say(format: Format, value: &impl Serialize, line: &str) -> Outcome {
    match format {
        Format::Table => print(format!("{}\n", clean(line)).as_bytes()),
        _ => print(structured(format, value)?.as_bytes()),
    }
}

/// Prints one thing; for people as lines of `name: value`, from the same JSON.
pub fn describe(format: Format, value: &impl Serialize) -> Outcome {
    match format {
        // YAML is the most readable format for a thing with parts.
        Format::Table | Format::Yaml => print(structured(Format::Yaml, value)?.as_bytes()),
        Format::Json => print(structured(format, value)?.as_bytes()),
    }
}

/// Escapes text that may quote a guest's. Control characters are escaped, and every line but the
/// first is marked, so that none can be taken for a line of ours.
pub fn clean(words: &str) -> String {
    let lines: Vec<String> = words.lines().map(|line| plain(line, usize::MAX)).collect();
    lines.join("\n  | ")
}

/// Applies [`clean`] to foreign text that arrives in pieces, which may end anywhere.
#[derive(Default)]
pub struct Cleaner {
    /// An incomplete character or line end, whose rest is still to come.
    waits: Vec<u8>,
}

impl Cleaner {
    /// Returns the next piece, escaped for a terminal.
    pub fn clean(&mut self, piece: &[u8]) -> String {
        self.waits.extend_from_slice(piece);
        let rest = self.waits.split_off(whole(&self.waits));
        let piece = std::mem::replace(&mut self.waits, rest);
        let lines = String::from_utf8_lossy(&piece).replace("\r\n", "\n");
        let words =
            lines.split_inclusive(['\t', '\n']).map(|word| match word.chars().next_back() {
                Some(end @ ('\t' | '\n')) => {
                    plain(&word[..word.len() - 1], usize::MAX) + end.encode_utf8(&mut [0; 4])
                }
                _ => plain(word, usize::MAX),
            });
        words.collect()
    }
}

/// Returns how many bytes make whole characters. A final carriage return waits for what follows.
fn whole(bytes: &[u8]) -> usize {
    let last = bytes.len().saturating_sub(1);
    if bytes.last() == Some(&b'\r') {
        return last;
    }
    let begun = (bytes.len().saturating_sub(3)..bytes.len()).rev().find(|at| bytes[*at] >= 0xc0);
    let length = |lead: u8| match lead {
        0xf0.. => 4,
        0xe0.. => 3,
        _ => 2,
    };
    let goes_on = |at: &usize| {
        let behind = &bytes[at + 1..];
        1 + behind.len() < length(bytes[*at]) && behind.iter().all(|byte| byte & 0xc0 == 0x80)
    };
    begun.filter(goes_on).unwrap_or(bytes.len())
}

/// Escapes control characters in JSON. JSON's strings allow that.
pub fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c.is_control() && c != '\n' {
            true => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => text.push(c),
        }
    }
    text
}

fn structured(format: Format, value: &impl Serialize) -> Result<String, CliError> {
    let text = match format {
        Format::Json => serde_json::to_string_pretty(value)
            .map(|text| ascii(&text) + "\n")
            .map_err(|e| e.to_string()),
        _ => serde_yaml_ng::to_string(value).map_err(|e| e.to_string()),
    };
    text.map_err(CliError::internal)
}

/// Prints to standard output.
pub fn print(text: &[u8]) -> Outcome {
    let mut to = anstream::stdout();
    written(to.write_all(text).and_then(|()| to.flush())).map(|()| 0)
}

/// Prints every byte unchanged. [`print()`] strips terminal escapes where the output is no
/// terminal.
pub fn print_raw(bytes: &[u8]) -> Outcome {
    let mut to = std::io::stdout();
    written(to.write_all(bytes).and_then(|()| to.flush())).map(|()| 0)
}

/// Prints a line to standard error. A line that cannot be written is lost: there is nowhere else to
/// write it.
pub fn note(line: impl std::fmt::Display) {
    let _ = writeln!(anstream::stderr(), "{}", clean(&line.to_string()));
}

/// Turns the outcome of writing our own output into an error that ends the command.
pub fn written(outcome: std::io::Result<()>) -> Result<(), CliError> {
    outcome.map_err(|cause| {
        let code = match cause.kind() {
            std::io::ErrorKind::BrokenPipe => Code::OutputClosed,
            _ => Code::OutputFailed,
        };
        CliError::new(code, format!("cannot write the output: {cause}"))
    })
}

/// Returns whether the error is about our own output.
pub fn is_of_output(problem: &CliError) -> bool {
    problem.is_one_of(&[Code::OutputFailed, Code::OutputClosed])
}

/// Turns an outcome into an exit status, and prints the error. A closed pipe gives the status that
/// a shell shows for a program ended by SIGPIPE, without a message: `mvm instance list | head`.
pub fn finish(outcome: Outcome, format: Format) -> ExitCode {
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(problem) if problem.code() == Some(Code::OutputClosed) => ExitCode::from(141),
        Err(problem) => {
            let status = match problem.code() {
                Some(Code::Usage) => 2,
                Some(Code::OutputFailed) => 125,
                _ => 1,
            };
            complain(problem, format);
            ExitCode::from(status)
        }
    }
}

/// Output that is printed as it arrives. Its source ends at the first piece that cannot be printed.
#[derive(Default)]
pub struct Flow {
    failed: RefCell<Option<CliError>>,
    ended: Notify,
}

impl Flow {
    /// Prints a piece, unless an earlier one has failed.
    pub fn print(&self, piece: &[u8]) {
        self.note(|| print(piece));
    }

    /// Prints a piece with [`print_raw`], unless an earlier one has failed.
    pub fn print_raw(&self, piece: &[u8]) {
        self.note(|| print_raw(piece));
    }

    fn note(&self, print: impl FnOnce() -> Outcome) {
        if self.failed.borrow().is_none()
            && let Err(problem) = print()
        {
            *self.failed.borrow_mut() = Some(problem);
            self.ended.notify_one();
        }
    }

    /// Waits for the end of the source, or for a piece that cannot be printed.
    pub async fn of<T>(
        &self,
        source: impl Future<Output = Result<T, CliError>>,
    ) -> Result<T, CliError> {
        let outcome = tokio::select! {
            outcome = source => outcome,
            () = self.ended.notified() => Err(CliError::internal("its output has failed")),
        };
        self.failed.borrow_mut().take().map_or(outcome, Err)
    }
}

/// Prints an error to standard error: for programs as a problem document.
pub fn complain(error: CliError, format: Format) {
    let problem = &error.into_document();
    let mut to = anstream::stderr();
    let text = match format {
        Format::Table => None,
        Format::Json => serde_json::to_string(problem).ok().map(|text| ascii(&text) + "\n"),
        Format::Yaml => structured(format, problem).ok(),
    };
    if let Some(text) = text {
        let _ = to.write_all(text.as_bytes());
        return;
    }
    let red = anstyle::AnsiColor::Red.on_default().bold();
    let (code, what) = (plain(problem.code.as_str(), 100), clean(&problem.to_string()));
    let _ = writeln!(to, "{red}error[{code}]{red:#}: {what}");
    if problem.status >= 500 && !problem.request_id.is_empty() {
        let _ = writeln!(to, "  request {}: the agent's log says more", problem.request_id);
    }
    hint(&problem.hint);
}

fn hint(hint: &str) {
    if !hint.is_empty() {
        let cyan = anstyle::AnsiColor::Cyan.on_default();
        let _ = writeln!(anstream::stderr(), "  {cyan}hint{cyan:#}: {}", clean(hint));
    }
}

/// Prints help or the version where that was asked for; otherwise what is wrong with the command
/// line: in clap's words for people, as a problem document for programs.
pub fn usage(error: &clap::Error, format: Format) -> ExitCode {
    if !error.use_stderr() {
        return finish(written(error.print()).map(|()| 0), format);
    }
    // The error of the value's parser says more than clap's.
    let fault = std::error::Error::source(error).and_then(|e| e.downcast_ref::<mvm_model::Fault>());
    let advice = fault.map_or("see --help", |fault| &fault.hint);
    if format == Format::Table {
        let _ = error.print();
        hint(fault.map_or("", |fault| &fault.hint));
    } else {
        let text = error.to_string();
        let first = match error.kind() {
            clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                "no command is named"
            }
            _ => text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: "),
        };
        complain(CliError::new(Code::Usage, first).hint(advice), format);
    }
    ExitCode::from(2)
}

/// Returns the output format of a command line that cannot be parsed as a whole.
pub fn format_of(words: impl IntoIterator<Item = std::ffi::OsString>) -> Format {
    let words: Vec<String> = words.into_iter().map(|w| w.to_string_lossy().into_owned()).collect();
    let ours = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let mut format = Format::default();
    for (index, word) in words[..ours].iter().enumerate() {
        let value = match word.as_str() {
            "-o" | "--output" => words[..ours].get(index + 1).map(String::as_str),
            _ => word
                .strip_prefix("--output=")
                .or_else(|| word.strip_prefix("-o"))
                .map(|value| value.trim_start_matches('=')),
        };
        if let Some(Ok(named)) = value.map(|value| Format::from_str(value, false)) {
            format = named;
        }
    }
    format
}

/// Returns the time since then, in the largest unit that fits.
pub fn age(since: mvm_model::Timestamp) -> String {
    let seconds = wall().since(since).as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Returns a time as text, in UTC, to the second.
pub fn time(at: mvm_model::Timestamp) -> String {
    let seconds = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| "-".to_owned(), |time| time.to_string())
}

/// Returns bytes as text in MiB.
pub fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_guest_move_no_cursor() {
        let words = "one\r\u{1b}[2J\u{9b}A\ntwo\u{7f}";
        assert_eq!(clean(words), "one\\r\\u{1b}[2J\\u{9b}A\n  | two\\u{7f}");
        let json = serde_json::to_string_pretty(&[words]).expect("JSON");
        let shown = ascii(&json);
        assert!(shown.chars().all(|c| c == '\n' || !c.is_control()), "{shown:?}");
        let back: Vec<String> = serde_json::from_str(&shown).expect("JSON still");
        assert_eq!(back, [words]);
    }

    #[test]
    fn what_comes_in_pieces_is_clean_wherever_they_end() {
        let words = "é\u{1b}[2J one\r\n\ttwo \u{1f980}\rthree\u{9b}\n".as_bytes();
        let wanted = "é\\u{1b}[2J one\n\ttwo \u{1f980}\\rthree\\u{9b}\n";
        for step in 1..=words.len() {
            let mut cleaner = Cleaner::default();
            let text: String = words.chunks(step).map(|piece| cleaner.clean(piece)).collect();
            assert_eq!(text, wanted, "{step}");
        }
        // Bytes that are not valid text delay nothing.
        let mut cleaner = Cleaner::default();
        let shown: String = [&[0xff, 0xc3][..], b"a\x80\x80\x80", &[0xf0, 0x9f], b"\n"]
            .into_iter()
            .map(|piece| cleaner.clean(piece))
            .collect();
        assert!(shown.ends_with('\n') && cleaner.waits.is_empty(), "{shown:?}");
    }
}
