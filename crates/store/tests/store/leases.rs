//! What a lease allows, and what its loss forbids.

use anyhow::Result;
use serde_json::json;
use spec::{Failure, Phase, Progress, RequestErrorKind};
use sqlx::Executor;
use store::{Answer, Error, Lease, Logs, NewJob, Options, Requeued, State, Status, Store};
use testkit::pg::Database;

use crate::common::*;

async fn status(store: &Store) -> Result<Status> {
    store.status(id(1), Logs::All).await?.ok_or_else(|| anyhow::anyhow!("it is gone"))
}

const PROGRESS: Progress = Progress { phase: Phase::Train, done: 3, total: 9 };

/// Every write that a worker has, under this lease: the names of those that were not refused.
async fn accepted_writes(store: &Store, lease: &Lease) -> Vec<&'static str> {
    let failure = Failure::internal("x");
    let results = [
        ("renew", store.renew(lease).await.map(drop)),
        ("append", store.append(lease, &[line("late")]).await),
        ("progress", store.progress(lease, PROGRESS).await),
        ("set_plan", store.set_plan(lease, &json!("late")).await),
        ("set_state_pointer", store.set_state_pointer(lease, &json!("late")).await),
        ("retry", store.retry(lease, &failure).await.map(drop)),
        ("release", store.release(lease).await),
        ("cancelled", store.cancelled(lease).await),
        ("fail", store.fail(lease, &failure).await),
        ("finish", store.finish(lease, &outcome()).await),
    ];
    results.into_iter().filter(|(_, r)| !matches!(r, Err(Error::LeaseLost))).map(|(name, _)| name).collect()
}

async fn whole_row(db: &Database) -> Result<(String, i64)> {
    let mut connection = db.connect().await?;
    let row = sqlx::query_scalar("select jobs::text from jobs").fetch_one(&mut connection).await?;
    let lines = sqlx::query_scalar("select count(*) from job_events").fetch_one(&mut connection).await?;
    Ok((row, lines))
}

#[tokio::test]
async fn a_zombie_changes_nothing_after_its_job_went_to_another_worker() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    let zombie = running(&store, 1).await?;
    let later = at(&db, noon() + seconds(46)).await?;
    assert_eq!(later.sweep().await?.requeued, 1);
    let waiting = whole_row(&db).await?;
    assert_eq!(accepted_writes(&store, &zombie.lease).await, [""; 0], "while it waits again");
    assert_eq!(whole_row(&db).await?, waiting);
    let second = claim(&later).await?;
    assert_eq!(second.lease.attempt, 2);
    let running = whole_row(&db).await?;
    assert_eq!(accepted_writes(&store, &zombie.lease).await, [""; 0], "while another worker has it");
    let forged = Lease { attempt: 2, ..zombie.lease };
    assert_eq!(accepted_writes(&store, &forged).await, [""; 0], "with the right attempt and the old token");
    let forged = Lease { attempt: 1, ..second.lease };
    assert_eq!(accepted_writes(&store, &forged).await, [""; 0], "with the old attempt and the right token");
    assert_eq!(whole_row(&db).await?, running);
    later.finish(&second.lease, &outcome()).await?;
    let done = whole_row(&db).await?;
    assert_eq!(accepted_writes(&store, &zombie.lease).await, [""; 0], "after the end");
    assert_eq!(whole_row(&db).await?, done);
    Ok(())
}

#[tokio::test]
async fn a_renewed_lease_outlives_its_first_term() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    let claim = running(&store, 1).await?;
    let later = at(&db, noon() + seconds(40)).await?;
    let renewal = later.renew(&claim.lease).await?;
    assert_eq!(renewal.lease_expires_at, noon() + seconds(85));
    let after_first_term = at(&db, noon() + seconds(60)).await?;
    assert_eq!(after_first_term.sweep().await?.requeued, 0);
    after_first_term.finish(&claim.lease, &outcome()).await?;
    Ok(())
}

