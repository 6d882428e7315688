//! The agent is killed at every durable write and at every call of the driver, of every operation.
//!
//! A first run of an operation counts its points. Then it is done once for each of them, and for
//! everything that can happen there: the agent is killed before it, in the midst of it, or after
//! it; the call fails, takes longer, or the machine dies in it. The next agent, or this one where
//! it lives, comes to rest, and records, machines, links, files and events have to be one; what the
//! operation is not about has to be as before; and the operation, done again, has to end well.
//!
//! Everything is real but the hypervisor and its guests; each worker has a network of its own.
//! `MVM_CRASH=name` in the environment runs one operation only, and says more.

mod checks;
mod host;
mod operations;
mod runs;

use host::{Course, Strike};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// So many operations are under way at once: they wait more than they compute.
const WORKERS: usize = 4;

/// Runs `work` with every number below `count`, each on one of the workers.
fn shared(count: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                host::own_network();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    work(number);
                }
            });
        }
    });
}

#[test]
fn an_agent_killed_at_any_point_of_any_operation_loses_nothing() {
    let began = std::time::Instant::now();
    let only = std::env::var("MVM_CRASH").ok();
    let names: Vec<String> = operations::all().into_iter().map(|it| it.name).collect();
    let chosen: Vec<usize> = (0..names.len())
        .filter(|n| only.as_ref().is_none_or(|only| names[*n].contains(only.as_str())))
        .collect();
    let faults: Mutex<Vec<String>> = Mutex::default();
    let fault = |n: usize, strike: Option<Strike>, what: String| {
        let told = format!("{} {strike:?}:\n    {what}", names[n]);
        faults.lock().expect("lock").push(told);
    };

    let courses: Mutex<BTreeMap<usize, Course>> = Mutex::default();
    shared(chosen.len(), |number| {
        let n = chosen[number];
        match runs::run(&operations::all()[n], None) {
            Ok(course) => drop(courses.lock().expect("lock").insert(n, course)),
            Err(what) => fault(n, None, what),
        }
    });
    let courses = courses.into_inner().expect("lock");
    let points: Vec<(usize, Strike)> = courses
        .iter()
        .flat_map(|(n, course)| course.strikes().into_iter().map(|strike| (*n, strike)))
        .collect();
    shared(points.len(), |number| {
        let (n, strike) = points[number];
        if let Err(what) = runs::run(&operations::all()[n], Some(strike)) {
            fault(n, Some(strike), what);
        }
    });

    for (n, course) in &courses {
        let strikes = course.strikes().len();
        let (writes, calls) = (course.writes, course.calls.len());
        println!("{:36} {writes:3} writes {calls:3} calls {strikes:4} points", names[*n]);
    }
    println!("{} points in {:.1} s", points.len(), began.elapsed().as_secs_f64());
    let faults = faults.into_inner().expect("lock");
    for fault in faults.iter().take(40) {
        println!("{fault}");
    }
    assert!(faults.is_empty(), "{} of {} points went wrong", faults.len(), points.len());
}
