//! Section 3.2: status.

use crate::support::{APP, Api, at, id, line, outcome};
use serde_json::{Value, json};
use spec::{Failure, FalError, Level};
use uuid::Uuid;

/// The keys that every status has.
fn common(id: Uuid, status: &str) -> Value {
    let base = format!("http://kiln.test:8080/queue/fal-ai/ltx23-trainer-v2/requests/{id}");
    json!({
        "status": status,
        "request_id": id,
        "response_url": base,
        "status_url": format!("{base}/status"),
        "cancel_url": format!("{base}/cancel"),
    })
}

fn with(mut value: Value, more: Value) -> Value {
    let Value::Object(more) = more else { panic!("an object") };
    value.as_object_mut().unwrap().extend(more);
    value
}

#[tokio::test]
async fn a_waiting_request_has_a_position_and_null_logs() {
    let api = Api::new().await;
    let id = api.submit().await;
    let expected = with(common(id, "IN_QUEUE"), json!({"logs": null, "metrics": {}, "queue_position": 0}));
    for query in ["", "?logs=0", "?logs=1"] {
        let reply = api.get(&at(id, &format!("/status{query}"))).await;
        reply.is(202, expected.clone());
        assert_eq!(reply.header("x-fal-request-id"), Some(id.to_string().as_str()));
    }
}

#[tokio::test]
async fn a_running_request_has_no_position_and_a_logs_key() {
    let api = Api::new().await;
    let id = api.submit().await;
    api.claim().await;
    let expected = |logs: Value| with(common(id, "IN_PROGRESS"), json!({"logs": logs, "metrics": {}}));
    api.status(id).await.is(202, expected(Value::Null));
    api.get(&at(id, "/status?logs=false")).await.is(202, expected(Value::Null));
    api.get(&at(id, "/status?logs=true")).await.is(202, expected(json!([])));
}

#[tokio::test]
async fn logs_are_cumulative_and_spelled_as_documented() {
    let api = Api::new().await;
    let id = api.submit().await;
    let claim = api.claim().await;
    let item = |message: &str, level: &str| json!({"message": message, "level": level, "source": "USER", "timestamp": "2026-01-02T03:04:05.000000+00:00"});
    api.store.append(&claim.lease, &[line("unpacked 12 clips", Level::Info)]).await.unwrap();
    let logs = async || api.get(&at(id, "/status?logs=1")).await.json()["logs"].clone();
    assert_eq!(logs().await, json!([item("unpacked 12 clips", "INFO")]));
    api.store
        .append(&claim.lease, &[line("größer 🦀", Level::Warn), line("x", Level::Stderr)])
        .await
        .unwrap();
    let all = json!([item("unpacked 12 clips", "INFO"), item("größer 🦀", "WARN"), item("x", "STDERR")]);
    assert_eq!(logs().await, all);
    api.store.finish(&claim.lease, &outcome()).await.unwrap();
    assert_eq!(logs().await, all, "also after the end");
}

#[tokio::test]
async fn logs_are_asked_for_in_either_clients_words() {
    let api = Api::new().await;
    let id = api.submit().await;
    api.claim().await;
    for (word, asked) in
        [("1", true), ("true", true), ("True", true), ("0", false), ("false", false), ("False", false)]
    {
        let logs = api.get(&at(id, &format!("/status?logs={word}"))).await.json()["logs"].clone();
        assert_eq!(logs.is_array(), asked, "{word}");
    }
}

#[tokio::test]
async fn a_completed_request_tells_how_long_it_ran() {
    let api = Api::new().await;
    let id = api.submit().await;
    let claim = api.claim().await;
    api.later(chrono::TimeDelta::milliseconds(12_500)).await.finish(&claim.lease, &outcome()).await.unwrap();
    let expected = with(common(id, "COMPLETED"), json!({"logs": null, "metrics": {"inference_time": 12.5}}));
    api.status(id).await.is(200, expected);
}

#[tokio::test]
async fn a_request_that_failed_on_its_data_has_an_error_and_no_type() {
    let api = Api::new().await;
    let error = FalError::FileDownloadError;
    let id = api
        .failed(Failure::fal(&error, spec::at("training_data_url"), "The file could not be fetched"))
        .await;
    let status = api.status(id).await;
    assert_eq!(status.status, 200);
    let status = status.json();
    assert_eq!(status["status"], "COMPLETED");
    assert!(status["error"].as_str().unwrap().contains("The file could not be fetched"), "{status}");
    assert!(status.get("error_type").is_none(), "{status}");
}

