//! `mvm`: fleets of microVMs, ready to work.
//!
//! Lives here: the command line, which parses arguments, calls the agent and renders its answers.
//! Never here: decisions.

// These macros panic where they cannot write, so output is printed by `output`.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod agent_holder;
mod agent_process;
mod cli;
mod error;
mod guest;
mod job;
mod logging;
mod output;
mod progress;
mod session;
mod time;

use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match cli::Cli::of_process() {
        Ok(cli) => cli,
        Err(error) => return output::usage(&error, output::format_of(std::env::args_os())),
    };
    // An agent makes a runtime of its own after it has entered its network namespace.
    let format = cli.globals.output;
    if let Some(outcome) = cli::serve_if_asked(&cli) {
        return output::finish(outcome.map(|()| 0), format);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(cli::run(cli));
            // A pending read of the terminal must not delay the exit.
            runtime.shutdown_background();
            output::finish(outcome, format)
        }
        Err(error) => {
            let problem = error::CliError::internal(format!("cannot start: {error}"));
            output::finish(Err(problem), format)
        }
    }
}
