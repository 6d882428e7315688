//! A reader's position in the events, as `since` and `Last-Event-ID` give it: `42` on a node; in a
//! fleet one number for each node, `node-1:42,node-2:7`, since each node counts its own events.

use crate::Problem;
use http::HeaderMap;
use mvm_model::{Code, Name};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The header with the event after which a stream goes on.
pub const LAST_EVENT_ID: &str = "last-event-id";
/// The longest position, in characters.
const LONGEST: usize = 200_000;

/// The last event that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Position {
    /// A position on one node; 0 is before the first event.
    Node(u64),
    /// A position on each node of a fleet. A node that is not named has none.
    Fleet(BTreeMap<Name, u64>),
}

impl Default for Position {
    fn default() -> Self {
        Position::Node(0)
    }
}

impl Position {
    /// Parses the `Last-Event-ID` header, if the request has one. Errors: `invalid_value`.
    pub fn of_headers(headers: &HeaderMap) -> Result<Option<Position>, Problem> {
        let Some(header) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
        match header.to_str() {
            Ok("") => Ok(None),
            Ok(text) => text.parse().map(Some),
            Err(_) => Err(invalid("Last-Event-ID is not text")),
        }
    }

    /// Returns the position on a node. Errors: `invalid_value` where it is a fleet's.
    pub fn of_node(self) -> Result<u64, Problem> {
        match self {
            Position::Node(id) => Ok(id),
            Position::Fleet(_) => Err(invalid("that is the position in a fleet's events")
                .hint("a node's is the number of an event")),
        }
    }

    /// Returns the positions in a fleet. Errors: `invalid_value` where it is a node's.
    pub fn of_fleet(self) -> Result<BTreeMap<Name, u64>, Problem> {
        match self {
            Position::Fleet(nodes) => Ok(nodes),
            Position::Node(0) => Ok(BTreeMap::new()),
            Position::Node(_) => Err(invalid("each node of a fleet counts its own events")
                .hint("say it for each: node-1:42,node-2:7")),
        }
    }
}

fn invalid(detail: &str) -> Problem {
    Problem::new(Code::InvalidValue, detail)
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = match self {
            Position::Node(id) => return id.fmt(f),
            Position::Fleet(nodes) => nodes,
        };
        for (index, (node, id)) in nodes.iter().enumerate() {
            write!(f, "{}{node}:{id}", if index > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

impl FromStr for Position {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Position, Problem> {
        let bad = || {
            invalid("not a valid position in events")
                .hint("it is the number of an event, or of a fleet node-1:42,node-2:7")
        };
        let number = |text: &str| {
            let digits = (1..=19).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten().ok_or_else(bad)
        };
        if text.len() > LONGEST {
            return Err(bad());
        }
        if !text.contains(':') {
            return number(text).map(Position::Node);
        }
        let mut nodes = BTreeMap::new();
        for one in text.split(',') {
            let (node, id) = one.split_once(':').ok_or_else(bad)?;
            if nodes.insert(node.parse().map_err(|_| bad())?, number(id)?).is_some() {
                return Err(bad());
            }
        }
        Ok(Position::Fleet(nodes))
    }
}

impl TryFrom<String> for Position {
    type Error = Problem;

    fn try_from(text: String) -> Result<Position, Problem> {
        text.parse()
    }
}

impl From<Position> for String {
    fn from(position: Position) -> String {
        position.to_string()
    }
}

impl JsonSchema for Position {
    fn schema_name() -> Cow<'static, str> {
        "Position".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "The number of an event; of a fleet each node's, node-1:42,node-2:7",
            "type": "string",
            "pattern": "^([0-9]{1,19}|[a-z0-9-]{1,63}:[0-9]{1,19}(,[a-z0-9-]{1,63}:[0-9]{1,19})*)$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_position_is_read_as_it_was_written(
            nodes in proptest::collection::btree_map("[a-z][a-z0-9]{0,20}", 0..1u64 << 60, 1..20),
            id in 0..1u64 << 60,
        ) {
            let named = nodes.iter().map(|(node, id)| (node.parse().expect("a name"), *id));
            for position in [Position::Fleet(named.collect()), Position::Node(id)] {
                let text = position.to_string();
                prop_assert_eq!(text.parse::<Position>().expect("a position"), position);
            }
        }

        #[test]
        fn any_text_is_a_position_or_an_invalid_value(text in "([a-c0-9:,-]{0,12}|\\PC{0,12})") {
            match text.parse::<Position>() {
                // The original number may have leading zeros.
                Ok(position) => {
                    let again = position.to_string().parse::<Position>();
                    prop_assert_eq!(again.expect("a position"), position);
                }
                Err(problem) => prop_assert_eq!(problem.code, Code::InvalidValue),
            }
        }
    }

    #[test]
    fn who_counts_what_is_not_mixed_up() {
        let fleet: Position = "n1:4,n2:7".parse().expect("a position");
        assert_eq!(fleet.clone().of_fleet().expect("a fleet's").len(), 2);
        assert!(fleet.of_node().is_err());
        assert!(Position::Node(3).of_fleet().is_err());
        assert!(Position::default().of_fleet().expect("from the first").is_empty());
        for bad in ["", "n1:", ":1", "n1:1,", "n1:1,n1:2", "1,2", "n1:1,2", "-1", "N:1"] {
            assert!(bad.parse::<Position>().is_err(), "{bad:?}");
        }
    }
}
