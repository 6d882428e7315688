//! Jobs: their states, their queue, and which are kept.

mod support;

use mvm_model::job::{
    Found,
    JobState::{self, *},
    KEPT, KEPT_FOR, Outcome, ResumePoint, START_TRIES, TRANSITIONS, abandoned, admit, forgotten,
};
use mvm_model::job_queue::{PRIORITY_STEP, heads, order, queue};
use mvm_model::{Code, Job, JobId, JobSpec, PoolRef, State, Timestamp};
use proptest::prelude::*;
use std::time::Duration;

fn time(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn pool() -> PoolRef {
    "ci/runners".parse().expect("a pool")
}

fn job(number: u32) -> Job {
    let spec = JobSpec { argv: vec!["true".to_owned()], ..JobSpec::default() };
    Job::new(JobId::from_number(number), pool(), spec, "uid:0".to_owned(), time(0))
}

fn kept() -> ResumePoint {
    ResumePoint { life: "of a guest".to_owned(), log_from: 0 }
}

fn at(state: JobState) -> Job {
    let mut job = job(1);
    job.state = state;
    job
}

/// The design's transitions: preparing → queued → starting → running → an end. A job goes back into
/// the queue only if it never began or may be retried.
const DOCUMENTED: &[(JobState, &[JobState])] = &[
    (Preparing, &[Queued, Canceled]),
    (Queued, &[Starting, Failed, Canceled]),
    (Starting, &[Queued, Running, Failed, TimedOut, Canceled]),
    (Running, &[Queued, Succeeded, Failed, TimedOut, Canceled, Lost]),
    (Succeeded, &[]),
    (Failed, &[]),
    (TimedOut, &[]),
    (Canceled, &[]),
    (Lost, &[]),
];

#[test]
fn only_documented_transitions_are_allowed() {
    assert_eq!(DOCUMENTED.len(), JobState::ALL.len());
    for (from, targets) in DOCUMENTED {
        for to in JobState::ALL {
            assert_eq!(from.allows(to), targets.contains(&to), "{from} -> {to}");
        }
        assert_eq!(from.has_ended(), targets.is_empty());
        assert_eq!(from.to_string().parse::<JobState>().expect("a state"), *from);
        assert_eq!(serde_json::to_value(from).expect("JSON"), from.to_string());
    }
    for (index, pair) in TRANSITIONS.iter().enumerate() {
        assert!(!TRANSITIONS[..index].contains(pair), "{pair:?} stands twice");
    }
    assert!("done".parse::<JobState>().is_err());
}

#[test]
fn what_has_ended_stays_so_and_says_where_to_look() {
    for state in JobState::ALL.into_iter().filter(|state| state.has_ended()) {
        let mut ended = at(state);
        let before = ended.clone();
        let fault = ended.queue(1, time(1)).expect_err("it has ended");
        assert_eq!(fault.code, Code::WrongState);
        assert!(fault.hint.contains("mvm job info j-00000001"), "{}", fault.hint);
        assert!(ended.begin(None, time(1)).is_err() && ended.give_back().is_err());
        assert!(ended.end(Outcome::because(Canceled, "late"), time(1)).is_err());
        assert_eq!(ended.recover(Found::Gone, time(1)), Ok(false));
        assert_eq!(ended, before);
    }
}

/// A step in the life of a job.
#[derive(Clone, Debug)]
enum Step {
    Queue,
    Assign,
    Begin(bool),
    GiveBack,
    StartFailed,
    End(JobState),
    Cancel,
    Restart(Found),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ends = prop::sample::select(vec![Succeeded, Failed, TimedOut, Canceled, Lost]);
    let step = prop_oneof![
        2 => Just(Step::Queue),
        4 => Just(Step::Assign),
        4 => any::<bool>().prop_map(Step::Begin),
        1 => Just(Step::GiveBack),
        1 => Just(Step::StartFailed),
        3 => ends.prop_map(Step::End),
        1 => Just(Step::Cancel),
        1 => prop::sample::select(vec![Found::Runs, Found::Gone]).prop_map(Step::Restart),
    ];
    prop::collection::vec(step, 0..60)
}

#[test]
fn a_job_of_low_priority_waits_no_longer_than_its_priority_is_lower() {
    let queued = |number: u64, priority: i8, at: u64| {
        let mut job = job(number as u32);
        (job.number, job.queued_at, job.state) = (number, Some(time(at)), Queued);
        job.spec.priority = priority;
        job
    };
    let low = queued(1, -10, 0);
    // A job of high priority comes every second, forever.
    let all: Vec<Job> =
        (0..4000).map(|second| queued(second + 2, 10, second * 1000)).chain([low]).collect();
    let place = queue(&all).iter().position(|job| job.number == 1).expect("queued");
    assert_eq!(place as u64, 20 * PRIORITY_STEP.as_secs());
}

proptest! {
    #![proptest_config(support::cases(512))]

    /// Whatever happens, a command begins at most once, plus once for each retry. A command that
    /// has begun and not ended begins again only by a retry.
    #[test]
    fn a_command_begins_no_more_often_than_it_may(
        steps in steps(), retries in 0u8..4, attached: bool,
    ) {
        let mut job = job(7);
        job.spec.retries = retries;
        job.attached = attached;
        let (mut begun, mut millis) = (0usize, 1);
        for step in steps {
            millis += 1;
            let now = time(millis);
            let before = job.clone();
            let done = match step {
                Step::Queue => job.queue(1, now),
                Step::Assign => job.assign("ci/runners/i-00000001".parse().unwrap(), State::Warm, now),
                Step::Begin(keeps) => job.begin(keeps.then(kept), now),
                Step::GiveBack => job.give_back(),
                Step::StartFailed => job.start_failed("no".into(), now),
                Step::End(state) => job.end(Outcome::because(state, "so"), now),
                Step::Cancel => { job.cancel_requested |= !job.state.has_ended(); Ok(()) }
                Step::Restart(found) => job.recover(found, now).map(drop),
            };
            if let Err(fault) = done {
                prop_assert_eq!(fault.code, Code::WrongState);
                prop_assert_eq!(&job.state, &before.state, "what is refused changes nothing");
                continue;
            }
            prop_assert!(before.state == job.state || before.state.allows(job.state)
                || (before.state == Running && job.state == Queued));
            begun += usize::from(before.state == Starting && job.state == Running);
            prop_assert!(begun <= 1 + usize::from(retries), "{:?}", job);
            prop_assert_eq!(job.attempts.iter().filter(|a| a.began_at.is_some()).count(), begun);
            prop_assert_eq!(job.state.has_ended(), job.ended_at.is_some());
            prop_assert!(job.failed_starts <= START_TRIES);
            if before.state == Running && before.cancel_requested {
                prop_assert_ne!(job.state, Queued, "what is to end is not run again");
            }
            prop_assert!(job.kept.is_none() || job.state == Running);
            if job.state == Running {
                prop_assert_eq!(job.attempts.last().and_then(|a| a.state), None);
            }
        }
    }

    /// The queue is served from the front: by priority among jobs that came within a minute, then
    /// in the order of submission. No job is overtaken by one that came too late for its priority.
    #[test]
    fn the_queue_is_in_order(
        jobs in prop::collection::vec((-100i8..=100, 0usize..9), 0..60), apart in 0u64..200_000,
    ) {
        let jobs: Vec<Job> = jobs.into_iter().enumerate().map(|(index, (priority, state))| {
            let mut job = job(index as u32);
            job.spec.priority = priority;
            job.number = index as u64 + 1;
            job.queued_at = Some(time(index as u64 * apart));
            job.state = JobState::ALL[state];
            job
        }).collect();
        let queue = queue(&jobs);
        prop_assert_eq!(queue.len(), jobs.iter().filter(|job| job.state == Queued).count());
        prop_assert!(queue.iter().all(|job| job.state == Queued));
        prop_assert!(queue.iter().is_sorted_by_key(|job| order(job)));
        for pair in queue.windows(2) {
            let (a, b) = (pair[0], pair[1]);
            let step = PRIORITY_STEP.as_millis() as i64;
            let steps = i64::from(a.spec.priority) - i64::from(b.spec.priority);
            // How much later the first of the two came.
            let later = (a.number as i64 - b.number as i64) * apart as i64;
            prop_assert!(later < steps * step
                || (later == steps * step && a.number < b.number));
        }
    }

    /// Exactly as many jobs may wait as the quota allows.
    #[test]
    fn the_queue_has_a_bound(states in prop::collection::vec(0usize..9, 0..40), limit in 0u64..20) {
        let jobs: Vec<Job> = states.into_iter().map(|state| at(JobState::ALL[state])).collect();
        let waiting = jobs.iter().filter(|j| matches!(j.state, Preparing | Queued)).count() as u64;
        match admit(&pool(), limit, &jobs) {
            Ok(()) => prop_assert!(waiting < limit),
            Err(fault) => {
                prop_assert!(waiting >= limit);
                prop_assert_eq!(fault.code, Code::QueueFull);
                prop_assert!(fault.hint.contains("--max-queued-jobs"));
            }
        }
    }

    /// A removed job has ended, and is too old or not among the newest that are kept.
    #[test]
    fn the_newest_ended_jobs_are_kept(
        ages in prop::collection::vec((0..2 * KEPT_FOR.as_millis() as u64, 0usize..9), 0..40), more in 0usize..2,
    ) {
        let now = Timestamp::EPOCH + KEPT_FOR * 3;
        let mut jobs: Vec<Job> = ages.into_iter().enumerate().map(|(index, (age, state))| {
            let mut job = job(index as u32);
            job.state = JobState::ALL[state];
            job.ended_at = job.state.has_ended().then_some(now - Duration::from_millis(age));
            job
        }).collect();
        // Many jobs that have just ended.
        for index in 0..more * KEPT {
            let mut job = job(1_000 + index as u32);
            (job.state, job.ended_at) = (Succeeded, Some(now));
            jobs.push(job);
        }
        let gone = forgotten(&jobs, now);
        let kept: Vec<&Job> = jobs.iter().filter(|job| !gone.contains(&job.id)).collect();
        prop_assert!(jobs.iter().filter(|j| !j.state.has_ended()).all(|j| !gone.contains(&j.id)));
        let ended = kept.iter().filter(|job| job.state.has_ended());
        prop_assert!(ended.clone().count() <= KEPT);
        prop_assert!(ended.clone().all(|job| now.since(job.ended_at.unwrap()) < KEPT_FOR));
        let oldest = ended.filter_map(|job| job.ended_at).min().unwrap_or(now);
        let lost = jobs.iter().filter(|j| gone.contains(&j.id)).filter_map(|j| j.ended_at);
        prop_assert!(lost.clone().all(|at| at <= oldest || now.since(at) >= KEPT_FOR));
    }

    #[test]
    fn any_text_is_an_id_or_refused(text in "\\PC{0,20}", number: u32) {
        let _ = text.parse::<JobId>();
        let id = JobId::from_number(number);
        prop_assert_eq!(id.to_string().parse::<JobId>().unwrap(), id);
    }

    /// A specification from outside is accepted or refused, and a valid one respects the bounds.
    #[test]
    fn any_specification_is_valid_or_refused(
        argv in prop::collection::vec("[a-z\\x00]{0,4}", 0..4),
        name in "[A-Z0-9_=. -]{0,3}", timeout: Option<u64>, lease: Option<u64>,
        priority: i8, retries: u8, artifact in "[a-z/\\x00]{0,6}", count in 0usize..70,
    ) {
        let spec = JobSpec {
            argv: argv.clone(), env: [(name.clone(), String::new())].into(), timeout_s: timeout,
            lease_s: lease, priority, retries, artifacts: vec![artifact.clone(); count],
            cache_commit: Vec::new(),
        };
        let week = 1..=604_800;
        let good = !argv.is_empty() && !argv[0].is_empty() && !argv.iter().any(|w| w.contains('\0'))
            && !name.is_empty() && !name.contains(['=', '.', ' ', '-'])
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && timeout.is_none_or(|s| week.contains(&s)) && lease.is_none_or(|s| week.contains(&s))
            && (-100..=100).contains(&priority) && retries <= 10 && count <= 64
            && (count == 0 || (!artifact.is_empty() && !artifact.contains('\0')));
        let checked = spec.validate();
        prop_assert_eq!(checked.is_ok(), good, "{:?}", checked);
        if let Err(fault) = checked {
            prop_assert_eq!(fault.code, Code::InvalidValue);
            prop_assert!(!fault.path.is_empty());
        }
    }
}

/// An agent that starts finds jobs in every state.
#[test]
fn a_restart_loses_only_what_nobody_keeps() {
    let running = |retries: u8, kept| {
        let mut job = job(1);
        job.spec.retries = retries;
        job.queue(1, time(1)).expect("queue");
        job.assign("ci/runners/i-00000001".parse().expect("id"), State::Warm, time(2))
            .expect("assign");
        job.begin(kept, time(3)).expect("begin");
        job
    };
    let after = |mut job: Job, found| {
        job.recover(found, time(9)).expect("recover");
        job
    };
    // A command that its guest keeps goes on, with or without a client, and even if it is to be
    // ended.
    let mut goes_on = running(1, Some(kept()));
    assert_eq!(after(goes_on.clone(), Found::Runs), goes_on);
    (goes_on.attached, goes_on.cancel_requested) = (true, true);
    assert_eq!(after(goes_on.clone(), Found::Runs), goes_on);
    assert_eq!(after(goes_on, Found::Gone).state, Canceled);
    let lost = after(running(0, Some(kept())), Found::Gone);
    assert_eq!((lost.state, lost.shell_status()), (Lost, 125));
    assert!(lost.reason.expect("a reason").contains("machine"));
    let lost = after(running(0, None), Found::Runs);
    assert_eq!((lost.state, lost.shell_status()), (Lost, 125));
    assert!(lost.reason.expect("a reason").contains("older"));
    let again = after(running(1, None), Found::Runs);
    assert_eq!((again.state, again.attempts[0].state), (Queued, Some(Lost)));
    let mut canceled = running(1, None);
    canceled.cancel_requested = true;
    assert_eq!(after(canceled, Found::Runs).state, Canceled);
    // A job that had a machine and did not begin has never run.
    let mut starting = job(1);
    starting.queue(1, time(1)).expect("queue");
    let waits = starting.clone();
    starting
        .assign("ci/runners/i-00000001".parse().expect("id"), State::Warm, time(2))
        .expect("assign");
    assert_eq!(after(starting.clone(), Found::Gone), waits);
    // The client has some time to come back.
    for mut of_client in [waits.clone(), starting] {
        of_client.attached = true;
        assert_eq!(after(of_client, Found::Runs).state, Queued);
    }
    assert_eq!(after(waits.clone(), Found::Gone), waits);
    assert_eq!(after(at(Preparing), Found::Gone).state, Preparing);
}

#[test]
fn a_job_whose_inputs_never_come_is_given_up_after_a_day() {
    let day = Duration::from_secs(24 * 3600);
    let waiting = at(Preparing);
    assert!(abandoned([&waiting], time(0) + day - Duration::from_millis(1)).is_empty());
    assert_eq!(abandoned([&waiting], time(0) + day), [waiting.id]);
    assert!(abandoned([&at(Queued), &at(Running), &at(Lost)], time(0) + day * 9).is_empty());
}

proptest! {
    #[test]
    fn the_first_of_each_pool_s_queue_are_in_the_order_of_all_of_them(
        made in prop::collection::vec((0usize..3, 0u64..1000, -3i8..3, any::<bool>()), 0..20),
    ) {
        let jobs: Vec<Job> = made.iter().enumerate().map(|(number, (pool, at, priority, waits))| {
            let mut job = job(number as u32);
            job.pool = format!("ci/pool-{pool}").parse().expect("a pool");
            (job.number, job.queued_at) = (number as u64, Some(time(*at)));
            job.spec.priority = *priority;
            job.state = if *waits { Queued } else { Starting };
            job
        }).collect();
        let all = queue(&jobs);
        let first = |pool: &PoolRef| all.iter().find(|job| job.pool == *pool).map(|job| job.id);
        let chosen = heads(&jobs);
        for job in &chosen {
            prop_assert_eq!(first(&job.pool), Some(job.id));
        }
        let pools: std::collections::BTreeSet<_> = all.iter().map(|job| &job.pool).collect();
        prop_assert_eq!(chosen.len(), pools.len());
        prop_assert!(chosen.windows(2).all(|two| order(two[0]) <= order(two[1])));
    }
}