#[tokio::test]
async fn a_request_that_failed_on_the_machinery_has_an_error_type() {
    let api = Api::new().await;
    let id = api.failed(Failure::workers_lost(2)).await;
    let status = api.status(id).await.json();
    assert_eq!(
        (&status["status"], &status["error_type"]),
        (&json!("COMPLETED"), &json!("runner_disconnected"))
    );
    assert!(status["error"].is_string());
}

#[tokio::test]
async fn a_cancelled_request_is_completed_with_an_error() {
    let api = Api::new().await;
    let id = api.submit().await;
    api.put(&at(id, "/cancel")).await;
    let status = api.status(id).await;
    assert_eq!(status.status, 200);
    let status = status.json();
    assert_eq!((&status["status"], &status["error_type"]), (&json!("COMPLETED"), &json!("client_cancelled")));
    assert_eq!((&status["metrics"], &status["logs"]), (&json!({"inference_time": 0.0}), &Value::Null));
}

#[tokio::test]
async fn a_successful_request_has_no_error_keys() {
    let api = Api::new().await;
    let id = api.finished().await;
    let status = api.status(id).await.json();
    assert!(
        status.get("error").is_none()
            && status.get("error_type").is_none()
            && status.get("queue_position").is_none()
    );
}

#[tokio::test]
async fn a_request_given_back_waits_again() {
    let api = Api::new().await;
    let id = api.submit().await;
    let claim = api.claim().await;
    api.store.release(&claim.lease).await.unwrap();
    let status = api.status(id).await.json();
    assert_eq!((&status["status"], &status["queue_position"]), (&json!("IN_QUEUE"), &json!(0)));
}

#[tokio::test]
async fn an_unknown_request_is_not_found() {
    let api = Api::new().await;
    let unknown = id(99);
    for question in ["/status", "/status/stream", "", "/response"] {
        let reply = api.get(&at(unknown, question)).await;
        reply.is(404, json!({"status": "NOT_FOUND"}));
        assert_eq!(reply.header("x-fal-request-id"), Some(unknown.to_string().as_str()));
    }
    api.get(&format!("/queue{APP}/requests/not-a-uuid/status")).await.is(404, json!({"status": "NOT_FOUND"}));
}

#[tokio::test]
async fn a_request_is_not_found_under_another_application() {
    let api = Api::new().await;
    let id = api.finished().await;
    for question in ["/status", "/status/stream", ""] {
        let reply = api.get(&format!("/queue/fal-ai/flux/requests/{id}{question}")).await;
        assert_eq!(reply.status, 404, "{question}");
    }
    assert_eq!(api.put(&format!("/queue/fal-ai/flux/requests/{id}/cancel")).await.status, 404);
}

#[tokio::test]
async fn the_sub_path_may_stand_in_front() {
    let api = Api::new().await;
    let id = api.submit().await;
    for sub in ["t2v", "ic-lora/av2av"] {
        let reply = api.get(&format!("/queue{APP}/{sub}/requests/{id}/status")).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["request_id"]), (202, &json!(id)), "{sub}");
    }
    api.get(&format!("/queue{APP}/nothing/requests/{id}/status"))
        .await
        .is(404, json!({"detail": "Path /nothing not found"}));
}

#[tokio::test]
async fn a_deleted_request_is_not_found() {
    let api = Api::new().await;
    let id = api.finished().await;
    assert_eq!(api.call("DELETE", &format!("/v1/models/requests/{id}/payloads"), &[], "").await.status, 200);
    for question in ["/status", "/status/stream", ""] {
        api.get(&at(id, question)).await.is(404, json!({"status": "NOT_FOUND"}));
    }
    api.put(&at(id, "/cancel")).await.is(404, json!({"status": "NOT_FOUND"}));
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let api = Api::new().await;
    let id = api.submit().await;
    for question in ["/status", "/status/stream", ""] {
        let head = api.call("HEAD", &at(id, question), &[], "").await;
        assert!(head.body.is_empty(), "{question}");
        assert_eq!(head.header("x-fal-request-id"), Some(id.to_string().as_str()));
    }
    assert_eq!(api.call("HEAD", &at(id, "/status"), &[], "").await.status, 202);
}
