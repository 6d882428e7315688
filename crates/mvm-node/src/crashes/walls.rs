//! Somebody clears nftables under the agent: no machine is handed out without its rules, the rules
//! are restored at once, and an event reports it.

use super::host::{Host, own_network};
use super::operations::{instance, pool, request, runners};
use crate::Result;
use crate::agent::Agent;
use crate::records::RecordSet;
use mvm_api::types::CreateTenant;
use mvm_model::lease::Purpose;
use mvm_model::network::TenantNetwork;
use mvm_model::{Actor, Quotas, Recycle, State};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The command that the restart of a distribution's firewall runs.
const FLUSH: &str = "flush ruleset";

fn nft(words: &str) -> String {
    run("nft", words)
}

fn run(program: &str, words: &str) -> String {
    let output = Command::new(program).args(words.split(' ')).output().expect(program);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns the number of mvm's tables in the kernel.
fn tables() -> usize {
    nft("list tables").matches("mvm_").count()
}

/// Runs `work` in a network of its own, with an agent whose pool is built.
fn on_a_node(work: impl AsyncFnOnce(Arc<Agent>) -> Result<()>) {
    own_network();
    let host = Host::new();
    let outcome = host.agent(async |agent| {
        pool(&agent, Recycle::Reset, None).await?;
        work(agent).await
    });
    host.disconnect();
    outcome.expect("the agent lives").expect("all goes well");
}

#[test]
fn nobody_gets_a_machine_whose_walls_are_gone() {
    on_a_node(async |agent| {
        for state in [State::Running, State::Warm, State::Sleeping] {
            instance(&agent, state).await?;
        }
        let mut made: Vec<_> =
            agent.base.records.read(|records| records.instances.values().map(|i| i.id).collect());
        while let Some(id) = made.pop() {
            nft(FLUSH);
            agent.lifecycle.instances.transition_to(id, State::Running, &Actor::Agent).await?;
            assert_eq!(tables(), 2, "a machine runs without walls");
        }
        nft(FLUSH);
        let (claimed, _) = agent.work.leases.claim(&runners(), &request(Purpose::Run)).await?;
        assert_eq!(tables(), 2, "a claim got a machine without walls");
        assert_eq!(claimed.state, State::Running);
        Ok(())
    });
}

#[test]
fn walls_that_somebody_tears_down_are_back_within_seconds() {
    on_a_node(async |agent| {
        instance(&agent, State::Running).await?;
        instance(&agent, State::Sleeping).await?;
        let watch = tokio::spawn(agent.lifecycle.link_keeper.clone().run());
        let chain =
            format!("flush chain inet mvm_{} out_of_tenant", agent.base.state_dir.short_id());
        let wounds =
            [(FLUSH, "all tables are gone"), (&chain, "chain inet out_of_tenant was changed")];
        for (wound, said) in wounds {
            let (since, times) =
                (agent.base.records.newest_event(), agent.supplies.links.repairs.rules.get());
            nft(wound);
            let began = Instant::now();
            while agent.supplies.links.repairs.rules.get() == times
                || agent.base.records.newest_event() == since
            {
                assert!(began.elapsed() < Duration::from_secs(5), "{wound}: nobody mends it");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let told = agent.base.records.events_after(since).await?;
            // Only the running machine gets an event.
            assert_eq!(told.len(), 1, "{told:?}");
            assert_eq!((told[0].cause.as_str(), told[0].to), ("firewall", State::Running));
            let reason = told[0].reason.as_deref().unwrap_or_default();
            assert!(reason.contains(said), "{wound}: {reason}");
            assert_eq!(tables(), 2);
        }
        // Tables of other programs do not concern the agent.
        let times = agent.supplies.links.repairs.rules.get();
        nft("add table ip another");
        agent.supplies.links.ensure_rules().await?;
        agent.lifecycle.link_keeper.repair().await;
        assert_eq!(agent.supplies.links.repairs.rules.get(), times);
        watch.abort();
        Ok(())
    });
}

#[test]
fn a_link_that_is_being_made_is_no_link_that_was_taken_away() {
    on_a_node(async |agent| {
        let watch = tokio::spawn({
            let agent = agent.clone();
            async move {
                loop {
                    agent.supplies.links.repair_all().await;
                    tokio::task::yield_now().await;
                }
            }
        });
        for net in 100..110 {
            let subnet = format!("10.250.{net}.0/24").parse().expect("a subnet");
            let network = TenantNetwork {
                tenant_net_id: net,
                ipv4_subnet: subnet,
                allow_public_subnet: false,
            };
            let name = format!("t{net}").parse().expect("a name");
            let wanted = CreateTenant { name, network, quotas: Quotas::default() };
            agent.pools.tenants.create(wanted).await?;
        }
        watch.abort();
        let repaired = agent.supplies.links.repairs.links.clone();
        for kind in ["link", "address", "forwarding"] {
            let times = repaired.get_or_create(&vec![("kind", kind.to_owned())]).get();
            assert_eq!(times, 0, "{kind}: nobody has taken anything away");
        }
        Ok(())
    });
}

#[test]
fn links_that_somebody_takes_away_are_back_within_seconds_or_told() {
    on_a_node(async |agent| {
        for state in [State::Running, State::Warm, State::Sleeping] {
            instance(&agent, state).await?;
        }
        let (bridge, taps) = agent.base.records.read(|records| {
            let wanted = agent.supplies.links.wanted(records);
            (wanted.bridges[0].clone(), wanted.taps)
        });
        assert_eq!(taps.len(), 2);
        let watch = tokio::spawn(agent.lifecycle.link_keeper.clone().run());
        let (name, tap) = (&bridge.name, &taps[0].name);
        let off = || std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").expect("a setting");
        let wounds: [(&str, &dyn Fn()); 5] = [
            ("net.ipv4.ip_forward: it is 0", &off),
            ("it has not 10.", &|| drop(run("ip", &format!("addr flush dev {name}")))),
            ("it is down", &|| drop(run("ip", &format!("link set {name} down")))),
            ("it is not a port of", &|| drop(run("ip", &format!("link set {tap} nomaster")))),
            ("it is not there", &|| drop(run("ip", &format!("link del {name}")))),
        ];
        for (said, wound) in wounds {
            let since = agent.base.records.newest_event();
            wound();
            let began = Instant::now();
            let heard = async || -> Result<String> {
                let told = agent.base.records.events_after(since).await?;
                let told = told.into_iter().filter(|event| event.cause == "network");
                let told: Vec<String> = told.filter_map(|event| event.reason).collect();
                Ok(told.join(" "))
            };
            while !heard().await?.contains(said) {
                assert!(began.elapsed() < Duration::from_secs(5), "{said}: nobody mends it");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            while !agent.supplies.links.verify().await?.differences.is_empty() {
                assert!(began.elapsed() < Duration::from_secs(5), "{said}: it is not mended");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        // A deleted tap cannot be restored: a new one would not belong to the machine's process.
        for tap in taps {
            let named = |records: &RecordSet| {
                let mut all = records.instances.values();
                all.find(|i| agent.supplies.links.tap_name(i) == tap.name)
                    .map(|i| i.id)
                    .expect("its instance")
            };
            let id = agent.base.records.read(named);
            run("ip", &format!("link del {}", tap.name));
            let began = Instant::now();
            loop {
                assert!(began.elapsed() < Duration::from_secs(5), "nobody tells it");
                let now = agent.base.records.read(|records| records.by_id(id).cloned())?;
                if now.state == State::Failed {
                    let reason = now.reason.unwrap_or_default();
                    assert!(reason.contains("was deleted under it"), "{reason}");
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        assert_eq!(agent.lifecycle.link_keeper.taps_lost.get(), 2);
        watch.abort();
        Ok(())
    });
}
