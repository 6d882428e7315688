//! The options with which an agent describes its node to a fleet.

use clap::Args;
use mvm_model::fleet::{Capacity, check_label};
use mvm_model::{Code, Fault, Mib};
use mvm_node::Offer;
use std::str::FromStr;

/// Labels and capacity of a node of a fleet.
#[derive(Clone, Debug, Args)]
pub struct OfferArgs {
    /// A label of this node, for the placement rules of a fleet
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<Label>,
    /// What this node offers to instances, memory in MiB and disk in GiB [default: all it has]
    #[arg(long, value_name = "vcpus=N,mem=N,disk=N")]
    capacity: Option<Offered>,
}

impl From<&OfferArgs> for Offer {
    fn from(args: &OfferArgs) -> Self {
        let labels = args.label.iter().map(|label| (label.0.clone(), label.1.clone())).collect();
        Offer { labels, capacity: args.capacity.map(|offered| offered.0) }
    }
}

#[derive(Clone, Debug)]
struct Label(String, String);

impl FromStr for Label {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        check_label(name, value)?;
        Ok(Label(name.to_owned(), value.to_owned()))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Offered(Capacity);

impl FromStr for Offered {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let fault = |message: String| {
            Fault::new(Code::InvalidValue, message)
                .hint("write all three: vcpus=64,mem=131072,disk=500")
        };
        let mut parts = [None; 3];
        for word in text.split(',') {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let at = ["vcpus", "mem", "disk"].iter().position(|known| *known == name);
            let at = at.ok_or_else(|| fault(format!("there is no capacity {name:?}")))?;
            let value: u64 =
                value.parse().map_err(|_| fault(format!("{word:?} gives no number")))?;
            parts[at] = Some(value);
        }
        let [Some(vcpus), Some(mem), Some(disk_gib)] = parts else {
            return Err(fault(format!("{text:?} does not name all three")));
        };
        Ok(Offered(Capacity { vcpus, mem_mib: Mib(mem), disk_gib }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capacity_names_all_three() {
        let capacity = Capacity { vcpus: 4, mem_mib: Mib(1024), disk_gib: 9 };
        assert_eq!("mem=1024,vcpus=4,disk=9".parse::<Offered>().unwrap(), Offered(capacity));
        for text in ["", "vcpus=4", "vcpus=4,mem=1,disk=x", "vcpus=4,mem=1,disk=1,gpu=1"] {
            assert!(text.parse::<Offered>().is_err(), "{text}");
        }
    }
}
