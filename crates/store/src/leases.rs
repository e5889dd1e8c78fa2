//! Workers' side of a job: claim, renew, report, end.
//!
//! ```text
//! queued ──claim──▶ running ──finish──▶ completed
//!    │                 ├──fail────▶ failed      (also: deaths used up)
//!    ├──deadline──▶ failed          ├──cancelled──▶ cancelled
//!    └──cancel──▶ cancelled         └──release, retry, lease expired──▶ queued, next claim has attempt + 1
//! ```
//!
//! A lease is (job, attempt, token). Every write names all three and touches nothing when the lease is gone, so a
//! worker that was thought dead can do no harm when it wakes. An expired lease still holds until somebody notices
//! ([`Store::sweep`]): a worker that was cut off for a minute while nobody else was there may go on.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use chrono::{DateTime, Utc};
use serde_json::Value;
use spec::{Failure, Outcome, Progress, TrainSpec};
use sqlx::{PgPool, types::Json};
use uuid::Uuid;

use crate::{
    Error, Store,
    jobs::{End, clean, end_jobs, json_text, read_json},
    outputs::insert_outputs,
};

/// A worker's hold on a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The job.
    pub job: Uuid,
    /// Which claim of it this is, from 1.
    pub attempt: i32,
    /// Secret of this claim.
    pub token: Uuid,
}

/// A job to work on.
#[derive(Debug, Clone)]
pub struct Claim {
    /// What every write has to show.
    pub lease: Lease,
    /// Endpoint path.
    pub path: String,
    /// What to train.
    pub spec: TrainSpec,
    /// When the request was accepted.
    pub created_at: DateTime<Utc>,
    /// How long the lease holds from now or from a renewal.
    pub lease_for: Duration,
    /// Until when it holds now, by the database's clock.
    pub lease_expires_at: DateTime<Utc>,
    /// What the newest attempt stored with [`Store::set_state_pointer`].
    pub state_pointer: Option<Value>,
    /// What an earlier attempt stored with [`Store::set_plan`].
    pub plan: Option<Value>,
    /// The client's wishes for output files.
    pub lifecycle: Option<Value>,
}

/// What a renewal tells the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewal {
    /// The client wants the job stopped.
    pub cancel_requested: bool,
    /// Until when the lease holds now.
    pub lease_expires_at: DateTime<Utc>,
}

/// What became of a job that an attempt gave up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requeued {
    /// It waits for its next attempt, in its old place.
    Queued,
    /// It is final: attempts used up, or cancelled meanwhile.
    Final,
}

