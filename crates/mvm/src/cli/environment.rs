//! `-e` and `--env-file`: a command's environment variables. Values need not be among our own
//! arguments, which all users on this machine can read.

use crate::error::CliError;
use clap::Args;
use mvm_model::Code;
use mvm_model::Fault;
use mvm_model::variable::{HINT, is_variable};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Names and values of environment variables.
pub type Environment = BTreeMap<String, String>;

/// The variables of a command.
#[derive(Clone, Debug, Default, Args)]
pub struct Variables {
    /// Set an environment variable of the command; NAME alone passes on its value here
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    env: Vec<Variable>,
    /// Set the variables in a file, or on standard input (-): lines of NAME=VALUE, or NAME to pass
    /// on its value here; lines that begin with # are skipped. -e overrides the file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
}

/// A variable: `NAME=VALUE`, or `NAME` for the value that it has in our own environment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Variable {
    name: String,
    value: Option<String>,
}

impl FromStr for Variable {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if !is_variable(name) {
            let shown: String = name.chars().take(80).collect();
            let what = format!("{shown:?} is not a valid variable name");
            return Err(Fault::new(Code::InvalidValue, what).hint(HINT));
        }
        Ok(Variable { name: name.to_owned(), value })
    }
}

impl Variables {
    /// Reads the variables. The last value of a name counts. Errors: `local_file`, `invalid_value`.
    pub fn read(&self) -> Result<Environment, CliError> {
        self.leave_input(false)?;
        let here = |name: &str| std::env::var_os(name);
        let mut all = Environment::new();
        for path in &self.env_file {
            let text = text_of(path)?;
            for variable in lines(path, &text)? {
                all.extend([valued(variable, here)?]);
            }
        }
        for variable in &self.env {
            all.extend([valued(variable.clone(), here)?]);
        }
        Ok(all)
    }

    /// Refuses to read standard input where the command needs it.
    pub fn leave_input(&self, is_taken: bool) -> Result<(), CliError> {
        let reads = self.env_file.iter().filter(|path| path.as_os_str() == "-").count();
        let what = match (reads, is_taken) {
            (0, _) | (1, false) => return Ok(()),
            (_, true) => "--interactive gives the standard input to the command",
            (_, false) => "--env-file - stands there more than once",
        };
        Err(CliError::new(Code::InvalidValue, what)
            .hint("write the variables to a file of yours alone, and name that with --env-file"))
    }
}

/// Returns a variable with its own value, or the value that `here` has for it.
fn valued(
    variable: Variable,
    here: impl Fn(&str) -> Option<OsString>,
) -> Result<(String, String), CliError> {
    let Variable { name, value } = variable;
    if let Some(value) = value {
        return Ok((name, value));
    }
    let refused = |what: String| {
        CliError::new(Code::InvalidValue, what).hint(format!("set it here, or write {name}=VALUE"))
    };
    match here(&name).map(OsString::into_string) {
        Some(Ok(value)) => Ok((name, value)),
        Some(Err(_)) => Err(refused(format!("the value of variable {name} is not valid UTF-8"))),
        None => Err(refused(format!("variable {name} is not set here"))),
    }
}

/// The largest file of variables, in bytes. No program could be passed more.
const LARGEST: u64 = 1 << 20;

fn text_of(path: &Path) -> Result<String, CliError> {
    let read = || {
        let mut text = String::new();
        let from: &mut dyn Read = match path.as_os_str() == "-" {
            true => &mut std::io::stdin(),
            false => &mut std::fs::File::open(path)?,
        };
        from.take(LARGEST + 1).read_to_string(&mut text).map(|_| text)
    };
    let text = read()
        .map_err(|e| CliError::file(format!("cannot read variables from {}: {e}", shown(path))))?;
    if text.len() as u64 > LARGEST {
        let what = format!("the variables in {} are more than {} KiB", shown(path), LARGEST >> 10);
        return Err(CliError::new(Code::InvalidValue, what)
            .hint("give a command large values in a file: --in FILE"));
    }
    Ok(text)
}

fn shown(path: &Path) -> String {
    match path.as_os_str() == "-" {
        true => "the standard input".to_owned(),
        false => path.display().to_string(),
    }
}

/// Parses the variables of a file. Values are taken literally, quotes and spaces included.
fn lines(path: &Path, text: &str) -> Result<Vec<Variable>, CliError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let numbered = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim_start()));
    numbered
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| {
            // A line without '=' is a name, so trailing blanks do not belong to it.
            let line = if line.contains('=') { line } else { line.trim_end() };
            line.parse::<Variable>().map_err(|fault| {
                let detail = format!("{}, line {number}: {}", shown(path), fault.message);
                CliError::new(Code::InvalidValue, detail).hint(HINT)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(String, Option<String>)>, CliError> {
        let all = lines(Path::new("file"), text)?;
        Ok(all.into_iter().map(|variable| (variable.name, variable.value)).collect())
    }

    #[test]
    fn a_variable_has_a_name_and_perhaps_a_value() {
        let one = |text: &str| text.parse::<Variable>().map(|v| (v.name, v.value));
        assert_eq!(one("A=b=c").unwrap(), ("A".into(), Some("b=c".into())));
        assert_eq!(one("_a1=").unwrap(), ("_a1".into(), Some(String::new())));
        assert_eq!(one("TOKEN").unwrap(), ("TOKEN".into(), None));
        for bad in ["", "=b", "1A=b", "A-B=c", "A B=c", "Ä=b", " A=b", "A.B"] {
            let fault = one(bad).expect_err(bad);
            assert_eq!((fault.code, fault.hint.is_empty()), (Code::InvalidValue, false), "{bad}");
        }
    }

    #[test]
    fn a_name_alone_has_the_value_that_it_has_here() {
        let here = |name: &str| (name == "SET").then(|| OsString::from("it"));
        let of = |text: &str| valued(text.parse().unwrap(), here);
        assert_eq!(of("SET").unwrap(), ("SET".into(), "it".into()));
        assert_eq!(of("SET=other").unwrap(), ("SET".into(), "other".into()));
        let refused = of("MISSING").unwrap_err();
        assert!(refused.to_string().contains("MISSING is not set"), "{refused}");
    }

    #[test]
    fn a_file_has_a_variable_a_line() {
        let text = "\u{feff}# a comment\n\nA=1\n  B= two # words \r\nTOKEN \nC=\"q\"\n";
        let some = |name: &str, value: &str| (name.to_owned(), Some(value.to_owned()));
        let expected = vec![
            some("A", "1"),
            some("B", " two # words "),
            ("TOKEN".to_owned(), None),
            some("C", "\"q\""),
        ];
        assert_eq!(read(text).unwrap(), expected);
        let refused = read("A=1\nexport B=2\n").unwrap_err();
        assert!(
            refused.to_string().contains("file, line 2") && !refused.to_string().contains("=2")
        );
    }
}
