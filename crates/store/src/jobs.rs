//! What clients ask of a job: status, result, cancel. And the one statement that ends jobs.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use spec::{Failure, Level, Outcome, Progress};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::{
    Error, Lease, Store,
    events::{EventRow, read_events},
    outputs::NewOutput,
    positions::{Place, Positions},
    retry::persist,
    submit::Batched,
};

/// Which requests of a queue go first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Priority {
    /// First in, first out.
    #[default]
    Normal,
    /// Only when no normal request of the queue waits.
    Low,
}

impl Priority {
    pub(crate) fn number(self) -> i16 {
        match self {
            Self::Normal => 0,
            Self::Low => 1,
        }
    }
}

/// Where a job stands; the state machine is drawn in `leases.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Waits for a worker.
    Queued,
    /// A worker holds it.
    Running,
    /// Has a result.
    Completed,
    /// Has an error.
    Failed,
    /// Was stopped on request.
    Cancelled,
}

impl State {
    /// The word in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing will change any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// Reads the word in the table, whose constraint lists the same five.
    pub(crate) fn read(word: &str) -> Self {
        [Self::Queued, Self::Running, Self::Completed, Self::Failed, Self::Cancelled]
            .into_iter()
            .find(|state| state.as_str() == word)
            .expect("invariant: the table's constraint admits only these states")
    }
}

/// Which log lines a status carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logs {
    /// None.
    No,
    /// Every line so far.
    All,
    /// Lines after the one with this number.
    Since(i64),
}

/// A job as its client sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Request id.
    pub id: Uuid,
    /// Endpoint path.
    pub path: String,
    /// Where it stands.
    pub state: State,
    /// Requests ahead in its queue, from 0; there exactly while it waits.
    pub position: Option<u64>,
    /// Times it has been claimed.
    pub attempt: i32,
    /// What the worker last reported in this attempt.
    pub progress: Option<Progress>,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// When the current or last attempt began; `None` while it waits.
    pub started_at: Option<DateTime<Utc>>,
    /// When it became final.
    pub finished_at: Option<DateTime<Utc>>,
    /// Seconds from the last attempt's start to the end.
    pub inference_seconds: Option<f64>,
    /// HTTP status of the result, once final.
    pub http_status: Option<u16>,
    /// Why it failed, in one line.
    pub error: Option<String>,
    /// fal's name for that, for failures of the request and not of the model.
    pub error_type: Option<String>,
    /// Whether it has been asked to stop.
    pub cancel_requested: bool,
    /// Log lines, oldest first; `None` when not asked for.
    pub logs: Option<Vec<Log>>,
    /// Number of the newest line; what [`Logs::Since`] takes.
    pub last_seq: i64,
}

/// A log line.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// 1, 2, 3 … within the job, over all attempts.
    pub seq: i64,
    /// The attempt that wrote it.
    pub attempt: i32,
    /// When, by the worker's clock.
    pub at: DateTime<Utc>,
    /// How loud.
    pub level: Level,
    /// The line.
    pub message: String,
    /// Numbers behind it.
    pub data: Option<Value>,
}

/// How a job ended, if it has.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "one per answer, never many in memory")]
pub enum Answer {
    /// Not yet.
    Pending,
    /// With a result.
    Completed(Outcome),
    /// With a failure; cancelled jobs too.
    Failed(Failure),
}

/// What a cancel request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancel {
    /// A waiting job is final now; a running one has been told to stop.
    Requested,
    /// Too late.
    AlreadyCompleted,
    /// No such job.
    NotFound,
}

