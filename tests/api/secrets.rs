//! What the log never holds.

use std::io;
use std::sync::{Arc, Mutex};

use crate::support::{Api, SUBMIT, at};
use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Everything that is said on this thread, at every level.
fn listen() -> (Log, tracing::subscriber::DefaultGuard) {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(log.clone())
        .finish();
    (log, tracing::subscriber::set_default(subscriber))
}

#[tokio::test]
async fn neither_keys_nor_tokens_nor_webhooks_nor_data_are_logged() {
    let api = Api::new().await;
    let (log, _listening) = listen();
    let token = api.post("/rest/tokens/", &json!({"allowed_apps": ["ltx23-trainer-v2"]})).await.json();
    let body = json!({"training_data_url": "data:application/zip;base64,SECRETDATA", "number_of_steps": "SECRETSTEPS"});
    let submitted =
        api.post(&format!("{SUBMIT}?fal_webhook=https%3A%2F%2Fe.example%2F%3Fkey%3DSECRETHOOK"), &body).await;
    let job = submitted.json()["request_id"].as_str().unwrap().parse().unwrap();
    api.get(&format!("{}?fal_jwt_token={}", at(job, "/status"), token.as_str().unwrap())).await;
    let wrong = http::Request::get(at(job, "")).header("authorization", "Key SECRETID:SECRETKEY");
    api.send(wrong.body(axum::body::Body::empty()).unwrap()).await;
    api.post(&format!("{SUBMIT}?fal_webhook=SECRETNOURL"), &body).await;
    api.call("GET", "/api/fal/proxy", &[("x-fal-target-url", "https://x.example/?SECRETTARGET")], "").await;
    api.put(&at(job, "/cancel")).await;

    let text = log.text();
    assert!(text.contains("accepted") && text.contains(&job.to_string()), "something is logged: {text}");
    let key = api.key.split(':').nth(1).unwrap();
    for secret in
        ["SECRET", key, token.as_str().unwrap(), token.as_str().unwrap().rsplit('.').next().unwrap()]
    {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[tokio::test]
async fn a_fault_of_ours_is_logged_with_its_request_id() {
    let api =
        Api::with(|options| options.clock = server::Clock::from_fn(|| panic!("the inner reason"))).await;
    let (log, _listening) = listen();
    let reply = api.post("/rest/tokens/", &json!({"allowed_apps": ["x"]})).await;
    let id = reply.header("x-fal-request-id").unwrap();
    let text = log.text();
    let line =
        text.lines().find(|line| line.contains("ERROR")).unwrap_or_else(|| panic!("no error in {text}"));
    assert!(line.contains(id) && line.contains("the inner reason"), "{line}");
}
