//! The audit log: who did what, when, and with which outcome, as a chain in which every change
//! shows.
//!
//! A log is a text with one record per line: `DIGEST BODY`. BODY is the record in JSON and names
//! the digest of the line before; DIGEST is the SHA-256 of BODY, in hexadecimal digits. So an
//! edited line does not match its digest, and a line that was removed, added or moved breaks the
//! chain. Only lines cut off at the end leave no trace in the log: someone who has kept a digest
//! elsewhere can find that. A record is durable with its newline: whatever follows the last newline
//! was never acknowledged to anybody.
//!
//! The beginning of a log may be pruned. A record written before that says up to which record, and
//! what that record's digest was ([`Pruned`]). It is chained to the records before it like any
//! other, and a log that does not begin with record 1 is valid only if one of its records announces
//! exactly the missing beginning.

use crate::hex;
use crate::timestamp::Timestamp;
use serde::{Deserialize, Serialize};

/// The name of the log for acts that concern no tenant. No tenant's name begins with `_`.
pub const NODE_LOG: &str = "_node";
/// The actor of acts that no call asked for: recycling, replacing, ending leases.
pub const AGENT: &str = "agent";
/// The outcome of a successful act.
pub const OK: &str = "ok";
/// The longest line, in bytes.
const LONGEST_LINE: usize = 64 << 10;
/// The longest text from outside in a record, in characters.
const LONGEST_TEXT: usize = 200;
/// The number of hexadecimal digits of a digest.
const DIGITS: usize = 64;

/// What a record says about one act.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Who acted: `uid:0`, an identity, or [`AGENT`].
    pub actor: String,
    /// What was done: `instance.wake`, `session.exec`.
    pub verb: String,
    /// What it was done to: `ci/runners/i-0123abcd`.
    pub target: String,
    /// The outcome: [`OK`] or the problem's code; absent if the act only begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// The number of the record of the act's beginning; absent if this record is alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<u64>,
    /// The lease under which it was done; absent if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
    /// The job for which it was done; absent if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// The program that was run, never its arguments; absent if none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// The id of the request that asked for it; absent if none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// Which records are removed from the log's beginning; absent in all other records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned: Option<Pruned>,
}

/// The removed beginning of a log, as a record written before its removal announces it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// The number of removed records.
    pub count: u64,
    /// The number of the last removed record.
    pub last: u64,
    /// The digest of the last removed record.
    pub head: String,
    /// When the last removed record was written.
    pub at: Timestamp,
}

/// One record of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// One more than the number of the record before; the first is 1.
    pub number: u64,
    /// When it was written.
    pub at: Timestamp,
    /// The tenant, or [`NODE_LOG`].
    pub log: String,
    /// What happened.
    #[serde(flatten)]
    pub entry: Entry,
    /// The digest of the record before; empty in the first.
    pub previous: String,
}

/// A record with its digest, as a line holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// SHA-256 of the record's text, 64 hexadecimal digits.
    pub digest: String,
    /// The record that the line holds.
    #[serde(flatten)]
    pub record: Record,
}

/// The end of a log, to which the next record is chained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    log: String,
    last: u64,
    head: String,
}

impl Chain {
    /// Returns the chain of an empty log.
    pub fn new(log: &str) -> Chain {
        Chain { log: log.to_owned(), last: 0, head: String::new() }
    }

    /// Returns the number of the last record; 0 if there is none.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Returns the digest of the last record; empty if there is none.
    pub fn head(&self) -> &str {
        &self.head
    }

    /// Returns the line of the next record, with its newline, and the chain after it.
    pub fn line(&self, entry: Entry, at: Timestamp) -> (String, Chain) {
        let record = Record {
            number: self.last.saturating_add(1),
            at,
            log: self.log.clone(),
            entry,
            previous: self.head.clone(),
        };
        // A plain struct of strings and numbers, whose serialisation cannot fail.
        let body = serde_json::to_string(&record).unwrap_or_default();
        let head = hex::sha256(&body);
        let next = Chain { log: record.log, last: record.number, head };
        (format!("{} {body}\n", next.head), next)
    }
}

/// Cuts text from outside so that no line exceeds its limit.
pub fn bounded(text: &str) -> String {
    text.chars().take(LONGEST_TEXT).collect()
}

/// Why a line is not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unsound {
    Unreadable,
    Edited,
}

/// Reads one line, without its newline, whatever it is chained to; `None` if it is not a record.
pub fn read(line: &[u8]) -> Option<Sealed> {
    unseal(line).ok()
}

fn unseal(line: &[u8]) -> Result<Sealed, Unsound> {
    let (seal, rest) = line.split_at_checked(DIGITS).ok_or(Unsound::Unreadable)?;
    let body = rest.strip_prefix(b" ").ok_or(Unsound::Unreadable)?;
    let digest = hex::sha256(body);
    if digest.as_bytes() != seal {
        return Err(Unsound::Edited);
    }
    let record = serde_json::from_slice(body).map_err(|_| Unsound::Unreadable)?;
    Ok(Sealed { digest, record })
}

