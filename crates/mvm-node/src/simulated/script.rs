//! The commands that a simulated guest can run: `true`, `false`, `echo WORDS`, `cat [FILES]`,
//! `sleep SECONDS`, `exit STATUS`, and `sh -c` (or `bash -c`) with a list of these, joined by `;`,
//! `&&` or line ends, with words in quotes, and with `> FILE` at the end of a command.

use std::time::Duration;

/// One command of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The command's action.
    pub does: Action,
    /// The file that the output goes to; absent where it goes to the caller.
    pub into: Option<String>,
    /// Whether the command runs only if the previous one has succeeded.
    pub if_well: bool,
}

/// The action of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ends the whole script with this status.
    Exit(i32),
    /// Returns this status.
    Be(i32),
    /// Prints a line.
    Echo(String),
    /// Prints files, or the input if no file is given.
    Cat(Vec<String>),
    /// Waits for this long.
    Sleep(Duration),
    /// Prints an error and returns this status.
    Complain(i32, String),
}

/// Returns the commands to run. The error is the name of a program that does not exist.
pub fn parse(argv: &[String]) -> Result<Vec<Command>, String> {
    let words: Vec<&str> = argv.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["sh" | "bash" | "/bin/sh" | "/bin/bash", "-c", script, ..] => Ok(list(script)),
        words => {
            let does = command(words)?;
            Ok(vec![Command { does, into: None, if_well: false }])
        }
    }
}

fn command(words: &[&str]) -> Result<Action, String> {
    let Some((name, arguments)) = words.split_first() else { return Ok(Action::Be(0)) };
    let name = name.rsplit_once('/').map_or(*name, |(folder, name)| {
        if matches!(folder, "/bin" | "/usr/bin") { name } else { words[0] }
    });
    let usage = || Action::Complain(2, format!("{name}: usage"));
    Ok(match (name, arguments) {
        ("true" | ":", _) => Action::Be(0),
        ("false", _) => Action::Be(1),
        ("echo", words) => Action::Echo(words.join(" ")),
        ("cat", files) => Action::Cat(files.iter().map(ToString::to_string).collect()),
        ("sleep", [seconds]) => {
            let seconds: Option<f64> = seconds.parse().ok();
            let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            time.map_or_else(usage, Action::Sleep)
        }
        ("exit", []) => Action::Exit(0),
        ("exit", [status]) => {
            status.parse().map_or_else(|_| usage(), |s: u8| Action::Exit(s.into()))
        }
        ("sleep" | "exit", _) => usage(),
        (unknown, _) => return Err(unknown.to_owned()),
    })
}

/// Parses a shell's list of commands. A command that is not simulated prints an error when it is
/// run.
fn list(script: &str) -> Vec<Command> {
    let tokens = match tokens(script) {
        Ok(tokens) => tokens,
        Err(what) => {
            let does = Action::Complain(2, format!("sh: {what} is not simulated"));
            return vec![Command { does, into: None, if_well: false }];
        }
    };
    let (mut commands, mut if_well) = (Vec::new(), false);
    for part in tokens.split_inclusive(|token| matches!(token, Token::Next | Token::IfWell)) {
        let mut words: Vec<&str> = Vec::new();
        let (mut into, mut to_file, mut next_if_well) = (None, false, false);
        for token in part {
            match token {
                Token::Word(word) if to_file => (into, to_file) = (Some(word.clone()), false),
                Token::Word(word) => words.push(word),
                Token::Into => to_file = true,
                Token::IfWell => next_if_well = true,
                Token::Next => {}
            }
        }
        if !words.is_empty() {
            let missing = |name| Action::Complain(127, format!("sh: {name}: not found"));
            let does = command(&words).unwrap_or_else(missing);
            commands.push(Command { does, into, if_well });
        }
        if_well = next_if_well;
    }
    commands
}

enum Token {
    Word(String),
    Into,
    Next,
    IfWell,
}

/// Splits a script into tokens. The error is the part that is not simulated.
fn tokens(script: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut word: Option<String> = None;
    let mut left = script.chars().peekable();
    while let Some(letter) = left.next() {
        let token = match letter {
            '\'' | '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match left.next() {
                        Some(end) if end == letter => break,
                        Some('$' | '`' | '\\') if letter == '"' => return Err("$".to_owned()),
                        Some(inner) => word.push(inner),
                        None => return Err("an open quote".to_owned()),
                    }
                }
                continue;
            }
            ';' | '\n' => Some(Token::Next),
            '&' if left.next_if_eq(&'&').is_some() => Some(Token::IfWell),
            '>' if left.peek() != Some(&'>') => Some(Token::Into),
            ' ' | '\t' => None,
            '$' | '`' | '\\' | '|' | '&' | '<' | '>' | '*' | '?' | '(' | ')' | '#' => {
                return Err(letter.to_string());
            }
            letter => {
                word.get_or_insert_default().push(letter);
                continue;
            }
        };
        tokens.extend(word.take().map(Token::Word));
        tokens.extend(token);
    }
    tokens.extend(word.map(Token::Word));
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Vec<Command> {
        parse(&["sh".to_owned(), "-c".to_owned(), script.to_owned()]).expect("a shell is there")
    }

    #[test]
    fn a_script_is_read_as_a_shell_reads_it() {
        let echo = |words: &str| Action::Echo(words.to_owned());
        let plain = |does| Command { does, into: None, if_well: false };
        assert_eq!(sh("echo 'a  b' \"c\"; true"), [plain(echo("a  b c")), plain(Action::Be(0))]);
        let told = Command { into: Some("/x".to_owned()), ..plain(echo("hot")) };
        assert_eq!(sh("echo hot >/x\n"), [told]);
        let after = Command { if_well: true, ..plain(Action::Exit(7)) };
        assert_eq!(sh("/bin/false && exit 7"), [plain(Action::Be(1)), after]);
        assert_eq!(sh(""), []);
        for odd in ["echo $HOME", "a | b", "x &", "cat <f", "echo 'open", "echo >>f"] {
            assert!(matches!(sh(odd)[..], [Command { does: Action::Complain(2, _), .. }]), "{odd}");
        }
        assert!(matches!(sh("make")[..], [Command { does: Action::Complain(127, _), .. }]));
        assert_eq!(parse(&["make".to_owned()]), Err("make".to_owned()));
        let own = parse(&["/work/true".to_owned()]);
        assert_eq!(own, Err("/work/true".to_owned()), "a program of somebody's own");
    }

    proptest::proptest! {
        #[test]
        fn no_script_is_too_odd(words in proptest::collection::vec(".{0,40}", 0..4), script in ".{0,200}") {
            let _ = parse(&words);
            sh(&script);
        }
    }
}
