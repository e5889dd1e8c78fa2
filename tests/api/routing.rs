//! Section 1: one listener for all of fal's hosts. The table of routes is tested beside the resolver; here the
//! ways are walked from end to end.

use crate::support::{APP, Api, input};
use serde_json::json;

const SUBMIT_URL: &str = "https://queue.fal.run/fal-ai/ltx23-trainer-v2/t2v";

#[tokio::test]
async fn a_bare_path_is_the_queue() {
    let api = Api::new().await;
    let id = api.submit_with(&format!("{APP}/t2v"), &[]).await;
    assert_eq!(api.get(&format!("{APP}/requests/{id}/status")).await.status, 202);
}

#[tokio::test]
async fn the_proxy_route_submits_and_asks() {
    let api = Api::new().await;
    let target =
        |url: &str| api.request("POST", "/api/fal/proxy", &[("x-fal-target-url", url)], input().to_string());
    let reply = api.send(target(SUBMIT_URL)).await;
    assert_eq!(reply.status, 200);
    let body = reply.json();
    let id = body["request_id"].as_str().unwrap();
    assert_eq!(
        body["status_url"],
        format!("http://kiln.test:8080/queue{APP}/requests/{id}/status"),
        "addresses are the server's own, not the target's"
    );
    let url = format!("https://queue.fal.run{APP}/requests/{id}/status?logs=1");
    let reply = api.call("GET", "/api/fal/proxy", &[("x-fal-target-url", &url)], "").await;
    assert_eq!((reply.status.as_u16(), &reply.json()["request_id"]), (202, &json!(id)));
}

#[tokio::test]
async fn the_proxy_route_reads_the_targets_query() {
    let api = Api::new().await;
    let url = format!("{SUBMIT_URL}?fal_webhook=https%3A%2F%2Freceiver.example%2Fhook");
    let reply =
        api.call("POST", "/api/fal/proxy?fal_webhook=nonsense", &[("x-fal-target-url", &url)], "{}").await;
    assert_eq!(reply.status, 200);
    let due = api.store.due_webhooks(1, 1, &[], std::time::Duration::from_secs(1)).await.unwrap();
    assert_eq!(due[0].url, "https://receiver.example/hook");
}

#[tokio::test]
async fn the_proxy_route_wants_a_key_as_well() {
    let api = Api::new().await;
    let request = http::Request::post("/api/fal/proxy").header("x-fal-target-url", SUBMIT_URL);
    let reply = api.send(request.body(input().to_string().into()).unwrap()).await;
    assert_eq!(reply.status, 401);
}

#[tokio::test]
async fn fals_own_host_names_are_served() {
    let api = Api::new().await;
    let reply =
        api.call("POST", &format!("{APP}/t2v"), &[("host", "queue.fal.run")], input().to_string()).await;
    assert_eq!(reply.status, 200);
    let body = reply.json();
    let id = body["request_id"].as_str().unwrap();
    assert_eq!(body["response_url"], format!("https://queue.fal.run{APP}/requests/{id}"));
    let status =
        api.call("GET", &format!("{APP}/requests/{id}/status"), &[("host", "queue.fal.run:443")], "").await;
    assert_eq!(status.status, 202);
    let run = api.call("POST", &format!("{APP}/t2v"), &[("host", "fal.run")], "{}").await;
    assert_eq!(run.status, 422, "the run host answers itself");
    let token = api.call("POST", "/tokens/", &[("host", "rest.fal.ai")], r#"{"allowed_apps":["x"]}"#).await;
    assert_eq!(token.status, 200);
    let models = api.call("GET", "/v1/models", &[("host", "api.fal.ai")], "").await;
    assert_eq!(models.status, 200);
}

#[tokio::test]
async fn the_target_header_is_ignored_on_ordinary_requests() {
    let api = Api::new().await;
    let headers = [("x-fal-target-url", "https://fal.run/fal-ai/ltx23-trainer-v2/t2v")];
    let reply = api.call("POST", &format!("/queue{APP}/t2v"), &headers, "{}").await;
    assert_eq!(reply.status, 200, "submitted, not run");
}
