//! Section 4: the synchronous run.

use std::time::Duration;

use crate::support::{APP, Api, Reply, id, input, outcome};
use axum::body::Body;
use chrono::TimeDelta;
use serde_json::json;
use spec::{Failure, FalError};
use store::{Claim, Logs, State, Status};
use tower::ServiceExt as _;
use uuid::Uuid;

const RUN: &str = "/run/fal-ai/ltx23-trainer-v2/t2v";

impl Api {
    /// Starts a run in the background.
    fn run(&self, headers: &[(&str, &str)]) -> tokio::task::JoinHandle<Reply> {
        let request = self.request("POST", RUN, headers, input().to_string());
        let router = self.router.clone();
        tokio::spawn(async move { Reply::read(router.oneshot(request).await.unwrap()).await })
    }

    /// Claims the run's job once it is there.
    async fn claim_soon(&self) -> Claim {
        self.eventually(async || self.store.claim("worker", &["t2v"]).await.unwrap()).await
    }

    /// The job once it is as described.
    async fn job_when(&self, id: Uuid, is: impl Fn(&Status) -> bool) -> Status {
        self.eventually(async || self.store.status(id, Logs::No).await.unwrap().filter(&is)).await
    }

    async fn eventually<T>(&self, mut look: impl AsyncFnMut() -> Option<T>) -> T {
        for _ in 0..400 {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("not within 10 s");
    }
}

#[tokio::test]
async fn a_run_waits_and_gives_the_bare_output() {
    let api = Api::new().await;
    let run = api.run(&[]);
    let claim = api.claim_soon().await;
    assert!(!run.is_finished());
    api.store.finish(&claim.lease, &outcome()).await.unwrap();
    let reply = run.await.unwrap();
    reply.is(200, outcome().to_result());
    assert_eq!(reply.header("x-fal-request-id"), Some(id(1).to_string().as_str()));
}

#[tokio::test]
async fn a_run_gives_the_jobs_own_error() {
    let api = Api::new().await;
    let run = api.run(&[]);
    let claim = api.claim_soon().await;
    let failure = Failure::fal(&FalError::FileDownloadError, spec::at("training_data_url"), "unreachable");
    api.store.fail(&claim.lease, &failure).await.unwrap();
    let reply = run.await.unwrap();
    reply.is(422, failure.body());
    assert_eq!(reply.header("x-fal-billable-units"), Some("0"));
}

#[tokio::test]
async fn a_run_with_an_invalid_input_answers_422_itself() {
    let api = Api::new().await;
    let reply = api.post(RUN, &json!({"number_of_steps": 0})).await;
    assert_eq!(reply.status, 422);
    assert_eq!(
        (reply.header("x-fal-billable-units"), reply.header("x-fal-retryable")),
        (Some("0"), Some("false"))
    );
    let id = reply.header("x-fal-request-id").unwrap().parse().unwrap();
    assert_eq!(api.result(id).await.json(), reply.json(), "the request can be looked up");
}

#[tokio::test]
async fn a_run_whose_caller_goes_away_is_cancelled() {
    let api = Api::new().await;
    let run = api.run(&[]);
    api.job_when(id(1), |_| true).await;
    run.abort();
    let job = api.job_when(id(1), |job| job.state.is_final()).await;
    assert_eq!((job.state, job.error_type.as_deref()), (State::Cancelled, Some("client_disconnected")));
    let result = api.result(id(1)).await;
    assert_eq!((result.status.as_u16(), &result.json()["error_type"]), (499, &json!("client_disconnected")));
}

#[tokio::test]
async fn a_running_run_whose_caller_goes_away_is_told_to_stop() {
    let api = Api::new().await;
    let run = api.run(&[]);
    let claim = api.claim_soon().await;
    run.abort();
    api.job_when(id(1), |job| job.cancel_requested).await;
    api.store.cancelled(&claim.lease).await.unwrap();
    assert_eq!(api.result(id(1)).await.json()["error_type"], "client_disconnected");
}

#[tokio::test]
async fn a_run_that_ended_is_left_alone() {
    let api = Api::new().await;
    let run = api.run(&[]);
    let claim = api.claim_soon().await;
    api.store.finish(&claim.lease, &outcome()).await.unwrap();
    run.await.unwrap();
    assert_eq!(api.status(id(1)).await.json().get("error"), None);
}

#[tokio::test]
async fn a_run_past_its_start_deadline_is_the_users_timeout() {
    let api = Api::new().await;
    let run = api.run(&[("x-fal-request-timeout", "5")]);
    api.job_when(id(1), |_| true).await;
    api.later(TimeDelta::seconds(6)).await.sweep().await.unwrap();
    let reply = run.await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.header("x-fal-request-timeout-type")), (504, Some("user")));
}

#[tokio::test]
async fn a_cancelled_run_answers_499() {
    let api = Api::new().await;
    let run = api.run(&[]);
    api.job_when(id(1), |_| true).await;
    api.put(&crate::support::at(id(1), "/cancel")).await;
    let reply = run.await.unwrap();
    assert_eq!((reply.status.as_u16(), &reply.json()["error_type"]), (499, &json!("client_cancelled")));
}

#[tokio::test]
async fn a_stopping_server_answers_and_cancels_the_run() {
    let api = Api::new().await;
    let run = api.run(&[]);
    api.job_when(id(1), |_| true).await;
    api.app.shutdown().cancel();
    let reply = run.await.unwrap();
    assert_eq!((reply.status.as_u16(), &reply.json()["error_type"]), (503, &json!("runner_disconnected")));
    assert_eq!(reply.header("retry-after"), Some("1"));
    let job = api.job_when(id(1), |job| job.state.is_final()).await;
    assert_eq!(job.error_type.as_deref(), Some("client_disconnected"));
}

#[tokio::test]
async fn trainers_have_no_stream_and_no_realtime() {
    let api = Api::new().await;
    for tail in ["stream", "realtime"] {
        api.post(&format!("/run{APP}/t2v/{tail}"), &input())
            .await
            .is(404, json!({"detail": format!("Path /t2v/{tail} not found")}));
    }
}

#[tokio::test]
async fn an_unusable_timeout_is_a_bad_request() {
    let api = Api::new().await;
    let reply = api.call("POST", RUN, &[("x-fal-request-timeout", "0")], input().to_string()).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error_type"]), (400, &json!("bad_request")));
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let api = Api::with(|options| options.body_limit = 10).await;
    assert_eq!(api.call("POST", RUN, &[], Body::from("x".repeat(11))).await.status, 413);
}
