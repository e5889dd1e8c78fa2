//! Section 3.6: order, priority, limits of the queue.

use crate::support::{APP, Api, SUBMIT, input};
use serde_json::json;

#[tokio::test]
async fn positions_count_the_requests_ahead() {
    let api = Api::new().await;
    let mut ids = Vec::new();
    for expected in 0..3 {
        let reply = api.post(SUBMIT, &input()).await.json();
        assert_eq!(reply["queue_position"], expected);
        ids.push(reply["request_id"].as_str().unwrap().parse().unwrap());
    }
    api.claim().await;
    for (id, expected) in ids.into_iter().skip(1).zip(0..) {
        assert_eq!(api.status(id).await.json()["queue_position"], expected);
    }
}

#[tokio::test]
async fn each_path_is_a_queue_of_its_own() {
    let api = Api::new().await;
    api.submit().await;
    let other = api.post(&format!("/queue{APP}/i2v"), &input()).await.json();
    assert_eq!(other["queue_position"], 0);
}

#[tokio::test]
async fn low_priority_stands_behind_all_normal() {
    let api = Api::new().await;
    let low = api.submit_with(SUBMIT, &[("x-fal-queue-priority", "low")]).await;
    let normal = api.submit_with(SUBMIT, &[("x-fal-queue-priority", "normal")]).await;
    assert_eq!(api.status(low).await.json()["queue_position"], 1);
    assert_eq!(api.status(normal).await.json()["queue_position"], 0);
    assert_eq!(api.claim().await.lease.job, normal);
    assert_eq!(api.claim().await.lease.job, low);
}

#[tokio::test]
async fn a_queue_longer_than_asked_is_refused() {
    let api = Api::new().await;
    let submit = async |most: u32| api.post(&format!("{SUBMIT}?fal_max_queue_length={most}"), &input()).await;
    assert_eq!(submit(0).await.status, 200, "none waits, which is not more than 0");
    let refused = submit(0).await;
    refused
        .is(429, json!({"detail": "The queue is longer than fal_max_queue_length: 1 requests are waiting"}));
    assert_eq!(submit(1).await.status, 200);
    assert_eq!(submit(1).await.status, 429);
    assert_eq!(api.store.counts().await.unwrap()[0].queued, 2, "a refused request leaves nothing behind");
}

#[tokio::test]
async fn an_unusable_queue_length_is_a_bad_request() {
    let api = Api::new().await;
    for bad in ["-1", "many", "1.5", ""] {
        let reply = api.post(&format!("{SUBMIT}?fal_max_queue_length={bad}"), &input()).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.json()["error_type"]),
            (400, &json!("bad_request")),
            "{bad}"
        );
    }
}
