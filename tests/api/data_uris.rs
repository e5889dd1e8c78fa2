//! Addresses inside requests: data URIs, kiln's own files, networks that are not to be reached.

use crate::support::{Api, SUBMIT, at, input};
use axum::body::Body;
use base64::Engine as _;
use files::{Address, Resolved};
use futures_util::TryStreamExt as _;
use serde_json::{Value, json};
use uuid::Uuid;

fn data_uri(bytes: &[u8]) -> String {
    format!("data:application/zip;base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes))
}

async fn submitted(api: &Api, path: &str, body: &Value) -> Uuid {
    let reply = api.post(path, body).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()["request_id"].as_str().unwrap().parse().unwrap()
}

/// What a worker reads at an address of its request.
async fn read(api: &Api, address: &str) -> Vec<u8> {
    assert!(address.starts_with("kiln:/files/b/"), "{address}");
    let files = api.app.files();
    let Resolved::Own(file) = files.resolve(address).await.unwrap() else { panic!("{address} is not ours") };
    let pieces: Vec<bytes::Bytes> = files.read(&file, 0..file.bytes).try_collect().await.unwrap();
    pieces.concat()
}

async fn problem(api: &Api, body: &Value) -> Value {
    let id = submitted(api, SUBMIT, body).await;
    let result = api.result(id).await;
    assert_eq!(result.status, 422, "{result:?}");
    result.json()["detail"][0].clone()
}

#[tokio::test]
async fn a_data_uri_goes_to_the_object_store_and_rows_hold_references() {
    let api = Api::new().await;
    let archive = vec![7; 3_000_000];
    let body = json!({
        "training_data_url": data_uri(&archive),
        "validation": [{"prompt": "a", "image_url": data_uri(b"picture")}, {"prompt": "b", "image_url": "https://example.com/b.png"}],
    });
    let id = submitted(&api, "/queue/fal-ai/ltx23-trainer-v2/i2v", &body).await;
    let claim = api.store.claim("worker", &["i2v"]).await.unwrap().unwrap();
    assert_eq!(read(&api, &claim.spec.training_data_url).await, archive);
    assert!(claim.spec.training_data_url.ends_with("/data.zip"));
    let images: Vec<&str> =
        claim.spec.validation.iter().filter_map(|item| item.image_url.as_deref()).collect();
    assert_eq!(read(&api, images[0]).await, b"picture");
    assert_eq!(images[1], "https://example.com/b.png");

    api.store.fail(&claim.lease, &spec::Failure::internal("x")).await.unwrap();
    let history = api
        .get("/v1/models/requests/by-endpoint?endpoint_id=fal-ai/ltx23-trainer-v2/i2v&expand=payloads")
        .await;
    let stored = &history.json()["items"][0]["json_input"];
    let url = stored["training_data_url"].as_str().unwrap().to_owned();
    assert!(url.starts_with("http://kiln.test:8080/cdn/files/b/"), "{url}");
    let path = url.strip_prefix("http://kiln.test:8080").unwrap();
    assert_eq!(api.get(path).await.body, archive, "an address that can be sent again");
    assert!(
        stored["validation"][0]["image_url"]
            .as_str()
            .unwrap()
            .starts_with("http://kiln.test:8080/cdn/files/b/")
    );

    // The files were part of the request, so they go with it.
    let gone = api.call("DELETE", &format!("/v1/models/requests/{id}/payloads"), &[], Body::empty()).await;
    assert_eq!(gone.status, 200);
    api.app.files().sweep().await.unwrap();
    assert_eq!(api.objects(), Vec::<String>::new());
}

#[tokio::test]
async fn a_request_that_is_refused_leaves_no_files() {
    let api = Api::new().await;
    submitted(&api, SUBMIT, &input()).await;
    let reply = api
        .post(&format!("{SUBMIT}?fal_max_queue_length=0"), &json!({"training_data_url": data_uri(b"x")}))
        .await;
    assert_eq!(reply.status, 429);
    api.app.files().sweep().await.unwrap();
    assert_eq!(api.objects(), Vec::<String>::new());
}

#[tokio::test]
async fn a_request_that_failed_keeps_no_archive_in_its_row() {
    let api = Api::new().await;
    let body = json!({"training_data_url": data_uri(&[1; 100_000]), "rank": "many"});
    submitted(&api, SUBMIT, &body).await;
    let history = api
        .get("/v1/models/requests/by-endpoint?endpoint_id=fal-ai/ltx23-trainer-v2/t2v&expand=payloads")
        .await;
    let kept = history.json()["items"][0]["json_input"]["training_data_url"].as_str().unwrap().to_owned();
    assert!(kept.starts_with("data:application/zip;base64,…") && kept.len() < 100, "{kept}");
    assert_eq!(api.objects(), Vec::<String>::new());
}

#[tokio::test]
async fn a_data_uri_that_holds_no_file_fails_the_request() {
    let api = Api::new().await;
    for (address, says) in [
        ("data:application/zip;base64,UEs*BA==", "not valid base64"),
        ("data:application/zip;base64", "no comma"),
    ] {
        let problem = problem(&api, &json!({"training_data_url": address})).await;
        assert_eq!(problem["type"], "file_download_error");
        assert_eq!(problem["loc"], json!(["body", "training_data_url"]));
        assert!(problem["msg"].as_str().unwrap().contains(says), "{problem}");
    }
}

#[tokio::test]
async fn a_data_uri_over_the_limit_fails_the_request() {
    let api = Api::with(|options| options.upload_limit = 100).await;
    let problem = problem(&api, &json!({"training_data_url": data_uri(&[0; 101])})).await;
    assert_eq!((&problem["type"], &problem["ctx"]), (&json!("file_too_large"), &json!({"max_size": 100})));
    assert_eq!(api.objects(), Vec::<String>::new());
}

#[tokio::test]
async fn our_own_files_are_known_under_every_name() {
    let api = Api::new().await;
    let headers = [("x-fal-file-name", "a%20b.zip"), ("content-type", "application/zip")];
    let url = api.call("POST", "/cdn/files/upload", &headers, "archive").await.json()["access_url"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = url.strip_prefix("http://kiln.test:8080/cdn").unwrap();
    for known in [
        url.clone(),
        format!("http://localhost:8080{path}"),
        format!("https://v3.fal.media{path}"),
        format!("http://127.0.0.1:8080/cdn{path}"),
    ] {
        let id = submitted(&api, SUBMIT, &json!({"training_data_url": known})).await;
        let claim = api.claim().await;
        assert_eq!(claim.lease.job, id);
        assert_eq!(read(&api, &claim.spec.training_data_url).await, b"archive", "{known}");
    }
    let address = Address::from_url(&url).unwrap();
    assert!(matches!(
        api.app.files().resolve("https://example.com/files/b/x.zip").await.unwrap(),
        Resolved::Remote
    ));
    assert!(matches!(api.app.files().resolve(&address.reference()).await.unwrap(), Resolved::Own(_)));
}

#[tokio::test]
async fn a_file_of_ours_that_is_gone_fails_the_request_at_once() {
    let api = Api::new().await;
    let gone = "http://kiln.test:8080/cdn/files/b/00000000-0000-4000-8000-000000000000/a.zip";
    let problem = problem(&api, &json!({"training_data_url": gone})).await;
    assert_eq!(problem["type"], "file_download_error");
    assert!(problem["msg"].as_str().unwrap().contains("expired"), "{problem}");
}

#[tokio::test]
async fn a_file_that_the_submitter_may_not_read_fails_the_request() {
    let api = Api::new().await;
    let acl = json!({"initial_acl": {"default": "hide"}}).to_string();
    let url = api.call("POST", "/cdn/files/upload", &[("x-fal-object-lifecycle", &acl)], "x").await.json();
    let body = json!({"training_data_url": url["access_url"]}).to_string();
    let other = format!("Key {}", api.store.create_key("other").await.unwrap().text);
    let request =
        http::Request::post(SUBMIT).header("host", crate::support::HOST).header("authorization", &other);
    let reply = api.send(request.body(Body::from(body.clone())).unwrap()).await;
    let id: Uuid = reply.json()["request_id"].as_str().unwrap().parse().unwrap();
    assert_eq!(api.result(id).await.json()["detail"][0]["type"], "file_download_error");
    let own = api.call("POST", SUBMIT, &[], body).await.json();
    assert_eq!(
        api.get(&at(own["request_id"].as_str().unwrap().parse().unwrap(), "/status")).await.status,
        202
    );
}

#[tokio::test]
async fn data_on_a_private_network_fails_the_request_with_the_class() {
    let api = Api::new().await;
    for (address, class) in [
        ("http://127.0.0.1/a.zip", "loopback"),
        ("http://localhost:9/a.zip", "loopback"),
        ("http://10.1.2.3/a.zip", "private"),
        ("http://[::ffff:192.168.0.1]/a.zip", "private"),
        ("http://169.254.169.254/latest/meta-data", "metadata"),
        ("http://0x7f.1/a.zip", "loopback"),
    ] {
        let problem = problem(&api, &json!({"training_data_url": address})).await;
        assert_eq!(problem["type"], "file_download_error", "{address}");
        assert!(problem["msg"].as_str().unwrap().contains(&format!("on a {class} network")), "{problem}");
    }
    let body = json!({"training_data_url": "https://example.com/a.zip", "validation": [{"prompt": "x", "image_url": "http://10.0.0.1/x"}]});
    let id = submitted(&api, "/queue/fal-ai/ltx23-trainer-v2/i2v", &body).await;
    let detail = api.result(id).await.json()["detail"][0].clone();
    assert_eq!(detail["loc"], json!(["body", "validation", 0, "image_url"]));
    let api = Api::reaching("loopback 10.0.0.0/8", |_| {}).await;
    let id = submitted(&api, SUBMIT, &json!({"training_data_url": "http://127.0.0.1/a.zip"})).await;
    assert_eq!(api.status(id).await.status, 202, "allowed by setting");
}

#[tokio::test]
async fn a_webhook_on_a_private_network_is_refused_at_submit() {
    let api = Api::new().await;
    for (address, class) in [
        ("http://127.0.0.1/hook", "loopback"),
        ("http://localhost/hook", "loopback"),
        ("http://192.168.1.1/?secret=SECRET", "private"),
    ] {
        let query: String = url_encode(address);
        let reply = api.post(&format!("{SUBMIT}?fal_webhook={query}"), &input()).await;
        assert_eq!((reply.status.as_u16(), reply.json()["error_type"].as_str()), (400, Some("bad_request")));
        assert!(reply.text().contains(&format!("on a {class} network")), "{}", reply.text());
        assert!(!reply.text().contains("SECRET"));
    }
    let api = Api::reaching("loopback", |_| {}).await;
    let reply =
        api.post(&format!("{SUBMIT}?fal_webhook={}", url_encode("http://127.0.0.1/hook")), &input()).await;
    assert_eq!(reply.status, 200);
}

fn url_encode(text: &str) -> String {
    objects::names::encode_segment(text)
}

#[tokio::test]
async fn storage_that_is_away_makes_submit_503_and_loses_nothing() {
    let api = Api::new().await;
    let folder = api.folder.path().join("objects");
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::write(&folder, "no folder").unwrap();
    let body = json!({"training_data_url": data_uri(b"x")});
    assert_eq!(api.post(SUBMIT, &body).await.status, 503);
    assert_eq!(api.post(SUBMIT, &input()).await.status, 200, "requests without files go on");
    std::fs::remove_file(&folder).unwrap();
    std::fs::create_dir(&folder).unwrap();
    assert_eq!(api.post(SUBMIT, &body).await.status, 200);
}
