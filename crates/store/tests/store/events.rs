//! Log lines.

use anyhow::Result;
use serde_json::json;
use spec::{Level, LogLine};
use store::{Log, Logs, Store};

use crate::common::*;

async fn logs(store: &Store, logs: Logs) -> Result<(Vec<Log>, i64)> {
    let status = store.status(id(1), logs).await?.expect("it exists");
    Ok((status.logs.expect("asked for"), status.last_seq))
}

fn texts(logs: &[Log]) -> Vec<&str> {
    logs.iter().map(|log| log.message.as_str()).collect()
}

#[tokio::test]
async fn lines_are_cumulative_numbered_and_come_back_as_written() -> Result<()> {
    let (_db, store) = fresh().await?;
    let claim = running(&store, 1).await?;
    let full = LogLine { level: Level::Warn, data: Some(json!({ "step": 1 })), ..line("two\0") };
    store.append(&claim.lease, &[line("one"), full]).await?;
    store.append(&claim.lease, &[]).await?;
    store.append(&claim.lease, &[line("three")]).await?;
    let (all, last) = logs(&store, Logs::All).await?;
    assert_eq!(texts(&all), ["one", "two\u{FFFD}", "three"]);
    assert_eq!((all.iter().map(|log| log.seq).collect::<Vec<_>>(), last), (vec![1, 2, 3], 3));
    assert_eq!((all[1].level, all[1].at, all[1].attempt), (Level::Warn, noon(), 1));
    assert_eq!(all[1].data, Some(json!({ "step": 1 })));
    let (since, last) = logs(&store, Logs::Since(2)).await?;
    assert_eq!((texts(&since), last), (vec!["three"], 3));
    assert_eq!(logs(&store, Logs::Since(3)).await?, (vec![], 3));
    Ok(())
}

#[tokio::test]
async fn numbers_go_on_over_attempts() -> Result<()> {
    let (_db, store) = fresh().await?;
    let first = running(&store, 1).await?;
    store.append(&first.lease, &[line("one")]).await?;
    store.release(&first.lease).await?;
    let second = claim(&store).await?;
    store.append(&second.lease, &[line("two")]).await?;
    let (all, _) = logs(&store, Logs::All).await?;
    assert_eq!(all.iter().map(|log| (log.seq, log.attempt)).collect::<Vec<_>>(), [(1, 1), (2, 2)]);
    Ok(())
}

#[tokio::test]
async fn lines_written_at_once_under_one_lease_get_numbers_of_their_own() -> Result<()> {
    let (_db, store) = fresh().await?;
    let claim = running(&store, 1).await?;
    let lines: Vec<Vec<LogLine>> =
        (0..8).map(|n| vec![line(&format!("{n}a")), line(&format!("{n}b"))]).collect();
    futures_util::future::try_join_all(lines.iter().map(|pair| store.append(&claim.lease, pair))).await?;
    let (all, _) = logs(&store, Logs::All).await?;
    assert_eq!(all.iter().map(|log| log.seq).collect::<Vec<_>>(), (1..=16).collect::<Vec<_>>());
    for pair in all.chunks(2) {
        assert_eq!(pair[0].message[..1], pair[1].message[..1], "a batch stays together");
    }
    Ok(())
}

#[tokio::test]
async fn a_runaway_worker_cannot_fill_the_disk() -> Result<()> {
    let (db, store) = fresh().await?;
    let claim = running(&store, 1).await?;
    store.append(&claim.lease, &[line(&"é".repeat(50_000))]).await?;
    let (all, _) = logs(&store, Logs::All).await?;
    assert!(all[0].message.len() < 9000 && all[0].message.ends_with('…'), "{} bytes", all[0].message.len());
    let many = vec![line("x"); 6000];
    store.append(&claim.lease, &many).await?;
    store.append(&claim.lease, &many).await?;
    let mut direct = db.connect().await?;
    let stored: i64 = sqlx::query_scalar("select count(*) from job_events").fetch_one(&mut direct).await?;
    assert_eq!(stored, 10_000);
    Ok(())
}
