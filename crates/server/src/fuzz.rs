//! What must hold for any request head and any log line. A test and the fuzz target `wire` share it; no other
//! build contains it.

use std::convert::Infallible;

use axum::body::{Body, to_bytes};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, Utc};
use futures_util::FutureExt as _;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use serde_json::Value;
use uuid::Uuid;

use crate::auth::{self, Claims, Shown};
use crate::error::Error;
use crate::params::{self, SubmitParams};
use crate::route::{self, Endpoint, Refused, Route, Service, Target};
use crate::wire::{self, Origin, StatusDocument};
use crate::{cors, openapi, platform};

const ID: Uuid = Uuid::from_u128(7);
/// 2026-01-02T03:04:05Z
const NOW_SECONDS: i64 = 1_767_323_045;

/// Takes bytes for a request head (request line, header lines, an empty line) and the text of a log line behind
/// it, and checks everything that the server makes of them without asking the database.
///
/// # Panics
/// When a claim does not hold.
pub fn wire(data: &[u8]) {
    let (head, text) = split_head(data);
    events(text);
    let Some(parts) = parts(head) else { return };
    let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
    let headers = &parts.headers;
    origins(headers);
    let _ = cors::preflight(headers);
    match route::resolve(&parts.method, path, query, crate::host(&parts), headers) {
        Ok(route) => resolved(&parts, &route),
        Err(Refused { why, platform }) => answer(crate::refuse(why), platform, &[400, 404, 405]),
    }
}

/// The head as lines, and what comes behind the empty line.
fn split_head(data: &[u8]) -> (&[u8], &[u8]) {
    match data.windows(2).position(|pair| pair == b"\n\n") {
        Some(at) => (&data[..at], &data[at + 2..]),
        None => (data, &[]),
    }
}

/// Reads what hyper would let through; everything else never reaches a handler.
fn parts(head: &[u8]) -> Option<Parts> {
    let mut lines = head.split(|&byte| byte == b'\n');
    let mut line = lines.next()?.split(|&byte| byte == b' ');
    let method = Method::from_bytes(line.next()?).ok()?;
    let mut request =
        Request::builder().method(method).uri(Uri::try_from(line.next()?).ok()?).body(()).ok()?;
    for line in lines {
        let colon = line.iter().position(|&byte| byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        request.headers_mut().append(name, value);
    }
    Some(request.into_parts().0)
}

fn resolved(parts: &Parts, route: &Route<'_>) {
    let (headers, query) = (&parts.headers, route.query.as_ref());
    if let Target::Submit(endpoint) | Target::Run(endpoint) | Target::Request { endpoint, .. } = &route.target
    {
        let Endpoint { owner, alias, path } = endpoint;
        assert!(!owner.is_empty() && !alias.is_empty() && !alias.contains('/'), "{endpoint:?}");
        // The run host has no questions about requests, so there the word is one like any other.
        let split = !path.starts_with("requests/") && !path.contains("/requests/");
        assert!(split || matches!(route.target, Target::Run(_)), "{endpoint:?}");
    }
    if parts.method == Method::OPTIONS {
        assert_eq!(route.target, Target::Preflight, "a preflight asks for nothing else");
    }
    caller(parts, route);
    let _ = params::wants_logs(query);
    match params::submit(query, headers) {
        Ok(params) => usable(&params),
        Err(unusable) => answer(unusable.into(), route.platform, &[400]),
    }
    if let Ok(params) = params::run(headers) {
        usable(&params);
        assert!(params.webhook.is_none() && params.max_queue_length.is_none());
    }
    if let Some(mode) = params::value(query, "endpoint_id").and_then(|id| openapi::find(&id)) {
        let document = openapi::make(mode, &Origin::new(None, headers, false));
        assert!(document["servers"][0]["url"].is_string());
    }
    let now = DateTime::from_timestamp(NOW_SECONDS, 0).expect("a time");
    match platform::history_filter(query, now) {
        Ok(filter) => {
            assert!((1..=100).contains(&filter.limit) && filter.paths.is_some_and(|paths| !paths.is_empty()));
            for time in [filter.from, filter.until].into_iter().flatten() {
                // What Postgres can count: 4713 BC to 294276 AD.
                assert!((-210_866_803_200..9_224_318_016_000).contains(&time.timestamp()), "{time}");
            }
        }
        Err(error) => answer(error, true, &[400, 404]),
    }
}

/// What the job row can hold.
fn usable(params: &SubmitParams) {
    if let Some(webhook) = &params.webhook {
        assert!(webhook.starts_with("http://") || webhook.starts_with("https://"), "{webhook}");
        assert!(!webhook.contains(char::is_control), "{webhook}");
    }
    if let Some(within) = params.start_within {
        assert!((0.1..=10.0 * 366.0 * 86_400.0).contains(&within.as_secs_f64()), "{within:?}");
    }
    assert!(params.max_queue_length.is_none_or(|length| i64::try_from(length).is_ok()));
    assert!(params.lifecycle.as_ref().is_none_or(Value::is_object));
}

/// Nothing that was made up opens anything.
fn caller(parts: &Parts, route: &Route<'_>) {
    match auth::shown(&route.target, &parts.method, &parts.headers, &route.query) {
        Ok(Shown::Key(key)) => assert_eq!(key, key.trim()),
        Ok(Shown::Token(token)) => {
            let now = DateTime::from_timestamp(NOW_SECONDS, 0).expect("a time");
            assert_eq!(Claims::read(&token, &[7; 32], now), None, "a forged token");
        }
        Err(error) => answer(error, route.platform, &[401]),
    }
}

/// Addresses are absolute, and whole whatever the Host header says.
fn origins(headers: &HeaderMap) {
    let origin = Origin::new(None, headers, false);
    for service in
        [Service::Queue, Service::Run, Service::Rest, Service::Cdn, Service::Platform, Service::Site]
    {
        let base = origin.base(service);
        assert!(base.starts_with("http://") || base.starts_with("https://"), "{base}");
        let host = base.split('/').nth(2).unwrap_or_default();
        assert!(!host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic()), "{base}");
        assert!(!base.ends_with('/') && !base.contains(['"', '<', '>', '\\', '?', '#']), "{base}");
    }
}

