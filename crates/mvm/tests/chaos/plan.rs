//! The plan of faults, which is drawn from a seed before anything starts, so that the same seed
//! always gives the same plan.

use crate::machine_faults::CutDirection;
use std::fmt;
use std::time::Duration;

/// The coordinators.
pub const COORDINATORS: [&str; 3] = ["c1", "c2", "c3"];
/// The nodes.
pub const NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];
/// The steps of a wrong clock. Certificates are valid from five minutes before they were made, so a
/// step back is shorter.
const STEPS: [&str; 3] = ["+10m", "+1h", "-4m"];
/// The shortest and the longest pause before a fault, in ms.
const PAUSE: (u64, u64) = (1000, 4000);
/// The maximum number of faults at a time.
const AT_ONCE: usize = 2;

/// The target of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A coordinator or a node.
    Process(&'static str),
    /// A member of etcd.
    Etcd(usize),
}

/// The kind of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The process is killed, and started again at the end.
    Kill,
    /// The process is stopped, and continued at the end.
    Stop,
    /// The machine is cut off from the others.
    Cut(CutDirection),
    /// The clock is set wrong, and right at the end.
    Clock(&'static str),
    /// The disk is filled, and emptied at the end.
    Fill,
}

/// One fault, with a beginning and a length.
#[derive(Clone, Copy, Debug)]
pub struct PlannedFault {
    pub target: Target,
    pub kind: FaultKind,
    /// When the fault begins, counted from the start of the clients.
    pub at: Duration,
    pub lasts: Duration,
}

impl PlannedFault {
    pub fn ends(&self) -> Duration {
        self.at + self.lasts
    }
}

impl fmt::Display for PlannedFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, lasts) = (self.at.as_secs_f64(), self.lasts.as_secs_f64());
        write!(f, "{at:6.1} s: {:?} {:?} for {lasts:.1} s", self.target, self.kind)
    }
}

/// Random numbers from a seed: SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number of the range, whose bounds are included.
    pub fn between(&mut self, (from, to): (u64, u64)) -> u64 {
        from + self.next() % (to - from + 1)
    }

    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        let at = self.between((0, all.len() as u64 - 1));
        all[at as usize]
    }
}

/// Returns the faults of `seconds` seconds, in the order of their beginnings. `members` is the
/// number of etcd's members.
pub fn plan(seed: u64, seconds: u64, members: usize) -> Vec<PlannedFault> {
    let mut random = Random::new(seed);
    let (mut all, mut at): (Vec<PlannedFault>, u64) = (Vec::new(), 1000);
    loop {
        at += random.between(PAUSE);
        let (target, kind, longest) = draw(&mut random, members);
        let lasts = random.between((500, longest));
        if at + longest > seconds * 1000 {
            return all;
        }
        let (at, lasts) = (Duration::from_millis(at), Duration::from_millis(lasts));
        let open: Vec<&PlannedFault> = all.iter().filter(|fault| fault.ends() >= at).collect();
        if open.len() < AT_ONCE && open.iter().all(|fault| fault.target != target) {
            all.push(PlannedFault { target, kind, at, lasts });
        }
    }
}

/// Draws a target, a fault and its maximum length in ms.
fn draw(random: &mut Random, members: usize) -> (Target, FaultKind, u64) {
    let way = [CutDirection::In, CutDirection::Out, CutDirection::Both];
    let coordinator = Target::Process(random.one_of(&COORDINATORS));
    let node = Target::Process(random.one_of(&NODES));
    let member = Target::Etcd(random.between((0, members as u64 - 1)) as usize);
    match random.between((0, 19)) {
        0..=4 => (coordinator, FaultKind::Kill, 6000),
        5..=6 => (coordinator, FaultKind::Stop, 8000),
        7..=8 => (coordinator, FaultKind::Cut(random.one_of(&way)), 8000),
        9..=10 => (node, FaultKind::Kill, 6000),
        11..=12 => (node, FaultKind::Stop, 5000),
        13..=14 => (node, FaultKind::Cut(random.one_of(&way)), 8000),
        15 => (coordinator, FaultKind::Clock(random.one_of(&STEPS)), 15_000),
        16 => (node, FaultKind::Clock(random.one_of(&STEPS)), 15_000),
        17 => (member, FaultKind::Kill, 4000),
        18 => (member, FaultKind::Stop, 6000),
        _ => (member, FaultKind::Fill, 6000),
    }
}
