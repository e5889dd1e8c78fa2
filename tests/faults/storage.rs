//! Uploads and webhooks of servers that are killed: what answered 2xx is there, what did not can be sent again, and
//! nothing is delivered after a 2xx.

use crate::{LONG, house};
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use kiln_tests::house::{Client, House, Server, request};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, Row as _};
use std::{
    convert::Infallible,
    time::{Duration, Instant},
};
use testkit::webhook::{Receiver, Reply};
use tokio::sync::mpsc;

/// Kills a server and starts it again where it was.
async fn again(house: &House, mut server: Server) -> Result<Server> {
    let address = server.address().to_owned();
    server.process.kill()?;
    let until = Instant::now() + LONG;
    loop {
        // The port may take a moment to be free.
        match house.serve_at(&address).await {
            Err(error) if Instant::now() > until => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            server => return server,
        }
    }
}

async fn initiate(client: &Client) -> Result<(String, String)> {
    let answer = reqwest::Client::new()
        .post(format!("{}/rest/storage/upload/initiate-multipart", client.base))
        .header("authorization", format!("Key {}", client.key))
        .json(&json!({ "file_name": "big.bin", "content_type": "application/octet-stream" }));
    let answer: Value = answer.send().await?.json().await?;
    let text = |name: &str| answer[name].as_str().map(str::to_owned).context("an address");
    Ok((text("file_url")?, text("upload_url")?))
}

fn below(upload_url: &str, tail: &str) -> Result<String> {
    let (path, query) = upload_url.split_once('?').context("a query")?;
    Ok(format!("{path}/{tail}?{query}"))
}

async fn part(upload_url: &str, number: u8) -> Result<Value> {
    let put = reqwest::Client::new().put(below(upload_url, &number.to_string())?).body(bytes_of(number));
    let answer = put.send().await?;
    ensure!(answer.status() == 200, "part {number}: {}", answer.status());
    Ok(answer.json().await?)
}

/// 2 MiB that tell their part.
fn bytes_of(number: u8) -> Vec<u8> {
    vec![b'a' + number; 2 << 20]
}