impl Store {
    /// Claims the next job of the given queues: `normal` before `low` and first in, first out within a queue; among
    /// queues the one whose head is first by the same order.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn claim(&self, worker: &str, paths: &[&str]) -> Result<Option<Claim>, Error> {
        loop {
            // The token also finds a claim again whose answer was lost on the way.
            let token = Uuid::new_v4();
            let tried = AtomicBool::new(false);
            let worker = clean(worker);
            let claimed = self
                .persist(|| async {
                    let again = tried.swap(true, Ordering::Relaxed);
                    if again && let Some(row) = claimed_before(self.pool(), token).await? {
                        return Ok(Some(row));
                    }
                    claim_next(self.pool(), &worker, paths, token, self.inner.options.lease).await
                })
                .await?;
            let Some(row) = claimed else { return Ok(None) };
            self.inner.positions.moved(&row.path);
            let lease = Lease { job: row.id, attempt: row.attempt, token };
            match row.into_claim(lease, self.inner.options.lease) {
                Ok(claim) => return Ok(Some(claim)),
                Err(error) => {
                    tracing::error!(job_id = %lease.job, %error, "a stored request cannot be read: the job fails");
                    let failure =
                        Failure::internal("The stored request cannot be read by this version of the service");
                    self.fail(&lease, &failure).await?;
                }
            }
        }
    }

    /// Makes the lease hold for its full time again, and asks whether to stop. Call it every third of that time.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`]: stop and drop the work.
    pub async fn renew(&self, lease: &Lease) -> Result<Renewal, Error> {
        const SQL: &str = "/* renew */
            update jobs set lease_expires_at = kiln_now() + make_interval(secs => $4)
            where id = $1 and attempt = $2 and lease_token = $3 and state = 'running'
            returning cancel_requested_at is not null, lease_expires_at";
        let seconds = self.inner.options.lease.as_secs_f64();
        let renew = || {
            sqlx::query_as(SQL)
                .bind(lease.job)
                .bind(lease.attempt)
                .bind(lease.token)
                .bind(seconds)
                .fetch_optional(self.pool())
        };
        let (cancel_requested, lease_expires_at) = self.persist(renew).await?.ok_or(Error::LeaseLost)?;
        Ok(Renewal { cancel_requested, lease_expires_at })
    }

    /// Records how far the attempt is.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`].
    pub async fn progress(&self, lease: &Lease, progress: Progress) -> Result<(), Error> {
        const SQL: &str = "/* progress */
            update jobs set phase = $4, phase_done = $5, phase_total = $6
            where id = $1 and attempt = $2 and lease_token = $3 and state = 'running'";
        let [done, total] = [progress.done, progress.total].map(|n| i64::try_from(n).unwrap_or(i64::MAX));
        let write = || {
            sqlx::query(SQL)
                .bind(lease.job)
                .bind(lease.attempt)
                .bind(lease.token)
                .bind(progress.phase.as_str())
                .bind(done)
                .bind(total)
                .execute(self.pool())
        };
        held(self.persist(write).await?.rows_affected())
    }

    /// Records the plan of the run.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`].
    pub async fn set_plan(&self, lease: &Lease, plan: &Value) -> Result<(), Error> {
        const SQL: &str = "/* set_plan */
            update jobs set plan = $4::json
            where id = $1 and attempt = $2 and lease_token = $3 and state = 'running'";
        self.set_json(SQL, lease, plan).await
    }

    /// Records where the newest saved training state lies; later attempts get it with their claim.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`].
    pub async fn set_state_pointer(&self, lease: &Lease, pointer: &Value) -> Result<(), Error> {
        const SQL: &str = "/* set_state_pointer */
            update jobs set state_pointer = $4::json
            where id = $1 and attempt = $2 and lease_token = $3 and state = 'running'";
        self.set_json(SQL, lease, pointer).await
    }

    async fn set_json(&self, sql: &'static str, lease: &Lease, value: &Value) -> Result<(), Error> {
        let text = json_text(value);
        let write = || {
            sqlx::query(sql)
                .bind(lease.job)
                .bind(lease.attempt)
                .bind(lease.token)
                .bind(&text)
                .execute(self.pool())
        };
        held(self.persist(write).await?.rows_affected())
    }

    /// Ends the job with its result. A cancel request that came too late is ignored.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`]: somebody else has the job, nothing was written.
    pub async fn finish(&self, lease: &Lease, outcome: &Outcome) -> Result<(), Error> {
        self.end(lease, End::completed(outcome)).await
    }

    /// Ends the job with a failure, for good.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`].
    pub async fn fail(&self, lease: &Lease, failure: &Failure) -> Result<(), Error> {
        self.end(lease, End::failed(failure)).await
    }

    /// Ends the job as cancelled, with the reason given to [`Store::request_cancel`].
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`].
    pub async fn cancelled(&self, lease: &Lease) -> Result<(), Error> {
        const SQL: &str = "/* cancel_reason */ select cancel_reason::text from jobs where id = $1";
        let reason: Option<Option<String>> =
            self.persist(|| sqlx::query_scalar(SQL).bind(lease.job).fetch_optional(self.pool())).await?;
        let reason = match reason.flatten() {
            Some(text) => read_json("cancel_reason", lease.job, &text)?,
            None => Failure::cancelled(),
        };
        self.end(lease, End::cancelled(&reason)).await
    }

    async fn end(&self, lease: &Lease, end: End) -> Result<(), Error> {
        const ENDED: &str = "/* ended_by_us */
            select exists (select from jobs where id = $1 and attempt = $2 and final_token = $3)";
        let write = || async {
            let mut tx = self.pool().begin().await?;
            if end_jobs(&mut tx, &[lease.job], Some(lease), &end).await? > 0 {
                insert_outputs(&mut tx, lease.job, &end.outputs).await?;
                tx.commit().await?;
                return Ok(true);
            }
            // An earlier try may have ended it, its answer lost.
            sqlx::query_scalar(ENDED)
                .bind(lease.job)
                .bind(lease.attempt)
                .bind(lease.token)
                .fetch_one(&mut *tx)
                .await
        };
        if self.persist(write).await? { Ok(()) } else { Err(Error::LeaseLost) }
    }

    /// Gives up the attempt for a reason that the next one may not meet (a broken machine, a lost network). It counts
    /// like a worker's death: when those are used up the job fails with `failure`.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`].
    pub async fn retry(&self, lease: &Lease, failure: &Failure) -> Result<Requeued, Error> {
        if self.requeue(lease, true).await? {
            return Ok(Requeued::Queued);
        }
        // Attempts used up, cancelled, or lost: the first two still have the lease.
        if self.renew(lease).await?.cancel_requested {
            self.cancelled(lease).await?;
        } else {
            self.fail(lease, failure).await?;
        }
        Ok(Requeued::Final)
    }

    /// Hands the job back on shutdown: claimable at once, in its old place, and not counted as a death. A job that
    /// was asked to stop becomes cancelled instead.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`]: it was taken from us already, which on shutdown is as good.
    pub async fn release(&self, lease: &Lease) -> Result<(), Error> {
        if self.requeue(lease, false).await? {
            return Ok(());
        }
        if self.renew(lease).await?.cancel_requested {
            self.cancelled(lease).await
        } else {
            Err(Error::LeaseLost)
        }
    }

    async fn requeue(&self, lease: &Lease, death: bool) -> Result<bool, Error> {
        let write = || async {
            let mut connection = self.pool().acquire().await?;
            requeue_job(&mut connection, lease, death).await
        };
        self.persist(write).await
    }
}

