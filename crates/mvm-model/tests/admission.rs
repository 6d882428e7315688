//! Quotas: admitted steps never exceed them, a refusal has all the numbers that its reader needs,
//! and after a quota was lowered below its use, only growth is refused.

mod support;

use mvm_model::Code;
use mvm_model::admission::{admit_counts, admit_instance, admit_machine, admit_pool, admit_state};
use mvm_model::state::Intent;
use mvm_model::{
    Counts, Fault, Instance, Mib, Name, Pool, Quotas, Resources, State, Timestamp, Usage,
};
use proptest::prelude::*;

fn tenant() -> Name {
    "ci".parse().unwrap()
}

fn pool(resources: Resources) -> Pool {
    Pool { resources, ..support::pool() }
}

fn shapes() -> impl Strategy<Value = Resources> {
    (
        1u32..=6,
        prop_oneof![Just(128), 128u64..=3000],
        prop_oneof![Just(0), 16u64..=2000],
        prop_oneof![Just(64), 64u64..=1500],
    )
        .prop_map(|(vcpus, mem_mib, data_disk_mib, scratch_disk_mib)| Resources {
            vcpus,
            mem_mib: Mib(mem_mib),
            data_disk_mib: Mib(data_disk_mib),
            scratch_disk_mib: Mib(scratch_disk_mib),
        })
}

fn quotas() -> impl Strategy<Value = Quotas> {
    (0u64..20, 0u64..12_000, 0u64..6, 0u64..4, 0u64..3, 0u64..6, 0u64..24).prop_map(
        |(max_vcpus, max_mem_mib, max_running, max_warm, max_pools, per_pool, max_disk_gib)| {
            Quotas {
                max_vcpus,
                max_mem_mib: Mib(max_mem_mib),
                max_running,
                max_warm,
                max_pools,
                max_instances_per_pool: per_pool,
                max_disk_gib,
                ..Quotas::default()
            }
        },
    )
}

#[derive(Clone, Debug)]
enum Step {
    MakePool(Resources),
    Make(prop::sample::Index),
    Begin(prop::sample::Index, State),
    /// The transition under way succeeds, fails or is undone.
    Finish(prop::sample::Index, u8),
    Destroy(prop::sample::Index),
    Change(Quotas),
}

fn steps(changes: bool) -> impl Strategy<Value = Vec<Step>> {
    let index = any::<prop::sample::Index>;
    let to = prop::sample::select(vec![
        State::Running,
        State::Warm,
        State::Sleeping,
        State::Stopped,
        State::Running,
    ]);
    let change = if changes { 2 } else { 0 };
    prop::collection::vec(
        prop_oneof![
            2 => shapes().prop_map(Step::MakePool),
            4 => index().prop_map(Step::Make),
            8 => (index(), to).prop_map(|(i, to)| Step::Begin(i, to)),
            6 => (index(), 0u8..6).prop_map(|(i, how)| Step::Finish(i, how)),
            1 => index().prop_map(Step::Destroy),
            change => quotas().prop_map(Step::Change),
        ],
        1..80,
    )
}

/// A tenant's pools and instances, each instance with the index of its pool.
struct SimulatedTenant {
    quotas: Quotas,
    pools: Vec<Pool>,
    instances: Vec<(usize, Instance)>,
    made: u32,
}

/// The usage, counted here from the records alone: CPU and memory by the state that an instance is
/// in or heading for, disk for all.
#[derive(Clone, Copy, Debug, PartialEq)]
struct CountedUsage {
    vcpus: u64,
    mem_mib: Mib,
    running: u64,
    warm: u64,
    pools: u64,
    fullest_pool: u64,
    disk_mib: Mib,
}

impl SimulatedTenant {
    fn usage(&self) -> Usage {
        Usage::count(self.pools.len() as u64, self.instances.iter().map(|(_, i)| i))
    }

