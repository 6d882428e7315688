//! Shortfalls: what the host lacks for the pools' settings, as users see it.

use super::{agent, app, ask};
use mvm_model::{Counts, Mib, Name};
use mvm_server::Peer;
use serde_json::Value;

#[tokio::test]
async fn pools_that_keep_more_up_than_the_host_has_say_so() {
    let (_dir, agent) = agent().await;
    let app = app(agent.clone());
    let root = Peer::Unix { uid: Some(0) };
    let shortfalls = async |path: &str| -> Vec<String> {
        let (status, text) = ask(&app, "GET", path, &root).await;
        assert_eq!(status, 200, "{text}");
        let shown: Value = serde_json::from_str(&text).expect("JSON");
        let shortfalls = shown["shortfalls"].as_array().cloned().unwrap_or_default();
        shortfalls.iter().map(|lack| lack["code"].as_str().expect("a code").to_owned()).collect()
    };
    let memory = "memory".to_owned();
    let pool = "/v1/tenants/ci/pools/runners";
    for path in [pool, "/v1/agent"] {
        assert!(!shortfalls(path).await.contains(&memory), "{path}");
    }
    // Either pool fits alone; both together do not.
    let host = agent.supplies.host.capacity().mem_mib;
    agent
        .base
        .records
        .change(|records, changes| {
            for tenant in ["ci", "lab"] {
                let tenant: Name = tenant.parse().expect("a name");
                let mut pool = records
                    .pools
                    .values()
                    .find(|p| p.reference.tenant == tenant)
                    .cloned()
                    .expect("a pool");
                pool.resources.mem_mib = Mib(host.0 / 2 + 1);
                pool.resources.vcpus = 255;
                pool.desired = Some(Counts { warm: 1, sleeping: 9, ..Counts::default() });
                changes.put_pool(pool);
            }
            Ok(())
        })
        .await
        .expect("written");
    assert!(
        shortfalls(pool).await.contains(&memory) && shortfalls("/v1/agent").await.contains(&memory)
    );
    assert!(shortfalls(pool).await.contains(&"vcpus".to_owned()));
    let (_, metrics) = ask(&app, "GET", "/metrics", &root).await;
    for lack in ["memory", "vcpus"] {
        assert!(metrics.contains(&format!("mvm_shortfall{{lack=\"{lack}\"}} 1")), "{metrics}");
    }
}
