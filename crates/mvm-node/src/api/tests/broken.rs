//! Tests that a response with an error in the middle does not look complete.

use super::{agent, app};
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use http_body_util::BodyExt;
use mvm_server::Peer;
use serde_json::json;
use tower::ServiceExt;

/// A log that can no longer be read, because of the disk or because the agent stops, aborts its
/// response. If the response ended normally, the reader would take the part for the whole.
#[tokio::test]
async fn what_cannot_be_read_is_not_the_end_of_a_log() {
    let (dir, agent) = agent().await;
    let job = json!({
        "id": "j-00000001", "pool": "ci/runners", "holder": "uid:0", "state": "running",
        "spec": { "argv": ["true"] }, "created_at": 1, "queued_at": 1,
    });
    let job: mvm_model::Job = serde_json::from_value(job).expect("a job");
    let id = job.id;
    let put = agent.base.records.change(|_, changes| {
        changes.put_job(job);
        Ok(())
    });
    put.await.expect("written");
    let instance = "i-00000000".parse().expect("an id");
    // A folder can be opened like a file, and gives an error when it is read.
    let unreadable = [
        (agent.work.jobs.files.log(id), "/v1/jobs/j-00000001/log".to_owned()),
        (agent.work.jobs.files.log(id), "/v1/jobs/j-00000001/log?follow=true".to_owned()),
        (
            agent.base.state_dir.files(instance).console(),
            "/v1/tenants/ci/pools/runners/instances/i-00000000/logs".to_owned(),
        ),
    ];
    for (path, _) in &unreadable {
        std::fs::create_dir_all(path).expect("a folder");
    }
    let app = app(agent);
    for (_, path) in unreadable {
        let mut request = Request::builder().uri(&path).body(Body::empty()).expect("a request");
        request.extensions_mut().insert(ConnectInfo(Peer::Unix { uid: Some(0) }));
        let response = app.clone().oneshot(request).await.expect("an answer");
        assert_eq!(response.status(), 200, "{path}");
        let body = response.into_body().collect().await;
        assert!(body.is_err(), "{path} ends as if it were whole");
    }
    drop(dir);
}
