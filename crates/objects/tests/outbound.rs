//! The outbound client against a hostile world: addresses in every spelling, redirects, names that change, endless and
//! oversized answers. Servers are on loopback; what is not allowed must never be connected to.

#![expect(clippy::unwrap_used, reason = "a test's helper fails the test")]

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kiln_objects::addresses::{Allowed, Class};
use kiln_objects::outbound::{Error, Get, Lookup, Options, Outbound};

/// Answers look-ups from a table; the n-th look-up of `changes.test` alternates.
struct Table(AtomicUsize);

impl Lookup for Table {
    fn lookup(&self, name: String) -> Pin<Box<dyn Future<Output = std::io::Result<Vec<IpAddr>>> + Send>> {
        let n = self.0.fetch_add(1, Ordering::SeqCst);
        let addresses: &[&str] = match name.as_str() {
            "loop.test" => &["127.0.0.1"],
            "private.test" => &["10.0.0.7"],
            "metadata.test" => &["169.254.169.254"],
            "mapped.test" => &["::ffff:192.168.1.1"],
            "mixed.test" => &["93.184.216.34", "127.0.0.1"],
            "changes.test" if n.is_multiple_of(2) => &["127.0.0.1"],
            "changes.test" => &["10.0.0.7"],
            _ => &[],
        };
        let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        Box::pin(std::future::ready(Ok(addresses)))
    }
}

fn client(allow: &[&str]) -> Outbound {
    let options = Options {
        allowed: Allowed::parse(allow.iter().copied()).unwrap(),
        connect_timeout: Duration::from_secs(2),
        idle_timeout: Duration::from_millis(500),
        ..Options::default()
    };
    Outbound::with_lookup(options, Arc::new(Table(AtomicUsize::new(0)))).unwrap()
}

struct Server {
    port: u16,
    hits: Arc<AtomicUsize>,
}

async fn server() -> Server {
    let hits = Arc::new(AtomicUsize::new(0));
    let file = |headers: HeaderMap| async move {
        let data = b"0123456789".as_slice();
        let response = Response::builder().header("etag", "\"v1\"").header("content-type", "application/zip");
        match headers.get("range").and_then(|r| r.to_str().ok()) {
            Some("bytes=4-") if headers["if-range"] == "\"v1\"" => {
                response.status(206).header("content-range", "bytes 4-9/10").body(Body::from(&data[4..]))
            }
            Some("bytes=5-") => {
                response.status(206).header("content-range", "bytes 0-9/10").body(Body::from(data))
            }
            _ => response.body(Body::from(data)),
        }
        .unwrap()
    };
    let endless = || async {
        let pieces = stream::repeat(Bytes::from_static(&[7; 4096]));
        Response::new(Body::from_stream(pieces.map(Ok::<_, std::io::Error>)))
    };
    let stuck = || async {
        let first = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"x"))]);
        Response::new(Body::from_stream(first.chain(stream::pending())))
    };
    let to = |Path(target): Path<String>| async move {
        let target = target.replace('!', "/");
        Response::builder().status(302).header("location", target).body(Body::empty()).unwrap()
    };
    let counter = hits.clone();
    let app = Router::new()
        .route("/files/{name}", get(file))
        .route("/endless", get(endless))
        .route("/stuck", get(stuck))
        .route("/to/{target}", get(to))
        .route("/circle", get(|| async { axum::response::Redirect::temporary("/circle") }))
        .route("/nowhere", get(|| async { axum::http::StatusCode::FOUND }))
        .route("/gone", get(|| async { axum::http::StatusCode::GONE }))
        .route("/hook", post(|body: String| async move { if body == "hi" { "ok" } else { "?" } }))
        .layer(axum::middleware::from_fn_with_state(
            counter,
            |State(hits): State<Arc<AtomicUsize>>,
             request: axum::extract::Request,
             next: axum::middleware::Next| async move {
                hits.fetch_add(1, Ordering::SeqCst);
                next.run(request).await
            },
        ));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, app).await });
    Server { port, hits }
}