    fn used(&self) -> CountedUsage {
        let sum = |of: &dyn Fn(&Instance) -> u64| self.instances.iter().map(|(_, i)| of(i)).sum();
        let hot = |i: &Instance| u64::from(matches!(i.heading(), State::Running | State::Warm));
        let is = |state: State| move |i: &Instance| u64::from(i.heading() == state);
        let in_pool = |pool: usize| self.instances.iter().filter(|(p, _)| *p == pool).count();
        CountedUsage {
            vcpus: sum(&|i| hot(i) * u64::from(i.resources.vcpus)),
            mem_mib: Mib(sum(&|i| (hot(i) * i.resources.mem_mib).0)),
            running: sum(&is(State::Running)),
            warm: sum(&is(State::Warm)),
            pools: self.pools.len() as u64,
            fullest_pool: (0..self.pools.len()).map(in_pool).max().unwrap_or(0) as u64,
            disk_mib: Mib(sum(&|i| i.resources.disk_mib().0)),
        }
    }

    /// Carries out a step if it is admitted. The error is the refusal.
    fn take(&mut self, step: &Step) -> Result<(), Fault> {
        let (quotas, usage, name) = (self.quotas, self.usage(), tenant());
        match step {
            Step::MakePool(resources) => {
                admit_pool(&name, &quotas, &usage)?;
                self.pools.push(pool(*resources));
            }
            Step::Make(_) if self.pools.is_empty() => {}
            Step::Make(index) => {
                let chosen = index.index(self.pools.len());
                let in_pool = self.instances.iter().filter(|(p, _)| *p == chosen).count();
                admit_instance(&name, &quotas, &usage, &self.pools[chosen], in_pool as u64)?;
                self.made += 1;
                let mut instance = support::instance(self.made, State::Created);
                instance.resources = self.pools[chosen].resources;
                self.instances.push((chosen, instance));
            }
            Step::Change(quotas) => self.quotas = *quotas,
            _ if self.instances.is_empty() => {}
            Step::Begin(index, to) => {
                let chosen = index.index(self.instances.len());
                let instance = &mut self.instances[chosen].1;
                if instance.is_busy() || !instance.state.allows(*to) {
                    return Ok(());
                }
                admit_state(&name, &quotas, &usage, instance, *to)?;
                instance.intent =
                    Some(Intent { from: instance.state, to: *to, since: Timestamp::EPOCH });
            }
            Step::Finish(index, how) => {
                let chosen = index.index(self.instances.len());
                let instance = &mut self.instances[chosen].1;
                if let Some(intent) = instance.intent.take() {
                    instance.state = match how {
                        0 => State::Failed,
                        // The transition is undone, but only where that needs no more than is
                        // reserved.
                        1 if !intent.from.has_process() => intent.from,
                        _ => intent.to,
                    };
                }
            }
            Step::Destroy(index) => {
                let chosen = index.index(self.instances.len());
                self.instances.remove(chosen);
            }
        }
        Ok(())
    }
}

/// Returns the quota and the numbers of a refusal: limit, use and request.
fn numbers(fault: &Fault) -> (String, [u64; 3]) {
    let words: Vec<&str> = fault.message.split([' ', ',', ':']).collect();
    let after = |word: &str| {
        let place = words.iter().position(|w| *w == word).expect(word);
        words[place + 1].parse::<u64>().expect("a number")
    };
    let quota = words[words.iter().position(|w| *w == "quota").unwrap() + 1];
    let in_use = {
        let place = words.iter().position(|w| *w == "use").unwrap();
        words[place + 1].parse().unwrap()
    };
    (quota.to_owned(), [after("limit"), in_use, after("asked")])
}

fn limit_of(quotas: &Quotas, name: &str) -> u64 {
    serde_json::to_value(quotas).unwrap()[name].as_u64().expect("a quota of that name")
}

fn flag_of(quota: &str) -> &'static str {
    match quota {
        "max_vcpus" => "--max-vcpus",
        "max_mem_mib" => "--max-mem",
        "max_running" => "--max-running",
        "max_warm" => "--max-warm",
        "max_pools" => "--max-pools",
        "max_instances_per_pool" => "--max-instances-per-pool",
        "max_disk_gib" => "--max-disk",
        other => panic!("no quota {other}"),
    }
}

