//! Section 6: webhooks, as a receiver sees them.

use std::time::Duration;

use crate::support::{Api, SUBMIT, input, outcome};
use axum::body::Body;
use base64::Engine as _;
use ed25519_dalek::{Signature, Verifier as _, VerifyingKey};
use serde_json::{Value, json};
use server::webhooks;
use sha2::{Digest as _, Sha256};
use testkit::webhook::{Delivery, Receiver, Reply};
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(20);

/// A server that delivers to this machine. The database's clock runs, because tries become due by it.
async fn delivering(change: impl FnOnce(&mut webhooks::Options)) -> (Api, tokio::task::JoinHandle<()>) {
    let mut hooks =
        webhooks::Options { first_pause: Duration::from_millis(100), ..webhooks::Options::default() };
    change(&mut hooks);
    let api = Api::ticking("loopback", |options| options.webhooks = hooks).await;
    let app = api.app.clone();
    let delivering = tokio::spawn(async move { match webhooks::deliver(app).await {} });
    (api, delivering)
}

async fn submit(api: &Api, receiver: &Receiver) -> Uuid {
    let hook = objects::names::encode_segment(&receiver.url());
    let reply = api.post(&format!("{SUBMIT}?fal_webhook={hook}"), &input()).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()["request_id"].as_str().unwrap().parse().unwrap()
}

async fn finish(api: &Api) {
    let claim = api.claim().await;
    api.store.finish(&claim.lease, &outcome()).await.unwrap();
}

async fn keys(api: &Api) -> Vec<Value> {
    let reply = api.get("/rest/.well-known/jwks.json").await;
    reply.json()["keys"].as_array().unwrap().clone()
}

/// Verifies as fal's documentation tells receivers to.
fn verify(delivery: &Delivery, keys: &[Value]) -> bool {
    let header = |name: &str| delivery.headers.get(name).unwrap().to_str().unwrap();
    let message = format!(
        "{}\n{}\n{}\n{}",
        header("x-fal-webhook-request-id"),
        header("x-fal-webhook-user-id"),
        header("x-fal-webhook-timestamp"),
        hex::encode(Sha256::digest(&delivery.body))
    );
    let signature = header("x-fal-webhook-signature");
    assert!(signature.len() == 128 && signature == signature.to_lowercase());
    let signature = Signature::from_slice(&hex::decode(signature).unwrap()).unwrap();
    keys.iter().any(|key| {
        let x = base64::engine::general_purpose::URL_SAFE.decode(key["x"].as_str().unwrap());
        let Ok(x) = x else { return false };
        VerifyingKey::from_bytes(&x.try_into().unwrap())
            .unwrap()
            .verify(message.as_bytes(), &signature)
            .is_ok()
    })
}

#[tokio::test]
async fn a_result_is_delivered_signed_and_once() {
    let (api, _delivering) = delivering(|_| {}).await;
    let mut receiver = Receiver::start([]).await.unwrap();
    let id = submit(&api, &receiver).await;
    finish(&api).await;
    let got = receiver.wait_for(1, SOON).await.unwrap().remove(0);
    assert_eq!(got.target, "/hook");
    assert_eq!(got.headers["content-type"], "application/json");
    let expected =
        json!({"request_id": id, "gateway_request_id": id, "status": "OK", "payload": outcome().to_result()});
    assert_eq!(got.body, expected.to_string(), "the very bytes, in the documented order");
    assert_eq!(got.headers["x-fal-webhook-request-id"], id.to_string());
    assert!(api.key.contains(got.headers["x-fal-webhook-user-id"].to_str().unwrap()), "the id of the key");
    assert_eq!(got.headers["x-fal-webhook-timestamp"], crate::support::now().timestamp().to_string());
    assert!(verify(&got, &keys(&api).await));
    let mut changed = got.clone();
    changed.body = changed.body.iter().chain(b" ").copied().collect();
    assert!(!verify(&changed, &keys(&api).await));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(receiver.deliveries().len(), 1);
}

#[tokio::test]
async fn failures_are_told_with_their_status_and_body() {
    let (api, _delivering) = delivering(|_| {}).await;
    let mut receiver = Receiver::start([]).await.unwrap();
    let hook = objects::names::encode_segment(&receiver.url());
    // A bad request is born final, and its webhook says so.
    let reply = api.post(&format!("{SUBMIT}?fal_webhook={hook}"), &json!({})).await.json();
    let id: Uuid = reply["request_id"].as_str().unwrap().parse().unwrap();
    let body: Value = serde_json::from_slice(&receiver.wait_for(1, SOON).await.unwrap()[0].body).unwrap();
    assert_eq!((&body["status"], &body["error"]), (&json!("ERROR"), &json!("Invalid status code: 422")));
    assert_eq!(body["payload"], api.result(id).await.json());
    let id = submit(&api, &receiver).await;
    api.put(&crate::support::at(id, "/cancel")).await;
    let body: Value = serde_json::from_slice(&receiver.wait_for(2, SOON).await.unwrap()[1].body).unwrap();
    assert_eq!((&body["status"], &body["error"]), (&json!("ERROR"), &json!("Invalid status code: 499")));
    assert_eq!(body["payload"]["error_type"], "client_cancelled");
}

