//! Section 3.5: cancel.

use crate::support::{APP, Api, at, id, outcome};
use serde_json::json;

#[tokio::test]
async fn a_waiting_request_never_runs() {
    let api = Api::new().await;
    let id = api.submit().await;
    let reply = api.put(&at(id, "/cancel")).await;
    reply.is(202, json!({"status": "CANCELLATION_REQUESTED"}));
    assert_eq!(reply.header("x-fal-request-id"), Some(id.to_string().as_str()));
    assert!(api.store.claim("worker", &["t2v"]).await.unwrap().is_none());
}

#[tokio::test]
async fn a_running_request_is_told_to_stop() {
    let api = Api::new().await;
    let id = api.submit().await;
    let claim = api.claim().await;
    api.put(&at(id, "/cancel")).await.is(202, json!({"status": "CANCELLATION_REQUESTED"}));
    assert_eq!(api.status(id).await.json()["status"], "IN_PROGRESS");
    assert!(api.store.renew(&claim.lease).await.unwrap().cancel_requested);
    api.store.cancelled(&claim.lease).await.unwrap();
    let status = api.status(id).await.json();
    assert_eq!((&status["status"], &status["error_type"]), (&json!("COMPLETED"), &json!("client_cancelled")));
    assert_eq!(api.result(id).await.status, 499);
}

#[tokio::test]
async fn a_running_request_may_still_finish() {
    let api = Api::new().await;
    let id = api.submit().await;
    let claim = api.claim().await;
    api.put(&at(id, "/cancel")).await;
    api.store.finish(&claim.lease, &outcome()).await.unwrap();
    assert_eq!(api.result(id).await.status, 200);
}

#[tokio::test]
async fn a_completed_request_cannot_be_cancelled() {
    let api = Api::new().await;
    let id = api.finished().await;
    api.put(&at(id, "/cancel")).await.is(400, json!({"status": "ALREADY_COMPLETED"}));
}

#[tokio::test]
async fn a_cancelled_request_cannot_be_cancelled_again() {
    let api = Api::new().await;
    let id = api.submit().await;
    api.put(&at(id, "/cancel")).await;
    api.put(&at(id, "/cancel")).await.is(400, json!({"status": "ALREADY_COMPLETED"}));
}

#[tokio::test]
async fn an_unknown_request_is_not_found() {
    let api = Api::new().await;
    api.put(&at(id(99), "/cancel")).await.is(404, json!({"status": "NOT_FOUND"}));
}

#[tokio::test]
async fn the_sub_path_may_stand_in_front() {
    let api = Api::new().await;
    let id = api.submit().await;
    assert_eq!(api.put(&format!("/queue{APP}/t2v/requests/{id}/cancel")).await.status, 202);
}