async fn fetch(client: &Outbound, url: &str) -> Result<Vec<u8>, Error> {
    let download = client.get(Get { url, max_bytes: 1 << 20, resume: None }).await?;
    Ok(download.body.try_collect::<Vec<Bytes>>().await?.concat())
}

/// Hosts that are (or may be read as) private, in every spelling that URL parsers know; the class is what a refusal
/// must name.
const CORPUS: &[(&str, &str)] = &[
    ("127.0.0.1", "loopback"),
    ("127.1", "loopback"),
    ("127.0.1", "loopback"),
    ("127.255.255.254", "loopback"),
    ("2130706433", "loopback"),
    ("0x7f000001", "loopback"),
    ("0x7f.0.0.1", "loopback"),
    ("0x7f.1", "loopback"),
    ("0177.0.0.1", "loopback"),
    ("017700000001", "loopback"),
    ("0177.0x0.0.01", "loopback"),
    ("127.0.0.1.", "loopback"),
    ("127。0。0。1", "loopback"),
    ("１２７.0.0.1", "loopback"),
    ("①②⑦.0.0.1", "loopback"),
    ("%31%32%37.0.0.1", "loopback"),
    ("[::1]", "loopback"),
    ("[0:0:0:0:0:0:0:1]", "loopback"),
    ("[::ffff:127.0.0.1]", "loopback"),
    ("[::ffff:7f00:1]", "loopback"),
    ("[::ffff:0:127.0.0.1]", "loopback"),
    ("[::127.0.0.1]", "loopback"),
    ("[64:ff9b::127.0.0.1]", "loopback"),
    ("[2002:7f00:1::]", "loopback"),
    ("loop.test", "loopback"),
    ("LOOP.TEST", "loopback"),
    ("user:pass@127.0.0.1", "loopback"),
    ("8.8.8.8@127.0.0.1", "loopback"),
    ("10.0.0.1", "private"),
    ("10.1", "private"),
    ("167772161", "private"),
    ("0xa000001", "private"),
    ("012.0.0.1", "private"),
    ("172.16.0.1", "private"),
    ("172.31.255.255", "private"),
    ("172.16.1", "private"),
    ("0xac.0x10.0.1", "private"),
    ("192.168.0.1", "private"),
    ("192.168.1", "private"),
    ("3232235521", "private"),
    ("0300.0250.0.1", "private"),
    ("100.64.0.1", "private"),
    ("100.127.255.255", "private"),
    ("[::ffff:10.0.0.1]", "private"),
    ("[::ffff:c0a8:1]", "private"),
    ("[::10.0.0.1]", "private"),
    ("[64:ff9b::a00:1]", "private"),
    ("[2002:a00:1::1]", "private"),
    ("[2002:c0a8:101::]", "private"),
    ("[fc00::1]", "private"),
    ("[fd00::1]", "private"),
    ("[fdff:ffff::]", "private"),
    ("[fec0::1]", "private"),
    ("private.test", "private"),
    ("mapped.test", "private"),
    ("169.254.0.1", "link-local"),
    ("169.254.255.255", "link-local"),
    ("[fe80::1]", "link-local"),
    ("[febf::1]", "link-local"),
    ("[::ffff:169.254.1.1]", "link-local"),
    ("169.254.169.254", "metadata"),
    ("2852039166", "metadata"),
    ("0xa9fea9fe", "metadata"),
    ("0251.0376.0251.0376", "metadata"),
    ("169.254.43518", "metadata"),
    ("[::ffff:169.254.169.254]", "metadata"),
    ("[::ffff:a9fe:a9fe]", "metadata"),
    ("[64:ff9b::a9fe:a9fe]", "metadata"),
    ("[2002:a9fe:a9fe::]", "metadata"),
    ("[fd00:ec2::254]", "metadata"),
    ("[fd20:ce::254]", "metadata"),
    ("169.254.170.2", "metadata"),
    ("100.100.100.200", "metadata"),
    ("168.63.129.16", "metadata"),
    ("metadata.test", "metadata"),
    ("0.0.0.0", "reserved"),
    ("0", "reserved"),
    ("0x0", "reserved"),
    ("0.0.0.1", "reserved"),
    ("[::]", "reserved"),
    ("[::ffff:0.0.0.0]", "reserved"),
    ("224.0.0.1", "reserved"),
    ("255.255.255.255", "reserved"),
    ("240.0.0.1", "reserved"),
    ("192.0.2.1", "reserved"),
    ("198.18.0.1", "reserved"),
    ("203.0.113.1", "reserved"),
    ("192.0.0.1", "reserved"),
    ("[ff02::1]", "reserved"),
    ("[2001::1]", "reserved"),
    ("[2001:db8::1]", "reserved"),
    ("[100::1]", "reserved"),
    ("[64:ff9b:1::1]", "reserved"),
];

