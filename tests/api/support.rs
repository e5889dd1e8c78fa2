//! One server for one test.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use chrono::{DateTime, TimeDelta, Utc};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use server::{App, Clock, Ids, Options};
use spec::{File, Level, LogLine, Outcome};
use store::{Claim, Store};
use tower::ServiceExt as _;
use uuid::Uuid;

/// The application's part of every path.
pub(crate) const APP: &str = "/fal-ai/ltx23-trainer-v2";
/// Where a job of [`Api::submit`] goes.
pub(crate) const SUBMIT: &str = "/queue/fal-ai/ltx23-trainer-v2/t2v";
/// The Host header of every request that names none.
pub(crate) const HOST: &str = "kiln.test:8080";

/// The moment at which everything happens.
pub(crate) fn now() -> DateTime<Utc> {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

/// The n-th id that the server gives out, from 1.
pub(crate) fn id(n: u64) -> Uuid {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + u128::from(n))
}

/// A valid request body for every mode.
pub(crate) fn input() -> Value {
    json!({"training_data_url": "https://example.com/clips.zip"})
}

/// What a trainer hands back.
pub(crate) fn outcome() -> Outcome {
    let file = |name: &str, kind: &str, size| File {
        url: format!("https://files.example/{name}"),
        content_type: Some(kind.into()),
        file_name: Some(name.into()),
        file_size: Some(size),
    };
    Outcome {
        video: None,
        audio: None,
        lora_file: file("lora.safetensors", "application/octet-stream", 1234),
        config_file: file("config.json", "application/json", 56),
        debug_dataset: None,
    }
}

pub(crate) fn line(message: &str, level: Level) -> LogLine {
    LogLine { message: message.into(), level, at: now(), data: None }
}

pub(crate) struct Api {
    pub(crate) db: testkit::pg::Database,
    pub(crate) store: Store,
    pub(crate) app: Arc<App>,
    pub(crate) router: Router,
    /// Where the object store keeps its files.
    pub(crate) folder: tempfile::TempDir,
    /// `Key id:secret`
    pub(crate) key: String,
}

impl Api {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// A server with other options.
    pub(crate) async fn with(change: impl FnOnce(&mut Options)) -> Self {
        Self::reaching("", change).await
    }

    /// A server that may reach these addresses beside public ones.
    pub(crate) async fn reaching(allowed: &str, change: impl FnOnce(&mut Options)) -> Self {
        let db = testkit::pg::database().await.unwrap();
        let store = store_at(&db, now()).await;
        Self::on(db, store, allowed, change).await
    }

    /// The same with a database whose clock runs.
    pub(crate) async fn ticking(allowed: &str, change: impl FnOnce(&mut Options)) -> Self {
        let db = testkit::pg::database().await.unwrap();
        let options = store::Options { max_connections: 6, ..store::Options::default() };
        let store = Store::connect(&db.url(), options).await.unwrap();
        Self::on(db, store, allowed, change).await
    }

    async fn on(
        db: testkit::pg::Database,
        store: Store,
        allowed: &str,
        change: impl FnOnce(&mut Options),
    ) -> Self {
        let key = store.create_key("tests").await.unwrap();
        let ids = AtomicU64::new(0);
        let mut options = Options {
            ids: Ids::from_fn(move || id(ids.fetch_add(1, Ordering::Relaxed) + 1)),
            clock: Clock::from_fn(now),
            ..Options::default()
        };
        change(&mut options);
        let folder = tempfile::tempdir().unwrap();
        let location = objects::Location::Folder(folder.path().join("objects"));
        let objects = objects::Objects::open(&objects::Options { location }).unwrap();
        let allowed = objects::addresses::Allowed::parse(allowed.split_whitespace()).unwrap();
        let outbound = objects::outbound::Options { allowed, ..objects::outbound::Options::default() };
        let outbound = objects::outbound::Outbound::new(outbound).unwrap();
        let app = App::new(store.clone(), objects, outbound, options);
        let router = server::app(app.clone());
        Self { db, store, router, app, folder, key: format!("Key {}", key.text) }
    }