#[tokio::test]
async fn output_files_are_told_at_the_address_that_the_submitter_reaches() {
    let (api, _delivering) = delivering(|_| {}).await;
    let mut receiver = Receiver::start([]).await.unwrap();
    let id = submit(&api, &receiver).await;
    let claim = api.claim().await;
    let mut made = outcome();
    made.lora_file.url = files::Address::output(id, 1, "lora.safetensors").reference();
    api.store.finish(&claim.lease, &made).await.unwrap();
    let body: Value = serde_json::from_slice(&receiver.wait_for(1, SOON).await.unwrap()[0].body).unwrap();
    assert_eq!(
        body["payload"]["lora_file"]["url"],
        format!("http://kiln.test:8080/cdn/files/jobs/{id}/1/lora.safetensors")
    );
}

#[tokio::test]
async fn a_receiver_that_is_down_for_four_tries_gets_it_in_the_end_and_once() {
    let (api, _delivering) = delivering(|_| {}).await;
    let down = [500, 503, 404, 429].map(Reply::Status);
    let mut receiver = Receiver::start(down).await.unwrap();
    let id = submit(&api, &receiver).await;
    finish(&api).await;
    let got = receiver.wait_for(5, SOON).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(receiver.deliveries().len(), 5, "nothing after a 2xx");
    let keys = keys(&api).await;
    for delivery in &got {
        assert!(verify(delivery, &keys), "each try is signed");
        assert_eq!(delivery.headers["x-fal-webhook-request-id"], id.to_string());
        assert_eq!(delivery.body, got[0].body);
    }
}

#[tokio::test]
async fn a_redirect_is_final_and_not_followed() {
    let (api, _delivering) = delivering(|_| {}).await;
    let mut receiver = Receiver::start([Reply::Status(302)]).await.unwrap();
    submit(&api, &receiver).await;
    finish(&api).await;
    receiver.wait_for(1, SOON).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(receiver.deliveries().len(), 1);
}

#[tokio::test]
async fn a_receiver_that_never_listens_is_given_up_after_the_last_try() {
    let (api, _delivering) = delivering(|hooks| hooks.tries = 3).await;
    let mut receiver = Receiver::start([500; 20].map(Reply::Status)).await.unwrap();
    submit(&api, &receiver).await;
    finish(&api).await;
    receiver.wait_for(3, SOON).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(receiver.deliveries().len(), 3);
}

#[tokio::test]
async fn slow_receivers_never_hold_up_another_one() {
    // One slot fewer than the slow ones would like to have.
    let patient = |hooks: &mut webhooks::Options| {
        (hooks.parallel, hooks.first_timeout) = (5, Duration::from_secs(600));
    };
    let (api, _delivering) = delivering(patient).await;
    let slow = Receiver::start([Reply::Slow(Duration::from_secs(600)); 40]).await.unwrap();
    for _ in 0..20 {
        submit(&api, &slow).await;
        finish(&api).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut quick = Receiver::start([]).await.unwrap();
    submit(&api, &quick).await;
    finish(&api).await;
    quick.wait_for(1, Duration::from_secs(8)).await.unwrap();
    assert!(slow.deliveries().len() <= 4, "{} at a time", slow.deliveries().len());
}

#[tokio::test]
async fn two_servers_share_the_outbox_and_deliver_everything_once() {
    const JOBS: usize = 30;
    let (api, _first) = delivering(|_| {}).await;
    let second = api.app.clone();
    let _second = tokio::spawn(async move { match webhooks::deliver(second).await {} });
    let mut receiver = Receiver::start([]).await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..JOBS {
        ids.push(submit(&api, &receiver).await.to_string());
        finish(&api).await;
    }
    receiver.wait_for(JOBS, SOON).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut told: Vec<String> = receiver
        .deliveries()
        .iter()
        .map(|delivery| delivery.headers["x-fal-webhook-request-id"].to_str().unwrap().to_owned())
        .collect();
    told.sort();
    ids.sort();
    assert_eq!(told, ids);
}

#[tokio::test]
async fn the_keys_are_public_and_each_is_there_with_and_without_padding() {
    let api = Api::new().await;
    for path in ["/rest/.well-known/jwks.json", "/.well-known/jwks.json"] {
        let request = http::Request::get(path).header("host", crate::support::HOST);
        let reply = api.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(reply.status, 200, "{path}");
        let age =
            reply.header("cache-control").unwrap().strip_prefix("public, max-age=").unwrap().parse::<u32>();
        assert!(age.unwrap() <= 86_400);
        let keys = reply.json()["keys"].as_array().unwrap().clone();
        let x: Vec<&str> = keys.iter().map(|key| key["x"].as_str().unwrap()).collect();
        assert_eq!((x[0].len(), x[1].len()), (43, 44));
        assert_eq!(format!("{}=", x[0]), x[1]);
        assert_ne!(keys[0]["kid"], keys[1]["kid"]);
        for key in &keys {
            for (name, value) in [("kty", "OKP"), ("crv", "Ed25519"), ("use", "sig"), ("alg", "EdDSA")] {
                assert_eq!(key[name], value);
            }
        }
    }
    assert_eq!(keys(&api).await, keys(&api).await, "the same on every call");
}
