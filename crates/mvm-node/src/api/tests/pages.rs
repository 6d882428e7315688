//! Tests of every list's pages.

use super::{agent, app, ask};
use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use http_body_util::BodyExt;
use mvm_api::page::next_of;
use mvm_api::routes::{ROUTES, ResponseBody, Server};
use mvm_server::Peer;
use serde_json::Value;
use tower::ServiceExt;

/// Returns the paths of all lists, filled in with the seeded node's names.
fn lists() -> Vec<String> {
    let listed = |route: &&mvm_api::routes::Route| {
        matches!(route.shape.gives, ResponseBody::List(_)) && route.is_of(Server::Agent)
    };
    let paths = ROUTES.iter().filter(listed).map(|route| route.path);
    paths.map(|path| path.replace("{tenant}", "ci").replace("{pool}", "runners")).collect()
}

/// Requests a page as root; returns its items and the path of the next page.
async fn page(app: &Router, path: &str) -> (Vec<Value>, Option<String>) {
    let mut request = Request::builder().uri(path).body(Body::empty()).expect("a request");
    request.extensions_mut().insert(ConnectInfo(Peer::Unix { uid: Some(0) }));
    let response = app.clone().oneshot(request).await.expect("an answer");
    assert_eq!(response.status(), 200, "{path}");
    let link = response.headers().get("link").map(|link| link.to_str().expect("text").to_owned());
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    let next = link.map(|link| next_of(&link).expect("a next page").to_owned());
    (serde_json::from_slice(&body).expect("an array"), next)
}

#[tokio::test]
async fn every_list_has_pages() {
    let (_dir, agent) = agent().await;
    // There are two logs, each of which begins with its first record.
    let app = app(agent.clone());
    let root = Peer::Unix { uid: Some(0) };
    for tenant in ["ci", "lab"] {
        ask(&app, "POST", &format!("/v1/tenants/{tenant}/pools/none/scale"), &root).await;
    }
    let lists = lists();
    assert!(lists.len() > 10, "{lists:?}");
    let mut long = Vec::new();
    for path in &lists {
        let (whole, next) = page(&app, path).await;
        assert_eq!(next, None, "{path}");
        let (mut pages, mut at) = (Vec::new(), Some(format!("{path}?limit=1")));
        while let Some(next) = at {
            let (items, more) = page(&app, &next).await;
            assert!(items.len() <= 1, "{next} gives {items:?}");
            pages.extend(items);
            at = more;
        }
        assert_eq!(pages, whole, "{path}");
        if whole.len() > 1 {
            long.push(path.as_str());
        }
        for bad in ["limit=0", "limit=10001", "limit=x", "after=!", "after=a", "limit=1&limit=1"] {
            let (status, body) = ask(&app, "GET", &format!("{path}?{bad}"), &root).await;
            assert_eq!(status, 400, "{path}?{bad}");
            assert!(body.contains(r#""code":"invalid_value""#), "{path}?{bad}: {body}");
        }
        let (status, _) = ask(&app, "GET", &format!("{path}?nothing=1"), &root).await;
        assert_eq!(status, 400, "{path}: a parameter that nobody knows is refused");
    }
    // The lists have more than one item.
    for path in ["/v1/tenants", "/v1/pools", "/v1/instances", "/v1/leases", "/v1/events"] {
        assert!(long.contains(&path), "{path} of {long:?}");
    }
    // The link to the next page keeps the filters.
    let (_, next) = page(&app, "/v1/events?limit=1&since=0").await;
    assert!(next.expect("a next page").contains("&since=0"));
}