    /// Another server on the same objects.
    pub(crate) fn router_of(&self, store: Store, options: Options) -> Router {
        let outbound = objects::outbound::Outbound::new(objects::outbound::Options::default()).unwrap();
        server::app(App::new(store, self.app.files().objects().clone(), outbound, options))
    }

    /// Another server on the same rows and objects, some time later.
    pub(crate) async fn server_later(&self, time: TimeDelta) -> Router {
        let store = self.later(time).await;
        let options = Options { clock: Clock::from_fn(move || now() + time), ..Options::default() };
        self.router_of(store, options)
    }

    /// Every object there is.
    pub(crate) fn objects(&self) -> Vec<String> {
        fn walk(folder: &std::path::Path, found: &mut Vec<String>) {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    walk(&path, found);
                } else {
                    found.push(path.to_string_lossy().into_owned());
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.folder.path().join("objects"), &mut found);
        found
    }

    /// The same database, some time later.
    pub(crate) async fn later(&self, time: TimeDelta) -> Store {
        store_at(&self.db, now() + time).await
    }

    /// Sends as it is, without a key.
    pub(crate) async fn send(&self, request: Request<Body>) -> Reply {
        let response = tokio::time::timeout(Duration::from_secs(30), self.router.clone().oneshot(request));
        Reply::read(response.await.expect("an answer within 30 s").unwrap()).await
    }

    /// A request with the key and these headers.
    pub(crate) fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Request<Body> {
        let mut request = Request::builder().method(method).uri(path).header("authorization", &self.key);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", HOST);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(body.into()).unwrap()
    }

    pub(crate) async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Reply {
        self.send(self.request(method, path, headers, body)).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.call("GET", path, &[], Body::empty()).await
    }

    pub(crate) async fn put(&self, path: &str) -> Reply {
        self.call("PUT", path, &[], Body::empty()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        self.call("POST", path, &[], body.to_string()).await
    }

    /// Submits a valid `t2v` job.
    pub(crate) async fn submit(&self) -> Uuid {
        self.submit_with(SUBMIT, &[]).await
    }

    pub(crate) async fn submit_with(&self, path: &str, headers: &[(&str, &str)]) -> Uuid {
        let reply = self.call("POST", path, headers, input().to_string()).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()["request_id"].as_str().unwrap().parse().unwrap()
    }

    /// Takes the next `t2v` job as a worker does.
    pub(crate) async fn claim(&self) -> Claim {
        self.store.claim("worker", &["t2v"]).await.unwrap().expect("a waiting job")
    }

    /// A job that is finished.
    pub(crate) async fn finished(&self) -> Uuid {
        let id = self.submit().await;
        let claim = self.claim().await;
        self.store.finish(&claim.lease, &outcome()).await.unwrap();
        id
    }

    /// A job that failed.
    pub(crate) async fn failed(&self, failure: spec::Failure) -> Uuid {
        let id = self.submit().await;
        let claim = self.claim().await;
        self.store.fail(&claim.lease, &failure).await.unwrap();
        id
    }

    pub(crate) async fn status(&self, id: Uuid) -> Reply {
        self.get(&at(id, "/status")).await
    }

    pub(crate) async fn result(&self, id: Uuid) -> Reply {
        self.get(&at(id, "")).await
    }
}

/// A route of a job: `at(id, "/status")`.
pub(crate) fn at(id: Uuid, question: &str) -> String {
    format!("/queue{APP}/requests/{id}{question}")
}

async fn store_at(db: &testkit::pg::Database, time: DateTime<Utc>) -> Store {
    let options = store::Options {
        max_connections: 3,
        sweep_every: Duration::from_millis(200),
        settings: vec![("kiln.now".into(), time.to_rfc3339())],
        ..store::Options::default()
    };
    Store::connect(&db.url(), options).await.unwrap()
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: bytes::Bytes,
}

impl Reply {
    pub(crate) async fn read(response: http::Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        Self { status: parts.status, headers: parts.headers, body: body.collect().await.unwrap().to_bytes() }
    }

    /// The body as JSON, which must be declared as such: the JS client goes by it.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Status and body at once.
    #[track_caller]
    pub(crate) fn is(&self, status: u16, body: Value) -> &Self {
        assert_eq!((self.status.as_u16(), self.json()), (status, body));
        self
    }
}
