//! Notes about a successful copy that people should know of.

use serde::{Deserialize, Serialize};

/// How many notes are kept; the rest are only counted.
const MOST: usize = 20;
/// The longest note that is shown, in characters.
const LONGEST: usize = 600;

/// What could not be copied unchanged: files left out, cut or padded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Notes {
    said: Vec<String>,
    /// The number of notes that were not kept.
    more: u64,
}

impl Notes {
    /// Adds a note.
    pub fn add(&mut self, note: String) {
        match self.said.len() < MOST {
            true => self.said.push(note),
            false => self.more = self.more.saturating_add(1),
        }
    }

    /// Adds the notes of another copy.
    pub fn append(&mut self, other: Notes) {
        other.said.into_iter().for_each(|note| self.add(note));
        self.more = self.more.saturating_add(other.more);
    }

    /// Returns whether everything was copied unchanged.
    pub fn is_empty(&self) -> bool {
        self.said.is_empty() && self.more == 0
    }

    /// Returns a line for each note. Notes may come from a guest, so whatever could move a
    /// terminal's cursor is escaped, and the number of lines is bounded.
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

/// Returns somebody else's words on one line of at most `longest` characters of theirs: whatever
/// could move a terminal's cursor, begin a line, or change the direction of text is escaped.
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

/// Returns a path for people, on one line.
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
        // Notes with other counts are shown within the same bounds.
        let hostile = Notes { said: vec!["x".into(); 1000], more: u64::MAX };
        assert_eq!(hostile.lines().len(), MOST + 1);
        notes.append(hostile);
        assert_eq!(notes.lines().len(), MOST + 1);
    }
}
