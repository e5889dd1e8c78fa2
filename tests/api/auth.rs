//! Section 8: keys and tokens.

use crate::support::{APP, Api, Reply, SUBMIT, at, id, input, now};
use axum::body::Body;
use chrono::TimeDelta;
use http::Request;
use serde_json::{Value, json};
use server::{Auth, Clock};

const MALFORMED: &str = "Invalid Key Authorization header format. Expected '<key_id>:<key_secret>'.";

impl Api {
    /// Sends with this Authorization header, or none.
    async fn as_caller(&self, method: &str, path: &str, authorization: Option<&str>, body: String) -> Reply {
        let mut request = Request::builder().method(method).uri(path).header("host", "kiln.test:8080");
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        self.send(request.body(Body::from(body)).unwrap()).await
    }

    async fn token(&self, request: Value) -> String {
        let reply = self.post("/rest/tokens/", &request).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json().as_str().expect("a bare JSON string").to_owned()
    }

    /// A token for the trainer's application.
    async fn app_token(&self) -> String {
        self.token(json!({"allowed_apps": ["ltx23-trainer-v2"], "token_expiration": 120})).await
    }
}

/// Every route that wants a key.
fn guarded() -> Vec<(&'static str, String)> {
    let job = id(1);
    vec![
        ("POST", SUBMIT.to_owned()),
        ("POST", format!("/run{APP}/t2v")),
        ("GET", at(job, "/status")),
        ("GET", at(job, "/status/stream")),
        ("GET", at(job, "")),
        ("PUT", at(job, "/cancel")),
        ("POST", "/rest/tokens/".to_owned()),
        ("GET", "/v1/models".to_owned()),
        ("GET", "/v1/models/requests/by-endpoint".to_owned()),
        ("DELETE", format!("/v1/models/requests/{job}/payloads")),
        ("GET", "/v1/meta".to_owned()),
        ("GET", "/metrics".to_owned()),
    ]
}

/// What a caller is told, in either shape.
fn told(reply: &Reply) -> String {
    let body = reply.json();
    body["detail"].as_str().or(body["error"]["message"].as_str()).unwrap_or_default().to_owned()
}

#[tokio::test]
async fn every_route_wants_a_key() {
    let api = Api::new().await;
    for (method, path) in guarded() {
        let reply = api.as_caller(method, &path, None, input().to_string()).await;
        assert_eq!(
            (reply.status.as_u16(), told(&reply).as_str()),
            (401, "Authorization header is required"),
            "{path}"
        );
        let wrong = format!("Key {}:{}", "0".repeat(8), "1".repeat(32));
        let reply = api.as_caller(method, &path, Some(&wrong), input().to_string()).await;
        assert_eq!(
            (reply.status.as_u16(), told(&reply).as_str()),
            (401, "invalid key credentials"),
            "{path}"
        );
    }
}

#[tokio::test]
async fn the_answers_to_callers_without_a_good_key() {
    let api = Api::new().await;
    let with = async |authorization: &str| {
        api.as_caller("POST", SUBMIT, Some(authorization), input().to_string()).await
    };
    for malformed in ["Key", "Key ", "Key nocolon", "Basic YTpi", "nonsense", ""] {
        with(malformed).await.is(401, json!({"detail": MALFORMED}));
    }
    with("Key wrong:key").await.is(401, json!({"detail": "invalid key credentials"}));
    with("Bearer nonsense").await.is(401, json!({"detail": "Invalid or expired token"}));
    assert!(api.store.counts().await.unwrap().iter().all(|count| count.queued == 0));
}

#[tokio::test]
async fn white_space_around_a_key_is_forgiven() {
    let api = Api::new().await;
    let key = api.key.strip_prefix("Key ").unwrap();
    for header in [format!("Key  {key} "), format!("key {key}"), format!("KEY\t{key}\t")] {
        let reply = api.as_caller("POST", SUBMIT, Some(&header), input().to_string()).await;
        assert_eq!(reply.status, 200, "{header:?}");
    }
}

