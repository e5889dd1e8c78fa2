//! Section 3.3: the status stream.

use std::time::Duration;

use crate::support::{Api, Reply, SUBMIT, at, id, line, outcome};
use axum::body::{Body, BodyDataStream};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use spec::Level;
use tower::ServiceExt as _;
use uuid::Uuid;

/// One open stream.
struct Events {
    body: BodyDataStream,
    buffer: String,
}

impl Events {
    async fn open(api: &Api, id: Uuid, query: &str) -> Self {
        Self::request(api, api.request("GET", &at(id, &format!("/status/stream{query}")), &[], Body::empty()))
            .await
    }

    async fn request(api: &Api, request: http::Request<Body>) -> Self {
        let response = api.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-cache");
        assert_eq!(response.headers()["access-control-allow-origin"], "*");
        Self { body: response.into_body().into_data_stream(), buffer: String::new() }
    }

    /// The next block up to its empty line, as it came; `None` at the end of the stream.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.buffer.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.buffer = rest;
                return Some(block);
            }
            let next = tokio::time::timeout(Duration::from_secs(20), self.body.next());
            match next.await.expect("an event within 20 s") {
                Some(chunk) => self.buffer.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap()),
                None => {
                    assert_eq!(self.buffer, "", "half an event");
                    return None;
                }
            }
        }
    }

    /// The next event's JSON.
    async fn event(&mut self) -> Option<Value> {
        loop {
            let block = self.block().await?;
            if block.starts_with(':') {
                continue;
            }
            let data = block.strip_prefix("data: ").unwrap_or_else(|| panic!("not one data line: {block:?}"));
            return Some(serde_json::from_str(data).unwrap());
        }
    }
}

