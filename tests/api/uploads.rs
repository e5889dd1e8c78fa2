//! Section 5: every way in which the official clients bring files.

use crate::support::{Api, Reply};
use axum::body::Body;
use chrono::TimeDelta;
use http::Request;
use serde_json::{Value, json};

/// Sends without a key, as the JS client does to an upload address.
async fn bare(api: &Api, method: &str, url: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Reply {
    let path = url.strip_prefix("http://kiln.test:8080").unwrap_or(url);
    let mut request = Request::builder().method(method).uri(path).header("host", crate::support::HOST);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    api.send(request.body(body.into()).unwrap()).await
}

async fn initiate(api: &Api, multipart: bool) -> (String, String) {
    initiate_with(api, multipart, &[]).await
}

async fn initiate_with(api: &Api, multipart: bool, headers: &[(&str, &str)]) -> (String, String) {
    let word = if multipart { "initiate-multipart" } else { "initiate" };
    let path = format!("/rest/storage/upload/{word}?storage_type=fal-cdn-v3");
    let body = json!({"content_type": "application/zip", "file_name": "Mein Läuf.zip"}).to_string();
    let reply = api.call("POST", &path, headers, body).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let text = |name: &str| reply.json()[name].as_str().unwrap().to_owned();
    (text("file_url"), text("upload_url"))
}

/// `{path}/{tail}{query}` of an upload address, as the JS client builds it.
fn below(upload_url: &str, tail: &str) -> String {
    let (path, query) = upload_url.split_once('?').unwrap();
    format!("{path}/{tail}?{query}")
}

async fn part(api: &Api, upload_url: &str, number: u32, body: &[u8]) -> Value {
    let reply = bare(api, "PUT", &below(upload_url, &number.to_string()), &[], body.to_vec()).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let answer = reply.json();
    assert_eq!(answer["partNumber"], number);
    assert_eq!(reply.header("etag"), answer["etag"].as_str(), "the body and the header agree");
    answer
}

async fn complete(api: &Api, upload_url: &str, parts: &[Value]) -> Reply {
    let body = json!({"parts": parts}).to_string();
    bare(api, "POST", &below(upload_url, "complete"), &[("content-type", "application/json")], body).await
}

async fn read(api: &Api, url: &str) -> Reply {
    bare(api, "GET", url, &[], Body::empty()).await
}

#[tokio::test]
async fn a_small_file_goes_up_as_the_js_client_sends_it() {
    let api = Api::new().await;
    let (file_url, upload_url) = initiate(&api, false).await;
    assert!(file_url.starts_with("http://kiln.test:8080/cdn/files/b/"), "{file_url}");
    assert!(file_url.ends_with("/Mein%20L%C3%A4uf.zip"), "{file_url}");
    assert_eq!(read(&api, &file_url).await.status, 404, "nothing is there yet");
    let secret = upload_url.split("secret=").nth(1).unwrap();
    assert!(secret.len() >= 32 && !file_url.contains(secret), "{upload_url}");
    let put = bare(&api, "PUT", &upload_url, &[("content-type", "application/zip")], "PK bytes").await;
    assert_eq!(put.status, 200, "{put:?}");
    assert!(!put.body.is_empty(), "an empty JSON body would fail the client");
    let file = read(&api, &file_url).await;
    assert_eq!((file.status.as_u16(), file.text()), (200, "PK bytes"));
    assert_eq!(file.header("content-type"), Some("application/zip"));
}

#[tokio::test]
async fn a_file_without_name_and_type_gets_both() {
    let api = Api::new().await;
    let reply = api.call("POST", "/rest/storage/upload/initiate?storage_type=gcs", &[], Body::empty()).await;
    let url = reply.json()["file_url"].as_str().unwrap().to_owned();
    assert!(url.ends_with("/file"), "{url}");
    let upload_url = reply.json()["upload_url"].as_str().unwrap().to_owned();
    // Python's fallback sends its key along, which is not looked at.
    bare(&api, "PUT", &upload_url, &[("authorization", "Key wrong:key")], "").await;
    let file = read(&api, &url).await;
    assert_eq!((file.status.as_u16(), file.header("content-type")), (200, Some("application/octet-stream")));
    assert_eq!((file.header("content-length"), file.body.len()), (Some("0"), 0), "an empty file is a file");
}

#[tokio::test]
async fn a_large_file_goes_up_in_parts_as_the_js_client_sends_it() {
    let api = Api::new().await;
    let (file_url, upload_url) = initiate(&api, true).await;
    let mut parts = Vec::new();
    for (number, body) in [(1, "first "), (2, "second "), (3, "third")] {
        parts.push(part(&api, &upload_url, number, body.as_bytes()).await);
    }
    assert_eq!(read(&api, &file_url).await.status, 404, "not before it is complete");
    let done = complete(&api, &upload_url, &parts).await;
    assert_eq!(done.status, 200, "{done:?}");
    assert_eq!(done.json()["file_url"], file_url);
    let file = read(&api, &file_url).await;
    assert_eq!(file.text(), "first second third");
    let ranged = bare(&api, "GET", &file_url, &[("range", "bytes=4-8")], Body::empty()).await;
    assert_eq!(ranged.text(), "t sec", "a range over the seam");
    assert_eq!(complete(&api, &upload_url, &parts).await.status, 200, "a repetition");
}

async fn token(api: &Api) -> Value {
    let reply = api.call("POST", "/rest/storage/auth/token?storage_type=fal-cdn-v3", &[], "{}").await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}

#[tokio::test]
async fn the_upload_token_is_as_python_reads_it() {
    let api = Api::new().await;
    let token = token(&api).await;
    assert_eq!(token["token_type"], "Bearer");
    assert_eq!(token["base_url"], "http://kiln.test:8080/cdn");
    assert_eq!(token["expires_at"], "2026-01-03T03:04:05+00:00");
}

#[tokio::test]
async fn a_small_file_goes_up_as_the_python_client_sends_it() {
    let api = Api::new().await;
    let bearer = format!("Bearer {}", token(&api).await["token"].as_str().unwrap());
    let headers =
        [("authorization", bearer.as_str()), ("content-type", "text/plain"), ("x-fal-file-name", "a b.txt")];
    let reply = bare(&api, "POST", "/cdn/files/upload", &headers, "hello").await;
    let url = reply.json()["access_url"].as_str().unwrap().to_owned();
    assert!(url.ends_with("/a%20b.txt"), "{url}");
    let file = read(&api, &url).await;
    assert_eq!((file.text(), file.header("content-type")), ("hello", Some("text/plain")));
}

#[tokio::test]
async fn parts_come_at_the_same_time_and_complete_in_any_order() {
    let api = Api::new().await;
    let bearer = format!("Bearer {}", token(&api).await["token"].as_str().unwrap());
    let headers = [("authorization", bearer.as_str()), ("x-fal-file-name", "big.bin")];
    let begun = bare(&api, "POST", "/cdn/files/upload/multipart", &headers, Body::empty()).await.json();
    let (access, id) = (begun["access_url"].as_str().unwrap(), begun["uploadId"].as_str().unwrap());
    let send = async |number: u32| {
        let url = format!("{access}/multipart/{id}/{number}");
        let body = vec![b'a' + u8::try_from(number).unwrap(); 70_000];
        let reply = bare(&api, "PUT", &url, &headers, body).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        json!({"partNumber": number, "etag": reply.header("etag").unwrap()})
    };
    let mut parts = futures_util::future::join_all((1..=10).map(send)).await;
    parts.reverse();
    parts.swap(2, 7);
    let body = json!({"parts": parts}).to_string();
    let done = bare(&api, "POST", &format!("{access}/multipart/{id}/complete"), &headers, body).await;
    assert_eq!(done.status, 200, "{done:?}");
    let file = read(&api, access).await;
    let expected: Vec<u8> = (1..=10u8).flat_map(|number| vec![b'a' + number; 70_000]).collect();
    assert_eq!(file.body, expected);
}

#[tokio::test]
async fn wrong_tokens_and_keys_are_401_and_wrong_secrets_403() {
    let api = Api::new().await;
    for (method, path) in [
        ("POST", "/rest/storage/upload/initiate"),
        ("POST", "/rest/storage/upload/initiate-multipart"),
        ("POST", "/rest/storage/auth/token"),
        ("POST", "/cdn/files/upload"),
        ("POST", "/cdn/files/upload/multipart"),
    ] {
        assert_eq!(bare(&api, method, path, &[], "{}").await.status, 401, "{path}");
        let wrong = bare(&api, method, path, &[("authorization", "Bearer x.y.z")], "{}").await;
        assert_eq!(wrong.status, 401, "{path}");
        assert_eq!(
            bare(&api, method, path, &[("authorization", "Key a:b")], "{}").await.status,
            401,
            "{path}"
        );
    }
    // A token for an application opens no uploads, and the other way round.
    let app = api.post("/rest/tokens/", &json!({"allowed_apps": ["ltx23-trainer-v2"]})).await.json();
    let app = format!("Bearer {}", app.as_str().unwrap());
    assert_eq!(bare(&api, "POST", "/cdn/files/upload", &[("authorization", &app)], "x").await.status, 403);
    let upload = format!("Bearer {}", token(&api).await["token"].as_str().unwrap());
    let submit = bare(&api, "POST", crate::support::SUBMIT, &[("authorization", &upload)], "{}").await;
    assert_eq!(submit.status, 403);

    let (_, upload_url) = initiate(&api, false).await;
    let wrong = upload_url.replace("secret=", "secret=0");
    let reply = bare(&api, "PUT", &wrong, &[], "x").await;
    assert_eq!(
        (reply.status.as_u16(), reply.json()["detail"].as_str()),
        (403, Some("The secret in the upload address is wrong"))
    );
    assert_eq!(bare(&api, "PUT", upload_url.split('?').next().unwrap(), &[], "x").await.status, 403);
    assert_eq!(
        bare(&api, "POST", &below(&wrong, "complete"), &[], r#"{"parts":[{"partNumber":1,"etag":"x"}]}"#)
            .await
            .status,
        403
    );
    let nowhere = "/cdn/files/put/00000000-0000-4000-8000-000000000000?secret=x";
    assert_eq!(bare(&api, "PUT", nowhere, &[], "x").await.status, 404);
    assert_eq!(bare(&api, "PUT", "/cdn/files/put/nonsense?secret=x", &[], "x").await.status, 404);
    assert_eq!(api.objects(), Vec::<String>::new(), "nothing was stored");
}

#[tokio::test]
async fn only_one_object_is_accepted() {
    let api = Api::new().await;
    let (file_url, upload_url) = initiate(&api, false).await;
    assert_eq!(bare(&api, "PUT", &upload_url, &[], "one").await.status, 200);
    assert_eq!(
        bare(&api, "PUT", &upload_url, &[], "one").await.status,
        200,
        "a repetition of the same bytes"
    );
    let second = bare(&api, "PUT", &upload_url, &[], "two").await;
    assert_eq!((second.status.as_u16(), second.json()["error_type"].as_str()), (400, Some("bad_request")));
    assert_eq!(bare(&api, "PUT", &below(&upload_url, "1"), &[], "two").await.status, 400);
    assert_eq!(read(&api, &file_url).await.text(), "one");
    assert_eq!(api.objects().len(), 1, "what lost is gone");
}

#[tokio::test]
async fn wrong_parts_are_refused_with_a_reason() {
    let api = Api::new().await;
    let (_, upload_url) = initiate(&api, true).await;
    for number in ["0", "10001", "x", "-1", "1.5"] {
        let reply = bare(&api, "PUT", &below(&upload_url, number), &[], "x").await;
        assert_eq!(reply.status, 400, "{number}");
        assert!(reply.json()["detail"].as_str().unwrap().contains("part number"), "{reply:?}");
    }
    let one = part(&api, &upload_url, 1, b"x").await;
    for (parts, status, reason) in [
        (json!([{"partNumber": 1, "etag": "\"other\""}]), 400, "etag of part 1"),
        (json!([one, {"partNumber": 2, "etag": "\"x\""}]), 400, "Part 2 was not uploaded"),
        (json!([]), 422, "1 to 10000 parts"),
        (json!([{"partNumber": 1}]), 422, "partNumber"),
        (json!("x"), 422, "partNumber"),
    ] {
        let body = json!({"parts": parts}).to_string();
        let reply = bare(&api, "POST", &below(&upload_url, "complete"), &[], body).await;
        assert_eq!(reply.status, status, "{parts}");
        assert!(reply.text().contains(reason), "{}", reply.text());
    }
    let reply = bare(&api, "POST", &below(&upload_url, "complete"), &[], "no json").await;
    assert_eq!(reply.status, 400);
    assert_eq!(complete(&api, &upload_url, &[one]).await.status, 200, "and then as it should be");
}

#[tokio::test]
async fn the_last_write_of_a_part_wins_and_the_others_go() {
    let api = Api::new().await;
    let (file_url, upload_url) = initiate(&api, true).await;
    part(&api, &upload_url, 1, b"lost").await;
    let one = part(&api, &upload_url, 1, b"won ").await;
    let two = part(&api, &upload_url, 2, b"too").await;
    part(&api, &upload_url, 3, b"never listed").await;
    assert_eq!(complete(&api, &upload_url, &[two, one]).await.status, 200);
    assert_eq!(read(&api, &file_url).await.text(), "won too");
    api.app.files().sweep().await.unwrap();
    assert_eq!(api.objects().len(), 2);
    assert_eq!(read(&api, &file_url).await.text(), "won too");
}

#[tokio::test]
async fn a_file_over_the_limit_is_413_at_once() {
    let api = Api::with(|options| options.upload_limit = 1000).await;
    let (file_url, upload_url) = initiate(&api, false).await;
    // The body never ends, so only an early refusal can answer.
    let endless = || Body::from_stream(futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>("abc")));
    let reply = bare(&api, "PUT", &upload_url, &[], endless()).await;
    assert_eq!(
        (reply.status.as_u16(), reply.json()["detail"].as_str()),
        (413, Some("The file is larger than 1000 bytes, the limit of this server"))
    );
    let reply = bare(&api, "PUT", &upload_url, &[], vec![0; 1001]).await;
    assert_eq!(reply.status, 413);
    let reply = bare(&api, "PUT", &below(&upload_url, "1"), &[], vec![0; 1001]).await;
    assert_eq!(reply.status, 413);
    let reply = api.call("POST", "/cdn/files/upload", &[], vec![0; 1001]).await;
    assert_eq!(reply.status, 413);
    let reply = api.call("POST", "/cdn/files/upload", &[], endless()).await;
    assert_eq!(reply.status, 413);
    part(&api, &upload_url, 1, &[0; 600]).await;
    let reply = bare(&api, "PUT", &below(&upload_url, "2"), &[], vec![0; 600]).await;
    assert_eq!(reply.status, 413, "all parts together");
    part(&api, &upload_url, 1, &[1; 1000]).await;
    assert_eq!(bare(&api, "PUT", &upload_url, &[], vec![0; 1000]).await.status, 200, "exactly the limit");
    assert_eq!(read(&api, &file_url).await.body.len(), 1000);
    api.app.files().sweep().await.unwrap();
    assert_eq!(api.objects().len(), 1, "what was refused is gone: {:?}", api.objects());
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let api = Api::new().await;
    let (file_url, upload_url) = initiate(&api, true).await;
    let broken = || {
        let pieces = [Ok("abc".repeat(1_000_000)), Err(std::io::Error::other("gone"))];
        Body::from_stream(futures_util::stream::iter(pieces))
    };
    for url in [upload_url.clone(), below(&upload_url, "1")] {
        let reply = bare(&api, "PUT", &url, &[], broken()).await;
        assert_eq!(reply.status, 400, "{reply:?}");
    }
    assert_eq!(read(&api, &file_url).await.status, 404);
    part(&api, &upload_url, 1, b"x").await;
    // Nobody comes back: a day later the upload is over.
    let later = api.server_later(TimeDelta::hours(25)).await;
    let store = api.later(TimeDelta::hours(25)).await;
    let swept = files::Files::new(store, api.app.files().objects().clone()).sweep().await.unwrap();
    assert_eq!((swept.expired, swept.removed), (1, 1));
    assert_eq!(api.objects(), Vec::<String>::new());
    let path = upload_url.strip_prefix("http://kiln.test:8080").unwrap();
    let request = Request::put(path).header("host", crate::support::HOST).body(Body::from("x")).unwrap();
    let reply = tower::ServiceExt::oneshot(later, request).await.unwrap();
    assert_eq!(reply.status(), 404);
}

#[tokio::test]
async fn a_lifecycle_ends_and_hides_a_file() {
    let api = Api::new().await;
    let lifecycle = json!({"expiration_duration_seconds": 3600}).to_string();
    for header in ["x-fal-object-lifecycle", "x-fal-object-lifecycle-preference"] {
        let (file_url, upload_url) = initiate_with(&api, false, &[(header, &lifecycle)]).await;
        assert_eq!(bare(&api, "PUT", &upload_url, &[], "x").await.status, 200);
        let file = read(&api, &file_url).await;
        assert_eq!(file.status, 200);
        let later = api.server_later(TimeDelta::minutes(61)).await;
        let path = file_url.strip_prefix("http://kiln.test:8080").unwrap();
        let request = Request::get(path).header("host", crate::support::HOST).body(Body::empty()).unwrap();
        assert_eq!(tower::ServiceExt::oneshot(later, request).await.unwrap().status(), 404, "{header}");
    }
    // The Python client sends the same in both headers.
    let bearer = format!("Bearer {}", token(&api).await["token"].as_str().unwrap());
    let headers = [
        ("authorization", bearer.as_str()),
        ("x-fal-object-lifecycle", &lifecycle),
        ("x-fal-object-lifecycle-preference", &lifecycle),
    ];
    bare(&api, "POST", "/cdn/files/upload", &headers, "x").await;
    let store = api.later(TimeDelta::minutes(61)).await;
    let files = files::Files::new(store, api.app.files().objects().clone());
    assert_eq!(files.sweep().await.unwrap().expired, 3);
    assert_eq!(api.objects(), Vec::<String>::new());
}

#[tokio::test]
async fn who_may_read_is_the_owners_to_say() {
    let api = Api::new().await;
    for (default, status) in [("allow", 200), ("forbid", 403), ("hide", 404)] {
        let lifecycle = json!({"initial_acl": {"default": default, "rules": []}}).to_string();
        let (file_url, upload_url) =
            initiate_with(&api, false, &[("x-fal-object-lifecycle", &lifecycle)]).await;
        assert_eq!(bare(&api, "PUT", &upload_url, &[], "x").await.status, 200);
        assert_eq!(read(&api, &file_url).await.status, status, "{default}");
        let path = file_url.strip_prefix("http://kiln.test:8080").unwrap();
        assert_eq!(api.get(path).await.status, 200, "the owner, {default}");
    }
}

#[tokio::test]
async fn storage_that_refuses_writes_is_503_and_comes_back() {
    let api = Api::new().await;
    let (file_url, upload_url) = initiate(&api, false).await;
    let folder = api.folder.path().join("objects");
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::write(&folder, "no folder").unwrap();
    for reply in [
        bare(&api, "PUT", &upload_url, &[], "x").await,
        bare(&api, "PUT", &below(&upload_url, "1"), &[], vec![0; 3 << 20]).await,
        api.call("POST", "/cdn/files/upload", &[], "x").await,
    ] {
        assert_eq!((reply.status.as_u16(), reply.header("retry-after")), (503, Some("1")), "{reply:?}");
        assert!(!reply.text().contains(&*folder.to_string_lossy()), "{}", reply.text());
    }
    std::fs::remove_file(&folder).unwrap();
    std::fs::create_dir(&folder).unwrap();
    assert_eq!(bare(&api, "PUT", &upload_url, &[], "x").await.status, 200);
    assert_eq!(read(&api, &file_url).await.text(), "x");
}

#[tokio::test]
async fn an_initiation_that_makes_no_sense_is_refused() {
    let api = Api::new().await;
    for (body, status) in [("no json", 400), (r#"{"file_name": 5}"#, 422), (r#"{"content_type": []}"#, 422)] {
        let reply = api.call("POST", "/rest/storage/upload/initiate", &[], body).await;
        assert_eq!(reply.status, status, "{body}");
    }
}
