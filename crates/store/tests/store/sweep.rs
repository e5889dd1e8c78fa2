//! Deadlines, results that are not kept, age, and the operator's figures.

use std::time::Duration;

use anyhow::Result;
use spec::Failure;
use store::{Answer, Logs, NewJob, Options, State, Store, Swept};

use crate::common::*;

#[tokio::test]
async fn a_missed_start_deadline_is_final_with_504() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    submit(&store, NewJob { start_timeout: Some(Duration::from_secs(30)), ..job(1) }).await?;
    assert_eq!(store.sweep().await?, Swept::default());
    let later = at(&db, noon() + seconds(30)).await?;
    assert_eq!(later.sweep().await?.timed_out, 1);
    let status = store.status(id(1), Logs::No).await?.expect("it exists");
    assert_eq!((status.state, status.http_status), (State::Failed, Some(504)));
    assert_eq!(status.error_type.as_deref(), Some("request_timeout"));
    assert_eq!(store.result(id(1)).await?, Some(Answer::Failed(Failure::start_deadline())));
    Ok(())
}

#[tokio::test]
async fn a_start_deadline_is_no_run_limit_but_holds_over_all_attempts() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    submit(&store, NewJob { start_timeout: Some(Duration::from_secs(30)), ..job(1) }).await?;
    let claim = claim(&store).await?;
    let later = at(&db, noon() + seconds(40)).await?;
    assert_eq!(later.sweep().await?, Swept::default(), "it runs");
    later.release(&claim.lease).await?;
    assert_eq!(later.sweep().await?.timed_out, 1, "it waits again, past the one deadline");
    Ok(())
}

#[tokio::test]
async fn results_not_to_be_kept_go_after_an_hour_unless_a_webhook_needs_them() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    let unstored = |n| NewJob { store_io: false, ..job(n) };
    submit(&store, unstored(1)).await?;
    submit(&store, NewJob { webhook_url: Some("https://hook.example/".to_owned()), ..unstored(2) }).await?;
    submit(&store, job(3)).await?;
    for _ in 0..3 {
        let claim = claim(&store).await?;
        store.append(&claim.lease, &[line("x")]).await?;
        store.finish(&claim.lease, &outcome()).await?;
    }
    assert_eq!(at(&db, noon() + seconds(3599)).await?.sweep().await?.forgotten, 0);
    let later = at(&db, noon() + seconds(3601)).await?;
    assert_eq!(later.sweep().await?.forgotten, 1);
    assert_eq!((later.status(id(1), Logs::All).await?, later.result(id(1)).await?), (None, None));
    assert_eq!(later.result(id(3)).await?, Some(Answer::Completed(outcome())));
    let due = later.due_webhooks(9, 9, &[], Duration::from_secs(60)).await?;
    assert_eq!(due[0].answer, Answer::Completed(outcome()), "the receiver gets the whole result");
    later.webhook_delivered(&due[0], 200).await?;
    assert_eq!(later.sweep().await?.forgotten, 1);
    assert_eq!(later.result(id(2)).await?, None);
    Ok(())
}

#[tokio::test]
async fn retention_removes_old_final_requests_and_nothing_else() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    let first = running(&store, 1).await?;
    store.append(&first.lease, &[line("x")]).await?;
    store.finish(&first.lease, &outcome()).await?;
    running(&store, 2).await?;
    submit(&store, job(3)).await?;
    let day = Duration::from_secs(86400);
    let later = at(&db, noon() + seconds(86401)).await?;
    assert_eq!(store.purge(day, 100).await?, []);
    let purged = later.purge(day, 100).await?;
    assert_eq!(
        purged.iter().map(|p| (p.id, p.outcome.clone())).collect::<Vec<_>>(),
        [(id(1), Some(outcome()))]
    );
    assert_eq!(later.status(id(1), Logs::No).await?, None);
    assert!(later.status(id(2), Logs::No).await?.is_some() && later.status(id(3), Logs::No).await?.is_some());
    Ok(())
}

#[tokio::test]
async fn the_sweeper_applies_the_retention_it_was_given() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    let claim = running(&store, 1).await?;
    store.finish(&claim.lease, &outcome()).await?;
    let options =
        Options { retention: Some(Duration::from_secs(60)), max_connections: 2, ..Options::default() };
    let later = Store::connect(&db.url_at(noon() + seconds(61)), options).await?;
    assert_eq!(later.sweep().await?.purged, 1);
    Ok(())
}

#[tokio::test]
async fn maintenance_brings_a_dead_workers_job_back_by_itself() -> Result<()> {
    let options = Options {
        lease: Duration::from_millis(200),
        sweep_every: Duration::from_millis(100),
        ..Options::default()
    };
    let (_db, store) = fresh_with(options).await?;
    running(&store, 1).await?;
    let sweeper = store.clone();
    let maintaining = tokio::spawn(async move { sweeper.maintain().await });
    eventually("the job waits again", async || {
        Ok(store.status(id(1), Logs::No).await?.is_some_and(|s| s.state == State::Queued))
    })
    .await?;
    maintaining.abort();
    assert_eq!(claim(&store).await?.lease.attempt, 2);
    Ok(())
}

#[tokio::test]
async fn counts_say_how_each_queue_stands() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    assert_eq!(store.counts().await?, []);
    running(&store, 1).await?;
    submit(&store, job(2)).await?;
    submit(&at(&db, noon() + seconds(5)).await?, job(3)).await?;
    running_other(&store).await?;
    let counts = store.counts().await?;
    let rows: Vec<_> =
        counts.iter().map(|c| (c.path.as_str(), c.queued, c.running, c.oldest_queued_at)).collect();
    assert_eq!(rows, [(PATH, 2, 1, Some(noon())), (OTHER, 0, 1, None)]);
    Ok(())
}

async fn running_other(store: &Store) -> Result<()> {
    submit(store, job_on(OTHER, 9)).await?;
    store.claim("worker", &[OTHER]).await?;
    Ok(())
}

#[tokio::test]
async fn recent_sums_up_ends_and_waits_of_the_window() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    for n in 1..=4 {
        submit(&store, job(n)).await?;
    }
    let later = at(&db, noon() + seconds(10)).await?;
    let claims = [claim(&later).await?, claim(&later).await?, claim(&later).await?];
    later.finish(&claims[0].lease, &outcome()).await?;
    later.fail(&claims[1].lease, &user_failure()).await?;
    later.request_cancel(id(4), Failure::cancelled()).await?;
    let recent = later.recent(Duration::from_secs(3600)).await?;
    assert_eq!(recent.completed, 1);
    assert_eq!(recent.failures, [("client_cancelled".to_owned(), 1), ("http_422".to_owned(), 1)]);
    assert_eq!(
        (recent.started, recent.start_seconds_p50, recent.start_seconds_max),
        (3, Some(10.0), Some(10.0))
    );
    let much_later = at(&db, noon() + seconds(7200)).await?;
    assert_eq!(much_later.recent(Duration::from_secs(3600)).await?, store::Recent::default());
    Ok(())
}

#[tokio::test]
async fn after_a_start_of_the_database_workers_get_a_leases_time_to_renew() -> Result<()> {
    let (db, store) = fresh_with(Options { lease: Duration::from_millis(1), ..Options::default() }).await?;
    running(&store, 1).await?;
    // No database has been up for that long.
    let patient =
        Options { lease: Duration::from_secs(1_000_000_000), max_connections: 2, ..Options::default() };
    let patient = Store::connect(&db.url(), patient).await?;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(patient.sweep().await?.requeued, 0);
    assert_eq!(store.sweep().await?.requeued, 1);
    Ok(())
}
