//! Files as they are handed out.

use crate::support::{Api, Reply, line, outcome};
use axum::body::Body;
use http::Request;
use serde_json::json;
use spec::Level;

const NAME: &str = "Clip ä (1).mp4";

/// Uploads a file and gives the path of its address.
async fn stored(api: &Api, name: &str, content_type: &str, body: &'static str) -> String {
    let escaped = objects::names::encode_segment(name);
    let headers = [("x-fal-file-name", escaped.as_str()), ("content-type", content_type)];
    let reply = api.call("POST", "/cdn/files/upload", &headers, body).await;
    let url = reply.json()["access_url"].as_str().unwrap().to_owned();
    url.strip_prefix("http://kiln.test:8080").unwrap().to_owned()
}

async fn ask(api: &Api, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
    let mut request = Request::builder().method(method).uri(path).header("host", crate::support::HOST);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    api.send(request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn a_file_comes_with_everything_that_readers_need() {
    let api = Api::new().await;
    let path = stored(&api, NAME, "video/mp4", "0123456789").await;
    assert!(path.ends_with("/Clip%20%C3%A4%20%281%29.mp4"), "{path}");
    let file = ask(&api, "GET", &path, &[]).await;
    assert_eq!((file.status.as_u16(), file.text()), (200, "0123456789"));
    for (name, value) in [
        ("content-type", "video/mp4"),
        ("content-length", "10"),
        ("accept-ranges", "bytes"),
        ("last-modified", "Fri, 02 Jan 2026 03:04:05 GMT"),
        ("cache-control", "public, max-age=300"),
        (
            "content-disposition",
            "inline; filename=\"Clip _ (1).mp4\"; filename*=UTF-8''Clip%20%C3%A4%20%281%29.mp4",
        ),
        ("x-content-type-options", "nosniff"),
        ("access-control-allow-origin", "*"),
        ("cross-origin-resource-policy", "cross-origin"),
    ] {
        assert_eq!(file.header(name), Some(value), "{name}");
    }
    assert!(file.header("content-security-policy").unwrap().starts_with("sandbox;"));
    let head = ask(&api, "HEAD", &path, &[]).await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    for name in ["content-type", "content-length", "etag", "accept-ranges", "content-disposition"] {
        assert_eq!(head.header(name), file.header(name), "{name}");
    }
    // Under every prefix and host that leads to the files.
    let short = path.strip_prefix("/cdn").unwrap();
    assert_eq!(ask(&api, "GET", short, &[]).await.status, 200);
    let request = Request::get(short).header("host", "v3.fal.media").body(Body::empty()).unwrap();
    assert_eq!(api.send(request).await.status, 200);
}

#[tokio::test]
async fn ranges_are_answered() {
    let api = Api::new().await;
    let path = stored(&api, "a.bin", "application/octet-stream", "0123456789").await;
    for (range, status, body, content_range) in [
        ("bytes=0-3", 206, "0123", "bytes 0-3/10"),
        ("bytes=4-", 206, "456789", "bytes 4-9/10"),
        ("bytes=-3", 206, "789", "bytes 7-9/10"),
        ("bytes=8-100", 206, "89", "bytes 8-9/10"),
        ("bytes=-100", 206, "0123456789", "bytes 0-9/10"),
    ] {
        let reply = ask(&api, "GET", &path, &[("range", range)]).await;
        assert_eq!((reply.status.as_u16(), reply.text()), (status, body), "{range}");
        assert_eq!(reply.header("content-range"), Some(content_range), "{range}");
        assert_eq!(reply.header("content-length"), Some(body.len().to_string().as_str()), "{range}");
        let head = ask(&api, "HEAD", &path, &[("range", range)]).await;
        assert_eq!((head.status.as_u16(), head.header("content-range")), (206, Some(content_range)));
    }
    for range in ["bytes=0-1,4-5", "lines=1-2", "bytes=x", "bytes=5-2"] {
        let reply = ask(&api, "GET", &path, &[("range", range)]).await;
        assert_eq!((reply.status.as_u16(), reply.text()), (200, "0123456789"), "{range}");
    }
    for range in ["bytes=10-", "bytes=-0", "bytes=99-100"] {
        let reply = ask(&api, "GET", &path, &[("range", range)]).await;
        assert_eq!(
            (reply.status.as_u16(), reply.header("content-range")),
            (416, Some("bytes */10")),
            "{range}"
        );
    }
}

#[tokio::test]
async fn a_range_is_answered_only_if_the_file_is_still_the_same() {
    let api = Api::new().await;
    let path = stored(&api, "a.bin", "application/octet-stream", "0123456789").await;
    let etag = ask(&api, "HEAD", &path, &[]).await.header("etag").unwrap().to_owned();
    assert!(etag.starts_with('"'), "a strong one: {etag}");
    for (condition, status) in [
        (etag.as_str(), 206),
        ("\"other\"", 200),
        ("Fri, 02 Jan 2026 03:04:05 GMT", 206),
        ("Fri, 02 Jan 2026 03:04:04 GMT", 200),
    ] {
        let reply = ask(&api, "GET", &path, &[("range", "bytes=0-3"), ("if-range", condition)]).await;
        assert_eq!(reply.status, status, "{condition}");
    }
    let known = ask(&api, "GET", &path, &[("if-none-match", &etag)]).await;
    assert_eq!(
        (known.status.as_u16(), known.body.len(), known.header("etag")),
        (304, 0, Some(etag.as_str()))
    );
}

#[tokio::test]
async fn what_could_act_in_the_servers_name_is_saved_and_not_shown() {
    let api = Api::new().await;
    for content_type in ["text/html", "image/svg+xml", "application/xhtml+xml", "application/javascript"] {
        let path = stored(&api, "x.html", content_type, "<script>alert(1)</script>").await;
        let file = ask(&api, "GET", &path, &[]).await;
        assert!(file.header("content-disposition").unwrap().starts_with("attachment;"), "{content_type}");
        assert_eq!(file.header("content-type"), Some(content_type), "as uploaded");
        assert!(file.header("content-security-policy").unwrap().contains("sandbox"));
        assert!(!file.header("content-security-policy").unwrap().contains("allow-"));
    }
}

#[tokio::test]
async fn what_is_not_there_is_404() {
    let api = Api::new().await;
    let path = stored(&api, "a.bin", "application/octet-stream", "x").await;
    for missing in [
        path.replace("a.bin", "b.bin"),
        "/cdn/files/b/00000000-0000-4000-8000-000000000000/a.bin".into(),
        "/cdn/files/b/x/a.bin".into(),
        "/cdn/files/jobs/00000000-0000-4000-8000-000000000000/1/a.bin".into(),
        "/cdn/files/../../etc/passwd".into(),
        format!("{path}/x"),
    ] {
        let reply = ask(&api, "GET", &missing, &[]).await;
        assert_eq!(reply.status, 404, "{missing}");
        assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
    }
    assert_eq!(ask(&api, "DELETE", &path, &[]).await.status, 405);
}

/// A finished job whose files are kiln's own.
async fn trained(api: &Api, headers: &[(&str, &str)]) -> uuid::Uuid {
    let id = api.submit_with(crate::support::SUBMIT, headers).await;
    let claim = api.claim().await;
    let mut made = outcome();
    for (file, body) in [(&mut made.lora_file, "weights"), (&mut made.config_file, "{}")] {
        let name = file.file_name.clone().unwrap();
        let key = objects::Key::job(id, claim.lease.attempt, &name);
        api.app.files().objects().put(&key, body.into()).await.unwrap();
        file.url = files::Address::output(id, claim.lease.attempt, &name).reference();
        file.file_size = Some(body.len() as u64);
    }
    api.store.append(&claim.lease, &[line("done", Level::Info)]).await.unwrap();
    api.store.finish(&claim.lease, &made).await.unwrap();
    id
}

#[tokio::test]
async fn outputs_are_served_at_the_address_in_the_result() {
    let api = Api::new().await;
    let id = trained(&api, &[]).await;
    let result = api.result(id).await.json();
    let url = result["lora_file"]["url"].as_str().unwrap();
    assert_eq!(url, format!("http://kiln.test:8080/cdn/files/jobs/{id}/1/lora.safetensors"));
    let path = url.strip_prefix("http://kiln.test:8080").unwrap();
    let file = ask(&api, "GET", path, &[]).await;
    assert_eq!((file.status.as_u16(), file.text()), (200, "weights"));
    assert_eq!(file.header("content-type"), Some("application/octet-stream"));
    assert_eq!(ask(&api, "GET", path, &[("range", "bytes=-3")]).await.text(), "hts");
    // Another client reaches the server under another name.
    let other = api.call("GET", &crate::support::at(id, ""), &[("host", "10.0.0.5:1")], Body::empty()).await;
    assert_eq!(
        other.json()["lora_file"]["url"],
        format!("http://10.0.0.5:1/cdn/files/jobs/{id}/1/lora.safetensors")
    );
    let history = api
        .get("/v1/models/requests/by-endpoint?endpoint_id=fal-ai/ltx23-trainer-v2/t2v&expand=payloads")
        .await;
    assert_eq!(history.json()["items"][0]["json_output"]["lora_file"]["url"], url);
    // A file of an attempt that no result names is nobody's.
    let key = objects::Key::job(id, 1, "state.bin");
    api.app.files().objects().put(&key, "secret".into()).await.unwrap();
    assert_eq!(ask(&api, "GET", &format!("/cdn/files/jobs/{id}/1/state.bin"), &[]).await.status, 404);
}

#[tokio::test]
async fn deleting_a_requests_payloads_removes_its_output_files_and_no_inputs() {
    let api = Api::new().await;
    let input = stored(&api, "in.zip", "application/zip", "input").await;
    let id = trained(&api, &[]).await;
    let url = api.result(id).await.json()["lora_file"]["url"].as_str().unwrap().to_owned();
    let path = url.strip_prefix("http://kiln.test:8080").unwrap();
    let reply = api.call("DELETE", &format!("/v1/models/requests/{id}/payloads"), &[], Body::empty()).await;
    let results = reply.json()["cdn_delete_results"].clone();
    assert_eq!(results[0], json!({"link": url, "exception": null}));
    assert_eq!(results.as_array().unwrap().len(), 2);
    assert_eq!(ask(&api, "GET", path, &[]).await.status, 404);
    assert_eq!(ask(&api, "GET", &input, &[]).await.text(), "input");
    assert_eq!(api.objects().len(), 1, "{:?}", api.objects());
}

#[tokio::test]
async fn an_outputs_lifetime_is_the_submits_to_say() {
    let api = Api::new().await;
    let wish = json!({"expiration_duration_seconds": 60, "initial_acl": {"default": "forbid"}}).to_string();
    let id = trained(&api, &[("x-fal-object-lifecycle-preference", &wish)]).await;
    let path = format!("/cdn/files/jobs/{id}/1/lora.safetensors");
    assert_eq!(ask(&api, "GET", &path, &[]).await.status, 403);
    assert_eq!(api.get(&path).await.status, 200, "who submitted it");
    let store = api.later(chrono::TimeDelta::seconds(61)).await;
    let files = files::Files::new(store, api.app.files().objects().clone());
    let swept = files.sweep().await.unwrap();
    assert_eq!((swept.expired, swept.removed), (2, 2));
    assert_eq!(api.objects(), Vec::<String>::new());
    assert_eq!(api.get(&path).await.status, 404);
    assert_eq!(api.result(id).await.status, 200, "the result itself stays");
}

#[tokio::test]
async fn a_request_that_is_not_to_be_kept_still_hands_out_its_files() {
    let api = Api::new().await;
    let id = trained(&api, &[("x-fal-store-io", "0")]).await;
    let later = api.later(chrono::TimeDelta::hours(2)).await;
    later.sweep().await.unwrap();
    api.app.files().sweep().await.unwrap();
    assert_eq!(api.result(id).await.status, 404);
    assert_eq!(api.get(&format!("/cdn/files/jobs/{id}/1/lora.safetensors")).await.text(), "weights");
}

#[tokio::test]
async fn retention_takes_the_files_with_the_request() {
    let api = Api::new().await;
    let id = trained(&api, &[]).await;
    let later = api.later(chrono::TimeDelta::days(31)).await;
    assert_eq!(later.purge(std::time::Duration::from_secs(30 * 86_400), 10).await.unwrap().len(), 1);
    files::Files::new(later, api.app.files().objects().clone()).sweep().await.unwrap();
    assert_eq!(api.objects(), Vec::<String>::new());
    assert_eq!(api.get(&format!("/cdn/files/jobs/{id}/1/lora.safetensors")).await.status, 404);
}
