//! Section 3.1: submit.

use crate::support::{APP, Api, SUBMIT, id, input, now, outcome};
use axum::body::Body;
use chrono::TimeDelta;
use serde_json::{Value, json};

#[tokio::test]
async fn submit_answers_with_the_documented_body() {
    let api = Api::new().await;
    let reply = api.post(SUBMIT, &input()).await;
    let id = id(1);
    let base = format!("http://kiln.test:8080/queue/fal-ai/ltx23-trainer-v2/requests/{id}");
    reply.is(
        200,
        json!({
            "status": "IN_QUEUE",
            "request_id": id,
            "gateway_request_id": id,
            "response_url": base,
            "status_url": format!("{base}/status"),
            "cancel_url": format!("{base}/cancel"),
            "logs": null,
            "metrics": {},
            "queue_position": 0,
        }),
    );
    assert_eq!(reply.header("x-fal-request-id"), Some(id.to_string().as_str()));
}

#[tokio::test]
async fn every_path_takes_a_minimal_request() {
    let api = Api::new().await;
    let mut body = input();
    // Wanted by outpaint, unknown to the others.
    body["crop_top_left"] = json!([0, 0]);
    body["crop_bottom_right"] = json!([256, 256]);
    for mode in spec::modes() {
        let reply = api.post(&format!("/queue{APP}/{}", mode.path), &body).await;
        assert_eq!(reply.status, 200, "{}", mode.path);
        let id = reply.json()["request_id"].as_str().unwrap().parse().unwrap();
        let status = api.status(id).await.json();
        assert_eq!(status["status"], "IN_QUEUE", "{}: {status}", mode.path);
    }
}

#[tokio::test]
async fn the_body_is_json_whatever_its_type_says() {
    let api = Api::new().await;
    for content_type in ["application/json", "text/plain", "application/x-www-form-urlencoded", "nonsense"] {
        let id = api.submit_with(SUBMIT, &[("content-type", content_type)]).await;
        assert_eq!(api.status(id).await.json()["status"], "IN_QUEUE", "{content_type}");
    }
}

#[tokio::test]
async fn the_addresses_follow_the_public_url() {
    let api = Api::with(|options| options.public_url = Some("https://train.example/".parse().unwrap())).await;
    let body = api.post(SUBMIT, &input()).await.json();
    let base = format!("https://train.example/queue/fal-ai/ltx23-trainer-v2/requests/{}", id(1));
    assert_eq!(body["response_url"], base);
}

#[tokio::test]
async fn the_addresses_can_be_followed_as_they_are() {
    let api = Api::new().await;
    let body = api.post(SUBMIT, &input()).await.json();
    let path =
        |name: &str| body[name].as_str().unwrap().strip_prefix("http://kiln.test:8080").unwrap().to_owned();
    assert_eq!(api.get(&path("status_url")).await.status, 202);
    assert_eq!(api.get(&path("response_url")).await.status, 400);
    assert_eq!(api.put(&path("cancel_url")).await.status, 202);
}

#[tokio::test]
async fn an_invalid_field_makes_a_completed_request_with_every_problem() {
    let api = Api::new().await;
    let submitted = api.post(SUBMIT, &json!({"number_of_steps": "many", "rank": -1})).await;
    assert_eq!((submitted.status.as_u16(), &submitted.json()["status"]), (200, &json!("IN_QUEUE")));

    let status = api.status(id(1)).await;
    assert_eq!(status.status, 200);
    let status = status.json();
    assert_eq!(status["status"], "COMPLETED");
    assert!(status["error"].is_string() && status.get("error_type").is_none(), "{status}");

    let result = api.result(id(1)).await;
    assert_eq!(result.status, 422);
    let problems: Vec<Value> =
        result.json()["detail"].as_array().unwrap().iter().map(|p| p["loc"].clone()).collect();
    for field in ["training_data_url", "number_of_steps", "rank"] {
        assert!(problems.contains(&json!(["body", field])), "{field} in {problems:?}");
    }
    assert!(api.store.claim("worker", &["t2v"]).await.unwrap().is_none(), "nothing of it reaches a worker");
}

#[tokio::test]
async fn a_request_without_a_body_is_missing_its_body() {
    let api = Api::new().await;
    let reply = api.call("POST", SUBMIT, &[("content-type", "application/json")], Body::empty()).await;
    assert_eq!(reply.status, 200);
    let detail = &api.result(id(1)).await.json()["detail"];
    assert_eq!((&detail[0]["type"], &detail[0]["loc"]), (&json!("missing"), &json!(["body"])));
}

