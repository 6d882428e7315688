//! The table of transitions, and recovery: whatever transition was under way and whatever is left
//! of the machine, the record is true afterwards.

mod support;

use mvm_model::Code;
use mvm_model::recovery::Snapshot::{Absent, Resuming, Whole};
use mvm_model::recovery::{Snapshot, Verdict, recover};
use mvm_model::route::{Facts, Step, route};
use mvm_model::state::State::{self, *};
use mvm_model::state::{Intent, TRANSITIONS};
use mvm_model::{Instance, Temperature, Timestamp};

const EVERY: [State; 7] = [Created, Running, Warm, Sleeping, Stopped, Failed, Destroyed];

/// The design's transitions: `created → running ⇄ warm → sleeping → warm|running`, `running →
/// stopped → running`, any → `destroyed`, any → `failed` → `running`. Sleeping and stopping are
/// direct, and a clone that has not run is created asleep.
const DOCUMENTED: &[(State, &[State])] = &[
    (Created, &[Running, Sleeping]),
    (Running, &[Warm, Sleeping, Stopped]),
    (Warm, &[Running, Sleeping, Stopped]),
    (Sleeping, &[Running, Warm, Stopped]),
    (Stopped, &[Running]),
    (Failed, &[Running]),
    (Destroyed, &[]),
];

#[test]
fn only_documented_transitions_are_allowed_and_each_question_has_an_answer() {
    for (from, targets) in DOCUMENTED {
        for to in EVERY {
            let always = matches!(to, Failed | Destroyed) && *from != Destroyed;
            let allowed = targets.contains(&to) || always;
            assert_eq!(from.allows(to), allowed, "{from} -> {to}");
            match from.check(to) {
                Ok(()) => assert!(allowed, "{from} -> {to}"),
                Err(fault) => {
                    assert!(!allowed, "{from} -> {to}");
                    assert_eq!(fault.code, Code::WrongState);
                    let named = fault.message.contains(&from.to_string())
                        && fault.message.contains(&to.to_string());
                    assert!(named, "{fault}");
                    hint_is_true(*from, &fault.hint);
                }
            }
        }
    }
    assert_eq!(DOCUMENTED.len(), EVERY.len());
}

#[test]
fn every_way_is_a_chain_of_allowed_transitions_and_there_is_one_wherever_one_is_needed() {
    for (from, to) in EVERY.iter().flat_map(|from| EVERY.map(|to| (*from, to))) {
        for (dormant, template) in [(false, false), (false, true), (true, false), (true, true)] {
            let way = route(from, to, Facts { dormant, template });
            let through_running = to != Stopped && from.allows(Running) && Running.allows(to);
            let lives = from != Destroyed && to.temperature().is_some() || to == Stopped;
            let possible = from == to || from.allows(to) || through_running;
            assert_eq!(
                way.is_ok(),
                from != Destroyed && (from == to || lives && possible),
                "{from} -> {to}"
            );
            let Ok(steps) = way else { continue };
            let reached = steps.iter().fold(from, |at, step| {
                let stays = matches!(step, Step::Stay(_));
                assert!(
                    stays && at == step.reaches() || at.allows(step.reaches()),
                    "{at}: {step:?}"
                );
                assert!(
                    !matches!(step, Step::Wake(_)) || !dormant,
                    "a dormant sleeper has no snapshot"
                );
                assert!(
                    *step != Step::Park || template,
                    "a sleeper without memory needs a template"
                );
                step.reaches()
            });
            assert_eq!(reached, to, "{from} -> {to}: {steps:?}");
        }
    }
}

/// Checks that the hint names exactly the possible states, except failure.
fn hint_is_true(from: State, hint: &str) {
    let list = hint.split_once("can become ").map_or("", |(_, list)| list);
    let words: Vec<&str> = list.split(", ").collect();
    for to in EVERY.into_iter().filter(|to| *to != Failed) {
        assert_eq!(words.contains(&to.to_string().as_str()), from.allows(to), "{from}: {hint}");
    }
}

#[test]
fn the_table_is_minimal_and_nothing_leaves_the_end() {
    for (index, (from, to)) in TRANSITIONS.iter().enumerate() {
        assert!(from != to && !TRANSITIONS[..index].contains(&(*from, *to)));
        assert!(!matches!(to, Created | Failed | Destroyed), "{from} -> {to}");
    }
    assert!(EVERY.iter().all(|to| !Destroyed.allows(*to)));
    assert!(EVERY.iter().all(|from| !from.allows(Created)), "nothing becomes new again");
    assert_eq!(State::ALL.len() + 1, EVERY.len());
    assert!(!State::ALL.contains(&Destroyed));
    // From any state, every state that a user can ask for can be reached.
    for from in State::ALL {
        let mut reached = vec![from];
        while let Some((_, to)) =
            TRANSITIONS.iter().find(|(a, b)| reached.contains(a) && !reached.contains(b))
        {
            reached.push(*to);
        }
        for goal in [Running, Warm, Sleeping, Stopped] {
            assert!(reached.contains(&goal), "{from} never becomes {goal}");
        }
    }
}

