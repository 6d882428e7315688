//! Tests of the choice: with a host whose trials end as the test says.

use super::{AcceleratorChoice, KvmHost};
use crate::locks::locked;
use async_trait::async_trait;
use mvm_model::Accelerator;
use mvm_model::accelerator::{Standing, Trial, Verdict, Wanted};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as Lock};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{advance, sleep};

/// A host without KVM's device, kernels or QEMU.
#[derive(Clone)]
struct FakeHost(Arc<Fake>);

struct Fake {
    against: Lock<Option<String>>,
    kernel: Lock<Option<PathBuf>>,
    /// How the next trials end; each waits for a permit.
    trials: Lock<VecDeque<Trial>>,
    permits: Semaphore,
    /// The kernels that were tried.
    tried: Lock<Vec<PathBuf>>,
    kept: Lock<Option<Verdict>>,
    used: Lock<Option<Accelerator>>,
}

#[async_trait]
impl KvmHost for FakeHost {
    fn against(&self) -> Option<String> {
        locked(&self.0.against).clone()
    }

    async fn kernel(&self) -> Option<PathBuf> {
        locked(&self.0.kernel).clone()
    }

    fn kept(&self) -> Option<Verdict> {
        locked(&self.0.kept).clone()
    }

    fn keep(&self, verdict: &Verdict) {
        *locked(&self.0.kept) = Some(verdict.clone());
    }

    async fn try_with(&self, kernel: &Path) -> Trial {
        locked(&self.0.tried).push(kernel.to_owned());
        self.0.permits.acquire().await.expect("open").forget();
        locked(&self.0.trials).pop_front().expect("a trial that the test foresees")
    }

    fn switch(&self, to: Accelerator) {
        *locked(&self.0.used) = Some(to);
    }
}

impl FakeHost {
    /// Makes a host whose trials end like this, at once.
    fn new(kernel: bool, trials: impl IntoIterator<Item = Trial>) -> FakeHost {
        let trials: VecDeque<Trial> = trials.into_iter().collect();
        let permits = Semaphore::new(trials.len());
        FakeHost(Arc::new(Fake {
            against: Lock::default(),
            kernel: Lock::new(kernel.then(|| "/k".into())),
            trials: Lock::new(trials),
            permits,
            tried: Lock::default(),
            kept: Lock::default(),
            used: Lock::default(),
        }))
    }

    async fn choice(&self, wanted: Wanted) -> Arc<AcceleratorChoice> {
        AcceleratorChoice::of(wanted, self.clone()).await.expect("a choice")
    }

    fn tried(&self) -> usize {
        locked(&self.0.tried).len()
    }

    fn used(&self) -> Accelerator {
        locked(&self.0.used).expect("an accelerator")
    }
}

fn slow() -> Trial {
    Trial::TimedOut("it was not through within 60 s".into())
}

#[tokio::test]
async fn machines_wait_for_the_first_trial() {
    let host = FakeHost::new(true, [Trial::Passed]);
    host.0.permits.forget_permits(1);
    let choice = host.choice(Wanted::Auto).await;
    assert_eq!(choice.verdict().standing, Standing::Trying);
    let waits = tokio::spawn({
        let choice = choice.clone();
        async move {
            choice.settled().await;
            choice.verdict().accelerator
        }
    });
    while host.tried() == 0 {
        tokio::task::yield_now().await;
    }
    assert!(!waits.is_finished());
    host.0.permits.add_permits(1);
    assert_eq!(waits.await.expect("no panic"), Accelerator::Kvm);
    assert_eq!((host.used(), host.tried()), (Accelerator::Kvm, 1));
    assert_eq!(*locked(&host.0.kept), Some(Verdict::of(Trial::Passed)));
    // The next agent needs no trial.
    let next = host.choice(Wanted::Auto).await;
    next.settled().await;
    assert_eq!((next.verdict().accelerator, host.tried()), (Accelerator::Kvm, 1));
}