/// The first fault of a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// A line is not a record.
    #[error("line {line} is not a valid record")]
    Unreadable {
        /// The line's number, counted from 1.
        line: u64,
    },
    /// A line does not match its digest.
    #[error("line {line}, record {number}, does not fit its digest: it was edited")]
    Edited {
        /// The line's number, counted from 1.
        line: u64,
        /// The number that its record should have.
        number: u64,
    },
    /// A record is not the next one.
    #[error(
        "line {line} holds record {number} where record {expected} belongs: records were removed, added or moved"
    )]
    OutOfOrder {
        /// The line's number, counted from 1.
        line: u64,
        /// The number of its record.
        number: u64,
        /// The number of the record that belongs there.
        expected: u64,
    },
    /// A record has the right number but continues another past, or another log.
    #[error(
        "line {line}, record {number}, is not chained to the record before it: what is before it was replaced"
    )]
    Unchained {
        /// The line's number, counted from 1.
        line: u64,
        /// The number of its record.
        number: u64,
    },
    /// A record belongs to another log.
    #[error("line {line}, record {number}, is of the log of {found}, not of {log}")]
    Foreign {
        /// The line's number, counted from 1.
        line: u64,
        /// The number of its record.
        number: u64,
        /// The log that the record names.
        found: String,
        /// The log that is verified.
        log: String,
    },
    /// The expected digest is not in the log: it may belong to a pruned record, or to one that was
    /// cut off at the end.
    #[error(
        "no record has the digest {head}: it may be one of those up to {pruned} that were pruned, or records were cut off at the end"
    )]
    PrunedOrCutOff {
        /// The number of the last pruned record.
        pruned: u64,
        /// The digest that was expected.
        head: String,
    },
    /// The expected digest is not in the log.
    #[error(
        "no record up to the last, {last}, has the digest {head}: records were cut off at the end"
    )]
    CutOff {
        /// The number of the last record.
        last: u64,
        /// The digest that was expected.
        head: String,
    },
}

/// The result of verifying a valid log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The number of its first record; 0 if it has none.
    pub first: u64,
    /// The number of its last record; 0 if it has none.
    pub last: u64,
    /// The digest of its last record: kept elsewhere, it later shows whether any record up to here
    /// is missing.
    pub head: String,
    /// Bytes of a last record that was being written when the machine stopped. It was never
    /// acknowledged, and the agent removes it.
    pub torn_bytes: u64,
    /// The beginning that was removed, as one of the log's records announces; absent if nothing
    /// was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned: Option<Pruned>,
    /// The actor who removed it; absent if nothing was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned_by: Option<String>,
}

/// What a log must satisfy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// The log's name; that of its first record if absent.
    pub log: Option<String>,
    /// The digest of the record before its first, for a part of a log; absent for a log from its
    /// beginning.
    pub after: Option<String>,
    /// A digest that it must contain; absent if none is known.
    pub head: Option<String>,
}

/// Verifies a log as it is read, in pieces of any size.
#[derive(Debug)]
pub struct Verifier {
    expected: Expected,
    /// The part of a line that has not ended yet.
    partial: Vec<u8>,
    lines: u64,
    first: u64,
    chain: Option<Chain>,
    /// Whether the expected digest was seen.
    seen: bool,
    /// Number and digest of the record before the first, if some record must announce that it was
    /// pruned.
    missing: Option<(u64, String)>,
    /// The announcement of the missing beginning, and its actor.
    anchor: Option<(Pruned, String)>,
}

impl Verifier {
    /// Makes a verifier that has read nothing yet.
    pub fn new(expected: Expected) -> Verifier {
        let seen = expected.head.is_none();
        let (missing, anchor) = (None, None);
        Verifier {
            expected,
            partial: Vec::new(),
            lines: 0,
            first: 0,
            chain: None,
            seen,
            missing,
            anchor,
        }
    }

