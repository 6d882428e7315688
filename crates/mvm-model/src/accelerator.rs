//! What executes guests' instructions on a node: hardware through KVM, or QEMU's own translation;
//! and how an agent comes to choose between them.
//!
//! Only a kernel that comes through its start under KVM proves that KVM works. The agent tries that
//! as soon as it has a kernel, and again after a trial that was merely too slow.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// What executes a machine's instructions.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Hardware, through /dev/kvm.
    Kvm,
    /// QEMU's own translation.
    Tcg,
}

impl Accelerator {
    /// Returns the name in JSON, in metrics, and in QEMU's options.
    pub fn as_str(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }

    /// Returns the accelerator with this name; `None` if there is none.
    pub fn of(name: &str) -> Option<Accelerator> {
        [Accelerator::Kvm, Accelerator::Tcg].into_iter().find(|known| known.as_str() == name)
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The processor that a machine was started with, and keeps for as long as its memory lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Processor {
    /// What executes the machine's instructions.
    pub accelerator: Accelerator,
    /// The model of its CPU, in QEMU's words: `host`, `qemu64,+ssse3`.
    pub model: String,
}

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, CPU {}", self.accelerator, self.model)
    }
}

/// The operator's word on the accelerator of new machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Wanted {
    /// KVM where it works, otherwise TCG.
    #[default]
    Auto,
    /// KVM, untried.
    Kvm,
    /// TCG, although KVM may work.
    Tcg,
}

/// The outcome of a kernel's start under KVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    /// The kernel came through its start.
    Passed,
    /// The kernel did not, for this reason: it panicked, or QEMU ended.
    Failed(String),
    /// The kernel was too slow, which may be the load's fault.
    TimedOut(String),
}

/// How firm the choice of an accelerator is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// The first trial is under way, and machines that are to be started wait for it.
    Trying,
    /// There is no kernel yet to try KVM with. The trial follows when there is one.
    WithoutKernel,
    /// The last trial was too slow. It is repeated later.
    TimedOut,
    /// The choice stands until the host is rebooted, QEMU changes, or somebody asks again.
    Settled,
}

/// The accelerator that new machines get, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The accelerator.
    pub accelerator: Accelerator,
    /// The reason, for people.
    pub reason: String,
    /// How firm the verdict is.
    pub standing: Standing,
}

impl Verdict {
    /// Returns a verdict that stands.
    pub fn settled(accelerator: Accelerator, reason: impl Into<String>) -> Verdict {
        Verdict { accelerator, reason: reason.into(), standing: Standing::Settled }
    }

    /// Returns the verdict after a trial.
    pub fn of(trial: Trial) -> Verdict {
        match trial {
            Trial::Passed => {
                Verdict::settled(Accelerator::Kvm, "a kernel came through its start under /dev/kvm")
            }
            Trial::Failed(reason) => Verdict::settled(
                Accelerator::Tcg,
                format!("a kernel does not boot under /dev/kvm: {reason}"),
            ),
            Trial::TimedOut(reason) => Verdict {
                accelerator: Accelerator::Tcg,
                reason: format!(
                    "a kernel was too slow under /dev/kvm: {reason}; it is tried again later"
                ),
                standing: Standing::TimedOut,
            },
        }
    }

    /// Returns the verdict while the first trial is under way.
    pub fn trying() -> Verdict {
        Verdict {
            accelerator: Accelerator::Tcg,
            reason:
                "a kernel is being started under /dev/kvm, and new machines wait for the outcome"
                    .to_owned(),
            standing: Standing::Trying,
        }
    }

    /// Returns the verdict where no kernel is there to try KVM with.
    pub fn without_kernel() -> Verdict {
        Verdict {
            accelerator: Accelerator::Tcg,
            reason: "no kernel yet to try /dev/kvm with; fetch or import one".to_owned(),
            standing: Standing::WithoutKernel,
        }
    }

    /// Returns whether the verdict may be kept for the agents after this one.
    pub fn is_lasting(&self) -> bool {
        self.standing == Standing::Settled
    }
}

/// What is known of KVM on a host without starting a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Why KVM cannot run machines, as device, modules and CPU say; absent where nothing rules it
    /// out.
    pub against: Option<String>,
    /// The verdict of an earlier trial in this boot of the host and with this QEMU.
    pub kept: Option<Verdict>,
    /// Whether there is a kernel to try KVM with.
    pub has_kernel: bool,
}