#[tokio::test]
async fn a_kernel_that_arrives_later_is_tried_before_any_machine_starts() {
    let host = FakeHost::new(false, [Trial::Passed]);
    let choice = host.choice(Wanted::Auto).await;
    choice.settled().await;
    assert_eq!(choice.verdict(), Verdict::without_kernel());
    assert_eq!((host.used(), host.tried()), (Accelerator::Tcg, 0));
    *locked(&host.0.kernel) = Some("/late".into());
    choice.settled().await;
    assert_eq!(choice.verdict(), Verdict::of(Trial::Passed));
    assert_eq!(host.used(), Accelerator::Kvm);
    assert_eq!(*locked(&host.0.tried), [PathBuf::from("/late")]);
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_was_too_slow_is_not_kept_and_is_repeated_after_growing_pauses() {
    let host = FakeHost::new(true, [slow(), slow(), Trial::Passed]);
    let choice = host.choice(Wanted::Auto).await;
    choice.settled().await;
    assert_eq!(choice.verdict().standing, Standing::TimedOut);
    assert_eq!((host.used(), host.tried()), (Accelerator::Tcg, 1));
    let rests = async |seconds: u64, tried: usize| {
        advance(Duration::from_secs(seconds)).await;
        choice.keep().await;
        sleep(Duration::from_millis(1)).await;
        assert_eq!(host.tried(), tried, "after {seconds} s");
        // Machines do not wait for a repetition.
        choice.settled().await;
    };
    rests(50, 1).await;
    rests(11, 2).await;
    rests(100, 2).await;
    assert_eq!(*locked(&host.0.kept), None, "a time-out is never kept");
    rests(21, 3).await;
    assert_eq!(choice.verdict(), Verdict::of(Trial::Passed));
    assert_eq!(host.used(), Accelerator::Kvm);
    rests(100_000, 3).await;
}

#[tokio::test]
async fn what_does_not_boot_is_settled_until_somebody_asks() {
    let host = FakeHost::new(true, [Trial::Failed("it panicked".into()), Trial::Passed]);
    let choice = host.choice(Wanted::Auto).await;
    choice.settled().await;
    assert_eq!(choice.verdict().standing, Standing::Settled);
    choice.keep().await;
    assert_eq!((host.used(), host.tried()), (Accelerator::Tcg, 1));
    let probed = choice.probe().await;
    assert_eq!(probed.before.accelerator, Accelerator::Tcg);
    assert_eq!((&probed.found, &probed.after), (&Verdict::of(Trial::Passed), &choice.verdict()));
    assert_eq!(host.used(), Accelerator::Kvm);
    assert_eq!(locked(&host.0.kept).clone(), Some(probed.after));
}

#[tokio::test]
async fn a_slow_repetition_does_not_take_kvm_away() {
    let host = FakeHost::new(true, [Trial::Passed, slow()]);
    let choice = host.choice(Wanted::Auto).await;
    choice.settled().await;
    let probed = choice.probe().await;
    assert_eq!(probed.found, Verdict::of(slow()));
    assert_eq!(probed.after, Verdict::of(Trial::Passed));
    assert_eq!((host.used(), choice.verdict().accelerator), (Accelerator::Kvm, Accelerator::Kvm));
}

#[tokio::test]
async fn a_device_that_is_gone_is_found_when_somebody_asks() {
    let host = FakeHost::new(true, [Trial::Passed]);
    let choice = host.choice(Wanted::Auto).await;
    choice.settled().await;
    *locked(&host.0.against) = Some("there is no /dev/kvm".into());
    let probed = choice.probe().await;
    assert_eq!(probed.after.accelerator, Accelerator::Tcg);
    assert_eq!((host.used(), host.tried()), (Accelerator::Tcg, 1));
}

#[tokio::test]
async fn the_operators_word_counts_and_is_refused_where_kvm_cannot_be_had() {
    for (wanted, used) in [(Wanted::Kvm, Accelerator::Kvm), (Wanted::Tcg, Accelerator::Tcg)] {
        let host = FakeHost::new(true, [Trial::Failed("it panicked".into()), Trial::Passed]);
        let choice = host.choice(wanted).await;
        choice.settled().await;
        assert_eq!((host.used(), host.tried()), (used, 0));
        // A probe tells the truth, and changes nothing.
        assert_eq!(choice.probe().await.found.accelerator, Accelerator::Tcg);
        assert_eq!(choice.probe().await.found.accelerator, Accelerator::Kvm);
        assert_eq!((host.used(), choice.verdict().accelerator), (used, used));
    }
    let host = FakeHost::new(true, []);
    *locked(&host.0.against) = Some("there is no /dev/kvm".into());
    let refused = AcceleratorChoice::of(Wanted::Kvm, host.clone()).await.map(drop);
    assert_eq!(refused, Err("there is no /dev/kvm".to_owned()));
    assert_eq!(host.choice(Wanted::Auto).await.verdict().reason, "there is no /dev/kvm");
}
