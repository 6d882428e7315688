//! Measures what each call of the QEMU driver costs: `MVM_TEST_KERNEL=vmlinux cargo run --release
//! -p mvm-hypervisor --example hv_bench -- [MiB]`. Prints the median and the worst in ms.

#[path = "../tests/support/mod.rs"]
mod support;

use mvm_hypervisor::{Hypervisor, RestoreMemory};
use mvm_model::Mib;
use std::time::Instant;
use support::{Lab, counts_beyond, driver, unrecorded};

const ROUNDS: usize = 15;

fn report(what: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{what:32} p50 {median:8.2} ms   worst {worst:8.2} ms");
}

async fn timed<T>(times: &mut Vec<f64>, work: impl Future<Output = T>) -> T {
    let start = Instant::now();
    let value = work.await;
    times.push(start.elapsed().as_secs_f64() * 1000.0);
    value
}

#[tokio::main]
async fn main() {
    let lab = Lab::new();
    let mut spec = lab.spec("bench");
    spec.mem_mib = std::env::args().nth(1).and_then(|mib| mib.parse().ok()).map_or(Mib(512), Mib);
    let driver = driver().await;
    let snapshot = lab.dir.join("snapshot");
    let start = Instant::now();
    let mut machine = driver.boot(&spec, &unrecorded).await.expect("boot");
    println!("boot returns after {:?}", start.elapsed());
    counts_beyond(&spec, 0).await;
    println!("the guest's init speaks after {:?}; {}", start.elapsed(), spec.mem_mib);
    let mut times: [Vec<f64>; 6] = Default::default();
    for _ in 0..ROUNDS {
        timed(&mut times[0], machine.pause()).await.expect("pause");
        timed(&mut times[1], machine.resume()).await.expect("resume");
        machine.pause().await.expect("pause");
        timed(&mut times[2], machine.snapshot(&snapshot, None)).await.expect("snapshot");
        timed(&mut times[3], machine.kill()).await.expect("kill");
        let restore = driver.restore(&spec, &snapshot, RestoreMemory::Own, &unrecorded);
        let start = Instant::now();
        machine = timed(&mut times[4], restore).await.expect("restore");
        machine.resume().await.expect("resume");
        times[5].push(start.elapsed().as_secs_f64() * 1000.0);
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    let names = ["pause", "resume", "snapshot", "kill", "restore", "restore and resume"];
    for (name, times) in names.into_iter().zip(times) {
        report(name, times);
    }
    println!("{:?}", machine.stats().await.expect("stats"));
    machine.kill().await.expect("kill");
}