#[tokio::test]
async fn a_body_that_is_no_json_is_accepted_and_fails() {
    let api = Api::new().await;
    assert_eq!(api.call("POST", SUBMIT, &[], "{\"rank\": ").await.status, 200);
    let result = api.result(id(1)).await;
    assert_eq!(result.status, 422);
    let problem = &result.json()["detail"][0];
    assert_eq!((&problem["type"], &problem["msg"]), (&json!("json_invalid"), &json!("JSON decode error")));
    assert!(problem["loc"][1].is_u64(), "{problem}");
}

#[tokio::test]
async fn a_body_that_is_no_object_is_accepted_and_fails() {
    let api = Api::new().await;
    for body in ["3", "[]", "\"text\"", "true", "null"] {
        let reply = api.call("POST", SUBMIT, &[], body).await;
        assert_eq!(reply.status, 200, "{body}");
        let id = reply.json()["request_id"].as_str().unwrap().parse().unwrap();
        let result = api.result(id).await;
        assert_eq!(
            (result.status.as_u16(), &result.json()["detail"][0]["loc"]),
            (422, &json!(["body"])),
            "{body}"
        );
    }
}

#[tokio::test]
async fn a_null_character_anywhere_in_the_body_is_accepted() {
    let api = Api::new().await;
    for field in ["training_data_url", "trigger_phrase", "unknown_field", "number_of_steps"] {
        let mut body = input();
        body[field] = json!("a\u{0}b");
        let reply = api.post(SUBMIT, &body).await;
        assert_eq!(reply.status, 200, "{field}: {reply:?}");
        let id = reply.json()["request_id"].as_str().unwrap().parse().unwrap();
        assert!(matches!(api.status(id).await.status.as_u16(), 200 | 202), "{field}");
    }
}

#[tokio::test]
async fn deeply_nested_json_is_accepted_and_fails() {
    let api = Api::new().await;
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(api.call("POST", SUBMIT, &[], deep).await.status, 200);
    assert_eq!(api.result(id(1)).await.status, 422);
}

#[tokio::test]
async fn an_unknown_application_is_named() {
    let api = Api::new().await;
    for path in
        ["/queue/fal-ai/flux/dev", "/fal-ai/flux/dev", "/run/fal-ai/flux/dev", "/queue/other/flux/dev"]
    {
        api.post(path, &input()).await.is(404, json!({"detail": "Application 'flux' not found"}));
    }
    api.post("/queue/other/ltx23-trainer-v2/t2v", &input())
        .await
        .is(404, json!({"detail": "Application 'ltx23-trainer-v2' not found"}));
}

#[tokio::test]
async fn an_unknown_path_is_named() {
    let api = Api::new().await;
    for service in ["queue", "run"] {
        let post = async |path: &str| api.post(&format!("/{service}{APP}{path}"), &input()).await;
        post("/nothing").await.is(404, json!({"detail": "Path /nothing not found"}));
        post("/ic-lora/t2v").await.is(404, json!({"detail": "Path /ic-lora/t2v not found"}));
        post("").await.is(404, json!({"detail": "Path / not found"}));
    }
}

#[tokio::test]
async fn an_announced_body_beyond_the_limit_is_refused() {
    let api = Api::with(|options| options.body_limit = 100).await;
    let reply = api.call("POST", SUBMIT, &[], "x".repeat(101)).await;
    assert_eq!(reply.status, 413);
    assert!(reply.json()["detail"].as_str().unwrap().contains("100 bytes"), "{reply:?}");
    assert_eq!(api.call("POST", SUBMIT, &[], "x".repeat(100)).await.status, 200);
}

#[tokio::test]
async fn a_streamed_body_beyond_the_limit_is_refused() {
    let api = Api::with(|options| options.body_limit = 1 << 20).await;
    let endless = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>("x".repeat(1000)));
    assert_eq!(api.call("POST", SUBMIT, &[], Body::from_stream(endless)).await.status, 413);
}

#[tokio::test]
async fn a_large_body_is_parsed_like_a_small_one() {
    let api = Api::new().await;
    let mut body = input();
    body["training_data_url"] = json!(format!("data:application/zip;base64,{}", "A".repeat(4 << 20)));
    let reply = api.post(SUBMIT, &body).await;
    assert_eq!(reply.status, 200, "{:?}", reply.status);
    assert_eq!(api.status(id(1)).await.status, 202);
}

#[tokio::test]
async fn an_unusable_timeout_is_a_bad_request() {
    let api = Api::new().await;
    for header in ["x-fal-request-timeout", "x-fal-request-start-timeout"] {
        for value in ["0.1", "-1", "soon", "NaN", ""] {
            let reply = api.call("POST", SUBMIT, &[(header, value)], input().to_string()).await;
            let detail = format!("{header} is not a number of seconds greater than 0.1");
            reply.is(400, json!({"detail": detail, "error_type": "bad_request"}));
            assert_eq!(reply.header("x-fal-error-type"), Some("bad_request"));
        }
    }
}