impl Store {
    /// Reads a job's status; `None` when it does not exist or was deleted.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn status(&self, id: Uuid, logs: Logs) -> Result<Option<Status>, Error> {
        let after = match logs {
            Logs::No => None,
            Logs::All => Some(0),
            Logs::Since(seq) => Some(seq),
        };
        let answer = self.inner.statuses.call(StatusQuery { id, after }).await;
        answer.unwrap_or(Err(Error::Unavailable(sqlx::Error::WorkerCrashed)))
    }

    /// Reads how a job ended; `None` when it does not exist or was deleted.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`]; [`Error::Corrupt`] when another version wrote something unreadable.
    pub async fn result(&self, id: Uuid) -> Result<Option<Answer>, Error> {
        const SQL: &str = "/* result */
            select outcome::text, failure::text from jobs where id = $1 and deleted_at is null";
        let row: Option<(Option<String>, Option<String>)> =
            self.persist(|| sqlx::query_as(SQL).bind(id).fetch_optional(self.pool())).await?;
        row.map(|(outcome, failure)| read_answer(id, outcome.as_deref(), failure.as_deref())).transpose()
    }

    /// Waits until the job is final; `None` when it does not exist or is deleted meanwhile.
    ///
    /// # Errors
    ///
    /// As [`Store::result`].
    pub async fn wait_final(&self, id: Uuid) -> Result<Option<Answer>, Error> {
        let mut subscription = self.subscribe(id);
        loop {
            match self.status(id, Logs::No).await? {
                None => return Ok(None),
                Some(status) if status.state.is_final() => return self.result(id).await,
                Some(_) => subscription.changed().await,
            }
        }
    }

    /// Asks a job to stop. A waiting one is final at once and never runs; a running one is told, and may still
    /// finish. `reason` is what the cancelled job answers with.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn request_cancel(&self, id: Uuid, reason: Failure) -> Result<Cancel, Error> {
        const FLAG: &str = "/* request_cancel */
            update jobs set cancel_requested_at = coalesce(cancel_requested_at, kiln_now()),
                cancel_reason = coalesce(cancel_reason, $2::json)
            where id = $1 and state = 'running'";
        let text = json_text(&reason);
        let end = End::cancelled(&reason);
        loop {
            let flag = || sqlx::query(FLAG).bind(id).bind(&text).execute(self.pool());
            if self.persist(flag).await?.rows_affected() > 0 {
                return Ok(Cancel::Requested);
            }
            if self.end_waiting(&[id], &end).await? > 0 {
                return Ok(Cancel::Requested);
            }
            match self.status(id, Logs::No).await? {
                None => return Ok(Cancel::NotFound),
                Some(status) if status.state.is_final() => return Ok(Cancel::AlreadyCompleted),
                // It was claimed or returned between the two statements.
                Some(_) => {}
            }
        }
    }

    /// Ends those of the jobs that wait; says how many.
    pub(crate) async fn end_waiting(&self, ids: &[Uuid], end: &End) -> Result<u64, Error> {
        self.persist(|| async { end_jobs(&mut *self.pool().acquire().await?, ids, None, end).await }).await
    }
}

/// How a job ends: the columns of a final row.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub(crate) state: State,
    pub(crate) http_status: i16,
    pub(crate) outcome: Option<String>,
    pub(crate) failure: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) error_type: Option<&'static str>,
    pub(crate) outputs: Vec<NewOutput>,
}

impl End {
    pub(crate) fn completed(outcome: &Outcome) -> Self {
        Self {
            state: State::Completed,
            http_status: 200,
            outcome: Some(json_text(outcome)),
            outputs: NewOutput::all(outcome),
            failure: None,
            error: None,
            error_type: None,
        }
    }

    pub(crate) fn failed(failure: &Failure) -> Self {
        Self::unsuccessful(State::Failed, failure)
    }

    pub(crate) fn cancelled(reason: &Failure) -> Self {
        Self::unsuccessful(State::Cancelled, reason)
    }

    fn unsuccessful(state: State, failure: &Failure) -> Self {
        Self {
            state,
            http_status: i16::try_from(failure.http_status()).unwrap_or(500),
            outcome: None,
            failure: Some(json_text(failure)),
            error: Some(clean(&failure.error_line())),
            error_type: failure.error_type(),
            outputs: Vec::new(),
        }
    }
}

