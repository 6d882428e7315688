//! What is to happen: drawn from a seed before anything is started, so that the same seed is the same
//! plan.

use crate::trouble::Way;
use std::fmt;
use std::time::Duration;

/// The coordinators.
pub const COORDINATORS: [&str; 3] = ["c1", "c2", "c3"];
/// The nodes.
pub const NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];
/// How far a clock is put wrong. Certificates are good from five minutes before they were made.
const STEPS: [&str; 3] = ["+10m", "+1h", "-4m"];
/// A trouble begins after so long a pause, in ms.
const PAUSE: (u64, u64) = (1000, 4000);
/// How many troubles there are at a time at most.
const AT_ONCE: usize = 2;

/// To whom something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A coordinator or a node.
    Process(&'static str),
    /// A member of etcd.
    Etcd(usize),
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Its process is killed, and started again in the end.
    Kill,
    /// Its process is stopped, and goes on in the end.
    Stop,
    /// Its machine is cut off from the others.
    Cut(Way),
    /// Its clock is put wrong, and right in the end.
    Clock(&'static str),
    /// Its disk is filled, and emptied in the end.
    Fill,
}

/// One trouble, with a beginning and an end.
#[derive(Clone, Copy, Debug)]
pub struct Trouble {
    pub target: Target,
    pub what: What,
    /// Since the clients began.
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

/// Numbers from a seed: SplitMix64.
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

    /// From the first one to the second.
    pub fn between(&mut self, (from, to): (u64, u64)) -> u64 {
        from + self.next() % (to - from + 1)
    }

    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        let at = self.between((0, all.len() as u64 - 1));
        all[at as usize]
    }
}

/// What happens within so many seconds, in the order of its beginnings. `members` is how many members
/// etcd has.
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

/// What happens to whom, and for how long at most, in ms.
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