#[tokio::test]
async fn a_right_id_with_a_wrong_secret_is_refused() {
    let api = Api::new().await;
    let changed = format!("{}x", api.key);
    let reply = api.as_caller("POST", SUBMIT, Some(&changed), input().to_string()).await;
    assert_eq!(reply.status, 401);
}

#[tokio::test]
async fn a_revoked_key_is_refused() {
    let api = Api::new().await;
    api.submit().await;
    let key_id = api.key.strip_prefix("Key ").unwrap().split(':').next().unwrap();
    assert!(api.store.revoke_key(key_id).await.unwrap());
    for _ in 0..200 {
        // The store keeps good keys for a moment; the revocation travels by notification.
        if api.post(SUBMIT, &input()).await.status == 401 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    panic!("a revoked key was still good after 5 s");
}

#[tokio::test]
async fn the_key_is_recorded_with_the_request() {
    let api = Api::new().await;
    api.submit().await;
    let mut connection = api.db.connect().await.unwrap();
    let recorded: Option<String> =
        sqlx::query_scalar("select key_id from jobs").fetch_one(&mut connection).await.unwrap();
    assert_eq!(recorded.as_deref(), api.key.strip_prefix("Key ").unwrap().split(':').next());
}

#[tokio::test]
async fn public_routes_need_no_key() {
    let api = Api::new().await;
    for path in
        ["/health", "/ready", "/api/openapi/queue/openapi.json?endpoint_id=fal-ai/ltx23-trainer-v2/t2v"]
    {
        assert_eq!(api.as_caller("GET", path, None, String::new()).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn without_authentication_every_route_answers() {
    let api = Api::with(|options| options.auth = Auth::InsecureNoAuth).await;
    for authorization in [None, Some("Key wrong"), Some("Bearer x")] {
        let reply = api.as_caller("POST", SUBMIT, authorization, input().to_string()).await;
        assert_eq!(reply.status, 200, "{authorization:?}");
        assert_eq!(api.as_caller("GET", "/v1/models", authorization, String::new()).await.status, 200);
    }
}

#[tokio::test]
async fn a_token_opens_its_application_as_a_bearer() {
    let api = Api::new().await;
    let token = format!("Bearer {}", api.app_token().await);
    let reply = api.as_caller("POST", SUBMIT, Some(&token), input().to_string()).await;
    assert_eq!(reply.status, 200);
    let job = reply.json()["request_id"].as_str().unwrap().parse().unwrap();
    assert_eq!(api.as_caller("GET", &at(job, "/status"), Some(&token), String::new()).await.status, 202);
    assert_eq!(api.as_caller("PUT", &at(job, "/cancel"), Some(&token), String::new()).await.status, 202);
}

#[tokio::test]
async fn a_token_in_the_query_opens_the_get_routes_only() {
    let api = Api::new().await;
    let job = api.finished().await;
    let token = api.app_token().await;
    for question in ["/status", "/status/stream", "", "/response"] {
        let path = format!("{}?fal_jwt_token={token}", at(job, question));
        assert_eq!(api.as_caller("GET", &path, None, String::new()).await.status, 200, "{question}");
    }
    for (method, path) in
        [("PUT", at(job, "/cancel")), ("POST", SUBMIT.to_owned()), ("GET", "/v1/models".to_owned())]
    {
        let path = format!("{path}?fal_jwt_token={token}");
        assert_eq!(
            api.as_caller(method, &path, None, input().to_string()).await.status,
            401,
            "{method} {path}"
        );
    }
}

#[tokio::test]
async fn a_wrong_header_is_not_made_good_by_a_token_in_the_query() {
    let api = Api::new().await;
    let job = api.submit().await;
    let path = format!("{}?fal_jwt_token={}", at(job, "/status"), api.app_token().await);
    assert_eq!(api.as_caller("GET", &path, Some("Key a:b"), String::new()).await.status, 401);
}

#[tokio::test]
async fn a_token_for_another_application_is_forbidden() {
    let api = Api::new().await;
    let job = api.submit().await;
    let token = api.token(json!({"allowed_apps": ["flux"], "token_expiration": 120})).await;
    let path = format!("{}?fal_jwt_token={token}", at(job, "/status"));
    api.as_caller("GET", &path, None, String::new())
        .await
        .is(403, json!({"detail": "The token is not valid for this application"}));
}

#[tokio::test]
async fn a_token_opens_neither_the_platform_nor_more_tokens() {
    let api = Api::new().await;
    let token = format!("Bearer {}", api.app_token().await);
    for (method, path) in [("GET", "/v1/models"), ("POST", "/rest/tokens/"), ("GET", "/metrics")] {
        assert_eq!(api.as_caller(method, path, Some(&token), "{}".into()).await.status, 403, "{path}");
    }
}

#[tokio::test]
async fn a_token_expires() {
    let api = Api::new().await;
    let job = api.submit().await;
    let token = api.token(json!({"allowed_apps": ["ltx23-trainer-v2"], "token_expiration": 60})).await;
    let path = format!("{}?fal_jwt_token={token}", at(job, "/status"));
    for (seconds, status) in [(59, 202), (60, 401)] {
        let options = server::Options {
            clock: Clock::from_fn(move || now() + TimeDelta::seconds(seconds)),
            ..server::Options::default()
        };
        // Another server on the same database: both know the secret.
        let router = api.router_of(api.store.clone(), options);
        let request = Request::get(&path).body(Body::empty()).unwrap();
        let reply = Reply::read(tower::ServiceExt::oneshot(router, request).await.unwrap()).await;
        assert_eq!(reply.status, status, "{seconds} s later");
    }
}

#[tokio::test]
async fn a_changed_token_is_refused() {
    let api = Api::new().await;
    let job = api.submit().await;
    let token = api.app_token().await;
    let mut parts: Vec<&str> = token.split('.').collect();
    // {"sub":null,"apps":["ltx23-trainer-v2"],"exp":9999999999}
    parts[1] = "eyJzdWIiOm51bGwsImFwcHMiOlsibHR4MjMtdHJhaW5lci12MiJdLCJleHAiOjk5OTk5OTk5OTl9";
    let path = format!("{}?fal_jwt_token={}", at(job, "/status"), parts.join("."));
    api.as_caller("GET", &path, None, String::new())
        .await
        .is(401, json!({"detail": "Invalid or expired token"}));
}

#[tokio::test]
async fn a_token_request_names_its_wrong_field() {
    let api = Api::new().await;
    for (request, field) in [
        (json!({}), "allowed_apps"),
        (json!(null), "allowed_apps"),
        (json!({"allowed_apps": []}), "allowed_apps"),
        (json!({"allowed_apps": "ltx23-trainer-v2"}), "allowed_apps"),
        (json!({"allowed_apps": [3]}), "allowed_apps"),
        (json!({"allowed_apps": ["a"], "token_expiration": 0}), "token_expiration"),
        (json!({"allowed_apps": ["a"], "token_expiration": 3601}), "token_expiration"),
        (json!({"allowed_apps": ["a"], "token_expiration": "soon"}), "token_expiration"),
    ] {
        let reply = api.post("/rest/tokens/", &request).await;
        assert_eq!(reply.status, 422, "{request}");
        assert_eq!(reply.json()["detail"][0]["loc"], json!(["body", field]), "{request}");
    }
}

#[tokio::test]
async fn a_token_request_may_name_the_whole_endpoint() {
    let api = Api::new().await;
    let job = api.submit().await;
    let token = api.token(json!({"allowed_apps": ["fal-ai/ltx23-trainer-v2/t2v"]})).await;
    let path = format!("{}?fal_jwt_token={token}", at(job, "/status"));
    assert_eq!(api.as_caller("GET", &path, None, String::new()).await.status, 202);
}
