//! `mvm bench --density`: what a warm clone takes of the host's memory.

use super::context::Context;
use super::instance::go;
use super::progress::with_stage;
use crate::error::CliError;
use crate::output::{self, Outcome};
use mvm_api::types::{CreateInstance, InstanceStats, InstanceView};
use mvm_api::{Client, paths};
use mvm_model::footprint::Footprint;
use mvm_model::{Code, InstanceRef, Mib, PoolRef, WayUp};
use serde::Serialize;

/// What warm clones take, each on average.
#[derive(Debug, Serialize)]
struct Density {
    pool: PoolRef,
    mem_mib: Mib,
    clones: u32,
    /// What one more clone takes.
    own_kib: u64,
    /// The same, with its part of what it shares.
    proportional_kib: u64,
    #[serde(flatten)]
    footprint: Footprint,
}

/// Makes the clones, measures them, and destroys them.
pub(super) async fn run(context: &Context, client: &Client, pool: PoolRef, clones: u32) -> Outcome {
    let mut made = Vec::new();
    let work = measure(client, pool, clones, &mut made);
    let outcome = with_stage(context.format, "making and measuring the clones", work).await;
    let gone = destroy(client, &made).await;
    let density = outcome?;
    gone?;
    output::show(context.format, &density, &["OF A WARM CLONE, ON AVERAGE", "MIB"], rows(&density))
}

async fn measure(
    client: &Client,
    pool: PoolRef,
    clones: u32,
    made: &mut Vec<InstanceRef>,
) -> Result<Density, CliError> {
    let path = paths::pool_part(&pool, "instances");
    let mut mem_mib = Mib::default();
    for _ in 0..clones {
        let clone: InstanceView = client.post(&path, &CreateInstance { start: true }).await?;
        made.push(clone.reference.clone());
        if clone.way_up != Some(WayUp::Cloned) {
            let what = format!(
                "{} was not cloned: the pool has no template (`mvm pool build {pool}` makes one)",
                clone.reference
            );
            return Err(CliError::new(Code::BenchFailed, what));
        }
        go(client, &clone.reference, "warm").await?;
        mem_mib = clone.instance_resources.mem_mib;
    }
    // All are there, so that what they share counts as shared.
    let mut density = Density {
        pool,
        mem_mib,
        clones,
        own_kib: 0,
        proportional_kib: 0,
        footprint: Footprint::default(),
    };
    for clone in &*made {
        let stats: InstanceStats = client.get(&paths::instance_part(clone, "stats")).await?;
        let footprint = stats.footprint.ok_or_else(|| {
            CliError::new(Code::BenchFailed, format!("{clone} has no process, or an older agent"))
        })?;
        density.proportional_kib += stats.proportional_kib;
        density.footprint += footprint;
    }
    let clones = u64::from(clones);
    density.proportional_kib /= clones;
    density.footprint = density.footprint / clones;
    density.own_kib = density.footprint.own_kib();
    Ok(density)
}

/// Destroys all of them, also after an error. Returns the first error.
async fn destroy(client: &Client, made: &[InstanceRef]) -> Result<(), CliError> {
    let mut outcome = Ok(());
    for clone in made {
        let gone: Result<serde_json::Value, _> = client.delete(&paths::instance(clone)).await;
        outcome = outcome.and(gone.map(drop));
    }
    Ok(outcome?)
}

fn rows(density: &Density) -> Vec<Vec<String>> {
    let Footprint {
        guest_kib,
        translation_kib,
        heap_kib,
        anonymous_kib,
        program_kib,
        shared_kib,
        huge_kib,
    } = density.footprint;
    let all = [
        ("its own", density.own_kib),
        ("  guest's memory", guest_kib),
        ("  translated code", translation_kib),
        ("  heap", heap_kib),
        ("  other anonymous memory", anonymous_kib),
        ("  program and libraries", program_kib),
        ("shared with others, in full", shared_kib),
        ("its own and its part of what is shared", density.proportional_kib),
        ("of all this, in huge pages", huge_kib),
    ];
    let mib = |kib: u64| format!("{:.1}", kib as f64 / 1024.0);
    all.iter().map(|(what, kib)| vec![(*what).to_owned(), mib(*kib)]).collect()
}
