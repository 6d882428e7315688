//! The accelerator of new machines: chosen by a trial as soon as there is a kernel to try KVM with,
//! and again after a trial that was too slow, or when somebody asks.
//!
//! Until the first trial is over, whatever would start a machine from a kernel or a template waits
//! for it ([`AcceleratorChoice::settled`]). A machine keeps the accelerator that it was started
//! with; a later choice is for the machines after it.

#[cfg(test)]
mod tests;

use crate::audit::Auditor;
use crate::blocking::blocking;
use crate::labels::Labels;
use crate::locks::locked;
use crate::wake::Wake;
use async_trait::async_trait;
use mvm_hypervisor::qemu::{KvmProbe, QemuDriver};
use mvm_image::ImageStore;
use mvm_model::Accelerator;
use mvm_model::accelerator::{
    Findings, Standing, Trial, Verdict, Wanted, decide, is_due, pause_after, revised,
};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as Lock};
use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use tokio::time::Instant;

/// What the choice needs of its host.
#[async_trait]
pub(crate) trait KvmHost: Send + Sync + 'static {
    /// Returns why KVM cannot run machines, as far as that can be found without a guest.
    fn against(&self) -> Option<String>;

    /// Returns a kernel to try KVM with, if there is one.
    async fn kernel(&self) -> Option<PathBuf>;

    /// Returns the verdict of an earlier agent, if it still holds.
    fn kept(&self) -> Option<Verdict>;

    /// Keeps a verdict for the agents after this one.
    fn keep(&self, verdict: &Verdict);

    /// Starts a kernel under KVM.
    async fn try_with(&self, kernel: &Path) -> Trial;

    /// Uses this accelerator for the machines after this call.
    fn switch(&self, to: Accelerator);
}

/// A host with QEMU.
pub(crate) struct QemuHost {
    pub(crate) driver: QemuDriver,
    pub(crate) probe: KvmProbe,
    pub(crate) images: ImageStore,
}

#[async_trait]
impl KvmHost for QemuHost {
    fn against(&self) -> Option<String> {
        self.probe.against()
    }

    async fn kernel(&self) -> Option<PathBuf> {
        let images = self.images.clone();
        blocking(move || Ok(any_kernel(&images))).await.ok().flatten()
    }

    fn kept(&self) -> Option<Verdict> {
        self.probe.kept()
    }

    fn keep(&self, verdict: &Verdict) {
        self.probe.keep(verdict);
    }

    async fn try_with(&self, kernel: &Path) -> Trial {
        self.probe.try_with(kernel).await
    }

    fn switch(&self, to: Accelerator) {
        self.driver.switch(to);
    }
}

/// Returns the default kernel, or else that of the newest image: a node of a fleet may receive
/// images and never import a kernel.
fn any_kernel(images: &ImageStore) -> Option<PathBuf> {
    let default = images.default_kernel().ok().flatten().map(|kernel| kernel.path);
    let newest = || images.list().ok()?.into_iter().max_by_key(|image| image.built_at);
    default.or_else(|| newest().map(|image| image.kernel))
}

/// The outcome of a trial that somebody asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Probed {
    /// The trial's own verdict.
    pub found: Verdict,
    /// The verdict in force before the trial, and the one after it.
    pub before: Verdict,
    pub after: Verdict,
}

/// The trials that were too slow, in a row.
#[derive(Default)]
struct Attempts {
    timeouts: u32,
    /// When the next trial may begin; at once where absent.
    rests_until: Option<Instant>,
}

/// The figures of the choice.
#[derive(Default)]
struct Figures {
    trials: Family<Labels, Counter>,
    changes: Counter,
}

/// The choice of the accelerator for new machines.
pub(crate) struct AcceleratorChoice {
    /// The host; absent where machines are simulated.
    host: Option<Box<dyn KvmHost>>,
    wanted: Wanted,
    verdict: watch::Sender<Verdict>,
    /// Held during a trial.
    turn: Arc<Mutex<()>>,
    attempts: Lock<Attempts>,
    figures: Figures,
}

impl std::fmt::Debug for AcceleratorChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("AcceleratorChoice").field(&*self.verdict.borrow()).finish()
    }
}

impl AcceleratorChoice {
    /// Makes the choice for a host as far as that needs no trial. The error is the reason why KVM,
    /// which is wanted, cannot be had.
    pub(crate) async fn of(wanted: Wanted, host: impl KvmHost) -> Result<Arc<Self>, String> {
        let findings = Findings {
            against: host.against(),
            kept: host.kept(),
            has_kernel: host.kernel().await.is_some(),
        };
        let verdict = decide(wanted, findings)?;
        host.switch(verdict.accelerator);
        Ok(Self::with(Some(Box::new(host)), wanted, verdict))
    }

    /// Returns the choice where no machine is real, and why none is.
    pub(crate) fn simulated(reason: impl Into<String>) -> Arc<Self> {
        let verdict = Verdict::settled(Accelerator::Tcg, reason);
        Self::with(None, Wanted::Auto, verdict)
    }

    fn with(host: Option<Box<dyn KvmHost>>, wanted: Wanted, verdict: Verdict) -> Arc<Self> {
        let (verdict, turn) = (watch::Sender::new(verdict), Arc::default());
        let (attempts, figures) = (Lock::default(), Figures::default());
        Arc::new(AcceleratorChoice { host, wanted, verdict, turn, attempts, figures })
    }

    /// Returns the verdict in force.
    pub(crate) fn verdict(&self) -> Verdict {
        self.verdict.borrow().clone()
    }

    /// Returns the operator's word.
    pub(crate) fn wanted(&self) -> Wanted {
        self.wanted
    }

