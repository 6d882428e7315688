//! The durations of operations' stages, read from the agent's metrics.

use crate::error::CliError;
use mvm_api::{Client, paths};
use serde::Serialize;
use std::collections::BTreeMap;

/// Sum in seconds and count of every stage since the agent started, by operation and stage.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Times(BTreeMap<(String, String), (f64, u64)>);

/// The mean time of one stage, over the operations of one path of the bench.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stage {
    /// The path of the bench.
    pub path: &'static str,
    /// The operation: `wake`, `clone` …
    pub operation: String,
    /// The operation's stage; `all` for the whole operation.
    pub stage: String,
    /// How often the stage was timed.
    pub count: u64,
    /// The mean in ms.
    pub mean_ms: f64,
}

impl Times {
    /// Reads the present times from the agent.
    pub async fn now(client: &Client) -> Result<Times, CliError> {
        let mut text = Vec::new();
        let take = |piece: &[u8]| text.extend_from_slice(piece);
        client.streams().download(paths::METRICS, take).await?;
        Ok(Times::parse(&String::from_utf8_lossy(&text)))
    }

    /// Parses metrics in the OpenMetrics text format.
    fn parse(text: &str) -> Times {
        let mut times = Times::default();
        for line in text.lines() {
            let Some((part, rest)) = line
                .strip_prefix("mvm_stage_seconds_")
                .and_then(|rest| rest.split_once('{'))
                .filter(|(part, _)| matches!(*part, "sum" | "count"))
            else {
                continue;
            };
            let Some((labels, value)) = rest.split_once("} ") else { continue };
            let label = |name: &str| {
                let value = labels.split_once(&format!("{name}=\""))?.1;
                Some(value.split_once('"')?.0.to_owned())
            };
            let (Some(key), Ok(value)) =
                (label("operation").zip(label("stage")), value.parse::<f64>())
            else {
                continue;
            };
            let known = times.0.entry(key).or_default();
            match part {
                "sum" => known.0 = value,
                _ => known.1 = value as u64,
            }
        }
        times
    }

    /// Returns the stages since `before`, labelled with this path. They are grouped by operation,
    /// the longest first.
    pub fn since(&self, before: &Times, path: &'static str) -> Vec<Stage> {
        let mut stages: Vec<Stage> = Vec::new();
        for ((operation, stage), (sum, count)) in &self.0 {
            let key = (operation.clone(), stage.clone());
            let (old_sum, old_count) = before.0.get(&key).copied().unwrap_or_default();
            let count = count.saturating_sub(old_count);
            if count > 0 {
                let mean_ms = (sum - old_sum) * 1000.0 / count as f64;
                let (operation, stage) = key;
                stages.push(Stage { path, operation, stage, count, mean_ms });
            }
        }
        stages.sort_by(|a, b| a.operation.cmp(&b.operation).then(b.mean_ms.total_cmp(&a.mean_ms)));
        stages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_read_and_their_difference_is_told() {
        let text = |sum: f64, count: u64| {
            format!(
                "# TYPE mvm_stage_seconds histogram\n\
                 mvm_stage_seconds_sum{{operation=\"wake\",stage=\"all\"}} {sum}\n\
                 mvm_stage_seconds_count{{operation=\"wake\",stage=\"all\"}} {count}\n\
                 mvm_stage_seconds_bucket{{le=\"0.1\",operation=\"wake\",stage=\"all\"}} 1\n\
                 mvm_stage_seconds_sum{{broken\nmvm_stage_seconds_count{{}} x\n"
            )
        };
        let (before, after) = (Times::parse(&text(1.0, 2)), Times::parse(&text(1.5, 4)));
        let told = after.since(&before, "way");
        assert_eq!(told.len(), 1);
        assert_eq!(
            (told[0].operation.as_str(), told[0].count, told[0].mean_ms),
            ("wake", 2, 250.0)
        );
        assert_eq!(after.since(&after, "way"), []);
    }
}
