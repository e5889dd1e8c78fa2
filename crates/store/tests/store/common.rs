//! What the tests share: a store on a database of its own, requests, outcomes.

use std::time::Duration;

use anyhow::Result;
use chrono::{DateTime, Utc};
use serde_json::json;
use store::{Claim, NewJob, Options, Store, Submitted, Work};
use testkit::pg::{self, Database};
use uuid::Uuid;

pub(crate) const PATH: &str = "i2v";
pub(crate) const OTHER: &str = "ic-lora/av2av";

/// A store on a fresh database.
pub(crate) async fn fresh() -> Result<(Database, Store)> {
    fresh_with(Options::default()).await
}

pub(crate) async fn fresh_with(options: Options) -> Result<(Database, Store)> {
    let db = pg::database().await?;
    let store = Store::connect(&db.url(), small(options)).await?;
    Ok((db, store))
}

/// A store whose clock stands still.
pub(crate) async fn fresh_at(time: DateTime<Utc>) -> Result<(Database, Store)> {
    let db = pg::database().await?;
    let store = at(&db, time).await?;
    Ok((db, store))
}

/// Another process on the same database, its clock at another time.
pub(crate) async fn at(db: &Database, time: DateTime<Utc>) -> Result<Store> {
    Ok(Store::connect(&db.url_at(time), small(Options::default())).await?)
}

/// Many tests run at once; none needs a big pool.
fn small(options: Options) -> Options {
    Options { max_connections: 6, ..options }
}

pub(crate) fn noon() -> DateTime<Utc> {
    "2026-03-04T12:00:00Z".parse().expect("a time")
}

pub(crate) fn seconds(n: i64) -> chrono::TimeDelta {
    chrono::TimeDelta::seconds(n)
}

pub(crate) fn id(n: u128) -> Uuid {
    Uuid::from_u128(0x0199_0000_0000_7000_8000_0000_0000_0000 + n)
}

pub(crate) fn train_spec(path: &str) -> spec::TrainSpec {
    let mode = spec::find(path).expect("a known path");
    let body = json!({ "training_data_url": "https://data.example/clips.zip" });
    spec::parse(mode, &body).expect("a valid request")
}

/// A request that runs.
pub(crate) fn job(n: u128) -> NewJob {
    job_on(PATH, n)
}

pub(crate) fn job_on(path: &str, n: u128) -> NewJob {
    NewJob::new(id(n), path, Work::Run(Box::new(train_spec(path))))
}

pub(crate) fn user_failure() -> spec::Failure {
    let mode = spec::find(PATH).expect("a known path");
    spec::Failure::user(spec::parse(mode, &json!({})).expect_err("a field is missing"))
}

pub(crate) fn outcome() -> spec::Outcome {
    let file = |name: &str| spec::File {
        url: format!("https://files.example/{name}"),
        content_type: None,
        file_name: Some(name.to_owned()),
        file_size: Some(7),
    };
    spec::Outcome {
        video: None,
        audio: None,
        lora_file: file("lora.safetensors"),
        config_file: file("config.json"),
        debug_dataset: None,
    }
}

pub(crate) fn line(message: &str) -> spec::LogLine {
    spec::LogLine { message: message.to_owned(), level: spec::Level::Info, at: noon(), data: None }
}

pub(crate) async fn submit(store: &Store, job: NewJob) -> Result<()> {
    match store.submit(job).await? {
        Submitted::Accepted { .. } => Ok(()),
        Submitted::QueueFull { waiting } => anyhow::bail!("{waiting} wait"),
    }
}

pub(crate) async fn claim(store: &Store) -> Result<Claim> {
    store.claim("worker", &[PATH]).await?.ok_or_else(|| anyhow::anyhow!("nothing to claim"))
}

/// Submits and claims one job.
pub(crate) async fn running(store: &Store, n: u128) -> Result<Claim> {
    submit(store, job(n)).await?;
    let claim = claim(store).await?;
    anyhow::ensure!(claim.lease.job == id(n), "another job was first");
    Ok(claim)
}

/// Asks until the answer is yes.
pub(crate) async fn eventually<F: Future<Output = Result<bool>>>(
    what: &str,
    ask: impl Fn() -> F,
) -> Result<()> {
    for _ in 0..400 {
        if ask().await? {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    anyhow::bail!("not within 10 s: {what}")
}