#[test]
fn temperatures_and_texts_are_the_states() {
    for temperature in [Temperature::Running, Temperature::Warm, Temperature::Sleeping] {
        assert_eq!(temperature.state().temperature(), Some(temperature));
    }
    for state in EVERY {
        assert_eq!(serde_json::to_value(state).unwrap(), state.to_string());
        assert_eq!(state.has_process(), matches!(state, Running | Warm));
    }
}

/// One machine: its record, and its real state.
#[derive(Clone, Debug, PartialEq)]
struct SimulatedMachine {
    /// `None` once it is destroyed.
    record: Option<Instance>,
    /// The hypervisor's process: whether its vCPUs run; `None` without a process.
    process: Option<bool>,
    snapshot: Snapshot,
}

impl SimulatedMachine {
    fn new(
        state: State,
        intent: Option<State>,
        process: Option<bool>,
        snapshot: Snapshot,
    ) -> SimulatedMachine {
        let mut record = support::instance(1, state);
        record.intent =
            intent.map(|to| Intent { from: state, to, since: Timestamp::from_millis(7) });
        SimulatedMachine { record: Some(record), process, snapshot }
    }

    /// Does what an agent does at its start.
    fn recover(&mut self) -> Verdict {
        let record = self.record.clone().unwrap();
        let verdict = recover(&record, self.process.is_some(), self.snapshot);
        match &verdict {
            Verdict::Adopt(state) => {
                assert!(self.process.is_some(), "nothing is there to adopt: {self:?}");
                self.process = Some(*state == Running);
                self.snapshot = Absent;
                self.reach(*state);
            }
            Verdict::Settle(state) => {
                self.process = None;
                self.snapshot = if *state == Sleeping { Whole } else { Absent };
                self.reach(*state);
            }
            Verdict::Destroy => {
                *self = SimulatedMachine { record: None, process: None, snapshot: Absent };
            }
            Verdict::Fail(reason) => {
                assert!(reason.contains("estroy the instance"), "says what to do: {reason}");
                self.process = None;
                self.reach(Failed);
            }
        }
        verdict
    }

    fn reach(&mut self, state: State) {
        let record = self.record.as_mut().unwrap();
        (record.state, record.intent) = (state, None);
    }

    fn state(&self) -> State {
        self.record.as_ref().map_or(Destroyed, |record| record.state)
    }

    /// Returns whether the record matches the real state.
    fn is_true(&self) -> bool {
        match self.state() {
            Running => self.process == Some(true),
            Warm => self.process == Some(false),
            Sleeping => self.process.is_none() && self.snapshot == Whole,
            Created | Stopped | Failed => self.process.is_none(),
            Destroyed => self.process.is_none() && self.snapshot == Absent,
        }
    }

    /// Returns whether the machine can be woken from disk.
    fn can_wake(&self) -> bool {
        matches!(self.snapshot, Whole | Resuming { stale: false })
    }

    fn has_memory(&self) -> bool {
        self.process.is_some() || self.can_wake()
    }
}

/// Returns every possible record, combined with every possible rest of the machine.
fn every_model() -> Vec<SimulatedMachine> {
    let mut models = Vec::new();
    for state in State::ALL {
        let targets = EVERY.into_iter().filter(|to| state.allows(*to) && *to != Failed);
        for intent in targets.map(Some).chain([None]) {
            for process in [None, Some(true), Some(false)] {
                let marks = [true, false].map(|stale| Resuming { stale });
                for snapshot in [Absent, Whole, marks[0], marks[1]] {
                    models.push(SimulatedMachine::new(state, intent, process, snapshot));
                }
            }
        }
    }
    models
}

#[test]
fn after_recovery_every_record_is_true() {
    for before in every_model() {
        let mut model = before.clone();
        let verdict = model.recover();
        assert!(model.is_true(), "{before:?}: {verdict:?}: {model:?}");
        if let Some(record) = &model.record {
            assert!(record.intent.is_none());
        }
        // A second agent finds nothing to do.
        if model.record.is_some() {
            let mut again = model.clone();
            again.recover();
            assert_eq!(again.state(), model.state(), "{before:?}");
            assert_eq!(again.process, model.process, "{before:?}");
        }
    }
}

