//! What a person should know of a copy that has succeeded.

use serde::{Deserialize, Serialize};

/// How many notes are kept as they are; the rest is counted.
const MOST: usize = 20;
/// The longest note that is shown, in characters.
const LONGEST: usize = 600;

/// What could not be copied as it was: files left out, cut or filled up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Notes {
    said: Vec<String>,
    /// How many more there were.
    more: u64,
}

impl Notes {
    /// Adds one.
    pub fn add(&mut self, note: String) {
        match self.said.len() < MOST {
            true => self.said.push(note),
            false => self.more += 1,
        }
    }

    /// Adds those of another copy.
    pub fn append(&mut self, other: Notes) {
        other.said.into_iter().for_each(|note| self.add(note));
        self.more += other.more;
    }

    /// Whether everything was copied as it was.
    pub fn is_empty(&self) -> bool {
        self.said.is_empty() && self.more == 0
    }

    /// A line for each. They may come from a guest: what could move a terminal's cursor is escaped, and
    /// there are not too many of them.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> =
            self.said.iter().take(MOST).map(|note| plain(note, LONGEST)).collect();
        let more = self.more.saturating_add(self.said.len().saturating_sub(MOST) as u64);
        if more > 0 {
            lines.push(format!("and {more} more like these"));
        }
        lines
    }
}

/// Somebody else's words on one line of at most so many characters: what could move a terminal's cursor,
/// begin a line, or turn the direction of text is escaped.
pub fn plain(words: &str, longest: usize) -> String {
    let mut line = String::new();
    for c in words.chars().take(longest) {
        match c {
            '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
            | '\u{feff}' => {
                line.extend(c.escape_unicode());
            }
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line
}

/// A path for a person, on one line.
pub(crate) fn shown(path: &[u8]) -> String {
    plain(&String::from_utf8_lossy(path), LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_bounded_and_harmless() {
        let mut notes = Notes::default();
        assert!(notes.is_empty());
        (0..50).for_each(|n| notes.add(format!("{n} \u{1b}[2J\n{}", "x".repeat(5000))));
        let lines = notes.lines();
        assert_eq!(lines.len(), MOST + 1);
        assert!(lines.iter().all(|line| line.len() < 700 && !line.contains(['\n', '\u{1b}'])));
        assert_eq!(lines.last().map(String::as_str), Some("and 30 more like these"));
        // One who counts differently is shown in the same bounds.
        let hostile = Notes { said: vec!["x".into(); 1000], more: u64::MAX };
        assert_eq!(hostile.lines().len(), MOST + 1);
    }
}
