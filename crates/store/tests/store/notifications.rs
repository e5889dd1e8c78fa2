//! Waking by NOTIFY, and the poll behind it.

use std::time::{Duration, Instant};

use anyhow::Result;
use spec::{Failure, Phase, Progress};
use sqlx::Executor;
use store::{Answer, NewJob, Options, Store};

use crate::common::*;

/// A poll that no test waits for: whatever wakes is a notification.
const NO_POLL: Duration = Duration::from_secs(600);

async fn two() -> Result<(testkit::pg::Database, Store, Store)> {
    let options = || Options { poll: NO_POLL, ..Options::default() };
    let (db, here) = fresh_with(options()).await?;
    let there = Store::connect(&db.url(), Options { max_connections: 4, ..options() }).await?;
    // Both listen: each hears of what the other does.
    for store in [&here, &there] {
        let mut signal = store.work_signal();
        db.connect().await?.execute("notify kiln_work, 'x'").await?;
        soon(signal.changed()).await?;
    }
    Ok((db, here, there))
}

async fn soon(future: impl Future<Output = ()>) -> Result<()> {
    Ok(tokio::time::timeout(Duration::from_secs(10), future).await?)
}

#[tokio::test]
async fn a_submit_wakes_idle_workers_elsewhere() -> Result<()> {
    let (_db, here, there) = two().await?;
    let mut signal = there.work_signal();
    submit(&here, job(1)).await?;
    soon(signal.changed()).await?;
    assert!(there.claim("worker", &[PATH]).await?.is_some());
    let mut signal = here.work_signal();
    let claim = running(&there, 2).await?;
    soon(signal.changed()).await?;
    let mut signal = here.work_signal();
    there.release(&claim.lease).await?;
    soon(signal.changed()).await
}

#[tokio::test]
async fn every_change_of_a_job_wakes_its_watchers() -> Result<()> {
    let (_db, here, there) = two().await?;
    submit(&here, job(1)).await?;
    let mut watching = here.subscribe(id(1));
    let claim = claim(&there).await?;
    soon(watching.changed()).await?;
    there.append(&claim.lease, &[line("x")]).await?;
    soon(watching.changed()).await?;
    there.progress(&claim.lease, Progress { phase: Phase::Train, done: 1, total: 2 }).await?;
    soon(watching.changed()).await?;
    let mut worker = there.subscribe(id(1));
    here.request_cancel(id(1), Failure::cancelled()).await?;
    soon(worker.changed()).await?;
    let mut watching = here.subscribe(id(1));
    there.cancelled(&claim.lease).await?;
    soon(watching.changed()).await
}

#[tokio::test]
async fn a_waiting_request_hears_that_its_queue_moved() -> Result<()> {
    let (_db, here, there) = two().await?;
    submit(&here, job(1)).await?;
    submit(&here, job(2)).await?;
    let mut watching = here.subscribe(id(2));
    claim(&there).await?;
    soon(watching.changed()).await
}

#[tokio::test]
async fn waiting_for_the_end_returns_with_the_end() -> Result<()> {
    let (_db, here, there) = two().await?;
    submit(&here, job(1)).await?;
    let waiter = tokio::spawn({
        let here = here.clone();
        async move { here.wait_final(id(1)).await }
    });
    let claim = claim(&there).await?;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiter.is_finished());
    there.finish(&claim.lease, &outcome()).await?;
    let answer = tokio::time::timeout(Duration::from_secs(10), waiter).await???;
    assert_eq!(answer, Some(Answer::Completed(outcome())));
    Ok(())
}

#[tokio::test]
async fn a_due_webhook_wakes_the_senders() -> Result<()> {
    let (_db, here, there) = two().await?;
    let mut signal = there.webhook_signal();
    submit(&here, NewJob { webhook_url: Some("https://hook.example/".to_owned()), ..job(1) }).await?;
    here.request_cancel(id(1), Failure::cancelled()).await?;
    soon(signal.changed()).await?;
    assert_eq!(there.due_webhooks(9, 9, &[], Duration::from_secs(9)).await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_cut_listening_connection_comes_back_and_wakes_everybody_once() -> Result<()> {
    let (db, here, there) = two().await?;
    submit(&here, job(1)).await?;
    let mut watching = here.subscribe(id(1));
    let mut direct = db.connect().await?;
    let cut = "select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and query ilike 'listen%' and pid <> pg_backend_pid()";
    let cut = sqlx::query(cut).fetch_all(&mut direct).await?;
    assert!(cut.len() >= 2, "both processes listened");
    soon(watching.changed()).await?;
    // It hears again.
    let claim = claim(&there).await?;
    soon(watching.changed()).await?;
    there.finish(&claim.lease, &outcome()).await?;
    soon(watching.changed()).await
}

#[tokio::test]
async fn without_notifications_the_poll_still_wakes() -> Result<()> {
    let (_db, store) = fresh_with(Options { poll: Duration::from_millis(100), ..Options::default() }).await?;
    let begun = Instant::now();
    let (mut work, mut job, mut hooks) =
        (store.work_signal(), store.subscribe(id(1)), store.webhook_signal());
    for _ in 0..3 {
        soon(async {
            tokio::join!(work.changed(), job.changed(), hooks.changed());
        })
        .await?;
    }
    assert!(begun.elapsed() >= Duration::from_millis(75), "it sleeps in between");
    Ok(())
}
