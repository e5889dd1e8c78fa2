//! Section 9: what was asked, and forgetting it.

use crate::support::{APP, Api, SUBMIT, at, id, input, outcome};
use serde_json::{Value, json};
use spec::Failure;

const T2V: &str = "/v1/models/requests/by-endpoint?endpoint_id=fal-ai/ltx23-trainer-v2/t2v";

impl Api {
    /// The history, which is asked for at the time at which everything happens: just after it.
    async fn history(&self, query: &str) -> Value {
        let reply = self.get(&format!("{T2V}{query}")).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()
    }
}

fn ids(history: &Value) -> Vec<&str> {
    history["items"].as_array().unwrap().iter().map(|item| item["request_id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_finished_request_is_listed_with_its_times() {
    let api = Api::new().await;
    let id = api.finished().await;
    api.submit().await;
    let at = "2026-01-02T03:04:05.000000+00:00";
    let expected = json!({
        "items": [{
            "request_id": id,
            "endpoint_id": "fal-ai/ltx23-trainer-v2/t2v",
            "started_at": at,
            "sent_at": at,
            "ended_at": at,
            "status_code": 200,
            "duration": 0.0,
        }],
        "next_cursor": null,
        "has_more": false,
    });
    assert_eq!(api.history("").await, expected, "the waiting one is not");
}

#[tokio::test]
async fn payloads_come_when_asked_for() {
    let api = Api::new().await;
    api.finished().await;
    let item = api.history("&expand=payloads").await["items"][0].clone();
    assert_eq!((&item["json_input"], &item["json_output"]), (&input(), &outcome().to_result()));
}

#[tokio::test]
async fn input_that_is_not_to_be_kept_is_not_shown() {
    let api = Api::new().await;
    api.submit_with(SUBMIT, &[("x-fal-store-io", "0")]).await;
    let claim = api.claim().await;
    api.store.finish(&claim.lease, &outcome()).await.unwrap();
    let item = api.history("&expand=payloads").await["items"][0].clone();
    assert_eq!(item.get("json_input"), None);
}

#[tokio::test]
async fn the_history_is_narrowed_by_how_requests_ended() {
    let api = Api::new().await;
    let good = api.finished().await.to_string();
    let broken = api.failed(Failure::internal("broken")).await.to_string();
    let invalid = api.post(SUBMIT, &json!({})).await.json()["request_id"].as_str().unwrap().to_owned();
    for (status, expected) in [("success", good), ("error", broken), ("user_error", invalid)] {
        assert_eq!(ids(&api.history(&format!("&status={status}")).await), [expected], "{status}");
    }
    assert_eq!(ids(&api.history("").await).len(), 3);
}

#[tokio::test]
async fn the_history_is_paged() {
    let api = Api::new().await;
    for _ in 0..5 {
        api.post(SUBMIT, &json!({})).await;
    }
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = api.history(&format!("&limit=2{cursor}")).await;
        assert!(ids(&page).len() <= 2);
        seen.extend(ids(&page).into_iter().map(str::to_owned));
        let Some(next) = page["next_cursor"].as_str() else {
            assert_eq!(page["has_more"], false);
            break;
        };
        assert_eq!(page["has_more"], true);
        let encoded: String = url_encode(next);
        cursor = format!("&cursor={encoded}");
    }
    assert_eq!(seen.len(), 5);
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 5, "each once");
}

fn url_encode(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}

#[tokio::test]
async fn the_window_is_a_day_unless_one_request_is_asked_for() {
    let api = Api::new().await;
    let id = api.finished().await;
    let mut connection = api.db.connect().await.unwrap();
    sqlx::query("update jobs set created_at = created_at - interval '2 days'")
        .execute(&mut connection)
        .await
        .unwrap();
    assert!(ids(&api.history("").await).is_empty());
    assert_eq!(ids(&api.history(&format!("&request_id={id}")).await), [id.to_string()]);
    assert_eq!(ids(&api.history("&start=2025-12-30").await), [id.to_string()]);
    assert_eq!(ids(&api.history("&start=2025-12-30T00:00:00Z&end=2026-01-01T00:00:00+00:00").await).len(), 1);
    assert!(ids(&api.history("&start=2025-12-30T00:00:00&end=2025-12-31T00:00:00Z").await).is_empty());
}

#[tokio::test]
async fn other_endpoints_are_not_listed() {
    let api = Api::new().await;
    api.post(&format!("/queue{APP}/i2v"), &json!({})).await;
    assert!(ids(&api.history("").await).is_empty());
}

#[tokio::test]
async fn unusable_parameters_are_named() {
    let api = Api::new().await;
    for (query, name) in [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("status=bad", "status"),
        ("start=yesterday", "start"),
        ("end=x", "end"),
        ("request_id=x", "request_id"),
        ("cursor=nonsense", "cursor"),
    ] {
        let reply = api.get(&format!("{T2V}&{query}")).await;
        assert_eq!(reply.status, 400, "{query}");
        let error = reply.json()["error"].clone();
        assert_eq!(error["type"], "validation_error");
        assert!(error["message"].as_str().unwrap().contains(name), "{error}");
    }
    let missing = api.get("/v1/models/requests/by-endpoint").await;
    assert_eq!(missing.status, 400);
    assert!(missing.text().contains("endpoint_id"));
    let unknown = api.get("/v1/models/requests/by-endpoint?endpoint_id=fal-ai/flux/dev").await;
    assert_eq!(unknown.status, 404);
}

#[tokio::test]
async fn deleting_forgets_input_and_output() {
    let api = Api::new().await;
    let id = api.finished().await;
    let path = format!("/v1/models/requests/{id}/payloads");
    let reply = api.call("DELETE", &path, &[("idempotency-key", "k1")], "").await;
    assert_eq!(reply.status, 200);
    let links: Vec<Value> =
        reply.json()["cdn_delete_results"].as_array().unwrap().iter().map(|r| r["link"].clone()).collect();
    assert_eq!(
        links,
        [json!("https://files.example/lora.safetensors"), json!("https://files.example/config.json")]
    );
    assert_eq!(api.result(id).await.status, 404);
    let mut connection = api.db.connect().await.unwrap();
    let left: (bool, bool, bool) =
        sqlx::query_as("select input is null, spec is null, outcome is null from jobs")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    assert_eq!(left, (true, true, true));
}

#[tokio::test]
async fn only_finished_requests_can_be_forgotten() {
    let api = Api::new().await;
    let waiting = api.submit().await;
    let reply = api.call("DELETE", &format!("/v1/models/requests/{waiting}/payloads"), &[], "").await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]["type"]), (400, &json!("validation_error")));
    assert_eq!(api.get(&at(waiting, "/status")).await.status, 202);
    for unknown in [id(99).to_string(), "x".to_owned()] {
        let reply = api.call("DELETE", &format!("/v1/models/requests/{unknown}/payloads"), &[], "").await;
        assert_eq!(reply.status, 404);
    }
}
