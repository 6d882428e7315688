//! The audit log: who did what, when, and what came of it, as a chain in which every change shows.
//!
//! A log is a text with a line a record: `DIGEST BODY`. BODY is the record in JSON and names the
//! digest of the line before; DIGEST is the SHA-256 of BODY, in hexadecimal digits. So a line that was
//! edited does not fit its digest, one that was removed, added or moved breaks the chain, and only
//! lines cut off at the end leave no trace in the log: they are found by whoever has kept a digest
//! elsewhere. A record is durable with its newline: what comes after the last one was never
//! acknowledged to anybody.
//!
//! The beginning of a log may be pruned. A record that is written before says up to which record, and what
//! that one's digest was ([`Pruned`]): it is chained to what is before it like any other, and a log that does
//! not begin with record 1 is whole only where one of its records tells of exactly the beginning that is missing.

use crate::Millis;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The log of what concerns no tenant. No name begins with `_`.
pub const NODE_LOG: &str = "_node";
/// Who did what nobody asked for by a call: recycling, replacing, ending leases.
pub const AGENT: &str = "agent";
/// The outcome of what was done.
pub const OK: &str = "ok";
/// No line is longer, in bytes.
const LONGEST_LINE: usize = 64 << 10;
/// No text from outside is longer in a record, in characters.
const LONGEST_TEXT: usize = 200;
/// Digits of a digest.
const DIGITS: usize = 64;

/// What a record says of one act.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Who: `uid:0`, an identity, or [`AGENT`].
    pub actor: String,
    /// What: `instance.wake`, `session.exec`.
    pub verb: String,
    /// To what: `ci/runners/i-0123abcd`.
    pub target: String,
    /// What came of it: [`OK`] or the problem's code; absent where it only begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// The number of the record that tells of its beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<u64>,
    /// Under which lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
    /// For which job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Which program was run; never its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// The id of the request that asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// Which records were removed from the log's beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned: Option<Pruned>,
}

/// The beginning of a log that was removed, as the record tells that was written before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// How many records.
    pub count: u64,
    /// The number of the last of them.
    pub last: u64,
    /// The digest of the last of them.
    pub head: String,
    /// When the last of them was written.
    pub at: Millis,
}

/// One record of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// One more than that of the record before it; the first is 1.
    pub number: u64,
    /// When.
    pub at: Millis,
    /// The tenant, or [`NODE_LOG`].
    pub log: String,
    /// What it says.
    #[serde(flatten)]
    pub entry: Entry,
    /// The digest of the record before it; empty in the first.
    pub previous: String,
}

/// A record with its digest, as a line holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// SHA-256 of the record's text.
    pub digest: String,
    /// The record.
    #[serde(flatten)]
    pub record: Record,
}

/// Where a log ends: what the next record is chained to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    log: String,
    last: u64,
    head: String,
}

impl Chain {
    /// The chain of an empty log.
    pub fn new(log: &str) -> Chain {
        Chain { log: log.to_owned(), last: 0, head: String::new() }
    }

    /// The number of the last record; 0 where there is none.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The digest of the last record; empty where there is none.
    pub fn head(&self) -> &str {
        &self.head
    }

    /// The line of the next record, with its newline, and the chain after it.
    pub fn line(&self, entry: Entry, at: Millis) -> (String, Chain) {
        let record = Record {
            number: self.last + 1,
            at,
            log: self.log.clone(),
            entry,
            previous: self.head.clone(),
        };
        // A plain struct of strings and numbers: its serialisation cannot fail.
        let body = serde_json::to_string(&record).unwrap_or_default();
        let head = digest(body.as_bytes());
        let next = Chain { log: record.log, last: record.number, head };
        (format!("{} {body}\n", next.head), next)
    }
}

/// Text from outside as a record holds it: cut to a length that no line outgrows.
pub fn bounded(text: &str) -> String {
    text.chars().take(LONGEST_TEXT).collect()
}

