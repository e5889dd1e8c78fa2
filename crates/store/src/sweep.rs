//! What nobody in particular does: expired leases, missed start deadlines, results that are not to be kept, age.
//! Also the figures that operators watch.
//!
//! Any number of processes may sweep at once; rows that one holds are skipped by the others.

use std::{convert::Infallible, time::Duration};

use chrono::{DateTime, Utc};
use spec::Failure;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::{
    Error, Lease, Store,
    jobs::{End, end_jobs, read_json},
    leases::requeue_job,
    retry::jittered,
};

/// Rows per statement: a pass must not hold rows for long.
const BATCH: i32 = 200;

/// What one pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Jobs of dead workers that wait again.
    pub requeued: u64,
    /// Jobs whose attempts were used up.
    pub failed: u64,
    /// Jobs of dead workers that had been asked to stop.
    pub cancelled: u64,
    /// Jobs whose start deadline passed.
    pub timed_out: u64,
    /// Results of `store_io = false` requests whose time is over.
    pub forgotten: u64,
    /// Jobs removed because of their age.
    pub purged: u64,
}

/// How one queue stands.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct QueueCount {
    /// Endpoint path.
    pub path: String,
    /// Waiting jobs.
    pub queued: i64,
    /// Running jobs.
    pub running: i64,
    /// When the longest-waiting one was accepted.
    pub oldest_queued_at: Option<DateTime<Utc>>,
}

/// What happened lately.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recent {
    /// Jobs with a result.
    pub completed: u64,
    /// Failed and cancelled jobs by kind: fal's `error_type`, or `http_<status>`; most frequent first.
    pub failures: Vec<(String, u64)>,
    /// Attempts begun by jobs that run or ended lately.
    pub started: u64,
    /// Seconds from acceptance to start: median.
    pub start_seconds_p50: Option<f64>,
    /// 95th percentile.
    pub start_seconds_p95: Option<f64>,
    /// Longest.
    pub start_seconds_max: Option<f64>,
}