#[test]
fn recovery_gives_up_memory_only_where_that_was_asked_for() {
    for before in every_model() {
        let record = before.record.as_ref().unwrap();
        let to = record.heading();
        let asked = matches!(to, Stopped | Destroyed);
        let mut model = before.clone();
        model.recover();
        assert_eq!(model.record.is_none(), to == Destroyed, "{before:?}");
        // A snapshot is kept if it is the only copy of a machine that is going to sleep or waking.
        let sleeps = record.state == Sleeping || to == Sleeping;
        let kept = before.snapshot == Whole || before.can_wake() && before.process.is_none();
        if sleeps && kept && !asked {
            assert_eq!(model.state(), Sleeping, "{before:?}");
            assert_eq!(model.snapshot, Whole, "{before:?}");
        }
        // A machine whose guest may have run is never woken from its void snapshot.
        if matches!(before.snapshot, Resuming { stale: true }) && before.process.is_none() {
            assert_ne!(model.state(), Sleeping, "{before:?}");
        }
        // A live process is kept in the same way.
        let lives = record.state.has_process() || (record.state == Sleeping && to != Sleeping);
        if lives && before.process.is_some() && !asked {
            assert!(model.has_memory(), "{before:?}: {model:?}");
        }
    }
}

/// Returns what the agent does for one transition, step by step. The outcome in the record follows
/// as the last step.
fn steps(from: State, to: State) -> Vec<fn(&mut SimulatedMachine)> {
    let pause: fn(&mut SimulatedMachine) = |w| w.process = w.process.map(|_| false);
    let resume: fn(&mut SimulatedMachine) = |w| {
        w.process = w.process.map(|_| true);
        if w.snapshot != Absent {
            w.snapshot = Resuming { stale: true };
        }
    };
    let mark: fn(&mut SimulatedMachine) = |w| w.snapshot = Resuming { stale: false };
    let kill: fn(&mut SimulatedMachine) = |w| w.process = None;
    let start: fn(&mut SimulatedMachine) = |w| w.process = Some(true);
    let restore: fn(&mut SimulatedMachine) = |w| w.process = Some(false);
    let write: fn(&mut SimulatedMachine) = |w| w.snapshot = Whole;
    let remove: fn(&mut SimulatedMachine) = |w| w.snapshot = Absent;
    match (from, to) {
        (Running | Warm, Sleeping) => vec![pause, write, kill],
        (Sleeping, Running) => vec![restore, mark, resume, remove],
        (Sleeping, Warm) => vec![restore, mark, resume, remove, pause],
        (Created | Stopped | Failed, Running) => vec![remove, start],
        (Running, Warm) => vec![pause],
        (Warm, Running) => vec![resume],
        (_, Stopped) => vec![kill, remove],
        _ => vec![kill, remove],
    }
}

fn settled(state: State) -> SimulatedMachine {
    let process = state.has_process().then_some(state == Running);
    SimulatedMachine::new(state, None, process, if state == Sleeping { Whole } else { Absent })
}

/// Returns every transition, cut off after each of its steps: the states, the number of steps done,
/// and what is left then.
fn cut_off() -> Vec<(State, State, usize, SimulatedMachine)> {
    let mut found = Vec::new();
    for from in State::ALL {
        for to in EVERY.into_iter().filter(|to| from.allows(*to) && *to != Failed) {
            let steps = steps(from, to);
            for done in 0..=steps.len() {
                let mut model = settled(from);
                model.record.as_mut().unwrap().intent =
                    Some(Intent { from, to, since: Timestamp::EPOCH });
                steps[..done].iter().for_each(|step| step(&mut model));
                found.push((from, to, done, model));
            }
        }
    }
    found
}

/// The agent is killed after any step, and the machines run on: each transition is completed or
/// undone, and no instance has failed.
#[test]
fn a_killed_agent_costs_nothing() {
    for (from, to, done, mut model) in cut_off() {
        let verdict = model.recover();
        assert!(model.is_true(), "{from} -> {to} after {done} steps: {verdict:?}");
        assert!([from, to].contains(&model.state()), "{from} -> {to}, {done}: {verdict:?}");
    }
}

/// The host loses power after any step: processes are gone, and snapshots are not.
#[test]
fn a_lost_host_costs_running_machines_and_no_sleepers() {
    for (from, to, done, mut model) in cut_off() {
        model.process = None;
        let had_memory = model.can_wake() && !matches!(to, Stopped | Destroyed);
        model.recover();
        assert!(model.is_true(), "{from} -> {to} after {done} steps");
        if had_memory && (from == Sleeping || to == Sleeping) {
            assert_eq!(model.state(), Sleeping, "{from} -> {to} after {done} steps");
        }
        assert!(!model.state().has_process());
    }
}