fn digest(body: &[u8]) -> String {
    Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Why a line is no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unsound {
    Unreadable,
    Edited,
}

/// Reads one line, without its newline, whatever it is chained to.
pub fn read(line: &[u8]) -> Option<Sealed> {
    unseal(line).ok()
}

fn unseal(line: &[u8]) -> Result<Sealed, Unsound> {
    let (seal, rest) = line.split_at_checked(DIGITS).ok_or(Unsound::Unreadable)?;
    let body = rest.strip_prefix(b" ").ok_or(Unsound::Unreadable)?;
    let digest = digest(body);
    if digest.as_bytes() != seal {
        return Err(Unsound::Edited);
    }
    let record = serde_json::from_slice(body).map_err(|_| Unsound::Unreadable)?;
    Ok(Sealed { digest, record })
}

/// The first thing that is wrong with a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// A line is no record at all.
    #[error("line {line} is no record")]
    Unreadable {
        /// Counted from 1.
        line: u64,
    },
    /// A line does not fit its digest.
    #[error("line {line}, record {number}, does not fit its digest: it was edited")]
    Edited {
        /// Counted from 1.
        line: u64,
        /// What its number should be.
        number: u64,
    },
    /// A record is not the next one.
    #[error(
        "line {line} holds record {number} where record {expected} belongs: records were removed, added or moved"
    )]
    OutOfOrder {
        /// Counted from 1.
        line: u64,
        /// Its number.
        number: u64,
        /// The number that belongs there.
        expected: u64,
    },
    /// A record is the next one of another log, or of another past.
    #[error(
        "line {line}, record {number}, is not chained to the record before it: what is before it was replaced"
    )]
    Unchained {
        /// Counted from 1.
        line: u64,
        /// Its number.
        number: u64,
    },
    /// A record belongs to another log.
    #[error("line {line}, record {number}, is of the log of {found}, not of {log}")]
    Foreign {
        /// Counted from 1.
        line: u64,
        /// Its number.
        number: u64,
        /// The log that it says it is of.
        found: String,
        /// The log that is verified.
        log: String,
    },
    /// The digest that was kept elsewhere is that of a record before the log's first, and perhaps not even that.
    #[error(
        "no record has the digest {head}: it may be one of those up to {pruned} that were pruned, or records were cut off at the end"
    )]
    PrunedOrCutOff {
        /// The number of the last record that was pruned.
        pruned: u64,
        /// The digest that was looked for.
        head: String,
    },
    /// The digest that was kept elsewhere is not in the log.
    #[error(
        "no record up to the last, {last}, has the digest {head}: records were cut off at the end"
    )]
    CutOff {
        /// The number of the last record.
        last: u64,
        /// The digest that was looked for.
        head: String,
    },
}

/// What a log that is whole comes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The number of its first record; 0 where it has none.
    pub first: u64,
    /// The number of its last record; 0 where it has none.
    pub last: u64,
    /// The digest of its last record: kept elsewhere, it shows later whether any up to here are
    /// missing.
    pub head: String,
    /// Bytes of a last record that was being written when the machine stopped. It was never
    /// acknowledged, and the agent mends it.
    pub torn_bytes: u64,
    /// What was removed from its beginning, as a record of it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned: Option<Pruned>,
    /// Who removed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned_by: Option<String>,
}

/// What a log is to be verified against.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Whose log it is; that of its first record where absent.
    pub log: Option<String>,
    /// The digest of the record before its first, where it is not the beginning.
    pub after: Option<String>,
    /// A digest that must be in it.
    pub head: Option<String>,
}

/// Verifies a log as it is read, in pieces of any size.
#[derive(Debug)]
pub struct Verifier {
    expected: Expected,
    /// What has come of a line that has not ended.
    partial: Vec<u8>,
    lines: u64,
    first: u64,
    chain: Option<Chain>,
    /// Whether the digest that is looked for was seen.
    seen: bool,
    /// The record before the first: its number and digest, where a record must tell that it was pruned.
    missing: Option<(u64, String)>,
    /// The record that does.
    anchor: Option<(Pruned, String)>,
}

impl Verifier {
    /// One that has read nothing yet.
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

    /// Reads on; gives the records that are whole now to `each`.
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

    /// Nothing comes any more: what it was.
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
            Unsound::Edited => {
                Flaw::Edited { line: at, number: self.chain.as_ref().map_or(at, |c| c.last + 1) }
            }
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

    /// What the first record must be chained to: nothing, unless its past is known to lie elsewhere, or was
    /// pruned, which a record still to come must tell.
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

    /// Notes the record that tells of the beginning that is missing.
    fn note_anchor(&mut self, entry: &Entry) {
        let (Some((last, head)), Some(pruned)) = (&self.missing, &entry.pruned) else { return };
        if (pruned.last, &pruned.head) == (*last, head) {
            self.seen |= self.expected.head.as_ref() == Some(head);
            self.anchor = Some((pruned.clone(), entry.actor.clone()));
        }
    }
}

/// Looks for the records at the beginning of a log that are older than a moment.
#[derive(Debug)]
pub struct Pruning {
    before: Millis,
    found: Option<Pruned>,
    ended: bool,
}

impl Pruning {
    /// Of records that were written before this.
    pub fn new(before: Millis) -> Pruning {
        Pruning { before, found: None, ended: false }
    }

    /// The next record: whether it goes. The first that is young enough keeps all after it, whatever the
    /// clock said then.
    pub fn takes(&mut self, sealed: &Sealed) -> bool {
        let Record { number, at, .. } = sealed.record;
        self.ended |= at >= self.before;
        if !self.ended {
            let count = self.found.as_ref().map_or(0, |found| found.count) + 1;
            self.found = Some(Pruned { count, last: number, head: sealed.digest.clone(), at });
        }
        !self.ended
    }

    /// Whether a record was met that stays.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// What goes; nothing where the first record stays already.
    pub fn found(self) -> Option<Pruned> {
        self.found
    }
}

/// How a log that an agent opens ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// What the next record is chained to: the last line that is a record.
    pub chain: Chain,
    /// Bytes up to the last newline: what is after them was never acknowledged, and is cut off.
    pub whole_bytes: u64,
    /// Whether the last whole line is a record. If not, somebody has tampered with the log; it is
    /// left as it is, and every verification will find it.
    pub sound: bool,
}

/// How the text of a log ends, whose chain is `chain` before it.
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