impl Store {
    /// Sweeps for ever. Run it beside a server or worker, and drop it on shutdown.
    pub async fn maintain(&self) -> Infallible {
        loop {
            tokio::time::sleep(jittered(self.inner.options.sweep_every)).await;
            match self.sweep().await {
                Ok(swept) if swept != Swept::default() => tracing::info!(?swept, "swept the queue"),
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "the queue could not be swept; next try in a moment"),
            }
        }
    }

    /// Makes one pass.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`]; what was done until then stands.
    pub async fn sweep(&self) -> Result<Swept, Error> {
        let mut swept = Swept::default();
        while self.sweep_expired(&mut swept).await? {}
        swept.timed_out = self.sweep_deadlines().await?;
        swept.forgotten = self.sweep_unstored().await?;
        if let Some(retention) = self.inner.options.retention {
            swept.purged = u64::try_from(self.purge(retention, 1000).await?.len()).unwrap_or(u64::MAX);
        }
        Ok(swept)
    }

    /// Takes a batch of expired leases away; says whether there may be more.
    async fn sweep_expired(&self, swept: &mut Swept) -> Result<bool, Error> {
        let mut connection = self.persist(|| self.pool().acquire()).await?;
        let mut tx = connection.begin().await?;
        let expired = expired_leases(&mut tx, self.inner.options.lease).await?;
        let mut pass = *swept;
        for row in &expired {
            let lease = Lease { job: row.id, attempt: row.attempt, token: row.lease_token };
            if requeue_job(&mut tx, &lease, true).await? {
                tracing::warn!(job_id = %row.id, attempt = row.attempt, worker = %row.worker,
                    "the worker is gone: the job waits for its next attempt");
                pass.requeued += 1;
                continue;
            }
            let end = match &row.cancel_reason {
                Some(text) => {
                    pass.cancelled += 1;
                    End::cancelled(&read_json::<Failure>("cancel_reason", row.id, text)?)
                }
                None => {
                    tracing::error!(job_id = %row.id, attempt = row.attempt, worker = %row.worker,
                        "the worker is gone and the job's attempts are used up");
                    pass.failed += 1;
                    End::failed(&Failure::workers_lost(row.max_attempts.unsigned_abs()))
                }
            };
            end_jobs(&mut tx, &[row.id], Some(&lease), &end).await?;
        }
        tx.commit().await?;
        *swept = pass;
        Ok(expired.len() == usize::try_from(BATCH).expect("invariant: a small constant"))
    }

    async fn sweep_deadlines(&self) -> Result<u64, Error> {
        const SQL: &str = "/* missed_deadlines */
            select id from jobs where state = 'queued' and start_deadline <= kiln_now() limit $1";
        let end = End::failed(&Failure::start_deadline());
        let mut timed_out = 0;
        loop {
            let late: Vec<Uuid> =
                self.persist(|| sqlx::query_scalar(SQL).bind(BATCH).fetch_all(self.pool())).await?;
            if late.is_empty() {
                return Ok(timed_out);
            }
            timed_out += self.end_waiting(&late, &end).await?;
        }
    }

    /// Deletes input and result of requests that were not to be kept, once the result's time is over and its webhook
    /// is through.
    async fn sweep_unstored(&self) -> Result<u64, Error> {
        const SQL: &str = "/* forget_unstored */
            with old as (
                select id from jobs
                where not store_io and finished_at is not null and deleted_at is null
                    and finished_at < kiln_now() - make_interval(secs => $1)
                    and not exists (select from webhook_deliveries where job_id = jobs.id and state = 'pending')
                limit $2 for update skip locked
            ), lines as (
                delete from job_events using old where job_id = old.id
            )
            update jobs set input = null, spec = null, plan = null, outcome = null, failure = null,
                deleted_at = kiln_now()
            from old where jobs.id = old.id";
        let ttl = self.inner.options.unstored_result_ttl.as_secs_f64();
        let forget = || sqlx::query(SQL).bind(ttl).bind(BATCH).execute(self.pool());
        Ok(self.persist(forget).await?.rows_affected())
    }

    /// Counts waiting and running jobs by queue; queues with neither are absent.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn counts(&self) -> Result<Vec<QueueCount>, Error> {
        const SQL: &str = "/* counts */
            select path, sum(queued)::bigint as queued, sum(running)::bigint as running,
                max(oldest) as oldest_queued_at
            from (
                select path, count(*) as queued, 0 as running, min(created_at) as oldest
                from jobs where state = 'queued' group by path
                union all
                select path, 0, count(*), null from jobs where state = 'running' group by path
            ) as halves
            group by path order by path";
        self.persist(|| sqlx::query_as(SQL).fetch_all(self.pool())).await
    }

    /// Sums up what became final, and how long jobs waited to start, within the window up to now.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn recent(&self, window: Duration) -> Result<Recent, Error> {
        const ENDS: &str = "/* recent_ends */
            select case when state = 'completed' then null else coalesce(error_type, 'http_' || http_status) end,
                count(*)
            from jobs where finished_at >= kiln_now() - make_interval(secs => $1)
            group by 1 order by 2 desc, 1";
        const STARTS: &str = "/* recent_starts */
            with starts as (
                select extract(epoch from started_at - created_at)::float8 as seconds from jobs
                where state = 'running' and started_at >= kiln_now() - make_interval(secs => $1)
                union all
                select extract(epoch from started_at - created_at)::float8 from jobs
                where finished_at >= kiln_now() - make_interval(secs => $1)
                    and started_at >= kiln_now() - make_interval(secs => $1)
            )
            select count(*), percentile_cont(0.5) within group (order by seconds),
                percentile_cont(0.95) within group (order by seconds), max(seconds)
            from starts";
        let seconds = window.as_secs_f64();
        let ends: Vec<(Option<String>, i64)> =
            self.persist(|| sqlx::query_as(ENDS).bind(seconds).fetch_all(self.pool())).await?;
        let (started, start_seconds_p50, start_seconds_p95, start_seconds_max): (i64, _, _, _) =
            self.persist(|| sqlx::query_as(STARTS).bind(seconds).fetch_one(self.pool())).await?;
        let mut recent = Recent {
            started: started.unsigned_abs(),
            start_seconds_p50,
            start_seconds_p95,
            start_seconds_max,
            ..Recent::default()
        };
        for (kind, count) in ends {
            match kind {
                Some(kind) => recent.failures.push((kind, count.unsigned_abs())),
                None => recent.completed = count.unsigned_abs(),
            }
        }
        Ok(recent)
    }
}

#[derive(Debug, sqlx::FromRow)]
struct Expired {
    id: Uuid,
    attempt: i32,
    lease_token: Uuid,
    worker: String,
    max_attempts: i32,
    cancel_reason: Option<String>,
}

/// Leases that ran out. After a start of the database every worker gets a lease's time to renew first.
async fn expired_leases(connection: &mut PgConnection, lease: Duration) -> Result<Vec<Expired>, sqlx::Error> {
    const SQL: &str = "/* expired_leases */
        select id, attempt, lease_token, worker, max_attempts, cancel_reason::text as cancel_reason
        from jobs where state = 'running' and lease_expires_at < kiln_now()
            and kiln_started() < kiln_now() - make_interval(secs => $2)
        order by seq limit $1 for update skip locked";
    sqlx::query_as(SQL).bind(BATCH).bind(lease.as_secs_f64()).fetch_all(connection).await
}
