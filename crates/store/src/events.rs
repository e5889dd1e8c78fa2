//! A job's log: lines that its workers append, numbered over all attempts.

use chrono::{DateTime, Utc};
use spec::{Level, LogLine};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    Error, Lease, Log, Store,
    jobs::{clean, json_text},
};

/// A line longer than this is cut; polling clients fetch every line again and again.
const LINE_BYTES: usize = 8 << 10;
/// Lines a job may have. A worker writes a few hundred; a runaway one must not fill the disk.
const LINES: i64 = 10_000;

impl Store {
    /// Appends log lines under the lease. Lines beyond 10,000 a job are dropped; long ones are cut at 8 KiB.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`], and nothing was written.
    pub async fn append(&self, lease: &Lease, lines: &[LogLine]) -> Result<(), Error> {
        if lines.is_empty() {
            return Ok(());
        }
        // The batch's own name makes a repetition after a lost connection harmless.
        let batch = Uuid::new_v4();
        let written = self.persist(|| append_events(self.pool(), lease, batch, lines)).await?;
        if written { Ok(()) } else { Err(Error::LeaseLost) }
    }
}

async fn append_events(
    pool: &PgPool,
    lease: &Lease,
    batch: Uuid,
    lines: &[LogLine],
) -> Result<bool, sqlx::Error> {
    const SQL: &str = "/* append_events */
        with job as (
            update jobs set last_seq = last_seq + $5, last_append = $4
            where id = $1 and attempt = $2 and lease_token = $3 and state = 'running'
                and last_append is distinct from $4
            returning id, attempt, last_seq - $5 as used
        ), added as (
            insert into job_events (job_id, seq, attempt, at, level, message, data)
            select id, used + ord, attempt, at, level, message, data::json
            from job, unnest($7::timestamptz[], $8::text[], $9::text[], $10::text[])
                with ordinality as lines (at, level, message, data, ord)
            where used + ord <= $6
        )
        select exists (select from job) or exists (
            select from jobs where id = $1 and attempt = $2 and lease_token = $3 and state = 'running'
                and last_append = $4)";
    let count = i64::try_from(lines.len()).expect("invariant: a slice's length fits 63 bits");
    sqlx::query_scalar(SQL)
        .bind(lease.job)
        .bind(lease.attempt)
        .bind(lease.token)
        .bind(batch)
        .bind(count)
        .bind(LINES)
        .bind(lines.iter().map(|line| line.at).collect::<Vec<_>>())
        .bind(lines.iter().map(|line| line.level.as_str()).collect::<Vec<_>>())
        .bind(lines.iter().map(|line| cut(&line.message)).collect::<Vec<_>>())
        .bind(lines.iter().map(|line| line.data.as_ref().map(json_text)).collect::<Vec<_>>())
        .fetch_one(pool)
        .await
}

fn cut(message: &str) -> String {
    let message = clean(message);
    if message.len() <= LINE_BYTES {
        return message;
    }
    format!("{} …", &message[..message.floor_char_boundary(LINE_BYTES)])
}

#[derive(Debug, sqlx::FromRow)]
pub(crate) struct EventRow {
    pub(crate) job_id: Uuid,
    pub(crate) seq: i64,
    attempt: i32,
    at: DateTime<Utc>,
    level: String,
    message: String,
    data: Option<String>,
}

impl EventRow {
    pub(crate) fn log(&self) -> Log {
        Log {
            seq: self.seq,
            attempt: self.attempt,
            at: self.at,
            level: Level::from_word(&self.level).unwrap_or(Level::Info),
            message: self.message.clone(),
            data: self.data.as_deref().and_then(|text| serde_json::from_str(text).ok()),
        }
    }
}

/// Lines of several jobs, for each after its own number; oldest first within a job.
pub(crate) async fn read_events(pool: &PgPool, wanted: &[(Uuid, i64)]) -> Result<Vec<EventRow>, sqlx::Error> {
    const SQL: &str = "/* read_events */
        select job_id, seq, attempt, at, level, message, data::text as data
        from unnest($1::uuid[], $2::bigint[]) as wanted (id, after)
        join job_events on job_id = id and seq > after
        order by job_id, seq";
    let (ids, after): (Vec<Uuid>, Vec<i64>) = wanted.iter().copied().unzip();
    sqlx::query_as(SQL).bind(ids).bind(after).fetch_all(pool).await
}
