//! Whatever is sent is answered, in the shape of the protocol, and never with a fault of ours.

use std::sync::OnceLock;

use crate::support::{Api, id};
use axum::body::Body;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

fn segment() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => Just("fal-ai".to_owned()),
        4 => Just("ltx23-trainer-v2".to_owned()),
        2 => Just("queue".to_owned()),
        1 => Just("run".to_owned()),
        1 => Just("rest".to_owned()),
        1 => Just("cdn".to_owned()),
        1 => Just("tokens".to_owned()),
        1 => Just("v1".to_owned()),
        1 => Just("models".to_owned()),
        2 => Just("t2v".to_owned()),
        1 => Just("ic-lora".to_owned()),
        3 => Just("requests".to_owned()),
        3 => Just(id(1).to_string()),
        2 => Just("status".to_owned()),
        1 => Just("stream".to_owned()),
        1 => Just("cancel".to_owned()),
        1 => Just("payloads".to_owned()),
        1 => Just(String::new()),
        1 => "[a-z0-9._~%!$&'()*+,;=:@-]{1,12}",
    ]
}

fn query() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        Just("logs"),
        Just("fal_webhook"),
        Just("fal_max_queue_length"),
        Just("fal_jwt_token"),
        Just("endpoint_id"),
        Just("limit"),
        Just("cursor"),
        Just("start"),
        Just("status"),
    ];
    let value = prop_oneof![
        Just("1".to_owned()),
        Just("https%3A%2F%2Fexample.com%2F".to_owned()),
        Just("fal-ai%2Fltx23-trainer-v2%2Ft2v".to_owned()),
        "[a-zA-Z0-9%_.+-]{0,16}",
    ];
    proptest::collection::vec((name, value), 0..3).prop_map(|pairs| {
        pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
    })
}

fn headers() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let name = prop_oneof![
        Just("x-fal-request-timeout"),
        Just("x-fal-request-start-timeout"),
        Just("x-fal-queue-priority"),
        Just("x-fal-no-retry"),
        Just("x-fal-retry-config"),
        Just("x-fal-store-io"),
        Just("x-fal-object-lifecycle-preference"),
        Just("x-fal-target-url"),
        Just("x-fal-tags"),
        Just("accept"),
        Just("content-type"),
        Just("x-forwarded-proto"),
    ];
    let value = prop_oneof![
        Just("1".to_owned()),
        Just("30.5".to_owned()),
        Just(r#"{"expiration_duration_seconds":"x"}"#.to_owned()),
        Just("https://queue.fal.run/fal-ai/ltx23-trainer-v2/t2v".to_owned()),
        "[ -~]{0,20}",
    ];
    proptest::collection::vec((name, value), 0..4)
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(Vec::new()),
        Just(crate::support::input().to_string().into_bytes()),
        Just(br#"{"rank":1e400,"a":"\u0000"}"#.to_vec()),
        Just(br#"{"allowed_apps":["ltx23-trainer-v2"]}"#.to_vec()),
        proptest::collection::vec(any::<u8>(), 0..40),
    ]
}

static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();

#[test]
fn whatever_is_sent_is_answered_in_shape() {
    let runtime = RUNTIME.get_or_init(|| tokio::runtime::Runtime::new().unwrap());
    let api = runtime.block_on(Api::new());
    runtime.block_on(api.submit());
    let method = proptest::sample::select(vec![
        "GET", "GET", "GET", "POST", "POST", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "BREW",
    ]);
    let path = prop_oneof![
        4 => proptest::collection::vec(segment(), 0..7).prop_map(|segments| format!("/{}", segments.join("/"))),
        1 => Just("/api/fal/proxy".to_owned()),
        1 => Just("/queue/fal-ai/ltx23-trainer-v2/t2v".to_owned()),
    ];
    let case = (method, path, query(), headers(), body());
    let mut runner = TestRunner::new(Config { cases: 400, failure_persistence: None, ..Config::default() });
    let result = runner.run(&case, |(method, path, query, headers, body)| {
        // A valid run waits for a worker, a valid stream for the end: neither comes here.
        let waits = path.contains("/run/") && !body.is_empty() || path.contains("/status/stream");
        prop_assume!(!waits);
        let uri = if query.is_empty() { path.clone() } else { format!("{path}?{query}") };
        prop_assume!(uri.parse::<http::Uri>().is_ok());
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let request = api.request(method, &uri, &headers, Body::from(body));
        let reply = runtime.block_on(api.send(request));
        prop_assert!(reply.status.as_u16() < 500, "{reply:?}");
        prop_assert!(reply.header("x-fal-request-id").is_some(), "{reply:?}");
        prop_assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
        if !reply.body.is_empty() && reply.header("content-type") == Some("application/json") {
            let body: Result<serde_json::Value, _> = serde_json::from_slice(&reply.body);
            prop_assert!(body.is_ok(), "{reply:?}");
        } else {
            prop_assert!(
                method == "HEAD" || method == "OPTIONS" || path == "/metrics",
                "{method} {uri}: {reply:?}"
            );
        }
        Ok(())
    });
    result.unwrap();
}

#[test]
fn any_json_is_accepted_by_submit() {
    let runtime = RUNTIME.get_or_init(|| tokio::runtime::Runtime::new().unwrap());
    let api = runtime.block_on(Api::new());
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
    ];
    let json = leaf.prop_recursive(3, 20, 5, |inner| {
        let name = prop_oneof![
            Just("training_data_url".to_owned()),
            Just("number_of_steps".to_owned()),
            Just("validation".to_owned()),
            any::<String>()
        ];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            proptest::collection::vec((name, inner), 0..5)
                .prop_map(|pairs| serde_json::Value::Object(pairs.into_iter().collect())),
        ]
    });
    let mut runner = TestRunner::new(Config { cases: 150, failure_persistence: None, ..Config::default() });
    let result = runner.run(&json, |json| {
        let reply = runtime.block_on(api.post(crate::support::SUBMIT, &json));
        prop_assert_eq!(reply.status, 200, "{}", json);
        let id = reply.json()["request_id"].as_str().unwrap().parse().unwrap();
        let result = runtime.block_on(api.result(id));
        prop_assert!(matches!(result.status.as_u16(), 400 | 422), "{json}: {result:?}");
        Ok(())
    });
    result.unwrap();
}
