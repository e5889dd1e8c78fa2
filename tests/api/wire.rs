//! What only shows on a real connection: reason phrases, early answers, hang-ups, an orderly stop.

use std::time::Duration;

use crate::support::{Api, HOST, SUBMIT, at, id, input, outcome};
use store::{Logs, State};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

struct Served {
    api: Api,
    address: std::net::SocketAddr,
    stop: CancellationToken,
    server: JoinHandle<std::io::Result<()>>,
}

impl Served {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut server::Options)) -> Self {
        let api = Api::with(change).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(server::serve(listener, api.app.clone(), stop.clone().cancelled_owned()));
        Self { api, address, stop, server }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    fn head(&self, method: &str, path: &str, more: &str) -> String {
        format!("{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {}\r\n{more}\r\n", self.api.key)
    }

    /// One request on a connection of its own, and everything that comes back.
    async fn exchange(&self, method: &str, path: &str, body: &str) -> String {
        let mut stream = self.connect().await;
        let length = format!("Content-Length: {}\r\nConnection: close\r\n", body.len());
        let request = self.head(method, path, &length) + body;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within(stream.read_to_string(&mut answer)).await.unwrap();
        answer
    }

    async fn job_when(&self, id: Uuid, is: impl Fn(&store::Status) -> bool) -> store::Status {
        for _ in 0..400 {
            if let Some(job) = self.api.store.status(id, Logs::No).await.unwrap().filter(&is) {
                return job;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("not within 10 s");
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("within 20 s")
}

/// Reads until the end of the headers.
async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within(stream.read_u8()).await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn every_status_line_has_its_reason_phrase() {
    let served = Served::new().await;
    let line = async |method: &str, path: &str, body: &str| {
        served.exchange(method, path, body).await.lines().next().unwrap().to_owned()
    };
    let job = served.api.submit().await;
    assert_eq!(line("GET", &at(job, "/status"), "").await, "HTTP/1.1 202 Accepted");
    assert_eq!(line("GET", &at(job, ""), "").await, "HTTP/1.1 400 Bad Request");
    served.api.put(&at(job, "/cancel")).await;
    assert_eq!(line("GET", &at(job, ""), "").await, "HTTP/1.1 499 Client Closed Request");
    assert_eq!(line("GET", "/nothing", "").await, "HTTP/1.1 404 Not Found");
    assert_eq!(
        line("POST", "/run/fal-ai/ltx23-trainer-v2/t2v", "{}").await,
        "HTTP/1.1 422 Unprocessable Entity"
    );
    assert_eq!(line("POST", SUBMIT, &input().to_string()).await, "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn a_connection_serves_many_requests() {
    let served = Served::new().await;
    let job = served.api.submit().await;
    let mut stream = served.connect().await;
    for _ in 0..3 {
        stream.write_all(served.head("GET", &at(job, "/status"), "").as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 202 Accepted"), "{head}");
        let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap().parse().unwrap();
        within(stream.read_exact(&mut vec![0; length])).await.unwrap();
    }
}

#[tokio::test]
async fn a_body_that_is_announced_too_large_is_refused_before_it_is_sent() {
    let served = Served::with(|options| options.body_limit = 1000).await;
    let mut stream = served.connect().await;
    let head = served.head("POST", SUBMIT, "Content-Length: 300000000000\r\nExpect: 100-continue\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 413 Payload Too Large"), "{head}");
}

#[tokio::test]
async fn a_client_that_sends_a_body_too_large_still_reads_the_answer() {
    let served = Served::with(|options| options.body_limit = 1000).await;
    let mut stream = served.connect().await;
    let size = 8 << 20;
    stream
        .write_all(served.head("POST", SUBMIT, &format!("Content-Length: {size}\r\n")).as_bytes())
        .await
        .unwrap();
    // As simple clients do: everything is written before anything is read.
    within(stream.write_all(&vec![b'x'; size])).await.unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 413 Payload Too Large"), "{head}");
}

#[tokio::test]
async fn a_client_refused_before_its_body_is_read_still_reads_the_answer() {
    let served = Served::new().await;
    let size = 8 << 20;
    for (path, key, expected) in [
        (SUBMIT, "Key a:b", "HTTP/1.1 401 Unauthorized"),
        ("/queue/fal-ai/flux/dev", served.api.key.as_str(), "HTTP/1.1 404 Not Found"),
    ] {
        let mut stream = served.connect().await;
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {key}\r\nContent-Length: {size}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        within(stream.write_all(&vec![b'x'; size])).await.unwrap();
        let head = read_head(&mut stream).await;
        assert!(head.starts_with(expected), "{head}");
    }
}

#[tokio::test]
async fn head_tells_the_length_that_get_would_have() {
    let served = Served::new().await;
    let job = served.api.submit().await;
    let length = |answer: &str| {
        answer.lines().find_map(|line| line.strip_prefix("content-length: ").map(str::to_owned)).unwrap()
    };
    let head = served.exchange("HEAD", &at(job, "/status"), "").await;
    let get = served.exchange("GET", &at(job, "/status"), "").await;
    assert_eq!(length(&head), length(&get));
    assert!(head.ends_with("\r\n\r\n") && !get.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn a_run_whose_connection_breaks_is_cancelled() {
    let served = Served::new().await;
    let mut stream = served.connect().await;
    let body = input().to_string();
    let head = served.head(
        "POST",
        "/run/fal-ai/ltx23-trainer-v2/t2v",
        &format!("Content-Length: {}\r\n", body.len()),
    );
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    served.job_when(id(1), |_| true).await;
    drop(stream);
    let job = served.job_when(id(1), |job| job.state.is_final()).await;
    assert_eq!((job.state, job.error_type.as_deref()), (State::Cancelled, Some("client_disconnected")));
}

#[tokio::test]
async fn a_stopping_server_ends_streams_and_takes_no_more() {
    let served = Served::new().await;
    let job = served.api.submit().await;
    let mut stream = served.connect().await;
    stream.write_all(served.head("GET", &at(job, "/status/stream"), "").as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.contains("text/event-stream"), "{head}");
    served.stop.cancel();
    let mut rest = String::new();
    within(stream.read_to_string(&mut rest)).await.unwrap();
    assert!(rest.contains("IN_QUEUE") && rest.ends_with("0\r\n\r\n"), "a whole stream: {rest:?}");
    within(served.server).await.unwrap().unwrap();
    assert!(TcpStream::connect(served.address).await.is_err());
}

#[tokio::test]
async fn a_stopping_server_answers_what_it_has_begun() {
    let served = Served::new().await;
    let body = input().to_string();
    let mut stream = served.connect().await;
    let head = served.head("POST", SUBMIT, &format!("Content-Length: {}\r\n", body.len()));
    stream.write_all(head.as_bytes()).await.unwrap();
    // In the middle of a body.
    tokio::time::sleep(Duration::from_millis(200)).await;
    served.stop.cancel();
    tokio::time::sleep(Duration::from_millis(100)).await;
    stream.write_all(body.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains("connection: close"), "{head}");
    within(served.server).await.unwrap().unwrap();
    assert!(served.api.store.status(id(1), Logs::No).await.unwrap().is_some());
}

#[tokio::test]
async fn a_request_that_outlasts_the_drain_does_not_hold_the_server() {
    let served = Served::with(|options| options.drain = Duration::from_millis(100)).await;
    let mut stream = served.connect().await;
    stream.write_all(served.head("POST", SUBMIT, "Content-Length: 100\r\n").as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    served.stop.cancel();
    within(served.server).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_serving_server_sweeps() {
    let served = Served::new().await;
    let job = served.api.submit_with(SUBMIT, &[("x-fal-request-timeout", "0.2")]).await;
    // The test's clock stands still, so the deadline is moved instead.
    let mut connection = served.api.db.connect().await.unwrap();
    sqlx::query("update jobs set start_deadline = start_deadline - interval '1 minute'")
        .execute(&mut connection)
        .await
        .unwrap();
    let job = served.job_when(job, |job| job.state.is_final()).await;
    assert_eq!(job.error_type.as_deref(), Some("request_timeout"));
}

#[tokio::test]
async fn a_result_arrives_over_the_wire() {
    let served = Served::new().await;
    let job = served.api.finished().await;
    let answer = served.exchange("GET", &at(job, ""), "").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("x-fal-request-id: {job}")), "{head}");
    assert_eq!(body, outcome().to_result().to_string());
}