#[tokio::test]
async fn no_address_of_the_corpus_is_reached_unless_it_is_allowed() {
    let server = server().await;
    let client = client(&[]);
    assert!(CORPUS.len() >= 80);
    for (host, class) in CORPUS {
        let url = format!("http://{host}:{}/files/a.zip", server.port);
        let error = fetch(&client, &url).await.expect_err(&url);
        assert!(matches!(&error, Error::Refused { .. }), "{url}: {error}");
        assert!(error.to_string().contains(class), "{url}: {error}");
        let posted = client.post(&url, HeaderMap::new(), Bytes::new(), Duration::from_secs(1)).await;
        assert!(matches!(posted, Err(Error::Refused { .. })), "{url}");
    }
    assert_eq!(server.hits.load(Ordering::SeqCst), 0, "nothing was connected to");
}

#[tokio::test]
async fn an_allowed_class_is_reached_and_no_other() {
    let server = server().await;
    let client = client(&["loopback"]);
    for host in ["127.0.0.1", "127.1", "loop.test"] {
        let url = format!("http://{host}:{}/files/a.zip", server.port);
        assert_eq!(fetch(&client, &url).await.unwrap(), b"0123456789", "{url}");
    }
    for (host, class) in CORPUS.iter().filter(|(_, class)| *class != "loopback") {
        let error = fetch(&client, &format!("http://{host}:{}/", server.port)).await.expect_err(host);
        assert!(
            matches!(&error, Error::Refused { .. }) && error.to_string().contains(class),
            "{host}: {error}"
        );
    }
}

#[tokio::test]
async fn a_redirect_is_judged_like_the_first_address() {
    let server = server().await;
    let client = client(&["127.0.0.0/8"]);
    let base = format!("http://127.0.0.1:{}", server.port);
    let follow = |target: &str| format!("{base}/to/{}", target.replace('/', "!").replace(':', "%3A"));
    assert_eq!(fetch(&client, &follow("/files/b.zip")).await.unwrap(), b"0123456789");
    for target in [
        "http://10.0.0.1/",
        "http://[::1]/",
        "http://169.254.169.254/latest/",
        "http://private.test/",
        "//192.168.0.1/",
    ] {
        let error = fetch(&client, &follow(target)).await.expect_err(target);
        assert!(matches!(error, Error::Refused { .. }), "{target}: {error}");
    }
    for target in ["file:///etc/passwd", "gopher://127.0.0.1/", "ftp://127.0.0.1/"] {
        let error = fetch(&client, &follow(target)).await.expect_err(target);
        assert!(matches!(error, Error::NotAUrl { .. }), "{target}: {error}");
    }
    let error = fetch(&client, &format!("{base}/nowhere")).await.unwrap_err();
    assert!(matches!(error, Error::Redirect { what: "without saying where to", .. }), "{error}");
}

#[tokio::test]
async fn a_circle_of_redirects_ends() {
    let server = server().await;
    let url = format!("http://127.0.0.1:{}/circle", server.port);
    let error = fetch(&client(&["loopback"]), &url).await.unwrap_err();
    assert!(matches!(error, Error::Redirect { what: "too often", .. }), "{error}");
    assert_eq!(server.hits.load(Ordering::SeqCst), 6, "the first try and five redirects");
}

