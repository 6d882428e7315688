//! Which faults can explain a call's duration or its error.

use crate::clients::Call;
use crate::plan::{PlannedFault, Target};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a client retries by default (`MVM_PATIENCE`).
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the effects of a fault may last after its end: another coordinator becomes leader, and
/// broken links and connections are detected (docs/fleet.md).
const FELT: Duration = Duration::from_secs(20);
/// How long a call may take without any fault, on a slow machine.
const MARGIN: Duration = Duration::from_secs(15);

/// The faults, and the node of each machine.
pub struct FaultTimeline<'a> {
    plan: &'a [PlannedFault],
    nodes: BTreeMap<String, &'static str>,
}

impl FaultTimeline<'_> {
    /// Makes the account. `events` are those of each node, which name all of its machines.
    pub fn new<'a>(
        plan: &'a [PlannedFault],
        events: &[(&'static str, String)],
    ) -> FaultTimeline<'a> {
        let mut nodes = BTreeMap::new();
        for (node, events) in events {
            nodes.extend(machines(events).map(|machine| (machine.to_owned(), *node)));
        }
        FaultTimeline { plan, nodes }
    }

    /// Returns why the call has taken too long, if it has. A call may wait for as long as a client
    /// is patient plus the longest fault on its way, and hardly at all without a fault.
    pub fn too_long(&self, call: &Call) -> Option<String> {
        let (began, took) = (call.began(), call.took.as_secs_f64());
        let longest = self.felt(began, call.ended).map(|fault| fault.lasts).max();
        if call.took > PATIENCE + longest.unwrap_or_default() + MARGIN {
            return Some(format!("it took {took:.0} s"));
        }
        let quiet = self.quiet(began, call.ended);
        let why =
            || format!("it took {took:.0} s, and {:.0} s without trouble", quiet.as_secs_f64());
        (quiet > MARGIN).then(why)
    }

    /// Returns why an error between these times is not justified, if so: no fault concerned the
    /// node of the machine that the error is about.
    pub fn unfounded(&self, from: Duration, to: Duration, said: &str) -> Option<String> {
        let of_machine = machines(said).find_map(|machine| self.nodes.get(machine).copied());
        let named = || self.nodes.values().find(|node| said.contains(&format!("node {node}")));
        let Some(node) = of_machine.or_else(|| named().copied()) else {
            return Some("its error names neither its machine nor its node".to_owned());
        };
        let hit = self.felt(from, to).any(|fault| fault.target == Target::Process(node));
        (!hit).then(|| format!("nothing had happened to its node {node}"))
    }

    /// Returns the faults whose effects may last between these times.
    fn felt(&self, from: Duration, to: Duration) -> impl Iterator<Item = &PlannedFault> {
        self.plan.iter().filter(move |fault| fault.at <= to && fault.ends() + FELT >= from)
    }

    /// Returns how much of the time between these two is free of any fault's effects.
    fn quiet(&self, from: Duration, to: Duration) -> Duration {
        let (mut at, mut quiet) = (from, Duration::ZERO);
        // The faults are in the order of their beginnings.
        for fault in self.felt(from, to) {
            quiet += fault.at.saturating_sub(at);
            at = at.max(fault.ends() + FELT);
        }
        quiet + to.saturating_sub(at)
    }
}

/// Returns the machines that a text names: `i-` and eight hexadecimal digits.
fn machines(text: &str) -> impl Iterator<Item = &str> {
    let is_id = |word: &&str| {
        let digits = word.strip_prefix("i-");
        digits.is_some_and(|d| d.len() == 8 && d.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').filter(is_id)
}