/// Makes jobs final: the one that the lease holds, or without a lease those that wait. The table's triggers add the
/// webhook's delivery row and the notifications. Says how many rows it touched.
pub(crate) async fn end_jobs(
    connection: &mut PgConnection,
    ids: &[Uuid],
    lease: Option<&Lease>,
    end: &End,
) -> Result<u64, sqlx::Error> {
    const SQL: &str = "/* end_jobs */
        update jobs set state = $4, http_status = $5, outcome = $6::json, failure = $7::json, error = $8,
            error_type = $9, finished_at = kiln_now(), final_token = lease_token, lease_token = null,
            lease_expires_at = null,
            spec = case when store_io then spec end, plan = case when store_io then plan end
        where id = any($1)
            and case when $3::uuid is null then state = 'queued'
                else state = 'running' and attempt = $2 and lease_token = $3 end";
    let done = sqlx::query(SQL)
        .bind(ids)
        .bind(lease.map(|lease| lease.attempt))
        .bind(lease.map(|lease| lease.token))
        .bind(end.state.as_str())
        .bind(end.http_status)
        .bind(end.outcome.as_deref())
        .bind(end.failure.as_deref())
        .bind(end.error.as_deref())
        .bind(end.error_type)
        .execute(connection)
        .await?;
    Ok(done.rows_affected())
}

/// Text that Postgres can store: it has no zero byte in strings.
pub(crate) fn clean(text: &str) -> String {
    text.replace('\0', "\u{FFFD}")
}

/// JSON for a `json` column. Zero bytes are escaped in it, so it needs no [`clean`].
pub(crate) fn json_text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("invariant: what the store keeps has string keys and finite numbers")
}

pub(crate) fn read_json<T: DeserializeOwned>(what: &str, id: Uuid, text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(Error::corrupt(format!("{what} of job {id}")))
}

pub(crate) fn read_answer(id: Uuid, outcome: Option<&str>, failure: Option<&str>) -> Result<Answer, Error> {
    match (outcome, failure) {
        (Some(outcome), _) => Ok(Answer::Completed(read_json("outcome", id, outcome)?)),
        (None, Some(failure)) => Ok(Answer::Failed(read_json("failure", id, failure)?)),
        (None, None) => Ok(Answer::Pending),
    }
}

/// One status that somebody wants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StatusQuery {
    id: Uuid,
    /// Wants the log lines after this one.
    after: Option<i64>,
}

impl Batched for StatusQuery {
    type Output = Result<Option<Status>, Error>;
}

/// Reads batches of statuses.
#[derive(Debug, Clone)]
pub(crate) struct StatusReader {
    pub(crate) pool: PgPool,
    pub(crate) positions: Arc<Positions>,
    pub(crate) patience: Duration,
}

#[derive(Debug, sqlx::FromRow)]
struct StatusRow {
    id: Uuid,
    path: String,
    priority: i16,
    seq: i64,
    state: String,
    attempt: i32,
    phase: Option<String>,
    phase_done: i64,
    phase_total: i64,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
    http_status: Option<i16>,
    error: Option<String>,
    error_type: Option<String>,
    cancel_requested: bool,
    last_seq: i64,
}

impl StatusReader {
    pub(crate) async fn run(self, batch: Vec<StatusQuery>) -> Vec<Result<Option<Status>, Error>> {
        match self.read(&batch).await {
            Ok(found) => found.into_iter().map(Ok).collect(),
            Err(error) => {
                let mut outputs = vec![Err(error)];
                outputs.resize_with(batch.len(), || Err(Error::Unavailable(sqlx::Error::PoolTimedOut)));
                outputs
            }
        }
    }

