//! Section 1.5: browsers.

use crate::support::{APP, Api, SUBMIT, at, id, input};
use axum::body::Body;
use http::Request;

async fn preflight(api: &Api, path: &str, headers: &[(&str, &str)]) -> crate::support::Reply {
    let mut request = Request::options(path).header("origin", "https://page.example");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    api.send(request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn every_route_answers_preflights_without_a_key() {
    let api = Api::new().await;
    let job = id(1);
    for path in [
        SUBMIT.to_owned(),
        format!("{APP}/t2v"),
        format!("/run{APP}/t2v"),
        at(job, "/status"),
        at(job, "/status/stream"),
        at(job, ""),
        at(job, "/cancel"),
        "/api/fal/proxy".into(),
        "/rest/tokens/".into(),
        "/rest/storage/upload/initiate".into(),
        "/files/b/x/clips.zip".into(),
        "/v1/models".into(),
        "/nothing".into(),
        "/".into(),
    ] {
        let reply = preflight(&api, &path, &[("access-control-request-method", "POST")]).await;
        assert_eq!((reply.status.as_u16(), reply.body.len()), (204, 0), "{path}");
        assert_eq!(reply.header("access-control-allow-origin"), Some("*"), "{path}");
        assert_eq!(
            reply.header("access-control-allow-methods"),
            Some("GET, HEAD, POST, PUT, DELETE, OPTIONS")
        );
    }
}

#[tokio::test]
async fn a_preflight_allows_the_headers_it_asks_for() {
    let api = Api::new().await;
    let asked = "authorization,content-type,x-fal-queue-priority,x-custom";
    let reply = preflight(&api, SUBMIT, &[("access-control-request-headers", asked)]).await;
    assert_eq!(reply.header("access-control-allow-headers"), Some(asked));
}

#[tokio::test]
async fn a_preflight_that_asks_for_none_is_told_all() {
    let api = Api::new().await;
    let reply = preflight(&api, SUBMIT, &[]).await;
    let allowed: Vec<&str> = reply.header("access-control-allow-headers").unwrap().split(", ").collect();
    for name in [
        "authorization",
        "content-type",
        "x-fal-target-url",
        "x-fal-queue-priority",
        "x-fal-request-timeout",
        "x-fal-request-start-timeout",
        "x-fal-runner-hint",
        "x-fal-object-lifecycle",
        "x-fal-object-lifecycle-preference",
        "x-fal-store-io",
        "x-fal-no-retry",
        "x-fal-retry-config",
        "x-fal-tags",
        "x-fal-file-name",
        "x-app-fal-disable-fallback",
        "range",
    ] {
        assert!(allowed.contains(&name), "{name} in {allowed:?}");
    }
}

#[tokio::test]
async fn a_private_network_is_allowed_when_asked_for() {
    let api = Api::new().await;
    let asked = preflight(&api, SUBMIT, &[("access-control-request-private-network", "true")]).await;
    assert_eq!(asked.header("access-control-allow-private-network"), Some("true"));
    let unasked = preflight(&api, SUBMIT, &[]).await;
    assert_eq!(unasked.header("access-control-allow-private-network"), None);
}

#[tokio::test]
async fn every_answer_may_be_read_by_any_page() {
    let api = Api::new().await;
    let job = api.submit().await;
    let wrong_key = Request::post(SUBMIT).header("authorization", "Key a:b").body(Body::empty()).unwrap();
    for (expected, reply) in [
        (200, api.post(SUBMIT, &input()).await),
        (202, api.status(job).await),
        (400, api.result(job).await),
        (401, api.send(wrong_key).await),
        (404, api.get("/nothing").await),
        (405, api.get(SUBMIT).await),
        (400, api.get("/api/fal/proxy").await),
        (400, api.call("POST", SUBMIT, &[("x-fal-request-timeout", "x")], "{}").await),
        (404, api.get("/v1/nothing").await),
    ] {
        assert_eq!(reply.status, expected);
        assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
        let exposed: Vec<&str> = reply.header("access-control-expose-headers").unwrap().split(", ").collect();
        for name in [
            "x-fal-request-id",
            "x-fal-request-timeout-type",
            "x-fal-error-type",
            "x-fal-billable-units",
            "etag",
            "content-range",
        ] {
            assert!(exposed.contains(&name), "{name}");
        }
        assert_eq!(reply.header("access-control-allow-credentials"), None, "cookies are never used");
    }
}
