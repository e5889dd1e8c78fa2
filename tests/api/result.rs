//! Section 3.4: result, and section 7.1 and 7.2: what failures look like.

use crate::support::{APP, Api, at, outcome};
use serde_json::json;
use spec::{Failure, FalError, RequestErrorKind};

#[tokio::test]
async fn an_unfinished_request_is_still_in_progress() {
    let api = Api::new().await;
    let id = api.submit().await;
    api.result(id).await.is(400, json!({"detail": "Request is still in progress"}));
    api.claim().await;
    let reply = api.result(id).await;
    reply.is(400, json!({"detail": "Request is still in progress"}));
    assert_eq!(reply.header("x-fal-request-id"), Some(id.to_string().as_str()));
}

#[tokio::test]
async fn a_completed_request_gives_the_bare_output() {
    let api = Api::new().await;
    let id = api.finished().await;
    let expected = json!({
        "lora_file": {
            "url": "https://files.example/lora.safetensors",
            "content_type": "application/octet-stream",
            "file_name": "lora.safetensors",
            "file_size": 1234,
        },
        "config_file": {
            "url": "https://files.example/config.json",
            "content_type": "application/json",
            "file_name": "config.json",
            "file_size": 56,
        },
    });
    for _ in 0..2 {
        let reply = api.result(id).await;
        reply.is(200, expected.clone());
        assert_eq!(reply.header("x-fal-request-id"), Some(id.to_string().as_str()));
    }
    assert_eq!(outcome().to_result(), expected);
}

#[tokio::test]
async fn the_result_has_aliases() {
    let api = Api::new().await;
    let id = api.finished().await;
    let bare = api.result(id).await.json();
    for path in [
        at(id, "/response"),
        at(id, "/"),
        format!("/queue{APP}/t2v/requests/{id}"),
        format!("/queue{APP}/t2v/requests/{id}/response"),
        format!("{APP}/requests/{id}"),
    ] {
        api.get(&path).await.is(200, bare.clone());
    }
}

#[tokio::test]
async fn a_fault_of_the_data_is_the_models_own_422() {
    let api = Api::new().await;
    let failure = Failure::fal(
        &FalError::InvalidArchive { supported_extensions: vec![".zip".into()] },
        spec::at("training_data_url"),
        "The archive is corrupt",
    );
    let id = api.failed(failure.clone()).await;
    let reply = api.result(id).await;
    reply.is(422, failure.body());
    let problem = &reply.json()["detail"][0];
    assert_eq!(problem["loc"], json!(["body", "training_data_url"]));
    assert_eq!(
        (&problem["type"], &problem["msg"]),
        (&json!("invalid_archive"), &json!("The archive is corrupt"))
    );
    assert_eq!(problem["ctx"], json!({"supported_extensions": [".zip"]}));
    assert!(problem["url"].as_str().unwrap().ends_with("errors/#invalid_archive"), "{problem}");
    for (name, value) in [
        ("x-fal-retryable", "false"),
        ("x-fal-needs-retry", "0"),
        ("x-fal-billable-units", "0"),
        ("x-fal-request-id", &id.to_string()),
    ] {
        assert_eq!(reply.header(name), Some(value), "{name}");
    }
}

#[tokio::test]
async fn a_broken_job_is_a_500_that_says_whether_to_retry() {
    let api = Api::new().await;
    let id = api.failed(Failure::internal("The training diverged")).await;
    let reply = api.result(id).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json()["detail"][0]["type"]),
        (500, &json!("internal_server_error"))
    );
    assert_eq!(
        (reply.header("x-fal-retryable"), reply.header("x-fal-needs-retry")),
        (Some("false"), Some("0"))
    );

    let again = Failure::fal(&FalError::GenerationTimeout, spec::at("steps"), "The job ran out of time");
    let id = api.failed(again).await;
    let reply = api.result(id).await;
    assert_eq!(reply.status, 504);
    assert_eq!(
        (reply.header("x-fal-retryable"), reply.header("x-fal-needs-retry")),
        (Some("true"), Some("1"))
    );
    assert_eq!(reply.header("x-fal-request-timeout-type"), None, "not the user's deadline");
}

#[tokio::test]
async fn every_request_error_has_its_status_and_type() {
    let api = Api::new().await;
    for (kind, status) in [
        (RequestErrorKind::RequestTimeout, 504),
        (RequestErrorKind::StartupTimeout, 504),
        (RequestErrorKind::RunnerSchedulingFailure, 503),
        (RequestErrorKind::RunnerConnectionTimeout, 503),
        (RequestErrorKind::RunnerDisconnected, 503),
        (RequestErrorKind::RunnerConnectionRefused, 503),
        (RequestErrorKind::RunnerConnectionError, 503),
        (RequestErrorKind::RunnerIncompleteResponse, 502),
        (RequestErrorKind::RunnerServerError, 500),
        (RequestErrorKind::InternalError, 500),
        (RequestErrorKind::ClientDisconnected, 499),
        (RequestErrorKind::ClientCancelled, 499),
        (RequestErrorKind::BadRequest, 400),
    ] {
        let id = api.failed(Failure::request(kind, "why")).await;
        let reply = api.result(id).await;
        reply.is(status, json!({"detail": "why", "error_type": kind.as_str()}));
        assert_eq!(reply.header("x-fal-error-type"), Some(kind.as_str()));
        assert_eq!(reply.header("x-fal-request-id"), Some(id.to_string().as_str()));
        let user = (kind == RequestErrorKind::RequestTimeout).then_some("user");
        assert_eq!(reply.header("x-fal-request-timeout-type"), user, "{kind}");
    }
}

#[tokio::test]
async fn a_cancelled_request_is_a_499() {
    let api = Api::new().await;
    let id = api.submit().await;
    api.put(&at(id, "/cancel")).await;
    let reply = api.result(id).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error_type"]), (499, &json!("client_cancelled")));
    assert!(reply.json()["detail"].is_string());
    assert_eq!(reply.header("x-fal-error-type"), Some("client_cancelled"));
}