fn held(rows: u64) -> Result<(), Error> {
    if rows == 0 { Err(Error::LeaseLost) } else { Ok(()) }
}

/// Puts a held job back in its place, unless it was cancelled or this would be one death too many.
pub(crate) async fn requeue_job(
    connection: &mut sqlx::PgConnection,
    lease: &Lease,
    death: bool,
) -> Result<bool, sqlx::Error> {
    const SQL: &str = "/* requeue_job */
        update jobs set state = 'queued', deaths = deaths + $4, lease_token = null, lease_expires_at = null,
            started_at = null, phase = null, phase_done = 0, phase_total = 0
        where id = $1 and attempt = $2 and lease_token = $3 and state = 'running'
            and cancel_requested_at is null and ($4 = 0 or deaths + 1 < max_attempts)";
    let done = sqlx::query(SQL)
        .bind(lease.job)
        .bind(lease.attempt)
        .bind(lease.token)
        .bind(i32::from(death))
        .execute(connection)
        .await?;
    Ok(done.rows_affected() > 0)
}

#[derive(Debug, sqlx::FromRow)]
struct ClaimRow {
    id: Uuid,
    path: String,
    attempt: i32,
    created_at: DateTime<Utc>,
    lease_expires_at: DateTime<Utc>,
    spec: Option<String>,
    state_pointer: Option<Json<Value>>,
    plan: Option<Json<Value>>,
    lifecycle: Option<Json<Value>>,
}

impl ClaimRow {
    fn into_claim(self, lease: Lease, lease_for: Duration) -> Result<Claim, Error> {
        let spec = read_json("spec", self.id, self.spec.as_deref().unwrap_or("null"))?;
        Ok(Claim {
            lease,
            path: self.path,
            spec,
            created_at: self.created_at,
            lease_for,
            lease_expires_at: self.lease_expires_at,
            state_pointer: self.state_pointer.map(|json| json.0),
            plan: self.plan.map(|json| json.0),
            lifecycle: self.lifecycle.map(|json| json.0),
        })
    }
}

async fn claim_next(
    pool: &PgPool,
    worker: &str,
    paths: &[&str],
    token: Uuid,
    lease: Duration,
) -> Result<Option<ClaimRow>, sqlx::Error> {
    // `heads` looks at the first row of each queue without locking; `next` then locks the first free row of the
    // first queue that has one. Both are a few index probes, however long the queues and the history are.
    const SQL: &str = "/* claim_next */
        with heads as materialized (
            select paths.path, head.priority, head.seq
            from unnest($2::text[]) as paths (path) cross join lateral (
                select priority, seq from jobs
                where state = 'queued' and path = paths.path
                    and (start_deadline is null or start_deadline > kiln_now())
                order by priority, seq limit 1
            ) as head
        ), next as materialized (
            select free.id
            from (select path from heads order by priority, seq) as ordered cross join lateral (
                select id from jobs
                where state = 'queued' and path = ordered.path
                    and (start_deadline is null or start_deadline > kiln_now())
                order by priority, seq limit 1
                for update skip locked
            ) as free
            limit 1
        )
        update jobs set state = 'running', attempt = attempt + 1, worker = $1, lease_token = $3,
            lease_expires_at = kiln_now() + make_interval(secs => $4), started_at = kiln_now()
        from next where jobs.id = next.id
        returning jobs.id, path, attempt, created_at, lease_expires_at, spec::text as spec, state_pointer, plan,
            lifecycle";
    sqlx::query_as(SQL)
        .bind(worker)
        .bind(paths)
        .bind(token)
        .bind(lease.as_secs_f64())
        .fetch_optional(pool)
        .await
}

async fn claimed_before(pool: &PgPool, token: Uuid) -> Result<Option<ClaimRow>, sqlx::Error> {
    const SQL: &str = "/* claimed_before */
        select id, path, attempt, created_at, lease_expires_at, spec::text as spec, state_pointer, plan, lifecycle
        from jobs where state = 'running' and lease_token = $1";
    sqlx::query_as(SQL).bind(token).fetch_optional(pool).await
}
