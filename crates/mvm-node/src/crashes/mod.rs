//! Kills the agent at every durable write and at every call of the driver, in every operation.
//!
//! A first run of an operation counts its points. Then the operation is run once for each point and
//! each fault that can happen there: the agent is killed before the point, in the middle of the
//! call, or after it; the call fails or takes longer; or the machine dies in the call. The next
//! agent (or the same one, if it lives) comes to rest. Then the records must match machines, links,
//! files and events. Objects that the operation does not concern must be as before, and the
//! operation must succeed when it is run again.
//!
//! Everything is real except the hypervisor and its guests; each worker has a network of its own.
//! `MVM_CRASH=name` in the environment runs one operation only, and prints more.

pub mod checks;
pub mod host;
pub mod operations;
pub mod queue;
mod records;
mod renewals;
pub mod runs;
mod silence;
mod wakes;
mod walls;

use host::{Course, PointFault, WriteFault};
use mvm_hypervisor::sim::Moment;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The number of operations that run at once. They wait more than they compute.
const WORKERS: usize = 8;

/// How much the points yield to other processes (nice(2)): they compute for minutes, and tests that
/// run beside them have deadlines.
const YIELDS: i32 = 10;

/// The index of an operation, and the faults for its agent and for the next agent.
type Point = (usize, [Option<PointFault>; 2]);

/// Runs all points on the workers. Returns the points that each run passed, and the errors.
fn run_all(points: &[Point]) -> Vec<(Point, runs::Outcome<[Course; 2]>)> {
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                host::own_network();
                let operations = operations::all();
                while let Some((n, injected)) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = runs::run(&operations[*n], *injected);
                    outcomes.lock().expect("lock").push(((*n, *injected), outcome));
                }
            });
        }
    });
    outcomes.into_inner().expect("lock")
}

#[test]
fn an_agent_killed_at_any_point_of_any_operation_loses_nothing() {
    let began = std::time::Instant::now();
    // It holds for this thread and those that it starts.
    rustix::process::nice(YIELDS).expect("a lower priority");
    let only = std::env::var("MVM_CRASH").unwrap_or_default();
    let names: Vec<String> = operations::all().into_iter().map(|it| it.name).collect();
    let chosen = (0..names.len()).filter(|n| names[*n].contains(&only));
    let mut faults = Vec::new();
    let mut sound = |points: &[Point]| {
        let mut courses = Vec::new();
        for ((n, injected), outcome) in run_all(points) {
            match outcome {
                Ok(course) => courses.push((n, injected, course)),
                Err(what) => faults.push(format!("{} {injected:?}:\n    {what}", names[n])),
            }
        }
        courses.sort_by_key(|(n, ..)| *n);
        courses
    };

    // First the runs without faults, which count the points, then every point.
    let courses = sound(&chosen.map(|n| (n, [None, None])).collect::<Vec<_>>());
    let of_course = |(n, _, [course, _]): &(usize, _, [Course; 2])| {
        let n = *n;
        course.possible_faults().into_iter().map(move |fault| (n, [Some(fault), None]))
    };
    let points: Vec<Point> = courses.iter().flat_map(of_course).collect();
    sound(&points);
    // An operation is cut before its last record, and the agent that repairs it is killed at each
    // of its own points.
    let last = |course: &Course| PointFault::Write(course.writes, WriteFault::Kill(Moment::Before));
    let cut: Vec<Point> =
        courses.iter().map(|(n, _, [course, _])| (*n, [Some(last(course)), None])).collect();
    let repairs = sound(&cut);
    let of_repair =
        |(n, [first, _], [_, course]): &(usize, [Option<PointFault>; 2], [Course; 2])| {
            let (n, first) = (*n, *first);
            let kills = course.possible_faults().into_iter().filter(|fault| fault.kills());
            kills.map(move |fault| (n, [first, Some(fault)]))
        };
    let twice: Vec<Point> = repairs.iter().flat_map(of_repair).collect();
    sound(&twice);

    for (n, _, [course, _]) in &courses {
        let of = |points: &[Point]| points.iter().filter(|(of, _)| of == n).count();
        let (writes, calls) = (course.writes, course.calls.len());
        let (points, twice) = (of(&points), of(&twice));
        println!(
            "{:36}{writes:4} writes{calls:4} calls{points:5} points{twice:4} twice",
            names[*n]
        );
    }
    let all = points.len() + twice.len();
    println!("{all} points in {:.1} s", began.elapsed().as_secs_f64());
    faults.iter().take(40).for_each(|fault| println!("{fault}"));
    assert!(faults.is_empty(), "{} of {all} points went wrong", faults.len());
}
