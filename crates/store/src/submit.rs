//! Taking requests in. Concurrent submits share one statement and so one flush of the write-ahead log.

use std::{collections::HashMap, time::Duration};

use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    Error, Priority, Store,
    jobs::{End, clean, json_text},
    positions::{Place, Positions},
    retry::persist,
};

/// Deadlines further away than this are none.
const LONGEST_START_TIMEOUT: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A request on its way in.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// The request id; submitting the same id again changes nothing.
    pub id: Uuid,
    /// Endpoint path without owner and alias; each path is a queue.
    pub path: String,
    /// `low` runs only when no `normal` request of its queue waits.
    pub priority: Priority,
    /// The JSON as sent; `None` when the body was absent. Not kept when `store_io` is false.
    pub input: Option<Value>,
    /// What to do.
    pub work: Work,
    /// Address to notify at the end.
    pub webhook_url: Option<String>,
    /// Who submits.
    pub key_id: Option<String>,
    /// The job fails unless it starts within this time, counted by the database's clock.
    pub start_timeout: Option<Duration>,
    /// Refuses the request when more than this many wait in its queue.
    pub max_queue_length: Option<u64>,
    /// Fails the job with the first worker's death.
    pub no_retry: bool,
    /// Keeps input and result until told otherwise.
    pub store_io: bool,
    /// Lifetime and access wishes for output files.
    pub lifecycle: Option<Value>,
    /// The client's own labels.
    pub tags: Option<String>,
    /// Routing wish; recorded only.
    pub runner_hint: Option<String>,
    /// Where the client reaches the files of the result, without trailing slash.
    pub files_url: Option<String>,
}

/// What a request turned out to be.
#[derive(Debug, Clone)]
pub enum Work {
    /// Runs when a worker takes it.
    Run(Box<spec::TrainSpec>),
    /// Accepted and at once final, as an invalid request is; no worker ever sees it.
    BornFailed(spec::Failure),
}

impl NewJob {
    /// A request with nothing special about it.
    pub fn new(id: Uuid, path: impl Into<String>, work: Work) -> Self {
        Self {
            id,
            path: path.into(),
            priority: Priority::Normal,
            input: None,
            work,
            webhook_url: None,
            key_id: None,
            start_timeout: None,
            max_queue_length: None,
            no_retry: false,
            store_io: true,
            lifecycle: None,
            tags: None,
            runner_hint: None,
            files_url: None,
        }
    }
}

/// What became of a submit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submitted {
    /// The request is durable.
    Accepted {
        /// Requests ahead of it, from 0; `None` when it is final already.
        position: Option<u64>,
    },
    /// Nothing was stored: more wait than the request allows.
    QueueFull {
        /// Waiting requests counted, one more than allowed at least.
        waiting: u64,
    },
}

impl Store {
    /// Stores a request. It survives any crash from the moment this returns.
    ///
    /// The same id may be submitted again, by this process or another one: the first stands.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`]: whether the request was stored is unknown; the caller must not report it as accepted.
    pub async fn submit(&self, job: NewJob) -> Result<Submitted, Error> {
        let submission = Submission::new(job, self.inner.options.max_attempts);
        self.inner
            .submits
            .call(submission)
            .await
            .unwrap_or(Err(Error::Unavailable(sqlx::Error::WorkerCrashed)))
    }
}

/// Ties a batch's item to its output.
pub(crate) trait Batched {
    type Output;
}

impl Batched for Submission {
    type Output = Result<Submitted, Error>;
}

/// A row to be, everything as text and numbers already.
#[derive(Debug)]
pub(crate) struct Submission {
    id: Uuid,
    place: (String, i16),
    input: Option<String>,
    spec: Option<String>,
    end: Option<End>,
    webhook_url: Option<String>,
    key_id: Option<String>,
    start_timeout_seconds: Option<f64>,
    max_queue_length: Option<u64>,
    max_attempts: i32,
    store_io: bool,
    lifecycle: Option<String>,
    tags: Option<String>,
    runner_hint: Option<String>,
    files_url: Option<String>,
}

