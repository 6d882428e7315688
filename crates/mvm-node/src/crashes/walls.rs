//! Somebody clears nftables under the agent: nobody gets a machine without its walls, they are back at once,
//! and it is told.

use super::host::{Host, own_network};
use super::operations::{instance, pool, runners, wish};
use crate::Result;
use crate::node::Node;
use crate::walls;
use mvm_model::lease::Purpose;
use mvm_model::{Mover, Recycle, State};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a distribution's firewall does when it is restarted.
const FLUSH: &str = "flush ruleset";

fn nft(words: &str) -> String {
    let output = Command::new("nft").args(words.split(' ')).output().expect("nft");
    assert!(output.status.success(), "nft {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The tables of ours that the kernel has.
fn tables() -> usize {
    nft("list tables").matches("mvm_").count()
}

/// In a network of its own, with an agent whose pool is built.
fn on_a_node(work: impl AsyncFnOnce(Arc<Node>) -> Result<()>) {
    own_network();
    let host = Host::new();
    let outcome = host.agent(async |node| {
        pool(&node, Recycle::Reset, None).await?;
        work(node).await
    });
    host.disconnect();
    outcome.expect("the agent lives").expect("all goes well");
}

#[test]
fn nobody_gets_a_machine_whose_walls_are_gone() {
    on_a_node(async |node| {
        for state in [State::Running, State::Warm, State::Sleeping] {
            instance(&node, state).await?;
        }
        let mut made: Vec<_> =
            node.read(|world| world.instances.values().map(|i| i.id).collect()).await;
        while let Some(id) = made.pop() {
            nft(FLUSH);
            node.bring(id, State::Running, &Mover::Agent).await?;
            assert_eq!(tables(), 2, "a machine runs without walls");
        }
        nft(FLUSH);
        let (claimed, _) = node.claim(&runners(), &wish(Purpose::Run)).await?;
        assert_eq!(tables(), 2, "a claim got a machine without walls");
        assert_eq!(claimed.state, State::Running);
        Ok(())
    });
}

#[test]
fn walls_that_somebody_tears_down_are_back_within_seconds() {
    on_a_node(async |node| {
        instance(&node, State::Running).await?;
        instance(&node, State::Sleeping).await?;
        let watch = tokio::spawn(walls::watch(node.clone()));
        let chain = format!("flush chain inet mvm_{} out_of_tenant", node.parts.root.short_id());
        let wounds =
            [(FLUSH, "all tables are gone"), (&chain, "chain inet out_of_tenant was changed")];
        for (wound, said) in wounds {
            let (since, times) = (node.newest_event(), node.passes.walls_restored.get());
            nft(wound);
            let began = Instant::now();
            while node.passes.walls_restored.get() == times || node.newest_event() == since {
                assert!(began.elapsed() < Duration::from_secs(5), "{wound}: nobody mends it");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let told = node.events_after(since).await?;
            // Of the machine that runs, and of no other.
            assert_eq!(told.len(), 1, "{told:?}");
            assert_eq!((told[0].cause.as_str(), told[0].to), ("firewall", State::Running));
            let reason = told[0].reason.as_deref().unwrap_or_default();
            assert!(reason.contains(said), "{wound}: {reason}");
            assert_eq!(tables(), 2);
        }
        // What is somebody else's is no matter of ours.
        let times = node.passes.walls_restored.get();
        nft("add table ip another");
        node.behind_walls().await?;
        node.keep_walls().await;
        assert_eq!(node.passes.walls_restored.get(), times);
        watch.abort();
        Ok(())
    });
}
