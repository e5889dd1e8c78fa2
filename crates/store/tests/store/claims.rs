//! Who gets which job.

use std::{collections::HashSet, time::Duration};

use anyhow::Result;
use sqlx::Executor;
use store::{Logs, NewJob, Priority, State};

use crate::common::*;

async fn next(store: &store::Store, paths: &[&str]) -> Result<Option<uuid::Uuid>> {
    Ok(store.claim("worker", paths).await?.map(|claim| claim.lease.job))
}

#[tokio::test]
async fn a_claim_carries_what_the_worker_needs() -> Result<()> {
    let (_db, store) = fresh_at(noon()).await?;
    let lifecycle = Some(serde_json::json!({ "expiration_duration_seconds": 60 }));
    submit(&store, NewJob { lifecycle: lifecycle.clone(), ..job(1) }).await?;
    let claim = claim(&store).await?;
    assert_eq!((claim.lease.job, claim.lease.attempt, claim.path.as_str()), (id(1), 1, PATH));
    assert_eq!(claim.spec, train_spec(PATH));
    assert_eq!((claim.created_at, claim.lease_expires_at), (noon(), noon() + seconds(45)));
    assert_eq!((claim.lease_for, claim.lifecycle), (Duration::from_secs(45), lifecycle));
    assert_eq!((claim.plan, claim.state_pointer), (None, None));
    let status = store.status(id(1), Logs::No).await?.expect("it exists");
    assert_eq!((status.state, status.attempt, status.started_at), (State::Running, 1, Some(noon())));
    assert_eq!(status.position, None);
    Ok(())
}

#[tokio::test]
async fn normal_requests_go_before_low_ones_and_each_first_in_first_out() -> Result<()> {
    let (_db, store) = fresh().await?;
    for n in 1..=6 {
        let priority = if n % 2 == 0 { Priority::Normal } else { Priority::Low };
        submit(&store, NewJob { priority, ..job(n) }).await?;
    }
    for n in [2, 4, 6, 1, 3, 5] {
        assert_eq!(next(&store, &[PATH]).await?, Some(id(n)));
    }
    assert_eq!(next(&store, &[PATH]).await?, None);
    Ok(())
}

#[tokio::test]
async fn a_worker_gets_only_the_paths_it_accepts_and_the_oldest_head_first() -> Result<()> {
    let (_db, store) = fresh().await?;
    submit(&store, job_on(OTHER, 1)).await?;
    submit(&store, job(2)).await?;
    submit(&store, job_on(OTHER, 3)).await?;
    assert_eq!(next(&store, &[]).await?, None);
    assert_eq!(next(&store, &[PATH]).await?, Some(id(2)));
    assert_eq!(next(&store, &[PATH]).await?, None);
    submit(&store, job(4)).await?;
    assert_eq!(next(&store, &[PATH, OTHER]).await?, Some(id(1)));
    assert_eq!(next(&store, &[PATH, OTHER]).await?, Some(id(3)));
    assert_eq!(next(&store, &[PATH, OTHER]).await?, Some(id(4)));
    Ok(())
}

#[tokio::test]
async fn workers_that_claim_at_once_never_get_the_same_job_and_none_goes_empty() -> Result<()> {
    let (_db, store) = fresh().await?;
    for n in 0..60 {
        submit(&store, if n % 3 == 0 { job_on(OTHER, n) } else { job(n) }).await?;
    }
    let workers = (0..6).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut mine = Vec::new();
            while let Some(job) = next(&store, &[PATH, OTHER]).await? {
                mine.push(job);
            }
            anyhow::Ok(mine)
        })
    });
    let mut all = Vec::new();
    for worker in futures_util::future::join_all(workers).await {
        all.extend(worker??);
    }
    assert_eq!(all.len(), 60);
    assert_eq!(all.into_iter().collect::<HashSet<_>>().len(), 60);
    Ok(())
}

#[tokio::test]
async fn a_locked_row_is_stepped_over() -> Result<()> {
    let (db, store) = fresh().await?;
    submit(&store, job(1)).await?;
    submit(&store, job(2)).await?;
    let mut other = db.connect().await?;
    other.execute("begin; select from jobs order by seq limit 1 for update").await?;
    assert_eq!(next(&store, &[PATH]).await?, Some(id(2)));
    assert_eq!(next(&store, &[PATH]).await?, None);
    other.execute("rollback").await?;
    assert_eq!(next(&store, &[PATH]).await?, Some(id(1)));
    Ok(())
}

#[tokio::test]
async fn a_request_past_its_start_deadline_is_not_claimed() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    submit(&store, NewJob { start_timeout: Some(Duration::from_millis(1500)), ..job(1) }).await?;
    submit(&store, job(2)).await?;
    let later = at(&db, noon() + seconds(2)).await?;
    assert_eq!(next(&later, &[PATH]).await?, Some(id(2)));
    assert_eq!(next(&later, &[PATH]).await?, None);
    assert_eq!(next(&store, &[PATH]).await?, Some(id(1)), "by the earlier clock it is in time");
    Ok(())
}

#[tokio::test]
async fn a_stored_request_that_cannot_be_read_fails_and_the_next_one_is_claimed() -> Result<()> {
    let (db, store) = fresh().await?;
    submit(&store, job(1)).await?;
    submit(&store, job(2)).await?;
    db.connect().await?.execute("update jobs set spec = '{\"of\": \"the past\"}' where seq = 1").await?;
    assert_eq!(next(&store, &[PATH]).await?, Some(id(2)));
    let status = store.status(id(1), Logs::No).await?.expect("it exists");
    assert_eq!((status.state, status.http_status), (State::Failed, Some(500)));
    Ok(())
}

#[tokio::test]
async fn claims_positions_and_limits_are_answered_from_the_index() -> Result<()> {
    let (db, store) = fresh().await?;
    submit(&store, job(1)).await?;
    let mut direct = db.connect().await?;
    // A long history of this queue and a long queue of another one, which nobody vacuums meanwhile.
    direct
        .execute(
            "alter table jobs set (autovacuum_enabled = false);
            insert into jobs (id, path, priority, state, max_attempts, attempt, http_status, outcome, created_at,
                started_at, finished_at)
            select gen_random_uuid(), 'i2v', 0, 'completed', 5, 1, 200, '{}', now(), now(), now()
            from generate_series(1, 20000);
            insert into jobs (id, path, priority, state, max_attempts, spec, created_at)
            select gen_random_uuid(), 't2v', 0, 'queued', 5, '{}', now() from generate_series(1, 5000);
            analyze jobs;",
        )
        .await?;
    // Counters of this very session: what the claim's plan reads shows in blocks, whatever the clock says.
    let blocks =
        "select (heap_blks_read + heap_blks_hit)::bigint from pg_statio_user_tables where relname = 'jobs'";
    // What the inserts read is counted when their statement is over: before the counters start anew, not after.
    direct.execute("select pg_stat_force_next_flush()").await?;
    direct.execute("select pg_stat_reset()").await?;
    assert_eq!(next(&store, &[PATH]).await?, Some(id(1)));
    assert_eq!(next(&store, &[PATH]).await?, None);
    // Counters are flushed when the session ends.
    store.close().await;
    eventually("the claims' block counters arrive, and are small", async || {
        let mut direct = db.connect().await?;
        let read: Option<i64> = sqlx::query_scalar(blocks).fetch_one(&mut direct).await?;
        let read = read.unwrap_or_default();
        anyhow::ensure!(read < 200, "two claims read {read} blocks: a table scan reads thousands");
        Ok(read > 0)
    })
    .await
}