fn messages(event: &Value) -> Vec<&str> {
    event["logs"].as_array().unwrap().iter().map(|item| item["message"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_finished_request_sends_one_event_and_closes() {
    let api = Api::new().await;
    let id = api.finished().await;
    let mut events = Events::open(&api, id, "").await;
    let event = events.event().await.unwrap();
    assert_eq!(event, api.status(id).await.json());
    assert_eq!(events.block().await, None);
}

#[tokio::test]
async fn a_failed_request_sends_its_error_and_closes() {
    let api = Api::new().await;
    api.post(SUBMIT, &json!({})).await;
    let mut events = Events::open(&api, id(1), "?logs=1").await;
    let event = events.event().await.unwrap();
    assert_eq!((&event["status"], &event["logs"]), (&json!("COMPLETED"), &json!([])));
    assert!(event["error"].is_string());
    assert_eq!(events.block().await, None);
}

#[tokio::test]
async fn each_event_holds_only_the_new_lines() {
    let api = Api::new().await;
    let id = api.submit().await;
    let mut events = Events::open(&api, id, "?logs=1").await;
    let event = events.event().await.unwrap();
    assert_eq!((&event["status"], &event["queue_position"]), (&json!("IN_QUEUE"), &json!(0)));
    assert_eq!(event["logs"], Value::Null);

    let claim = api.claim().await;
    let event = events.event().await.unwrap();
    assert_eq!((&event["status"], &event["logs"]), (&json!("IN_PROGRESS"), &json!([])));

    api.store.append(&claim.lease, &[line("one", Level::Info), line("two", Level::Info)]).await.unwrap();
    assert_eq!(messages(&events.event().await.unwrap()), ["one", "two"]);
    api.store.append(&claim.lease, &[line("three", Level::Info)]).await.unwrap();
    assert_eq!(messages(&events.event().await.unwrap()), ["three"]);

    api.store.finish(&claim.lease, &outcome()).await.unwrap();
    let event = events.event().await.unwrap();
    assert_eq!((&event["status"], &event["logs"]), (&json!("COMPLETED"), &json!([])));
    assert_eq!(events.block().await, None);
}

#[tokio::test]
async fn the_first_event_holds_all_lines_so_far() {
    let api = Api::new().await;
    let id = api.submit().await;
    let claim = api.claim().await;
    api.store.append(&claim.lease, &[line("one", Level::Info), line("two", Level::Info)]).await.unwrap();
    let mut events = Events::open(&api, id, "?logs=true").await;
    assert_eq!(messages(&events.event().await.unwrap()), ["one", "two"]);
}

#[tokio::test]
async fn without_being_asked_a_stream_has_no_logs() {
    let api = Api::new().await;
    let id = api.submit().await;
    let claim = api.claim().await;
    let mut events = Events::open(&api, id, "").await;
    assert_eq!(events.event().await.unwrap()["logs"], Value::Null);
    api.store.append(&claim.lease, &[line("unseen", Level::Info)]).await.unwrap();
    api.store.finish(&claim.lease, &outcome()).await.unwrap();
    let last = events.event().await.unwrap();
    assert_eq!((&last["status"], &last["logs"]), (&json!("COMPLETED"), &Value::Null));
}

#[tokio::test]
async fn lines_of_an_earlier_attempt_are_not_lost_while_the_request_waits_again() {
    let api = Api::new().await;
    let id = api.submit().await;
    let claim = api.claim().await;
    let mut events = Events::open(&api, id, "?logs=1").await;
    events.event().await.unwrap();
    api.store.append(&claim.lease, &[line("first attempt", Level::Info)]).await.unwrap();
    api.store.release(&claim.lease).await.unwrap();
    api.claim().await;
    let mut told = Vec::new();
    while told.is_empty() {
        let event = events.event().await.unwrap();
        told = event["logs"].as_array().cloned().unwrap_or_default();
    }
    assert_eq!((told.len(), &told[0]["message"]), (1, &json!("first attempt")));
}

#[tokio::test]
async fn events_are_ascii() {
    let api = Api::new().await;
    let id = api.submit().await;
    let claim = api.claim().await;
    api.store.append(&claim.lease, &[line("größer 🦀", Level::Info)]).await.unwrap();
    let mut events = Events::open(&api, id, "?logs=1").await;
    let block = events.block().await.unwrap();
    assert!(block.is_ascii() && block.contains(r"gr\u00f6\u00dfer \ud83e\udd80"), "{block}");
    let event: Value = serde_json::from_str(block.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(messages(&event), ["größer 🦀"]);
}

#[tokio::test]
async fn a_silent_stream_is_kept_open_by_comments() {
    let api = Api::with(|options| options.ping_every = Duration::from_millis(20)).await;
    let id = api.submit().await;
    let mut events = Events::open(&api, id, "").await;
    events.event().await.unwrap();
    for _ in 0..2 {
        assert_eq!(events.block().await.as_deref(), Some(": ping"));
    }
}

#[test]
fn the_comments_come_at_least_every_15_seconds() {
    assert!(server::Options::default().ping_every <= Duration::from_secs(15));
}

#[tokio::test]
async fn the_queue_position_is_told_when_it_changes() {
    let api = Api::new().await;
    api.submit().await;
    let second = api.submit().await;
    let mut events = Events::open(&api, second, "").await;
    assert_eq!(events.event().await.unwrap()["queue_position"], 1);
    api.claim().await;
    assert_eq!(events.event().await.unwrap()["queue_position"], 0);
}

#[tokio::test]
async fn a_cancel_ends_the_stream() {
    let api = Api::new().await;
    let id = api.submit().await;
    let mut events = Events::open(&api, id, "").await;
    events.event().await.unwrap();
    api.put(&at(id, "/cancel")).await;
    let event = events.event().await.unwrap();
    assert_eq!((&event["status"], &event["error_type"]), (&json!("COMPLETED"), &json!("client_cancelled")));
    assert_eq!(events.block().await, None);
}

#[tokio::test]
async fn a_stopping_server_ends_the_stream() {
    let api = Api::new().await;
    let id = api.submit().await;
    let mut events = Events::open(&api, id, "").await;
    events.event().await.unwrap();
    api.app.shutdown().cancel();
    assert_eq!(events.block().await, None);
}

#[tokio::test]
async fn errors_before_the_stream_are_ordinary_answers() {
    let api = Api::new().await;
    api.get(&at(id(99), "/status/stream")).await.is(404, json!({"status": "NOT_FOUND"}));
    let request = http::Request::get(at(id(99), "/status/stream")).body(Body::empty()).unwrap();
    let reply: Reply = api.send(request).await;
    reply.is(401, json!({"detail": "Authorization header is required"}));
}

#[tokio::test]
async fn the_accept_header_does_not_matter() {
    let api = Api::new().await;
    let id = api.finished().await;
    for accept in ["application/json, text/event-stream", "application/json", "text/event-stream"] {
        let path = at(id, "/status/stream");
        let mut events =
            Events::request(&api, api.request("GET", &path, &[("accept", accept)], Body::empty())).await;
        assert_eq!(events.event().await.unwrap()["status"], "COMPLETED", "{accept}");
        let reply = api.call("GET", &at(id, "/status"), &[("accept", accept)], "").await;
        assert_eq!(reply.json()["status"], "COMPLETED", "{accept}");
    }
}