impl Submission {
    fn new(job: NewJob, max_attempts: u32) -> Self {
        let (spec, end) = match &job.work {
            Work::Run(spec) => (Some(json_text(spec)), None),
            Work::BornFailed(failure) => (None, Some(End::failed(failure))),
        };
        let start_timeout = job.start_timeout.filter(|timeout| *timeout < LONGEST_START_TIMEOUT);
        Self {
            id: job.id,
            place: (job.path, job.priority.number()),
            input: job.input.filter(|_| job.store_io).as_ref().map(json_text),
            spec,
            end,
            webhook_url: job.webhook_url.as_deref().map(clean),
            key_id: job.key_id,
            start_timeout_seconds: start_timeout.map(|timeout| timeout.as_secs_f64()),
            max_queue_length: job.max_queue_length,
            max_attempts: if job.no_retry {
                1
            } else {
                i32::try_from(max_attempts).unwrap_or(i32::MAX).max(1)
            },
            store_io: job.store_io,
            lifecycle: job.lifecycle.as_ref().map(json_text),
            tags: job.tags.as_deref().map(clean),
            runner_hint: job.runner_hint.as_deref().map(clean),
            files_url: job.files_url.as_deref().map(clean),
        }
    }

    /// Bytes, roughly.
    pub(crate) fn weight(&self) -> usize {
        512 + [&self.input, &self.spec].into_iter().flatten().map(String::len).sum::<usize>()
    }
}

/// Inserts batches.
#[derive(Debug, Clone)]
pub(crate) struct Submitter {
    pub(crate) pool: PgPool,
    pub(crate) positions: std::sync::Arc<Positions>,
    pub(crate) patience: Duration,
}

impl Submitter {
    /// Inserts a batch; one output per submission, in order.
    pub(crate) async fn run(self, batch: Vec<Submission>) -> Vec<Result<Submitted, Error>> {
        match self.insert(&batch.iter().collect::<Vec<_>>()).await {
            Ok(outputs) => outputs.into_iter().map(Ok).collect(),
            Err(error) if batch.len() == 1 => vec![Err(error)],
            Err(Error::Unavailable(error)) => {
                let mut outputs = vec![Err(Error::Unavailable(error))];
                outputs.resize_with(batch.len(), || Err(Error::Unavailable(sqlx::Error::PoolTimedOut)));
                outputs
            }
            // One row that the database refuses must not take the others with it.
            Err(_) => {
                let mut outputs = Vec::with_capacity(batch.len());
                for submission in &batch {
                    let output = self.insert(&[submission]).await;
                    outputs.push(output.map(|outputs| outputs[0]));
                }
                outputs
            }
        }
    }

    async fn insert(&self, batch: &[&Submission]) -> Result<Vec<Submitted>, Error> {
        let full = self.refused(batch).await?;
        let admitted: Vec<&Submission> =
            batch.iter().zip(&full).filter(|(_, full)| full.is_none()).map(|(s, _)| *s).collect();
        let rows = persist(self.patience, || insert_jobs(&self.pool, &admitted)).await?;
        let mut places: HashMap<Uuid, Option<Place>> = HashMap::new();
        for row in rows {
            let place = Place { path: row.path, priority: row.priority, seq: row.seq };
            places.insert(row.id, (row.state == "queued").then_some(place));
        }
        let waiting: Vec<(Uuid, Place)> =
            places.iter().filter_map(|(id, place)| Some((*id, place.clone()?))).collect();
        let asked: Vec<Place> = waiting.iter().map(|(_, place)| place.clone()).collect();
        let positions = persist(self.patience, || self.positions.of(&self.pool, &asked)).await?;
        let positions: HashMap<Uuid, u64> = waiting.iter().map(|(id, _)| *id).zip(positions).collect();
        Ok(batch
            .iter()
            .zip(full)
            .map(|(submission, full)| match full {
                Some(waiting) => Submitted::QueueFull { waiting },
                None => Submitted::Accepted { position: positions.get(&submission.id).copied() },
            })
            .collect())
    }

    /// For each submission with a limit that is exceeded, how many wait.
    async fn refused(&self, batch: &[&Submission]) -> Result<Vec<Option<u64>>, Error> {
        let mut refused = vec![None; batch.len()];
        let mut waiting: HashMap<&str, u64> = HashMap::new();
        for (index, submission) in batch.iter().enumerate() {
            let (path, _) = &submission.place;
            if let Some(limit) = submission.max_queue_length.filter(|_| submission.end.is_none()) {
                if !waiting.contains_key(path.as_str()) {
                    let counted = persist(self.patience, || count_waiting(&self.pool, path)).await?;
                    let earlier = batch[..index].iter().filter(|s| s.end.is_none() && s.place.0 == *path);
                    waiting.insert(path, counted + u64::try_from(earlier.count()).unwrap_or(u64::MAX));
                }
                refused[index] = waiting.get(path.as_str()).copied().filter(|waiting| *waiting > limit);
            }
            if refused[index].is_none()
                && submission.end.is_none()
                && let Some(waiting) = waiting.get_mut(path.as_str())
            {
                *waiting += 1;
            }
        }
        Ok(refused)
    }
}