    /// Begins a trial if one is due and none is under way. It goes on in the background.
    pub(crate) async fn keep(self: &Arc<Self>) {
        let rests = self.standing() == Standing::TimedOut && !self.is_rested();
        if rests || self.standing() == Standing::Settled {
            return;
        }
        if let Ok(turn) = self.turn.clone().try_lock_owned() {
            self.begin_if_due(turn).await;
        }
    }

    async fn begin_if_due(self: &Arc<Self>, turn: OwnedMutexGuard<()>) {
        let Some(host) = &self.host else { return };
        let kernel = host.kernel().await;
        let Some(kernel) = kernel.filter(|_| is_due(self.standing(), true, self.is_rested()))
        else {
            return;
        };
        if self.standing() == Standing::WithoutKernel {
            self.verdict.send_replace(Verdict::trying());
        }
        let this = self.clone();
        tokio::spawn(async move {
            let _turn = turn;
            let found = this.try_with(&kernel).await;
            this.put_in_force(&found);
        });
    }

    /// Waits until machines may be started: until the first trial is over, if there can be one.
    pub(crate) async fn settled(self: &Arc<Self>) {
        loop {
            let before = self.standing();
            if matches!(before, Standing::Settled | Standing::TimedOut) {
                return;
            }
            if before == Standing::WithoutKernel {
                // Whoever has the turn may be about to find a kernel.
                let turn = self.turn.clone().lock_owned().await;
                self.begin_if_due(turn).await;
            } else {
                self.keep().await;
            }
            if self.standing() == Standing::WithoutKernel {
                return;
            }
            let mut verdict = self.verdict.subscribe();
            // The sender is this service's own, so that it is there.
            let _ = verdict.wait_for(|verdict| verdict.standing != Standing::Trying).await;
        }
    }

    /// Tries KVM now, whatever is known of it, and puts the outcome in force unless the operator
    /// has chosen the accelerator.
    pub(crate) async fn probe(self: &Arc<Self>) -> Probed {
        let _turn = self.turn.lock().await;
        let before = self.verdict();
        let Some(host) = &self.host else {
            return Probed { found: before.clone(), after: before.clone(), before };
        };
        let found = match (host.against(), host.kernel().await) {
            (Some(against), _) => Verdict::settled(Accelerator::Tcg, against),
            (None, Some(kernel)) => self.try_with(&kernel).await,
            (None, None) => Verdict::without_kernel(),
        };
        if self.wanted == Wanted::Auto {
            self.put_in_force(&found);
        }
        Probed { found, before, after: self.verdict() }
    }

    /// Records changes of the accelerator in the audit log, until the task is aborted.
    pub(crate) async fn follow(self: Arc<Self>, auditor: Arc<Auditor>, wake: Wake) {
        let mut verdicts = self.verdict.subscribe();
        let mut before = verdicts.borrow_and_update().accelerator;
        self.keep().await;
        while verdicts.changed().await.is_ok() {
            let now = verdicts.borrow_and_update().clone();
            // What waited for the trial can go on.
            wake.notify();
            if now.accelerator == before {
                continue;
            }
            let target = format!("{before} to {}", now.accelerator);
            let done = async { Ok(()) };
            // The failure of the log is logged by the auditor.
            let _ = auditor.as_agent("accelerator.change", None, target, None, done).await;
            before = now.accelerator;
        }
    }

    /// Registers the metrics.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let used: Family<Labels, Gauge> = Family::default();
        if self.host.is_some() {
            let accelerator = self.verdict().accelerator.to_string();
            used.get_or_create(&vec![("accelerator", accelerator)]).set(1);
        }
        registry.register("accelerator", "What executes the instructions of new machines", used);
        let what = "Changes of what executes the instructions of new machines";
        registry.register("accelerator_changes", what, self.figures.changes.clone());
        let what = "Kernels that were started to try KVM, by outcome";
        registry.register("accelerator_trials", what, self.figures.trials.clone());
    }

    fn standing(&self) -> Standing {
        self.verdict.borrow().standing
    }

    fn is_rested(&self) -> bool {
        locked(&self.attempts).rests_until.is_none_or(|until| Instant::now() >= until)
    }

    /// Tries KVM with this kernel; the caller holds the turn. Returns the verdict, which is kept if
    /// it lasts.
    async fn try_with(&self, kernel: &Path) -> Verdict {
        let Some(host) = &self.host else { return self.verdict() };
        let trial = host.try_with(kernel).await;
        let outcome = match &trial {
            Trial::Passed => "passed",
            Trial::Failed(_) => "failed",
            Trial::TimedOut(_) => "timed_out",
        };
        self.figures.trials.get_or_create(&vec![("outcome", outcome.to_owned())]).inc();
        let found = Verdict::of(trial);
        let mut attempts = locked(&self.attempts);
        match found.is_lasting() {
            true => *attempts = Attempts::default(),
            false => {
                attempts.timeouts = attempts.timeouts.saturating_add(1);
                attempts.rests_until = Some(Instant::now() + pause_after(attempts.timeouts));
            }
        }
        drop(attempts);
        if found.is_lasting() {
            host.keep(&found);
        }
        found
    }

    /// Makes `found` the verdict in force, unless it says less than the present one.
    fn put_in_force(&self, found: &Verdict) {
        let before = self.verdict();
        let after = revised(&before, found);
        if let Some(host) = &self.host {
            host.switch(after.accelerator);
        }
        let (accelerator, reason) = (after.accelerator.as_str(), after.reason.clone());
        if after.accelerator != before.accelerator {
            self.figures.changes.inc();
            tracing::warn!(accelerator, reason, "new machines get another accelerator");
        } else if after != before {
            tracing::info!(accelerator, reason, "the accelerator of new machines");
        }
        self.verdict.send_replace(after);
    }
}
