//! The simulated driver keeps the trait's promises, also with injected faults.

use mvm_hypervisor::sim::{
    Call, Effect, FaultPlan, Guest, GuestChannel, Latencies, Moment, SimHypervisor,
};
use mvm_hypervisor::{
    Condition, Disk, Halt, Hypervisor, Kernel, Platform, ProcessIdentity, RestoreMemory, VmSpec,
};
use mvm_model::Code;
use mvm_model::Mib;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn spec(dir: &Path, name: &str) -> VmSpec {
    let own = dir.join(name);
    std::fs::create_dir_all(&own).unwrap();
    VmSpec {
        id: name.into(),
        marker: format!("mvm:sim:{name}"),
        memory: dir.join(format!("{name}.mem")),
        reserve_memory: true,
        dir: own,
        vcpus: 1,
        mem_mib: Mib(64),
        cpu_model: Default::default(),
        kernel: Kernel {
            image: "/kernel".into(),
            initrd: None,
            append: String::new(),
            platform: Platform::Pci,
        },
        disks: Vec::<Disk>::new(),
        nic: None,
        window: None,
        confine: None,
    }
}

fn unrecorded(_: &ProcessIdentity) {}

/// Answers each byte with itself.
#[derive(Debug)]
struct Echo;

#[async_trait::async_trait]
impl Guest for Echo {
    async fn serve(&self, mut channel: GuestChannel) {
        let mut byte = [0];
        while channel.stream.read_exact(&mut byte).await.is_ok() {
            if channel.stream.write_all(&byte).await.is_err() {
                return;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn it_keeps_the_contract_across_a_restart_of_its_holder() {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec(dir.path(), "a");
    let sim = SimHypervisor::new(Latencies::default(), FaultPlan::none(), Some(Arc::new(Echo)));
    assert!(sim.description().simulated);
    let machine = sim.boot(&spec, &unrecorded).await.unwrap();
    let process = machine.process();
    let second = sim.boot(&spec, &unrecorded).await;
    assert_eq!(second.err().unwrap().code(), Code::AlreadyRunning);
    let mut stream = tokio::net::UnixStream::connect(machine.channel()).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    let mut byte = [0];
    stream.read_exact(&mut byte).await.unwrap();
    let snapshot = dir.path().join("snapshot");
    assert_eq!(machine.snapshot(&snapshot, None).await.unwrap_err().code(), Code::NotPaused);

    drop(machine);
    let later = sim.clone();
    assert_eq!(later.find("mvm:sim:").unwrap().as_slice(), std::slice::from_ref(&process));
    let other = ProcessIdentity { start_time: process.start_time + 1, ..process.clone() };
    assert!(later.adopt(&spec, &other).await.unwrap().is_none());
    assert_eq!(later.kill_stray(&other).await.unwrap_err().code(), Code::NotOurs);
    let machine = later.adopt(&spec, &process).await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    machine.pause().await.unwrap();
    let counted = later.guest_ms(&spec.marker).unwrap();
    assert!(counted >= 10_000);
    tokio::time::sleep(Duration::from_secs(10)).await;
    machine.snapshot(&snapshot, None).await.unwrap();
    machine.kill().await.unwrap();
    machine.kill().await.unwrap();
    assert!(machine.exited().await.clean && later.find("mvm:").unwrap().is_empty());
    assert_eq!(machine.pause().await.unwrap_err().code(), Code::Gone);
    assert!(!spec.dir.join("channel.sock").exists());

    let machine = later.restore(&spec, &snapshot, RestoreMemory::Own, &unrecorded).await.unwrap();
    assert!(machine.stats().await.unwrap().paused);
    assert_eq!(later.guest_ms(&spec.marker), Some(counted), "a sleeper does not age");
    later.crash(&spec.marker);
    assert!(!machine.exited().await.clean);
}

#[tokio::test(start_paused = true)]
async fn every_fault_at_every_call_leaves_it_consistent() {
    let script = async |sim: &SimHypervisor, spec: &VmSpec, snapshot: &Path| {
        let machine = sim.boot(spec, &unrecorded).await?;
        machine.pause().await?;
        machine.snapshot(snapshot, None).await?;
        machine.kill().await?;
        let machine = sim.restore(spec, snapshot, RestoreMemory::Own, &unrecorded).await?;
        machine.resume().await?;
        machine.stats().await?;
        sim.kill_stray(&machine.process()).await
    };
    let all = {
        let dir = tempfile::tempdir().unwrap();
        let sim = SimHypervisor::new(Latencies::NONE, FaultPlan::none(), None);
        sim.set_faults(FaultPlan::none());
        script(&sim, &spec(dir.path(), "a"), &dir.path().join("s")).await.unwrap();
        sim.calls().len() as u64
    };
    assert_eq!(all, 8);
    for number in 1..=all {
        for effect in [Effect::Fail, Effect::Die, Effect::Delay(Duration::from_secs(5))] {
            let dir = tempfile::tempdir().unwrap();
            let spec = spec(dir.path(), "a");
            let sim =
                SimHypervisor::new(Latencies::NONE, FaultPlan::none().at(number, effect), None);
            let outcome = script(&sim, &spec, &dir.path().join("s")).await;
            match effect {
                Effect::Fail => assert_eq!(outcome.unwrap_err().code(), Code::Injected),
                Effect::Delay(_) => outcome.unwrap(),
                // A machine that dies while it is killed is no failure.
                Effect::Die | Effect::Halt(_) => drop(outcome),
            }
            let left = sim.find("mvm:").unwrap();
            assert!(effect == Effect::Fail || left.is_empty(), "{number} {effect:?}");
            sim.set_faults(FaultPlan::none());
            for process in left {
                sim.kill_stray(&process).await.unwrap();
            }
            sim.boot(&spec, &unrecorded).await.unwrap().kill().await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_is_killed_at_any_moment_ends_nothing() {
    for (call, moment, left) in [
        (Call::Boot, Moment::Before, None),
        (Call::Boot, Moment::During, Some(true)),
        (Call::Boot, Moment::After, Some(false)),
        (Call::Pause, Moment::Before, Some(false)),
        (Call::Pause, Moment::After, Some(true)),
        (Call::Snapshot, Moment::During, Some(true)),
        (Call::Kill, Moment::Before, Some(true)),
        (Call::Kill, Moment::After, None),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let spec = spec(dir.path(), "a");
        let plan = FaultPlan::none().on(call, 1, Effect::Halt(moment));
        let sim = SimHypervisor::new(Latencies::default(), plan, None);
        let snapshot = dir.path().join("s");
        let script = async {
            let machine = sim.boot(&spec, &unrecorded).await.unwrap();
            machine.pause().await.unwrap();
            machine.snapshot(&snapshot, None).await.unwrap();
            machine.kill().await.unwrap();
        };
        tokio::select! {
            () = script => panic!("{call:?} {moment:?}: it went on"),
            () = sim.halted() => {}
        }
        assert!(!snapshot.exists() || call == Call::Kill, "a whole snapshot or none");
        let later = sim.successor();
        let found = later.find("mvm:").unwrap();
        assert_eq!(found.len(), usize::from(left.is_some()), "{call:?} {moment:?}");
        if let (Some(process), Some(paused)) = (found.first(), left) {
            let machine = later.adopt(&spec, process).await.unwrap().unwrap();
            assert_eq!(machine.stats().await.unwrap().paused, paused, "{call:?} {moment:?}");
        }
    }
}

#[tokio::test]
async fn faults_can_be_laid_on_one_kind_of_call() {
    let dir = tempfile::tempdir().unwrap();
    let plan = FaultPlan::none().on(Call::Pause, 2, Effect::Fail).always(Call::Stats, Effect::Fail);
    let sim = SimHypervisor::new(Latencies::NONE, plan, None);
    let machine = sim.boot(&spec(dir.path(), "a"), &unrecorded).await.unwrap();
    machine.pause().await.unwrap();
    assert_eq!(machine.pause().await.unwrap_err().code(), Code::Injected);
    machine.pause().await.unwrap();
    assert!(machine.stats().await.is_err() && machine.stats().await.is_err());
}

#[tokio::test]
async fn a_boot_that_is_given_up_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec(dir.path(), "a");
    let sim = SimHypervisor::new(Latencies::default(), FaultPlan::none(), None);
    let boot = sim.boot(&spec, &unrecorded);
    assert!(tokio::time::timeout(Duration::from_millis(20), boot).await.is_err());
    assert!(sim.find("mvm:").unwrap().is_empty());
}

#[tokio::test]
async fn a_host_that_is_saved_outlives_its_process() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("kept");
    let open = || SimHypervisor::open(Latencies::NONE, Arc::new(Echo), &kept).unwrap();
    let (a, b, c) = (spec(dir.path(), "a"), spec(dir.path(), "b"), spec(dir.path(), "c"));
    let sim = open();
    let machine = sim.boot(&a, &unrecorded).await.unwrap();
    machine.pause().await.unwrap();
    sim.boot(&b, &unrecorded).await.unwrap();
    sim.boot(&c, &unrecorded).await.unwrap();
    let process = machine.process();
    sim.crash(&b.marker);
    std::fs::remove_dir_all(&c.dir).unwrap();
    std::fs::write(kept.join("torn"), "{").unwrap();
    drop((machine, sim));

    let later = open();
    assert_eq!(later.find("mvm:").unwrap().as_slice(), std::slice::from_ref(&process));
    let machine = later.adopt(&a, &process).await.unwrap().unwrap();
    assert!(machine.stats().await.unwrap().paused);
    let mut stream = tokio::net::UnixStream::connect(machine.channel()).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    let mut byte = [0];
    stream.read_exact(&mut byte).await.unwrap();
    machine.kill().await.unwrap();
    assert_eq!(std::fs::read_dir(&kept).unwrap().count(), 0);
    let next = later.boot(&a, &unrecorded).await.unwrap().process();
    assert_ne!((next.pid, next.start_time), (process.pid, process.start_time));
}

#[tokio::test]
async fn an_obstacle_halts_what_runs_until_it_is_gone_and_the_machine_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let sim = SimHypervisor::new(Latencies::NONE, FaultPlan::none(), None);
    let spec = spec(dir.path(), "a");
    let machine = sim.boot(&spec, &unrecorded).await.unwrap();
    let mut condition = machine.condition();
    assert_eq!(*condition.borrow_and_update(), Condition::Fine);
    let full = Halt::NoSpace { disk: Some("scratch".into()) };
    sim.set_obstacle(&spec.marker, Some(full.clone()));
    assert_eq!(*condition.borrow_and_update(), Condition::Halted(full.clone()));
    assert_eq!(sim.is_running(&spec.marker), Some(false));
    // A machine paused by its caller is not halted; another caller finds it as it is.
    machine.pause().await.unwrap();
    assert_eq!(*condition.borrow_and_update(), Condition::Fine);
    machine.resume().await.unwrap();
    let adopted = sim.successor().adopt(&spec, &machine.process()).await.unwrap().unwrap();
    assert_eq!(*adopted.condition().borrow(), Condition::Halted(full));
    sim.set_obstacle(&spec.marker, None);
    assert_eq!(sim.is_running(&spec.marker), Some(false));
    adopted.retry().await.unwrap();
    assert_eq!(*condition.borrow_and_update(), Condition::Fine);
    assert_eq!(sim.is_running(&spec.marker), Some(true));
    adopted.pause().await.unwrap();
    adopted.retry().await.unwrap();
    assert_eq!(sim.is_running(&spec.marker), Some(false), "its caller has paused it");
}
