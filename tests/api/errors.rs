//! Section 7.3: what the gateway itself refuses, and what happens when it breaks.

use crate::support::{APP, Api, SUBMIT, at, id, input};
use serde_json::json;
use server::Clock;

#[tokio::test]
async fn an_unknown_path_is_named() {
    let api = Api::new().await;
    for (path, named) in [
        ("/", "/"),
        ("/nothing", "/nothing"),
        ("/queue", "/"),
        ("/queue/fal-ai", "/fal-ai"),
        ("/rest/nothing", "/nothing"),
        ("/rest/storage/nothing", "/storage/nothing"),
        ("/storage/nothing", "/storage/nothing"),
        ("/cdn/files/nothing", "/files/nothing"),
        ("/files/nothing", "/files/nothing"),
        ("/api/nothing", "/api/nothing"),
    ] {
        api.get(path).await.is(404, json!({"detail": format!("Path {named} not found")}));
    }
    let question = at(id(1), "/nothing");
    let seen = question.strip_prefix("/queue").unwrap();
    api.get(&question).await.is(404, json!({"detail": format!("Path {seen} not found")}));
}

#[tokio::test]
async fn a_wrong_method_is_a_405_with_the_right_ones() {
    let api = Api::new().await;
    for (method, path, allow) in [
        ("GET", SUBMIT.to_owned(), "POST, OPTIONS"),
        ("DELETE", format!("/run{APP}/t2v"), "POST, OPTIONS"),
        ("POST", at(id(1), "/status"), "GET, HEAD, OPTIONS"),
        ("POST", at(id(1), "/cancel"), "PUT, OPTIONS"),
        ("PUT", at(id(1), ""), "GET, HEAD, OPTIONS"),
        ("GET", "/rest/tokens/".into(), "POST, OPTIONS"),
        ("POST", "/health".into(), "GET, HEAD, OPTIONS"),
    ] {
        let reply = api.call(method, &path, &[], "").await;
        reply.is(405, json!({"detail": "Method Not Allowed"}));
        assert_eq!(reply.header("allow"), Some(allow), "{method} {path}");
    }
}

#[tokio::test]
async fn the_proxy_route_refuses_foreign_targets() {
    let api = Api::new().await;
    for target in
        [None, Some("https://evil.example/"), Some("no url"), Some("https://fal.run.evil.example/x/y")]
    {
        let headers: Vec<_> = target.map(|target| ("x-fal-target-url", target)).into_iter().collect();
        api.call("POST", "/api/fal/proxy", &headers, "{}").await.is(400, json!("Invalid request"));
    }
}

#[tokio::test]
async fn every_answer_carries_a_request_id() {
    let api = Api::new().await;
    for (n, path) in ["/nothing", "/health", "/v1/meta", "/api/fal/proxy", SUBMIT].into_iter().enumerate() {
        let reply = api.get(path).await;
        assert_eq!(reply.header("x-fal-request-id"), Some(id(n as u64 + 1).to_string().as_str()), "{path}");
    }
    assert_eq!(
        api.call("OPTIONS", "/nothing", &[], "").await.header("x-fal-request-id"),
        Some(id(6).to_string().as_str())
    );
}

#[tokio::test]
async fn the_platform_has_its_own_error_shape() {
    let api = Api::new().await;
    let shape = |n: u64, kind: &str, message: &str| {
        json!({"error": {
            "type": kind,
            "message": message,
            "docs_url": format!("https://docs.fal.ai/errors/#{kind}"),
            "request_id": id(n),
        }})
    };
    api.get("/v1/nothing").await.is(404, shape(1, "not_found", "Path /v1/nothing not found"));
    api.post("/v1/models", &json!({})).await.is(405, shape(2, "validation_error", "Method Not Allowed"));
    let anonymous = http::Request::get("/v1/models").body(axum::body::Body::empty()).unwrap();
    api.send(anonymous).await.is(401, shape(3, "authorization_error", "Authorization header is required"));
    let unknown = format!("/v1/models/requests/{}/payloads", id(99));
    api.call("DELETE", &unknown, &[], "").await.is(404, shape(4, "not_found", "Request not found"));
}

#[tokio::test]
async fn a_panic_is_a_generic_500() {
    let api = Api::with(|options| options.clock = Clock::from_fn(|| panic!("the inner reason"))).await;
    let reply = api.post("/rest/tokens/", &json!({"allowed_apps": ["x"]})).await;
    reply.is(500, json!({"detail": "Internal server error", "error_type": "internal_error"}));
    assert_eq!(reply.header("x-fal-error-type"), Some("internal_error"));
    assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
    assert_eq!(api.post(SUBMIT, &input()).await.status, 200, "the server goes on");
    assert!(api.get("/metrics").await.text().contains("kiln_http_panics_total 1\n"));
}

#[tokio::test]
async fn a_broken_database_is_a_generic_500() {
    let api = Api::new().await;
    let job = api.submit().await;
    let mut connection = api.db.connect().await.unwrap();
    sqlx::query("alter table jobs rename to gone").execute(&mut connection).await.unwrap();
    let reply = api.status(job).await;
    reply.is(500, json!({"detail": "Internal server error", "error_type": "internal_error"}));
    assert_eq!(reply.header("x-fal-needs-retry"), Some("0"));
}

#[tokio::test]
async fn an_unreachable_database_is_a_503_worth_a_retry() {
    let cluster = testkit::pg::durable_cluster().await.unwrap();
    let options =
        store::Options { patience: std::time::Duration::from_millis(100), ..store::Options::default() };
    let store = store::Store::connect(cluster.url(), options).await.unwrap();
    let options = server::Options { auth: server::Auth::InsecureNoAuth, ..server::Options::default() };
    let api = Api::new().await;
    let router = api.router_of(store, options);
    let get = async |path: String| {
        let request = http::Request::get(path).body(axum::body::Body::empty()).unwrap();
        crate::support::Reply::read(tower::ServiceExt::oneshot(router.clone(), request).await.unwrap()).await
    };
    assert_eq!(get("/ready".into()).await.status, 200);
    cluster.stop_immediate().await.unwrap();
    let reply = get(at(id(1), "/status")).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json()["error_type"]),
        (503, &json!("runner_connection_error"))
    );
    assert_eq!((reply.header("x-fal-needs-retry"), reply.header("retry-after")), (Some("1"), Some("1")));
    assert_eq!(get("/ready".into()).await.status, 503);
    assert_eq!(get("/health".into()).await.status, 200);
}