fn refusal_is_true(fault: &Fault, model: &SimulatedTenant) -> Result<(), TestCaseError> {
    prop_assert_eq!(fault.code, Code::QuotaExceeded);
    prop_assert!(fault.message.contains("tenant ci"), "{}", fault);
    let (quota, [limit, in_use, asked]) = numbers(fault);
    prop_assert_eq!(limit, limit_of(&model.quotas, &quota));
    let used = model.used();
    let counted = match quota.as_str() {
        "max_vcpus" => used.vcpus,
        "max_mem_mib" => used.mem_mib.0,
        "max_running" => used.running,
        "max_warm" => used.warm,
        "max_pools" => used.pools,
        // The refusal counts the requested pool, which need not be the fullest.
        "max_instances_per_pool" => in_use.min(used.fullest_pool),
        _ => used.disk_mib.gib_rounded_up(),
    };
    prop_assert_eq!(in_use, counted, "{}", fault);
    prop_assert!(asked > 0 && in_use + asked > limit, "{}", fault);
    prop_assert!(fault.hint.ends_with(flag_of(&quota)), "{}", fault.hint);
    Ok(())
}

/// Returns each quota with its limit and its use, in the unit in which it is counted.
fn pairs(quotas: &Quotas, used: &CountedUsage) -> [(&'static str, u64, u64); 7] {
    [
        ("max_vcpus", quotas.max_vcpus, used.vcpus),
        ("max_mem_mib", quotas.max_mem_mib.0, used.mem_mib.0),
        ("max_running", quotas.max_running, used.running),
        ("max_warm", quotas.max_warm, used.warm),
        ("max_pools", quotas.max_pools, used.pools),
        ("max_instances_per_pool", quotas.max_instances_per_pool, used.fullest_pool),
        ("max_disk_gib", quotas.max_disk_gib * 1024, used.disk_mib.0),
    ]
}

fn model(quotas: Quotas) -> SimulatedTenant {
    SimulatedTenant { quotas, pools: Vec::new(), instances: Vec::new(), made: 0 }
}

proptest! {
    #![proptest_config(support::cases(3000))]

    #[test]
    fn what_was_admitted_never_exceeds_a_quota(quotas in quotas(), steps in steps(false)) {
        let mut model = model(quotas);
        for step in &steps {
            let before = model.used();
            if let Err(fault) = model.take(step) {
                refusal_is_true(&fault, &model)?;
                prop_assert_eq!(model.used(), before);
            }
            for (name, limit, used) in pairs(&model.quotas, &model.used()) {
                prop_assert!(used <= limit, "{}: {} of {} after {:?}", name, used, limit, step);
            }
        }
    }

    /// Quotas change while steps are taken. A use above its limit never grows; all else is as
    /// before.
    #[test]
    fn above_a_lowered_quota_only_growth_is_refused(quotas in quotas(), steps in steps(true)) {
        let mut model = model(quotas);
        for step in &steps {
            let before = model.used();
            let outcome = model.take(step);
            let changed = matches!(step, Step::Change(_));
            if let Err(fault) = &outcome {
                refusal_is_true(fault, &model)?;
            }
            let (old, new) = (pairs(&model.quotas, &before), pairs(&model.quotas, &model.used()));
            for ((name, limit, before), (_, _, after)) in old.into_iter().zip(new) {
                prop_assert!(
                    after <= limit || after <= before,
                    "{}: from {} to {} of {} by {:?}", name, before, after, limit, step
                );
            }
            prop_assert!(!changed || outcome.is_ok());
        }
    }

    /// Every refusal names a true cause: without that quota, the step is refused by another quota
    /// or admitted. Without any quota, everything is admitted.
    #[test]
    fn nothing_is_refused_without_a_quota(steps in steps(false)) {
        let none = u64::MAX;
        let mut model = model(Quotas {
            max_vcpus: none,
            max_mem_mib: Mib(none),
            max_running: none,
            max_warm: none,
            max_pools: none,
            max_instances_per_pool: none,
            max_disk_gib: none,
            max_queued_jobs: none,
        });
        for step in &steps {
            prop_assert_eq!(model.take(step), Ok(()));
        }
    }

    /// `Usage::after` returns the usage that is counted after the step.
    #[test]
    fn usage_after_is_the_usage_afterwards(steps in steps(false), pick: prop::sample::Index, to in prop::sample::select(State::ALL.to_vec())) {
        let mut model = model(Quotas::default());
        for step in &steps {
            let _ = model.take(step);
        }
        if model.instances.is_empty() {
            return Ok(());
        }
        let chosen = pick.index(model.instances.len());
        let promised = model.usage().after(&model.instances[chosen].1, to);
        let instance = &mut model.instances[chosen].1;
        instance.intent = Some(Intent { from: instance.state, to, since: Timestamp::EPOCH });
        prop_assert_eq!(promised, model.usage());
    }

    /// Counts are accepted exactly if an empty tenant could hold them.
    #[test]
    fn counts_are_taken_if_they_fit(
        quotas in quotas(),
        resources in shapes(),
        (running, warm, sleeping) in (0u32..7, 0u32..5, 0u32..7),
    ) {
        let counts = Counts { running, warm, sleeping };
        let (hot, all) = (u64::from(running + warm), u64::from(running + warm + sleeping));
        let used = CountedUsage {
            vcpus: hot * u64::from(resources.vcpus),
            mem_mib: hot * resources.mem_mib,
            running: running.into(),
            warm: warm.into(),
            pools: 0,
            fullest_pool: all,
            disk_mib: all * resources.disk_mib(),
        };
        let fits = pairs(&quotas, &used).iter().all(|(_, limit, used)| used <= limit);
        let verdict = admit_counts(&tenant(), &quotas, &resources, &[], &counts);
        prop_assert_eq!(verdict.is_ok(), fits, "{:?}", verdict);
        if let Err(fault) = verdict {
            let (quota, [limit, in_use, asked]) = numbers(&fault);
            prop_assert_eq!((limit, in_use), (limit_of(&quotas, &quota), 0));
            prop_assert!(asked > limit);
        }
    }

    /// Any numbers get an answer, without an overflow.
    #[test]
    fn the_largest_counts_have_an_answer(running: u32, warm: u32, sleeping: u32, limit: u64) {
        let resources = Resources { vcpus: 255, mem_mib: Mib(1 << 20), data_disk_mib: Mib(1 << 24), scratch_disk_mib: Mib(1 << 24) };
        let quotas = Quotas { max_disk_gib: limit, ..Quotas::default() };
        let _ = admit_counts(&tenant(), &quotas, &resources, &[], &Counts { running, warm, sleeping });
        let usage = Usage { disk_mib: Mib(limit >> 1), ..Usage::default() };
        let _ = admit_instance(&tenant(), &quotas, &usage, &pool(resources), 0);
    }
}

#[test]
fn a_machine_of_which_the_quotas_hold_not_one_is_refused() {
    let tenant: Name = "ci".parse().expect("name");
    let shape = Resources {
        vcpus: 4,
        mem_mib: Mib(4096),
        data_disk_mib: Mib(4096),
        ..Resources::default()
    };
    let disk = shape.disk_mib().gib_rounded_up();
    let quotas =
        Quotas { max_vcpus: 4, max_mem_mib: Mib(4096), max_disk_gib: disk, ..Quotas::default() };
    let tried = |quotas: &Quotas, caches| admit_machine(&tenant, quotas, &shape, caches);
    assert_eq!(tried(&quotas, Mib(0)), Ok(()));
    let less = [
        (Quotas { max_vcpus: 3, ..quotas }, "vcpus", "--max-vcpus"),
        (Quotas { max_mem_mib: Mib(4095), ..quotas }, "mem_mib", "--max-mem"),
        (Quotas { max_disk_gib: disk - 1, ..quotas }, "data_disk_mib", "--max-disk"),
    ];
    for (quotas, path, option) in less {
        let fault = tried(&quotas, Mib(0)).expect_err("refused");
        assert_eq!((fault.code, fault.path.as_str()), (Code::QuotaExceeded, path));
        assert!(fault.hint.contains(option), "{fault:?}");
    }
    assert!(tried(&quotas, Mib(2048)).is_err(), "the disks of its caches count");
}