/// Decides on an accelerator before any trial. The verdict's standing is [`Standing::Trying`] where
/// a trial has to decide. The error is the reason why KVM, which is wanted, cannot be had.
pub fn decide(wanted: Wanted, findings: Findings) -> Result<Verdict, String> {
    match (wanted, findings.against) {
        (Wanted::Kvm, Some(against)) => Err(against),
        (Wanted::Kvm, None) => Ok(told(Accelerator::Kvm)),
        (Wanted::Tcg, _) => Ok(told(Accelerator::Tcg)),
        (Wanted::Auto, Some(against)) => Ok(Verdict::settled(Accelerator::Tcg, against)),
        (Wanted::Auto, None) => Ok(match (findings.kept, findings.has_kernel) {
            (Some(kept), _) => kept,
            (None, true) => Verdict::trying(),
            (None, false) => Verdict::without_kernel(),
        }),
    }
}

fn told(accelerator: Accelerator) -> Verdict {
    Verdict::settled(
        accelerator,
        format!("the agent was told to use it (--accelerator {accelerator})"),
    )
}

/// Returns the verdict after another trial: a trial that was too slow, or could not be made, does
/// not overturn one that KVM has passed.
pub fn revised(before: &Verdict, found: &Verdict) -> Verdict {
    let proven = before.accelerator == Accelerator::Kvm && before.is_lasting();
    if proven && !found.is_lasting() { before.clone() } else { found.clone() }
}

/// Returns what to do where nothing on the host is against KVM and new machines are emulated all the
/// same; `None` where the first trial is still under way.
pub fn next_step(wanted: Wanted, standing: Standing) -> Option<&'static str> {
    match (wanted, standing) {
        (Wanted::Tcg, _) => Some("start the agent without --accelerator tcg and MVM_ACCELERATOR"),
        (_, Standing::Trying) => None,
        (_, Standing::WithoutKernel) => Some("mvm kernel fetch; KVM is then tried by itself"),
        (_, Standing::TimedOut | Standing::Settled) => Some(
            "mvm agent probe tries it again; mvm agent serve --accelerator kvm uses it untried",
        ),
    }
}

/// Returns whether a trial is due. `rested`: the pause after the last trial is over.
pub fn is_due(standing: Standing, has_kernel: bool, rested: bool) -> bool {
    has_kernel
        && match standing {
            Standing::Trying | Standing::WithoutKernel => true,
            Standing::TimedOut => rested,
            Standing::Settled => false,
        }
}

/// How long the first pause after a trial that was too slow is, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(3600)];

/// Returns how long to wait after so many trials in a row that were too slow: from one minute, twice
/// as long each time, to one hour.
pub fn pause_after(timeouts: u32) -> Duration {
    let [first, longest] = PAUSES;
    let times = 1_u32.checked_shl(timeouts.saturating_sub(1)).unwrap_or(u32::MAX);
    first.saturating_mul(times).min(longest)
}

/// How long a kernel may take in a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Altogether.
    pub limit: Duration,
    /// Without a new byte on its console.
    pub silence: Duration,
}

/// With hardware of one's own, the start takes about a second. Where KVM itself is emulated or the
/// host is busy it takes twenty, and between the firmware's last word and the panic of a kernel that
/// is told to be quiet there is no word at all.
pub const PATIENCE: Patience =
    Patience { limit: Duration::from_secs(60), silence: Duration::from_secs(30) };