async fn count_waiting(pool: &PgPool, path: &str) -> Result<u64, sqlx::Error> {
    const SQL: &str = "/* count_waiting */ select count(*) from jobs where path = $1 and state = 'queued'";
    let count: i64 = sqlx::query_scalar(SQL).bind(path).fetch_one(pool).await?;
    Ok(count.unsigned_abs())
}

#[derive(sqlx::FromRow)]
struct Inserted {
    id: Uuid,
    seq: i64,
    path: String,
    priority: i16,
    state: String,
}

/// Inserts the rows and returns them, with those that an earlier try or an earlier submit of the same id inserted.
async fn insert_jobs(pool: &PgPool, batch: &[&Submission]) -> Result<Vec<Inserted>, sqlx::Error> {
    const SQL: &str = "/* insert_jobs */
        insert into jobs (id, path, priority, state, key_id, input, spec, webhook_url, store_io, lifecycle, tags,
            runner_hint, files_url, start_deadline, max_attempts, http_status, failure, error, error_type,
            created_at, finished_at)
        select id, path, priority, case when failure is null then 'queued' else 'failed' end, key_id, input::json,
            spec::json, webhook_url, store_io, lifecycle::json, tags, runner_hint,
            files_url,
            kiln_now() + make_interval(secs => start_timeout), max_attempts, http_status, failure::json, error,
            error_type, kiln_now(), case when failure is not null then kiln_now() end
        from unnest($1::uuid[], $2::text[], $3::smallint[], $4::text[], $5::text[], $6::text[], $7::text[],
            $8::boolean[], $9::text[], $10::text[], $11::text[], $12::text[], $13::float8[], $14::integer[],
            $15::smallint[], $16::text[], $17::text[], $18::text[])
            with ordinality as batch (id, path, priority, key_id, input, spec, webhook_url, store_io, lifecycle,
                tags, runner_hint, files_url, start_timeout, max_attempts, http_status, failure, error, error_type, ord)
        order by ord
        on conflict (id) do nothing
        returning id, seq, path, priority, state";
    fn column<'a, T>(batch: &[&'a Submission], pick: impl Fn(&'a Submission) -> T) -> Vec<T> {
        batch.iter().map(|submission| pick(submission)).collect()
    }
    fn end<'a, T>(submission: &'a Submission, pick: impl Fn(&'a End) -> Option<T>) -> Option<T> {
        submission.end.as_ref().and_then(pick)
    }
    if batch.is_empty() {
        return Ok(Vec::new());
    }
    let mut rows: Vec<Inserted> = sqlx::query_as(SQL)
        .bind(column(batch, |s| s.id))
        .bind(column(batch, |s| s.place.0.as_str()))
        .bind(column(batch, |s| s.place.1))
        .bind(column(batch, |s| s.key_id.as_deref()))
        .bind(column(batch, |s| s.input.as_deref()))
        .bind(column(batch, |s| s.spec.as_deref()))
        .bind(column(batch, |s| s.webhook_url.as_deref()))
        .bind(column(batch, |s| s.store_io))
        .bind(column(batch, |s| s.lifecycle.as_deref()))
        .bind(column(batch, |s| s.tags.as_deref()))
        .bind(column(batch, |s| s.runner_hint.as_deref()))
        .bind(column(batch, |s| s.files_url.as_deref()))
        .bind(column(batch, |s| s.start_timeout_seconds))
        .bind(column(batch, |s| s.max_attempts))
        .bind(column(batch, |s| end(s, |e| Some(e.http_status))))
        .bind(column(batch, |s| end(s, |e| e.failure.as_deref())))
        .bind(column(batch, |s| end(s, |e| e.error.as_deref())))
        .bind(column(batch, |s| end(s, |e| e.error_type)))
        .fetch_all(pool)
        .await?;
    if rows.len() < batch.len() {
        let found: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        let missing = column(batch, |s| s.id).into_iter().filter(|id| !found.contains(id)).collect();
        rows.extend(existing_jobs(pool, missing).await?);
    }
    Ok(rows)
}

async fn existing_jobs(pool: &PgPool, ids: Vec<Uuid>) -> Result<Vec<Inserted>, sqlx::Error> {
    const SQL: &str =
        "/* existing_jobs */ select id, seq, path, priority, state from jobs where id = any($1)";
    sqlx::query_as(SQL).bind(ids).fetch_all(pool).await
}