#[tokio::test]
async fn an_expired_lease_sends_the_job_back_to_its_old_place() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    let first = running(&store, 1).await?;
    submit(&store, job(2)).await?;
    store.progress(&first.lease, PROGRESS).await?;
    store.append(&first.lease, &[line("from attempt 1")]).await?;
    assert_eq!(status(&store).await?.progress, Some(PROGRESS));
    let later = at(&db, noon() + seconds(46)).await?;
    later.sweep().await?;
    let waiting = status(&later).await?;
    assert_eq!((waiting.state, waiting.position, waiting.attempt), (State::Queued, Some(0), 1));
    assert_eq!((waiting.progress, waiting.started_at), (None, None));
    assert_eq!(waiting.logs.map(|logs| logs.len()), Some(1), "what was logged stays");
    let second = claim(&later).await?;
    assert_eq!((second.lease.job, second.lease.attempt), (id(1), 2));
    assert_ne!(second.lease.token, first.lease.token);
    Ok(())
}

#[tokio::test]
async fn a_job_whose_workers_keep_dying_fails_with_a_clear_error_and_its_webhook() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    submit(&store, NewJob { webhook_url: Some("https://hook.example/".to_owned()), ..job(1) }).await?;
    let mut clock = noon();
    for death in 1..=5 {
        let now = at(&db, clock).await?;
        assert_eq!(claim(&now).await?.lease.attempt, death);
        clock += seconds(46);
        let swept = at(&db, clock).await?.sweep().await?;
        assert_eq!((swept.requeued, swept.failed), if death < 5 { (1, 0) } else { (0, 1) });
    }
    let status = status(&store).await?;
    assert_eq!((status.state, status.http_status), (State::Failed, Some(503)));
    assert_eq!(status.error_type.as_deref(), Some("runner_disconnected"));
    assert_eq!(store.result(id(1)).await?, Some(Answer::Failed(Failure::workers_lost(5))));
    let due = at(&db, clock).await?.due_webhooks(9, 9, &[], std::time::Duration::from_secs(1)).await?;
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].answer, Answer::Failed(Failure::workers_lost(5)));
    Ok(())
}

#[tokio::test]
async fn a_request_without_retries_fails_with_its_first_worker() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    submit(&store, NewJob { no_retry: true, ..job(1) }).await?;
    claim(&store).await?;
    assert_eq!(at(&db, noon() + seconds(46)).await?.sweep().await?.failed, 1);
    assert_eq!(store.result(id(1)).await?, Some(Answer::Failed(Failure::workers_lost(1))));
    Ok(())
}

#[tokio::test]
async fn a_released_job_is_claimable_at_once_and_that_is_no_death() -> Result<()> {
    let (_db, store) = fresh().await?;
    submit(&store, NewJob { no_retry: true, ..job(1) }).await?;
    submit(&store, job(2)).await?;
    for attempt in 1..=8 {
        let claim = claim(&store).await?;
        assert_eq!((claim.lease.job, claim.lease.attempt), (id(1), attempt));
        store.release(&claim.lease).await?;
        assert!(matches!(store.release(&claim.lease).await, Err(Error::LeaseLost)));
    }
    assert_eq!(status(&store).await?.position, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_job_asked_to_stop_ends_when_its_worker_leaves_or_dies() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    let released = running(&store, 1).await?;
    store.request_cancel(id(1), Failure::cancelled()).await?;
    store.release(&released.lease).await?;
    assert_eq!(status(&store).await?.state, State::Cancelled);
    running(&store, 2).await?;
    store.request_cancel(id(2), Failure::disconnected()).await?;
    assert_eq!(at(&db, noon() + seconds(46)).await?.sweep().await?.cancelled, 1);
    assert_eq!(store.result(id(2)).await?, Some(Answer::Failed(Failure::disconnected())));
    let given_up = running(&store, 3).await?;
    store.request_cancel(id(3), Failure::cancelled()).await?;
    assert_eq!(store.retry(&given_up.lease, &Failure::internal("x")).await?, Requeued::Final);
    assert_eq!(store.result(id(3)).await?, Some(Answer::Failed(Failure::cancelled())));
    Ok(())
}

#[tokio::test]
async fn an_attempt_given_up_counts_and_the_last_one_brings_its_own_failure() -> Result<()> {
    let (_db, store) = fresh_with(Options { max_attempts: 2, ..Options::default() }).await?;
    let failure = Failure::request(RequestErrorKind::RunnerServerError, "The GPU fell off the bus");
    let first = running(&store, 1).await?;
    assert_eq!(store.retry(&first.lease, &failure).await?, Requeued::Queued);
    let second = claim(&store).await?;
    assert_eq!(second.lease.attempt, 2);
    assert_eq!(store.retry(&second.lease, &failure).await?, Requeued::Final);
    assert_eq!(store.result(id(1)).await?, Some(Answer::Failed(failure)));
    Ok(())
}

#[tokio::test]
async fn a_finished_job_has_its_result_and_its_webhook_in_one() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    submit(&store, NewJob { webhook_url: Some("https://hook.example/".to_owned()), ..job(1) }).await?;
    let claim = claim(&store).await?;
    let later = at(&db, noon() + seconds(9)).await?;
    later.finish(&claim.lease, &outcome()).await?;
    let status = status(&store).await?;
    assert_eq!((status.state, status.http_status), (State::Completed, Some(200)));
    assert_eq!((status.inference_seconds, status.error), (Some(9.0), None));
    assert_eq!(store.result(id(1)).await?, Some(Answer::Completed(outcome())));
    let mut direct = db.connect().await?;
    // The transaction that wrote the row is the one that wrote the delivery.
    let same: bool =
        sqlx::query_scalar("select j.xmin = w.xmin from jobs j join webhook_deliveries w on job_id = j.id")
            .fetch_one(&mut direct)
            .await?;
    assert!(same);
    Ok(())
}