impl Patience {
    /// Returns how much longer to wait, so long after the start and after the console's last byte
    /// (or the start, where there was none); zero where the time is over.
    pub fn left(&self, since_start: Duration, since_heard: Duration) -> Duration {
        let whole = self.limit.saturating_sub(since_start);
        whole.min(self.silence.saturating_sub(since_heard))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wanted() -> impl Strategy<Value = Wanted> {
        prop::sample::select(vec![Wanted::Auto, Wanted::Kvm, Wanted::Tcg])
    }

    fn standing() -> impl Strategy<Value = Standing> {
        prop::sample::select(vec![
            Standing::Trying,
            Standing::WithoutKernel,
            Standing::TimedOut,
            Standing::Settled,
        ])
    }

    fn trial() -> impl Strategy<Value = Trial> {
        prop_oneof![
            Just(Trial::Passed),
            "[a-z ]{0,20}".prop_map(Trial::Failed),
            "[a-z ]{0,20}".prop_map(Trial::TimedOut),
        ]
    }

    fn findings() -> impl Strategy<Value = Findings> {
        let against = prop::option::of("[a-z ]{1,20}");
        let kept = prop::option::of(trial().prop_map(Verdict::of))
            .prop_map(|kept| kept.filter(Verdict::is_lasting));
        (against, kept, any::<bool>()).prop_map(|(against, kept, has_kernel)| Findings {
            against,
            kept,
            has_kernel,
        })
    }

    proptest! {
        #[test]
        fn kvm_is_used_only_where_nothing_is_against_it_and_it_was_tried_or_told(
            wanted in wanted(), findings in findings(),
        ) {
            let kept = findings.kept.as_ref().map(|kept| kept.accelerator);
            match decide(wanted, findings.clone()) {
                Err(reason) => {
                    prop_assert_eq!(wanted, Wanted::Kvm);
                    prop_assert_eq!(Some(reason), findings.against);
                }
                Ok(verdict) => {
                    if verdict.accelerator == Accelerator::Kvm {
                        prop_assert!(findings.against.is_none());
                        prop_assert!(wanted == Wanted::Kvm || kept == Some(Accelerator::Kvm));
                    }
                    if wanted == Wanted::Tcg {
                        prop_assert_eq!(verdict.accelerator, Accelerator::Tcg);
                    }
                    // What is told needs no trial, and a trial needs a kernel.
                    let due = is_due(verdict.standing, findings.has_kernel, true);
                    prop_assert_eq!(verdict.standing == Standing::Trying, due);
                    prop_assert!(!due || wanted == Wanted::Auto);
                    prop_assert!(!verdict.reason.is_empty());
                }
            }
        }

        #[test]
        fn a_trial_that_was_too_slow_is_never_kept_and_always_repeated(
            trial in trial(), has_kernel: bool,
        ) {
            let slow = matches!(trial, Trial::TimedOut(_));
            let passed = trial == Trial::Passed;
            let verdict = Verdict::of(trial);
            prop_assert_eq!(verdict.is_lasting(), !slow);
            prop_assert_eq!(is_due(verdict.standing, true, true), slow);
            prop_assert_eq!(verdict.accelerator == Accelerator::Kvm, passed);
            prop_assert!(!is_due(verdict.standing, has_kernel, false));
        }

        #[test]
        fn only_a_trial_that_says_something_overturns_kvm(before in trial(), after in trial()) {
            let (before, found) = (Verdict::of(before), Verdict::of(after));
            let now = revised(&before, &found);
            prop_assert!(now == found || (now == before && now.accelerator == Accelerator::Kvm));
            prop_assert!(!found.is_lasting() || now == found);
            prop_assert!(before.accelerator == Accelerator::Kvm || now == found);
        }

        #[test]
        fn whoever_is_emulated_without_need_learns_what_to_do(
            wanted in wanted(), standing in standing(),
        ) {
            let waits = standing == Standing::Trying && wanted != Wanted::Tcg;
            prop_assert_eq!(next_step(wanted, standing).is_none(), waits);
        }

        #[test]
        fn nothing_is_tried_without_a_kernel(standing in standing(), rested: bool) {
            prop_assert!(!is_due(standing, false, rested));
        }

        #[test]
        fn pauses_grow_to_an_hour(timeouts in 0_u32..1000) {
            let (pause, next) = (pause_after(timeouts), pause_after(timeouts + 1));
            prop_assert!(pause <= next && next <= Duration::from_secs(3600));
            prop_assert!(pause >= Duration::from_secs(60));
        }

        #[test]
        fn a_console_that_speaks_buys_time_but_never_more_than_the_whole(
            start in 0_u64..200, heard in 0_u64..200,
        ) {
            let heard = heard.min(start);
            let left = PATIENCE.left(Duration::from_secs(start), Duration::from_secs(heard));
            prop_assert!(left + Duration::from_secs(start) <= PATIENCE.limit.max(Duration::from_secs(start)));
            prop_assert_eq!(left.is_zero(), start >= 60 || heard >= 30);
        }
    }
}