    async fn read(&self, batch: &[StatusQuery]) -> Result<Vec<Option<Status>>, Error> {
        let mut ids: Vec<Uuid> = batch.iter().map(|query| query.id).collect();
        ids.sort_unstable();
        ids.dedup();
        let rows = persist(self.patience, || read_statuses(&self.pool, &ids)).await?;
        // The lines are read after the rows, so a final row comes with all of them.
        let mut after: HashMap<Uuid, i64> = HashMap::new();
        for (id, seq) in batch.iter().filter_map(|query| Some((query.id, query.after?))) {
            after.entry(id).and_modify(|least| *least = seq.min(*least)).or_insert(seq);
        }
        let wanted: Vec<(Uuid, i64)> = rows
            .iter()
            .filter_map(|row| Some((row.id, *after.get(&row.id).filter(|after| **after < row.last_seq)?)))
            .collect();
        let mut lines: HashMap<Uuid, Vec<EventRow>> = HashMap::new();
        if !wanted.is_empty() {
            for line in persist(self.patience, || read_events(&self.pool, &wanted)).await? {
                lines.entry(line.job_id).or_default().push(line);
            }
        }
        let waiting: Vec<&StatusRow> = rows.iter().filter(|row| row.state == "queued").collect();
        let places: Vec<Place> = waiting
            .iter()
            .map(|row| Place { path: row.path.clone(), priority: row.priority, seq: row.seq })
            .collect();
        let positions = persist(self.patience, || self.positions.of(&self.pool, &places)).await?;
        let positions: HashMap<Uuid, u64> = waiting.iter().map(|row| row.id).zip(positions).collect();
        let rows: HashMap<Uuid, &StatusRow> = rows.iter().map(|row| (row.id, row)).collect();
        batch
            .iter()
            .map(|query| {
                let Some(row) = rows.get(&query.id) else { return Ok(None) };
                let lines = lines.get(&query.id).map_or(&[][..], Vec::as_slice);
                let mut status = row.status(positions.get(&query.id).copied());
                if let Some(after) = query.after {
                    let logs: Vec<Log> =
                        lines.iter().filter(|line| line.seq > after).map(EventRow::log).collect();
                    status.last_seq = logs.last().map_or(status.last_seq, |log| log.seq.max(status.last_seq));
                    status.logs = Some(logs);
                }
                Ok(Some(status))
            })
            .collect()
    }
}

impl StatusRow {
    fn status(&self, position: Option<u64>) -> Status {
        let phase = self.phase.as_deref().and_then(spec::Phase::from_word);
        let progress = phase.map(|phase| Progress {
            phase,
            done: self.phase_done.unsigned_abs(),
            total: self.phase_total.unsigned_abs(),
        });
        let inference_seconds =
            self.started_at.zip(self.finished_at).map(|(from, to)| seconds_between(from, to));
        Status {
            id: self.id,
            path: self.path.clone(),
            state: State::read(&self.state),
            position,
            attempt: self.attempt,
            progress,
            created_at: self.created_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
            inference_seconds,
            http_status: self.http_status.map(i16::unsigned_abs),
            error: self.error.clone(),
            error_type: self.error_type.clone(),
            cancel_requested: self.cancel_requested,
            logs: None,
            last_seq: self.last_seq,
        }
    }
}

pub(crate) fn seconds_between(from: DateTime<Utc>, to: DateTime<Utc>) -> f64 {
    (to - from).as_seconds_f64().max(0.0)
}

async fn read_statuses(pool: &PgPool, ids: &[Uuid]) -> Result<Vec<StatusRow>, sqlx::Error> {
    const SQL: &str = "/* read_statuses */
        select id, path, priority, seq, state, attempt, phase, phase_done, phase_total, created_at, started_at,
            finished_at, http_status, error, error_type, cancel_requested_at is not null as cancel_requested,
            last_seq
        from jobs where id = any($1) and deleted_at is null";
    sqlx::query_as(SQL).bind(ids).fetch_all(pool).await
}
