//! The plan of faults, which is drawn from a seed before anything starts, so that the same seed
//! always gives the same plan.

use crate::trouble::Way;
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
pub enum What {
    /// The process is killed, and started again at the end.
    Kill,
    /// The process is stopped, and continued at the end.
    Stop,
    /// The machine is cut off from the others.
    Cut(Way),
    /// The clock is set wrong, and right at the end.
    Clock(&'static str),
    /// The disk is filled, and emptied at the end.
    Fill,
}

/// One fault, with a beginning and a length.
#[derive(Clone, Copy, Debug)]
pub struct Trouble {
    pub target: Target,
    pub what: What,
    /// When the fault begins, counted from the start of the clients.
    pub at: Duration,
    pub lasts: Duration,
}

impl Trouble {
    pub fn ends(&self) -> Duration {
        self.at + self.lasts
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, lasts) = (self.at.as_secs_f64(), self.lasts.as_secs_f64());
        write!(f, "{at:6.1} s: {:?} {:?} for {lasts:.1} s", self.target, self.what)
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
pub fn plan(seed: u64, seconds: u64, members: usize) -> Vec<Trouble> {
    let mut random = Random::new(seed);
    let (mut all, mut at): (Vec<Trouble>, u64) = (Vec::new(), 1000);
    loop {
        at += random.between(PAUSE);
        let (target, what, longest) = draw(&mut random, members);
        let lasts = random.between((500, longest));
        if at + longest > seconds * 1000 {
            return all;
        }
        let (at, lasts) = (Duration::from_millis(at), Duration::from_millis(lasts));
        let open: Vec<&Trouble> = all.iter().filter(|trouble| trouble.ends() >= at).collect();
        if open.len() < AT_ONCE && open.iter().all(|trouble| trouble.target != target) {
            all.push(Trouble { target, what, at, lasts });
        }
    }
}

/// Draws a target, a fault and its maximum length in ms.
fn draw(random: &mut Random, members: usize) -> (Target, What, u64) {
    let way = [Way::In, Way::Out, Way::Both];
    let coordinator = Target::Process(random.one_of(&COORDINATORS));
    let node = Target::Process(random.one_of(&NODES));
    let member = Target::Etcd(random.between((0, members as u64 - 1)) as usize);
    match random.between((0, 19)) {
        0..=4 => (coordinator, What::Kill, 6000),
        5..=6 => (coordinator, What::Stop, 8000),
        7..=8 => (coordinator, What::Cut(random.one_of(&way)), 8000),
        9..=10 => (node, What::Kill, 6000),
        11..=12 => (node, What::Stop, 5000),
        13..=14 => (node, What::Cut(random.one_of(&way)), 8000),
        15 => (coordinator, What::Clock(random.one_of(&STEPS)), 15_000),
        16 => (node, What::Clock(random.one_of(&STEPS)), 15_000),
        17 => (member, What::Kill, 4000),
        18 => (member, What::Stop, 6000),
        _ => (member, What::Fill, 6000),
    }
}
