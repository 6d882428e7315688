//! The durations of operations' stages. Every stage is a tracing span, and all spans below a span
//! named `operation` are observed in one histogram, including those of the crates below.

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Instant;
use tracing::field::{Field, Visit};
use tracing::instrument::Instrumented;
use tracing::span::{Attributes, Id};
use tracing::{Instrument, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// The name of the span around a whole operation.
const OPERATION: &str = "operation";
/// The name of the stage that stands for the whole operation.
const ALL: &str = "all";
/// The upper bounds of the histogram, in seconds.
const BUCKETS: [f64; 14] =
    [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0];

type Labels = Vec<(&'static str, String)>;

/// The durations of all stages since the process started. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Stages(Family<Labels, Histogram>);

impl Default for Stages {
    fn default() -> Self {
        Stages(Family::new_with_constructor(|| Histogram::new(BUCKETS)))
    }
}

impl Stages {
    /// Returns the layer for the process's tracing subscriber that observes the stages.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let ours = |meta: &Metadata<'_>| meta.is_span() && meta.target().starts_with("mvm_");
        StageLayer(self.clone()).with_filter(filter_fn(ours).and(LevelFilter::INFO))
    }

    /// Registers the histogram.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let what = "Time of the stages of operations on instances; `all` is the whole operation";
        registry.register("stage_seconds", what, self.0.clone());
    }
}

/// Runs work as the stage `name` of the current operation.
macro_rules! stage {
    ($name:literal, $work:expr) => {
        tracing::Instrument::instrument($work, tracing::info_span!($name))
    };
}
pub(crate) use stage;

/// Runs `work` as an operation on an instance, whose stages are then observed.
pub(crate) fn operation<F: Future>(
    kind: &'static str,
    id: mvm_model::InstanceId,
    work: F,
) -> Instrumented<F> {
    work.instrument(tracing::info_span!("operation", kind, %id))
}

struct StageLayer(Stages);

/// The data of a span: the operation that it belongs to, and when it began.
struct Running {
    kind: String,
    began: Instant,
}

struct Kind(Option<String>);

impl Visit for Kind {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "kind" {
            self.0 = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for StageLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let kind = if span.name() == OPERATION {
            let mut kind = Kind(None);
            attributes.record(&mut kind);
            kind.0
        } else {
            let kind = |parent: &Running| parent.kind.clone();
            span.parent().and_then(|parent| parent.extensions().get::<Running>().map(kind))
        };
        if let Some(kind) = kind {
            span.extensions_mut().insert(Running { kind, began: Instant::now() });
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let Some(Running { kind, began }) = span.extensions_mut().remove::<Running>() else {
            return;
        };
        let stage = if span.name() == OPERATION { ALL } else { span.name() };
        let labels = vec![("operation", kind), ("stage", stage.to_owned())];
        self.0.0.get_or_create(&labels).observe(began.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_model::InstanceId;
    use tracing_subscriber::layer::SubscriberExt;

    #[test]
    fn stages_are_counted_under_their_operation_and_nothing_else_is() {
        let stages = Stages::default();
        let subscriber = tracing_subscriber::registry().with(stages.layer());
        tracing::subscriber::with_default(subscriber, || {
            futures::executor::block_on(async {
                stage!("disks", async {}).await;
                let work = async {
                    stage!("disks", stage!("copy", async {})).await;
                    stage!("disks", async {}).await;
                    tracing::debug_span!("detail").in_scope(|| {});
                };
                operation("clone", InstanceId::from_number(1), work).await;
            });
        });
        let mut registry = Registry::with_prefix("mvm");
        stages.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        let counts: Vec<&str> = text.lines().filter(|line| line.contains("_count{")).collect();
        assert_eq!(counts.len(), 3, "{text}");
        for (stage, count) in [("all", 1), ("disks", 2), ("copy", 1)] {
            let line =
                format!("mvm_stage_seconds_count{{operation=\"clone\",stage=\"{stage}\"}} {count}");
            assert!(counts.contains(&line.as_str()), "{line}: {text}");
        }
    }
}