#[tokio::test]
async fn repeating_an_end_under_the_same_lease_is_no_error_and_changes_nothing() -> Result<()> {
    let (db, store) = fresh_at(noon()).await?;
    let claim = running(&store, 1).await?;
    store.finish(&claim.lease, &outcome()).await?;
    let row = whole_row(&db).await?;
    store.finish(&claim.lease, &outcome()).await?;
    at(&db, noon() + seconds(5)).await?.fail(&claim.lease, &Failure::internal("x")).await?;
    assert_eq!(whole_row(&db).await?, row);
    Ok(())
}

#[tokio::test]
async fn a_failed_job_answers_with_its_failure() -> Result<()> {
    let (_db, store) = fresh().await?;
    let claim = running(&store, 1).await?;
    store.fail(&claim.lease, &user_failure()).await?;
    let status = status(&store).await?;
    assert_eq!((status.state, status.http_status), (State::Failed, Some(422)));
    assert_eq!(status.error, Some(user_failure().error_line()));
    assert_eq!(store.result(id(1)).await?, Some(Answer::Failed(user_failure())));
    Ok(())
}

#[tokio::test]
async fn the_next_attempt_gets_what_the_last_one_left() -> Result<()> {
    let (_db, store) = fresh().await?;
    let first = running(&store, 1).await?;
    let pointer = json!({ "key": "jobs/1/1/state.safetensors", "step": 500 });
    store.set_plan(&first.lease, &json!({ "steps": 2000 })).await?;
    store.set_state_pointer(&first.lease, &json!("older")).await?;
    store.set_state_pointer(&first.lease, &pointer).await?;
    store.release(&first.lease).await?;
    let second = claim(&store).await?;
    assert_eq!((second.plan, second.state_pointer), (Some(json!({ "steps": 2000 })), Some(pointer)));
    Ok(())
}

#[tokio::test]
async fn the_table_itself_refuses_what_must_never_happen() -> Result<()> {
    let (db, store) = fresh().await?;
    let claim = running(&store, 1).await?;
    let mut direct = db.connect().await?;
    for (why, sql) in [
        ("a running job without a lease", "update jobs set lease_token = null"),
        ("an unknown state", "update jobs set state = 'asleep'"),
        ("an attempt that shrinks", "update jobs set attempt = 0"),
        (
            "an end without a result",
            "update jobs set state = 'completed', http_status = 200, finished_at = now(),
            lease_token = null, lease_expires_at = null",
        ),
    ] {
        assert!(direct.execute(sql).await.is_err(), "{why}");
    }
    store.finish(&claim.lease, &outcome()).await?;
    for (why, sql) in [
        (
            "a final job that runs again",
            "update jobs set state = 'queued', finished_at = null, http_status = null,
            started_at = null, outcome = null",
        ),
        ("a second end", "update jobs set state = 'failed', error = 'x', outcome = null, failure = '{}'"),
    ] {
        assert!(direct.execute(sql).await.is_err(), "{why}");
    }
    Ok(())
}
