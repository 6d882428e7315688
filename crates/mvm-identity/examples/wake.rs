//! Measures what mutual TLS costs a warm wake: the same call over the agent's Unix socket and over
//! TLS, over kept connections and new ones, by turns.
//!
//! `cargo run --release -p mvm-identity --example wake -- SOCKET HOST:PORT IDENTITY-DIR INSTANCE [RUNS]`

use mvm_api::types::{MoveInstance, Moved};
use mvm_api::{Client, Problem, paths};
use mvm_identity::IdentityDir;
use mvm_identity::tls::{Credentials, Expect};
use mvm_model::InstanceRef;
use std::time::Instant;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [socket, address, identity, instance, rest @ ..] = &words[..] else {
        return Err("SOCKET HOST:PORT IDENTITY-DIR INSTANCE [RUNS]".into());
    };
    let runs: usize = rest.first().map_or(Ok(500), |text| text.parse())?;
    let instance: InstanceRef = instance.parse()?;
    let credentials = Credentials::open(IdentityDir::new(identity))?;
    let tls = || mvm_identity::client(address.as_str(), credentials.clone(), Expect::Node(None));
    let (unix_kept, tls_kept) = (Client::new(socket), tls());
    let mut samples: [Vec<f64>; 4] = Default::default();
    for _ in 0..runs {
        samples[0].push(wake(&unix_kept, &unix_kept, &instance).await?);
        samples[1].push(wake(&unix_kept, &tls_kept, &instance).await?);
        samples[2].push(wake(&unix_kept, &Client::new(socket), &instance).await?);
        samples[3].push(wake(&unix_kept, &tls(), &instance).await?);
    }
    let names = ["Unix, kept", "TLS, kept", "Unix, new", "TLS, new"];
    println!("{:12} {:>8} {:>8} {:>8}", "connection", "p50 ms", "p95 ms", "p99 ms");
    for (name, samples) in names.iter().zip(&mut samples) {
        samples.sort_by(f64::total_cmp);
        let at = |share: f64| samples[((samples.len() - 1) as f64 * share) as usize];
        println!("{name:12} {:>8.2} {:>8.2} {:>8.2}", at(0.5), at(0.95), at(0.99));
    }
    Ok(())
}

/// Pauses the instance through one client and wakes it through the other. Returns how long the wake
/// took in ms.
async fn wake(pauses: &Client, wakes: &Client, instance: &InstanceRef) -> Result<f64, Problem> {
    let refused = mvm_api::ClientError::into_problem;
    let order = MoveInstance::default();
    let warm = paths::instance_part(instance, "warm");
    let _: Moved = pauses.post(&warm, &order).await.map_err(refused)?;
    let path = paths::instance_part(instance, "wake");
    let began = Instant::now();
    let _: Moved = wakes.post(&path, &order).await.map_err(refused)?;
    Ok(began.elapsed().as_secs_f64() * 1000.0)
}