    /// Reads on, and passes the complete records to `each`. Error: the first fault.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(Sealed)) -> Result<(), Flaw> {
        let mut pieces = bytes.split(|byte| *byte == b'\n').peekable();
        while let Some(piece) = pieces.next() {
            if self.partial.len() + piece.len() > LONGEST_LINE {
                return Err(Flaw::Unreadable { line: self.lines + 1 });
            }
            self.partial.extend_from_slice(piece);
            if pieces.peek().is_some() {
                let line = std::mem::take(&mut self.partial);
                each(self.line(&line)?);
            }
        }
        Ok(())
    }

    /// Ends the log and returns the result, or the first fault.
    pub fn end(self) -> Result<Verdict, Flaw> {
        if self.missing.is_some() && self.anchor.is_none() {
            return Err(Flaw::OutOfOrder { line: 1, number: self.first, expected: 1 });
        }
        let (last, head) = self.chain.map_or((0, String::new()), |chain| (chain.last, chain.head));
        let (pruned, pruned_by) = self.anchor.unzip();
        if let Some(wanted) = self.expected.head.filter(|_| !self.seen) {
            return Err(match pruned {
                Some(pruned) => Flaw::PrunedOrCutOff { pruned: pruned.last, head: wanted },
                None => Flaw::CutOff { last, head: wanted },
            });
        }
        let torn_bytes = self.partial.len() as u64;
        Ok(Verdict { first: self.first, last, head, torn_bytes, pruned, pruned_by })
    }

    fn line(&mut self, line: &[u8]) -> Result<Sealed, Flaw> {
        self.lines += 1;
        let at = self.lines;
        let sealed = unseal(line).map_err(|unsound| match unsound {
            Unsound::Unreadable => Flaw::Unreadable { line: at },
            Unsound::Edited => Flaw::Edited {
                line: at,
                number: self.chain.as_ref().map_or(at, |c| c.last.saturating_add(1)),
            },
        })?;
        let Record { number, log, previous, .. } = &sealed.record;
        let chain = match self.chain.take() {
            Some(chain) => chain,
            None => {
                self.first = *number;
                self.beginning(*number, log, previous)
            }
        };
        if chain.log != *log {
            let (found, log) = (log.clone(), chain.log);
            return Err(Flaw::Foreign { line: at, number: *number, found, log });
        }
        if Some(*number) != chain.last.checked_add(1) {
            let expected = chain.last.saturating_add(1);
            return Err(Flaw::OutOfOrder { line: at, number: *number, expected });
        }
        if chain.head != *previous {
            return Err(Flaw::Unchained { line: at, number: *number });
        }
        self.seen |= self.expected.head.as_deref() == Some(sealed.digest.as_str());
        self.note_anchor(&sealed.record.entry);
        self.chain = Some(Chain { log: chain.log, last: *number, head: sealed.digest.clone() });
        Ok(sealed)
    }

    /// Returns what the first record must be chained to: nothing, unless its past is kept elsewhere
    /// or was pruned, which a later record must then announce.
    fn beginning(&mut self, number: u64, log: &str, previous: &str) -> Chain {
        let log = self.expected.log.clone().unwrap_or_else(|| log.to_owned());
        let last = number.saturating_sub(1);
        match &self.expected.after {
            Some(head) => Chain { log, last, head: head.clone() },
            None if last == 0 => Chain::new(&log),
            None => {
                self.missing = Some((last, previous.to_owned()));
                Chain { log, last, head: previous.to_owned() }
            }
        }
    }

    /// Remembers a record that announces the missing beginning.
    fn note_anchor(&mut self, entry: &Entry) {
        let (Some((last, head)), Some(pruned)) = (&self.missing, &entry.pruned) else { return };
        if (pruned.last, &pruned.head) == (*last, head) {
            self.seen |= self.expected.head.as_ref() == Some(head);
            self.anchor = Some((pruned.clone(), entry.actor.clone()));
        }
    }
}

/// Finds the records at the beginning of a log that are older than a given time.
#[derive(Debug)]
pub struct Pruning {
    before: Timestamp,
    found: Option<Pruned>,
    ended: bool,
}

impl Pruning {
    /// Looks for records written before `before`.
    pub fn new(before: Timestamp) -> Pruning {
        Pruning { before, found: None, ended: false }
    }

    /// Returns whether the next record is removed. The first one that is young enough keeps all
    /// after it, whatever the clock said then.
    pub fn takes(&mut self, sealed: &Sealed) -> bool {
        let Record { number, at, .. } = sealed.record;
        self.ended |= at >= self.before;
        if !self.ended {
            let count = self.found.as_ref().map_or(0, |found| found.count) + 1;
            self.found = Some(Pruned { count, last: number, head: sealed.digest.clone(), at });
        }
        !self.ended
    }

    /// Returns whether a record was met that stays.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Returns the records to remove; `None` if the first record stays.
    pub fn found(self) -> Option<Pruned> {
        self.found
    }
}

/// How a log ends that an agent opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The last line that is a record, to which the next record is chained.
    pub chain: Chain,
    /// Bytes up to the last newline: what follows was never acknowledged, and is cut off.
    pub whole_bytes: u64,
    /// Whether the last complete line is a record. If not, somebody has tampered with the log; it
    /// stays as it is, and every verification will find the fault.
    pub sound: bool,
}

/// Returns how the text of a log ends; `chain` is the chain before the text.
pub fn ending(text: &[u8], chain: Chain) -> Ending {
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let lines = text[..whole].split_inclusive(|byte| *byte == b'\n').rev();
    let mut sound = true;
    for line in lines {
        if let Some(Sealed { digest, record }) = read(&line[..line.len() - 1]) {
            let chain = Chain { log: chain.log, last: record.number, head: digest };
            return Ending { chain, whole_bytes: whole as u64, sound };
        }
        sound = false;
    }
    Ending { chain, whole_bytes: whole as u64, sound }
}