#[tokio::test]
async fn a_name_with_one_forbidden_address_is_refused() {
    let server = server().await;
    let error = fetch(&client(&[]), &format!("http://mixed.test:{}/", server.port)).await.unwrap_err();
    assert!(matches!(error, Error::Refused { class: Class::Loopback, .. }), "{error}");
    let error = fetch(&client(&[]), "http://unknown.test/").await.unwrap_err();
    assert!(matches!(error, Error::Unresolved { .. }), "{error}");
}

#[tokio::test]
async fn a_name_that_changes_is_judged_at_each_look_up() {
    let server = server().await;
    // Allowed the first time (loopback), private the second: the second connection must not be made.
    let client = client(&["loopback"]);
    let url = format!("http://changes.test:{}/gone", server.port);
    assert!(matches!(fetch(&client, &url).await, Err(Error::Status { status: 410, .. })));
    let url = "http://changes.test:1/";
    let error = fetch(&client, url).await.unwrap_err();
    assert!(matches!(error, Error::Refused { class: Class::Private, .. }), "{error}");
}

#[tokio::test]
async fn answers_are_limited_in_size_and_time() {
    let server = server().await;
    let client = client(&["loopback"]);
    let base = format!("http://127.0.0.1:{}", server.port);
    let error = fetch(&client, &format!("{base}/endless")).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit, .. } if limit == 1 << 20), "{error}");
    let url = format!("{base}/files/a.zip");
    let announced = client.get(Get { url: &url, max_bytes: 9, resume: None }).await;
    assert!(matches!(announced, Err(Error::TooLarge { limit: 9, .. })), "known before the first byte");
    let error = fetch(&client, &format!("{base}/stuck")).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && error.may_pass(), "{error}");
}

#[tokio::test]
async fn a_download_resumes_only_when_the_file_is_the_same() {
    let server = server().await;
    let client = client(&["loopback"]);
    let url = format!("http://127.0.0.1:{}/files/M%C3%BC%20ller.zip", server.port);
    let start = |resume| client.get(Get { url: &url, max_bytes: 100, resume });
    let first = start(None).await.unwrap();
    assert_eq!((first.offset, first.total_bytes, first.file_name.as_str()), (0, Some(10), "Mü ller.zip"));
    assert_eq!(
        (first.etag.as_deref(), first.content_type.as_deref()),
        (Some("\"v1\""), Some("application/zip"))
    );
    let rest = start(Some((4, "\"v1\"".to_owned()))).await.unwrap();
    assert_eq!((rest.offset, rest.total_bytes), (4, Some(10)));
    assert_eq!(rest.body.try_collect::<Vec<Bytes>>().await.unwrap().concat(), b"456789");
    let changed = start(Some((4, "\"v0\"".to_owned()))).await.unwrap();
    assert_eq!(changed.offset, 0, "another version starts over");
    assert!(start(Some((5, "\"v1\"".to_owned()))).await.is_err(), "another range than asked for");
}

#[tokio::test]
async fn a_post_reports_the_status_and_follows_nothing() {
    let server = server().await;
    let client = client(&["loopback"]);
    let base = format!("http://127.0.0.1:{}", server.port);
    let post = |path: &str, body: &'static str| {
        let (url, client) = (format!("{base}{path}"), client.clone());
        async move { client.post(&url, HeaderMap::new(), Bytes::from(body), Duration::from_secs(2)).await }
    };
    assert_eq!(post("/hook", "hi").await.unwrap(), 200);
    assert_eq!(post("/files/x", "hi").await.unwrap(), 405);
    let closed =
        client.post("http://127.0.0.1:1/", HeaderMap::new(), Bytes::new(), Duration::from_secs(2)).await;
    assert!(matches!(closed, Err(Error::Unreachable { .. })));
}

#[test]
fn messages_carry_no_credentials() {
    let client = client(&[]);
    for url in [
        "ftp://user:secret@host/x?token=secret",
        "http://:secret@",
        "secret",
        "http://user:secret@127.0.0.1/?secret",
    ] {
        let error = client.check(url).unwrap_err().to_string();
        assert!(url == "secret" || !error.contains("secret"), "{error}");
    }
}
