//! The way of an instance from one state to another, as steps of which each is a transition.

use crate::error::Fault;
use crate::state::State;
use mvm_code::Code;

/// One step of a way. Each is carried out by one operation of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Checks that the caller may have the instance, which is in this state already.
    Stay(State),
    /// Lets the vCPUs of a warm machine run on.
    Resume,
    /// Pauses the vCPUs of a running machine.
    Pause,
    /// Saves the memory of a running or warm machine, and ends its process.
    Sleep,
    /// Makes a machine of the template of a sleeper that has never run, running or warm.
    Clone(State),
    /// Loads the snapshot of a sleeper, running or warm.
    Wake(State),
    /// Shuts the guest down.
    Stop,
    /// Clones the template for an instance that has nothing of its own yet, or boots it.
    Boot,
    /// Records that an instance is its template until somebody wakes it. Nothing is started.
    Park,
}

impl Step {
    /// Returns the state that the step leads to.
    pub fn reaches(self) -> State {
        match self {
            Step::Stay(state) | Step::Clone(state) | Step::Wake(state) => state,
            Step::Resume | Step::Boot => State::Running,
            Step::Pause => State::Warm,
            Step::Sleep | Step::Park => State::Sleeping,
            Step::Stop => State::Stopped,
        }
    }
}

/// What a way depends on beside the two states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The instance sleeps and has never run: it is still its template.
    pub dormant: bool,
    /// The instance can become a clone of a template that exists.
    pub template: bool,
}

/// Returns the steps from one state to another, through `running` where there is no direct transition.
///
/// The destruction of an instance is not a way: it is possible from every state, and waits for nobody.
///
/// # Errors
/// `wrong_state`, with the states that can be reached instead.
pub fn route(from: State, to: State, facts: Facts) -> Result<Vec<Step>, Fault> {
    use State::*;
    let woken = |to| if facts.dormant { Step::Clone(to) } else { Step::Wake(to) };
    Ok(match (from, to) {
        (from, to) if from == to && from != Destroyed => vec![Step::Stay(to)],
        (Warm, Running) => vec![Step::Resume],
        (Running, Warm) => vec![Step::Pause],
        (Running | Warm, Sleeping) => vec![Step::Sleep],
        (Sleeping, Running | Warm) => vec![woken(to)],
        (Running | Warm | Sleeping, Stopped) => vec![Step::Stop],
        (Created | Stopped | Failed, Running) => vec![Step::Boot],
        (Created | Stopped | Failed, Warm) => vec![Step::Boot, Step::Pause],
        (Created, Sleeping) if facts.template => vec![Step::Park],
        (Created | Stopped | Failed, Sleeping) => vec![Step::Boot, Step::Sleep],
        (from, to) => {
            let message = format!("an instance that is {from} cannot become {to}");
            return Err(from.check(to).err().unwrap_or(Fault::new(Code::WrongState, message)));
        }
    })
}
