//! Rendering: tables for people, JSON and YAML for programs, errors for both.

use clap::ValueEnum;
use comfy_table::{Table, presets};
use mvm_api::Problem;
use serde::Serialize;
use std::io::Write;
use std::process::ExitCode;

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

/// What a command comes to: its exit status, or a problem.
pub type Outcome = Result<u8, Problem>;

/// Shows `value`, as a table of `rows` below `head` for people.
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
                table.add_row(row);
            }
            for column in table.column_iter_mut() {
                column.set_padding((0, 2));
            }
            let lines = table.to_string();
            lines.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
        }
        _ => structured(format, value)?,
    };
    print(&text)
}

/// Shows `value`; for people as a line.
pub fn say(format: Format, value: &impl Serialize, line: &str) -> Outcome {
    match format {
        Format::Table => print(&format!("{line}\n")),
        _ => print(&structured(format, value)?),
    }
}

/// Shows one thing: for people as lines of `name: value`, from the same JSON.
pub fn describe(format: Format, value: &impl Serialize) -> Outcome {
    match format {
        // YAML is what people read best where a thing has parts.
        Format::Table | Format::Yaml => print(&structured(Format::Yaml, value)?),
        Format::Json => print(&structured(format, value)?),
    }
}

fn structured(format: Format, value: &impl Serialize) -> Result<String, Problem> {
    let text = match format {
        Format::Json => {
            serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|e| e.to_string())
        }
        _ => serde_yaml_ng::to_string(value).map_err(|e| e.to_string()),
    };
    text.map_err(Problem::internal)
}

fn print(text: &str) -> Outcome {
    match anstream::stdout().write_all(text.as_bytes()) {
        // `mvm instance list | head` is no fault.
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Problem::internal(format!("cannot write the output: {e}")))
        }
        _ => Ok(0),
    }
}

/// Turns an outcome into an exit status, and says what the problem is.
pub fn finish(outcome: Outcome, format: Format) -> ExitCode {
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(problem) => {
            complain(&problem, format);
            ExitCode::FAILURE
        }
    }
}

/// Says a problem on standard error.
pub fn complain(problem: &Problem, format: Format) {
    let mut to = anstream::stderr();
    if format == Format::Json {
        let _ = writeln!(to, "{}", serde_json::to_string(problem).unwrap_or_default());
        return;
    }
    let red = anstyle::AnsiColor::Red.on_default().bold();
    let _ = writeln!(to, "{red}error[{}]{red:#}: {problem}", problem.code);
    if !problem.hint.is_empty() {
        let cyan = anstyle::AnsiColor::Cyan.on_default();
        let _ = writeln!(to, "  {cyan}hint{cyan:#}: {}", problem.hint);
    }
}

/// How long ago, in the largest unit that fits.
pub fn age(since: mvm_model::Millis) -> String {
    let now = jiff::Timestamp::now().as_millisecond();
    let seconds = (now - since as i64).max(0) / 1000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Bytes in MiB.
pub fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}