/// A body that is sent piece by piece, as the test says.
fn dripping() -> (mpsc::Sender<Bytes>, reqwest::Body) {
    let (sender, receiver) = mpsc::channel(1);
    let pieces = futures_util::stream::unfold(receiver, |mut receiver: mpsc::Receiver<Bytes>| async move {
        receiver.recv().await.map(|piece| (Ok::<_, Infallible>(piece), receiver))
    });
    (sender, reqwest::Body::wrap_stream(pieces))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_during_a_multipart_upload_keeps_every_part_that_it_answered_for() -> Result<()> {
    let (_cluster, house) = house().await?;
    let server = house.serve().await?;
    let client = server.client()?;
    let (file_url, upload_url) = initiate(&client).await?;
    let mut parts = vec![part(&upload_url, 1).await?, part(&upload_url, 2).await?];
    // The third is in the middle of its bytes.
    let (drip, body) = dripping();
    let third = tokio::spawn(reqwest::Client::new().put(below(&upload_url, "3")?).body(body).send());
    drip.send(bytes_of(3).into()).await?;
    drip.send(Bytes::from_static(b"half")).await?;
    let server = again(&house, server).await?;
    drop(drip);
    assert!(third.await?.is_err(), "the connection died with the server");

    assert_eq!(reqwest::get(&file_url).await?.status(), 404, "half a file is no file");
    parts.push(part(&upload_url, 3).await?);
    parts.reverse();
    let complete = below(&upload_url, "complete")?;
    let done = reqwest::Client::new().post(&complete).json(&json!({ "parts": parts })).send().await?;
    assert_eq!(done.status(), 200);
    let server = again(&house, server).await?;
    let file = reqwest::get(&file_url).await?.bytes().await?;
    assert!(file == [bytes_of(1), bytes_of(2), bytes_of(3)].concat(), "{} bytes", file.len());
    drop(server);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_between_the_object_and_the_row_has_promised_nothing() -> Result<()> {
    let (cluster, house) = house().await?;
    let server = house.serve().await?;
    let client = server.client()?;
    let (file_url, upload_url) = initiate(&client).await?;
    let (drip, body) = dripping();
    let put = tokio::spawn(reqwest::Client::new().put(&upload_url).body(body).send());
    drip.send(bytes_of(1).into()).await?;
    drip.send(Bytes::from_static(b"end")).await?;
    // The row was read before the first byte; now it cannot be written.
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.stop_immediate().await?;
    drop(drip);
    let objects = house.folder().join("data/objects/uploads");
    let until = Instant::now() + LONG;
    while finished_objects(&objects) == 0 {
        ensure!(Instant::now() < until, "the object is never finished");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let address = server.address().to_owned();
    drop(server);
    assert!(put.await?.is_err(), "no answer, so no promise");
    cluster.start().await?;
    let _server = house.serve_at(&address).await?;
    assert_eq!(reqwest::get(&file_url).await?.status(), 404);
    let put = reqwest::Client::new().put(&upload_url).body("second try").send().await?;
    assert_eq!(put.status(), 200);
    assert_eq!(reqwest::get(&file_url).await?.text().await?, "second try");
    Ok(())
}

/// Files under a folder that are whole.
fn finished_objects(folder: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.path() {
            path if path.is_dir() => finished_objects(&path),
            path => usize::from(!path.to_string_lossy().contains('#')),
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_whose_server_was_killed_before_its_webhook_is_told_once_by_the_next_one() -> Result<()> {
    let (cluster, house) = house().await?;
    let server = house.serve().await?;
    let client = server.client()?;
    let mut receiver = Receiver::start([]).await?;
    let id = client.submit(&hooked(&receiver), &request(&json!([{"log": "begun"}]))).await?;
    let address = server.address().to_owned();
    drop(server);
    let mut rows = PgConnection::connect(cluster.url()).await?;
    let _worker = house.work()?;
    let until = Instant::now() + LONG;
    while state(&mut rows, "select state from jobs where id = $1::uuid", &id).await? != "completed" {
        ensure!(Instant::now() < until, "the job does not end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(receiver.deliveries().is_empty(), "nobody was there to tell");
    let _server = house.serve_at(&address).await?;
    let told = receiver.wait_for(1, LONG).await?;
    let body: Value = serde_json::from_slice(&told[0].body)?;
    assert_eq!((&body["request_id"], &body["status"]), (&json!(id), &json!("OK")));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(receiver.deliveries().len(), 1);
    assert_eq!(delivery(&mut rows, &id).await?, "delivered");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_down_for_four_tries_is_told_in_the_end_across_restarts() -> Result<()> {
    let (cluster, house) = house().await?;
    let house = house.with("KILN_WEBHOOKS_RETRY_SECONDS", 1);
    let server = house.serve().await?;
    let client = server.client()?;
    let mut receiver = Receiver::start([503; 4].map(Reply::Status)).await?;
    // Born final, so it needs no worker.
    let id = client.submit(&hooked(&receiver), &json!({})).await?;
    receiver.wait_for(2, LONG).await?;
    // Time to write that down. A server that is killed before it has repeats the try when its lease ran out.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let _server = again(&house, server).await?;
    receiver.wait_for(5, 2 * LONG).await?;
    let mut rows = PgConnection::connect(cluster.url()).await?;
    let until = Instant::now() + LONG;
    while delivery(&mut rows, &id).await? != "delivered" {
        ensure!(Instant::now() < until, "the delivery is not recorded");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(receiver.deliveries().len(), 5, "four failures and one success, by the receiver's own log");
    Ok(())
}

fn hooked(receiver: &Receiver) -> String {
    format!("av2av?fal_webhook={}", receiver.url().replace(':', "%3A").replace('/', "%2F"))
}

async fn state(rows: &mut PgConnection, query: &'static str, id: &str) -> Result<String> {
    Ok(sqlx::query(query).bind(id).fetch_one(rows).await?.try_get(0)?)
}

async fn delivery(rows: &mut PgConnection, id: &str) -> Result<String> {
    state(rows, "select state from webhook_deliveries where job_id = $1::uuid", id).await
}