/// A refusal is JSON with one of the statuses.
fn answer(error: Error, platform: bool, statuses: &[u16]) {
    let response = error.into_response(platform, ID);
    let status = response.status().as_u16();
    assert!(statuses.contains(&status), "{status}");
    assert_eq!(response.headers()[CONTENT_TYPE], wire::JSON);
    serde_json::from_slice::<Value>(&body(response)).expect("a refusal is JSON");
}

/// A log line goes through the status document and one event of the stream, and arrives as it was.
fn events(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    let at = DateTime::from_timestamp(NOW_SECONDS, 0).expect("a time");
    let job = running(&text, at);
    let document = StatusDocument::of(&Origin::new(None, &HeaderMap::new(), false), &job);
    let plain: Value =
        serde_json::from_slice(&body(wire::json(http::StatusCode::OK, &document))).expect("JSON");
    let event = Event::default().data(wire::ascii_json(&document));
    let events = futures_util::stream::iter([Ok::<_, Infallible>(event)]);
    let sent = body(Sse::new(events).into_response());
    let sent = std::str::from_utf8(&sent).expect("an event is text");
    let line = sent.strip_prefix("data: ").and_then(|rest| rest.strip_suffix("\n\n")).expect("one event");
    assert!(line.bytes().all(|byte| byte.is_ascii() && byte != b'\n' && byte != b'\r'), "{line}");
    let told: Value = serde_json::from_str(line).expect("an event is JSON");
    assert_eq!(told, plain, "the stream tells what the status tells");
    assert_eq!(told["logs"][0]["message"], text.as_ref());
    assert_eq!(told["error"], Value::Null);
}

fn running(text: &str, at: DateTime<Utc>) -> store::Status {
    let line =
        store::Log { seq: 1, attempt: 1, at, level: spec::Level::Info, message: text.to_owned(), data: None };
    store::Status {
        id: ID,
        path: "t2v".into(),
        state: store::State::Running,
        position: None,
        attempt: 1,
        progress: None,
        created_at: at,
        started_at: Some(at),
        finished_at: None,
        inference_seconds: None,
        http_status: None,
        error: Some(text.to_owned()),
        error_type: None,
        cancel_requested: false,
        logs: Some(vec![line]),
        last_seq: 1,
    }
}

/// A body that is there already.
fn body(response: Response<Body>) -> Vec<u8> {
    let bytes =
        to_bytes(response.into_body(), usize::MAX).now_or_never().expect("the body waits for nothing");
    bytes.expect("the body does not break off").to_vec()
}

#[cfg(test)]
mod tests {
    use super::wire;
    use proptest::prelude::*;

    #[test]
    fn a_history_window_that_no_calendar_has_is_refused() {
        for time in ["-262143-01-01T00:00:00Z", "%2B262142-12-31T23:59:59Z", "-9999-01-01", "0000-01-01"] {
            for name in ["start", "end"] {
                let query = format!("endpoint_id=fal-ai/ltx23-trainer-v2/t2v&{name}={time}");
                wire(
                    format!("GET /v1/models/requests/by-endpoint?{query} HTTP/1.1\nhost: localhost")
                        .as_bytes(),
                );
            }
        }
    }

    #[test]
    fn the_run_host_takes_requests_for_a_word_like_any_other() {
        wire(b"POST /run/fal-ai/ltx23-trainer-v2/v1/requests/t2v HTTP/1.1");
    }

    #[test]
    fn a_host_header_that_names_no_host_gives_whole_addresses() {
        for host in ["", " ", "a b", "a/b", "a\"b", "é", "/", "?", "#", "a?b#c", ":", ":80", "[", "\\"] {
            wire(format!("GET /health HTTP/1.1\nhost: {host}").as_bytes());
        }
    }

    proptest! {
        #[test]
        fn any_request_head_is_answered(
            method in "(GET|POST|PUT|DELETE|OPTIONS|[A-Z]{1,5})",
            path in "(/(queue|run|rest|cdn|v1|api|fal|proxy|fal-ai|ltx23-trainer-v2|t2v|requests|status|stream|[!-~]{0,9})){0,7}",
            query in "([?&](fal_webhook|fal_max_queue_length|logs|limit|start|end|cursor|status|endpoint_id)=[ -~]{0,30}){0,4}",
            headers in proptest::collection::vec(
                ("(host|authorization|x-fal-target-url|x-fal-request-timeout|x-fal-retry-config|x-forwarded-proto)", "\\PC{0,40}"), 0..4),
            text in "\\PC{0,60}",
        ) {
            let headers: String = headers.iter().map(|(name, value)| format!("\n{name}: {value}")).collect();
            wire(format!("{method} {path}{query} HTTP/1.1{headers}\n\n{text}").as_bytes());
        }

        #[test]
        fn any_bytes_are_answered(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            wire(&data);
        }
    }
}
