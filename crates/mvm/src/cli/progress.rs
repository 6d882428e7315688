//! Calls that take long and report their progress.

use crate::error::CliError;
use crate::output::{self, Format};
use indicatif::ProgressBar;
use mvm_api::types::ProgressEvent;
use mvm_api::{Client, Problem};
use mvm_model::Code;
use std::io::IsTerminal;
use std::time::Duration;

/// Programs get only the result or one problem document.
fn is_for_people(format: Format) -> bool {
    format == Format::Table
}

/// Returns a spinner on standard error; `None` where nobody would see it turn.
fn spinner(format: Format) -> Option<ProgressBar> {
    (is_for_people(format) && std::io::stderr().is_terminal()).then(|| {
        let spinner = ProgressBar::new_spinner();
        spinner.enable_steady_tick(Duration::from_millis(100));
        spinner
    })
}

/// Makes a call that does not report its progress, and shows on standard error that `stage` is
/// under way.
pub async fn with_stage<T>(format: Format, stage: &str, call: impl Future<Output = T>) -> T {
    let spinner = spinner(format);
    match &spinner {
        Some(spinner) => spinner.set_message(stage.to_owned()),
        None if is_for_people(format) => output::note(format_args!("==> {stage}")),
        None => {}
    }
    let outcome = call.await;
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    outcome
}

/// Makes a call that reports its progress, and shows the progress on standard error.
pub async fn with_progress<T: serde::de::DeserializeOwned>(
    client: &Client,
    format: Format,
    path: &str,
    body: &impl serde::Serialize,
) -> Result<T, CliError> {
    let for_people = is_for_people(format);
    let spinner = spinner(format);
    let mut outcome = None;
    client
        .streams()
        .events(path, body, |event| match event.name.as_str() {
            "progress" => {
                let step = serde_json::from_str::<ProgressEvent>(&event.data);
                let Some(step) = step.ok().filter(|_| for_people) else { return };
                match (&spinner, step.kind.as_str()) {
                    (Some(spinner), "stage") => spinner.set_message(step.text),
                    (Some(spinner), _) => spinner.println(step.text),
                    (None, "stage") => output::note(format_args!("==> {}", step.text)),
                    (None, _) => output::note(step.text),
                }
            }
            "result" => {
                outcome = Some(
                    serde_json::from_str::<T>(&event.data)
                        .map_err(|e| CliError::internal(e.to_string())),
                )
            }
            "problem" => {
                let problem = serde_json::from_str::<Problem>(&event.data);
                outcome = Some(Err(
                    problem.map_or_else(|e| CliError::internal(e.to_string()), CliError::from)
                ));
            }
            _ => {}
        })
        .await?;
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    outcome.unwrap_or_else(|| {
        Err(CliError::new(Code::ConnectionBroken, "the agent ended before it was done"))
    })
}
