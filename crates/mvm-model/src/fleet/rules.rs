//! Where instances of a pool may and should be: labels of nodes, and rules about them.

use crate::error::Fault;
use crate::text::shown;
use mvm_code::Code;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a node says of itself: `zone: eu-1`, `disk: nvme`. Every node has `node`, its own name.
pub type Labels = BTreeMap<String, String>;

/// For each label the values that fit; none given: the label must be there.
pub type Selector = BTreeMap<String, Vec<String>>;

/// The label that every node has by itself: its name.
pub const NODE: &str = "node";

/// The placement rules of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// Labels that a node must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub require: Selector,
    /// Preferred labels, with weights.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefer: Vec<Preference>,
    /// How evenly the instances are spread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<Spread>,
    /// Percent of each node's vCPUs, memory and disk that this pool leaves free for leases.
    #[schemars(range(min = 0, max = 90))]
    #[serde(skip_serializing_if = "is_zero")]
    pub headroom_percent: u8,
    /// The least number of nodes that hold the pool, with its image and template, if only to serve
    /// claims.
    #[serde(skip_serializing_if = "is_one")]
    #[schemars(range(min = 1, max = 10000))]
    pub min_nodes: u32,
    /// The most instances of the pool on one node.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_per_node: Option<u32>,
}

impl Default for Rules {
    /// Allows any node, packed tightly.
    fn default() -> Self {
        Rules {
            require: Selector::new(),
            prefer: Vec::new(),
            spread: None,
            headroom_percent: 0,
            min_nodes: 1,
            max_per_node: None,
        }
    }
}

fn is_one(number: &u32) -> bool {
    *number == 1
}

fn is_zero(percent: &u8) -> bool {
    *percent == 0
}

/// A preference for nodes with certain labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Preference {
    /// The labels.
    pub labels: Selector,
    /// The weight, 1 to 100. The weights of all preferences that a node meets are added up.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 100))]
    pub weight: u32,
}

fn one() -> u32 {
    1
}

/// Spreads a pool's instances over the values of a label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// The label, for example `zone` or `node`. Nodes without the label are not used.
    pub key: String,
    /// How many more instances, of each temperature, one value may have than the value with the
    /// fewest.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub max_skew: u32,
}

impl Rules {
    /// Checks what types cannot express; the fault's path is relative to the rules.
    pub fn validate(&self) -> Result<(), Fault> {
        let refuse =
            |message: String, at: String| Err(Fault::new(Code::InvalidValue, message).at(at));
        selector(&self.require, "require")?;
        for (index, preference) in self.prefer.iter().enumerate() {
            selector(&preference.labels, &format!("prefer[{index}].labels"))?;
            if !(1..=100).contains(&preference.weight) {
                let message = format!("weight is {}; allowed are 1 to 100", preference.weight);
                return refuse(message, format!("prefer[{index}].weight"));
            }
        }
        if let Some(spread) = &self.spread {
            check_label(&spread.key, "x").map_err(|fault| fault.at("spread.key"))?;
            if spread.max_skew == 0 {
                return refuse(
                    "max_skew is 0; allowed is 1 or more".into(),
                    "spread.max_skew".into(),
                );
            }
        }
        if self.headroom_percent > 90 {
            let message =
                format!("headroom_percent is {}; allowed are 0 to 90", self.headroom_percent);
            return refuse(message, "headroom_percent".into());
        }
        if !(1..=10_000).contains(&self.min_nodes) {
            let message = format!("min_nodes is {}; allowed are 1 to 10000", self.min_nodes);
            return refuse(message, "min_nodes".into());
        }
        if self.max_per_node == Some(0) {
            return refuse("max_per_node is 0; allowed is 1 or more".into(), "max_per_node".into());
        }
        Ok(())
    }
}

fn selector(selector: &Selector, path: &str) -> Result<(), Fault> {
    for (key, values) in selector {
        check_label(key, "x").map_err(|fault| fault.at(format!("{path}.{key}")))?;
        for (index, value) in values.iter().enumerate() {
            check_label(key, value).map_err(|fault| fault.at(format!("{path}.{key}[{index}]")))?;
        }
    }
    Ok(())
}

/// Checks the name and the value of a label: 1 to 63 of `A-Z a-z 0-9 . _ - /` each.
pub fn check_label(key: &str, value: &str) -> Result<(), Fault> {
    for (what, text) in [("name", key), ("value", value)] {
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/');
        if text.is_empty() || text.len() > 63 || !text.bytes().all(fits) {
            let shown = shown(text);
            return Err(Fault::new(Code::InvalidValue, format!("the label's {what} is {shown:?}"))
                .hint("use 1 to 63 of A-Z, a-z, 0-9, '.', '_', '-' and '/'"));
        }
    }
    Ok(())
}