#[tokio::test]
async fn a_passed_start_deadline_ends_the_request() {
    let api = Api::new().await;
    let id = api.submit_with(SUBMIT, &[("x-fal-request-timeout", "30.0")]).await;
    api.later(TimeDelta::seconds(29)).await.sweep().await.unwrap();
    assert_eq!(api.status(id).await.status, 202);
    api.later(TimeDelta::seconds(31)).await.sweep().await.unwrap();
    let status = api.status(id).await.json();
    assert_eq!((&status["status"], &status["error_type"]), (&json!("COMPLETED"), &json!("request_timeout")));
    let result = api.result(id).await;
    assert_eq!((result.status.as_u16(), result.header("x-fal-request-timeout-type")), (504, Some("user")));
    assert_eq!(result.json()["error_type"], "request_timeout");
}

#[tokio::test]
async fn the_newer_start_timeout_wins() {
    let api = Api::new().await;
    let headers = [("x-fal-request-timeout", "10"), ("x-fal-request-start-timeout", "100")];
    let id = api.submit_with(SUBMIT, &headers).await;
    api.later(TimeDelta::seconds(50)).await.sweep().await.unwrap();
    assert_eq!(api.status(id).await.status, 202);
    api.later(TimeDelta::seconds(101)).await.sweep().await.unwrap();
    assert_eq!(api.status(id).await.status, 200);
}

#[tokio::test]
async fn no_retry_makes_a_dead_worker_final() {
    let api = Api::new().await;
    let id = api.submit_with(SUBMIT, &[("x-fal-no-retry", "1")]).await;
    api.claim().await;
    api.later(TimeDelta::hours(1)).await.sweep().await.unwrap();
    let result = api.result(id).await;
    assert_eq!((result.status.as_u16(), &result.json()["error_type"]), (503, &json!("runner_disconnected")));
}

#[tokio::test]
async fn a_webhook_is_told_of_the_end() {
    let api = Api::new().await;
    let path = format!("{SUBMIT}?fal_webhook=https%3A%2F%2Freceiver.example%2Fhook%3Fa%3D1%26b%3D2");
    api.submit_with(&path, &[]).await;
    let claim = api.claim().await;
    api.store.finish(&claim.lease, &outcome()).await.unwrap();
    let due = api.store.due_webhooks(10, 10, &[], std::time::Duration::from_secs(60)).await.unwrap();
    assert_eq!(due.len(), 1);
    assert_eq!((due[0].job, due[0].url.as_str()), (id(1), "https://receiver.example/hook?a=1&b=2"));
}

#[tokio::test]
async fn a_webhook_is_told_of_an_invalid_request_too() {
    let api = Api::new().await;
    api.post(&format!("{SUBMIT}?fal_webhook=http%3A%2F%2Freceiver.example%3A9%2Fhook"), &json!({})).await;
    let due = api.store.due_webhooks(10, 10, &[], std::time::Duration::from_secs(60)).await.unwrap();
    assert_eq!(due.len(), 1);
    assert!(matches!(&due[0].answer, store::Answer::Failed(failure) if failure.http_status() == 422));
}

#[tokio::test]
async fn an_unusable_webhook_is_a_bad_request() {
    let api = Api::new().await;
    let reply = api.post(&format!("{SUBMIT}?fal_webhook=receiver.example"), &input()).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error_type"]), (400, &json!("bad_request")));
    assert!(reply.text().contains("fal_webhook"));
}

#[tokio::test]
async fn unknown_headers_and_parameters_are_ignored() {
    let api = Api::new().await;
    let headers = [
        ("x-fal-queue-priority", "normal"),
        ("x-fal-runner-hint", "a"),
        ("x-fal-retry-config", "{bad json"),
        ("x-fal-object-lifecycle-preference", r#"{"expiration_duration_seconds":3600}"#),
        ("x-app-fal-disable-fallback", "true"),
        ("x-fal-tags", "team=a"),
        ("x-something", "else"),
        ("x-fal-target-url", "https://fal.run/fal-ai/flux/dev"),
    ];
    api.submit_with(&format!("{SUBMIT}?webhook_url=x&logs=1"), &headers).await;
}

#[tokio::test]
async fn the_request_is_kept_with_the_databases_time() {
    let api = Api::new().await;
    let id = api.submit().await;
    let status = api.store.status(id, store::Logs::No).await.unwrap().unwrap();
    assert_eq!((status.created_at, status.path.as_str()), (now(), "t2v"));
}
