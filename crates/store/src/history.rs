//! Requests of the past: lists, and deleting what is no longer wanted.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use serde_json::Value;
use spec::Outcome;
use uuid::Uuid;

use crate::{
    Answer, Error, State, Store,
    jobs::{read_answer, read_json, seconds_between},
};

/// Which requests to list.
#[derive(Debug, Clone)]
pub struct ListFilter {
    /// Endpoint paths; `None` for all.
    pub paths: Option<Vec<String>>,
    /// Accepted at or after.
    pub from: Option<DateTime<Utc>>,
    /// Accepted before.
    pub until: Option<DateTime<Utc>>,
    /// How they ended; leaves unfinished ones out.
    pub kind: Option<ListKind>,
    /// Just this one.
    pub request_id: Option<Uuid>,
    /// With inputs and results.
    pub payloads: bool,
    /// With requests that wait or run.
    pub unfinished: bool,
    /// Where an earlier page ended.
    pub cursor: Option<String>,
    /// Most items on the page.
    pub limit: u32,
}

impl Default for ListFilter {
    fn default() -> Self {
        Self {
            paths: None,
            from: None,
            until: None,
            kind: None,
            request_id: None,
            payloads: false,
            unfinished: false,
            cursor: None,
            limit: 50,
        }
    }
}

/// How a request ended, by who is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListKind {
    /// With a result.
    Success,
    /// 4xx.
    UserError,
    /// 5xx.
    Error,
}

/// A page of requests, newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// The requests.
    pub items: Vec<Listed>,
    /// Cursor of the next page, if there is one.
    pub next_cursor: Option<String>,
}

/// One request in a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// Request id.
    pub id: Uuid,
    /// Endpoint path.
    pub path: String,
    /// Where it stands.
    pub state: State,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// When its last attempt began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it became final.
    pub finished_at: Option<DateTime<Utc>>,
    /// HTTP status of the result.
    pub http_status: Option<u16>,
    /// Seconds from the last attempt's start to the end.
    pub inference_seconds: Option<f64>,
    /// Whether its payloads were deleted.
    pub deleted: bool,
    /// The JSON as sent, when asked for and kept.
    pub input: Option<Value>,
    /// How it ended, when asked for and kept.
    pub answer: Option<Answer>,
}

/// What deleting payloads came to.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "one per answer, never many in memory")]
pub enum Deletion {
    /// Done; the request answers as unknown from now on.
    Deleted {
        /// The result, whose files the caller deletes.
        outcome: Option<Outcome>,
    },
    /// It waits or runs: cancel it first.
    NotFinished,
    /// There is none, or it was deleted before.
    NotFound,
}

/// A request that was removed.
#[derive(Debug, Clone, PartialEq)]
pub struct Purged {
    /// Its id.
    pub id: Uuid,
    /// The result, whose files the caller deletes.
    pub outcome: Option<Outcome>,
}

#[derive(sqlx::FromRow)]
struct ListRow {
    id: Uuid,
    path: String,
    state: String,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
    http_status: Option<i16>,
    deleted: bool,
    input: Option<String>,
    outcome: Option<String>,
    failure: Option<String>,
}

impl Store {
    /// Lists requests, newest first.
    ///
    /// # Errors
    ///
    /// [`Error::BadCursor`] for a cursor that is not ours; [`Error::Unavailable`].
    pub async fn list(&self, filter: ListFilter) -> Result<Page, Error> {
        const SQL: &str = "/* list */
            select id, path, state, created_at, started_at, finished_at, http_status,
                deleted_at is not null as deleted,
                case when $7 then input::text end as input, case when $7 then outcome::text end as outcome,
                case when $7 then failure::text end as failure
            from jobs
            where ($1::text[] is null or path = any($1))
                and created_at >= coalesce($2, '-infinity') and created_at < coalesce($3, 'infinity')
                and http_status between $4 and $5 is not false and ($6 or finished_at is not null)
                and ($8::uuid is null or id = $8)
                and (created_at, id) < (coalesce($9, 'infinity'), coalesce($10, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
            order by created_at desc, id desc limit $11";
        let mut filter = filter;
        if let Some(id) = filter.request_id {
            // The moment bounds the walk through the history, which goes by time.
            const MOMENT: &str = "/* list_moment */ select created_at from jobs where id = $1";
            let moment: Option<DateTime<Utc>> =
                self.persist(|| sqlx::query_scalar(MOMENT).bind(id).fetch_optional(self.pool())).await?;
            let Some(moment) = moment else { return Ok(Page { items: Vec::new(), next_cursor: None }) };
            let next = moment + chrono::TimeDelta::microseconds(1);
            filter.from = Some(filter.from.map_or(moment, |from| from.max(moment)));
            filter.until = Some(filter.until.map_or(next, |until| until.min(next)));
        }
        let after = filter.cursor.as_deref().map(read_cursor).transpose()?;
        let (least, most) = match filter.kind {
            None => (0_i16, 999),
            Some(ListKind::Success) => (200, 399),
            Some(ListKind::UserError) => (400, 499),
            Some(ListKind::Error) => (500, 599),
        };
        let unfinished = filter.unfinished && filter.kind.is_none();
        let limit = filter.limit.clamp(1, 1000);
        let read = || {
            sqlx::query_as(SQL)
                .bind(&filter.paths)
                .bind(filter.from)
                .bind(filter.until)
                .bind(least)
                .bind(most)
                .bind(unfinished)
                .bind(filter.payloads)
                .bind(filter.request_id)
                .bind(after.map(|(at, _)| at))
                .bind(after.map(|(_, id)| id))
                // One more tells whether there is a next page.
                .bind(i64::from(limit) + 1)
                .fetch_all(self.pool())
        };
        let mut rows: Vec<ListRow> = self.persist(read).await?;
        let more = rows.len() > usize::try_from(limit).unwrap_or(usize::MAX);
        if more {
            rows.pop();
        }
        let next_cursor = rows.last().filter(|_| more).map(|row| write_cursor(row.created_at, row.id));
        let items = rows.into_iter().map(|row| row.listed(filter.payloads)).collect::<Result<_, _>>()?;
        Ok(Page { items, next_cursor })
    }

    /// Deletes a finished request's input, result and log; its files are the caller's to delete. From then on the
    /// request answers as unknown. A webhook still under way keeps it until then.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn delete_payloads(&self, id: Uuid) -> Result<Deletion, Error> {
        const SQL: &str = "/* delete_payloads */
            with old as (
                select id, outcome from jobs
                where id = $1 and finished_at is not null and deleted_at is null for update
            ), lines as (
                delete from job_events using old where job_id = old.id
            ), files as (
                delete from outputs using old where job_id = old.id
            ), removal as (
                insert into removals (job_id, due_at) select id, kiln_now() from old
            ), hook as (
                update webhook_deliveries set state = 'gave_up', finished_at = kiln_now(), lock = null,
                    error = 'the request was deleted'
                from old where job_id = old.id and webhook_deliveries.state = 'pending'
            )
            update jobs set input = null, spec = null, plan = null, state_pointer = null, outcome = null,
                failure = null, deleted_at = kiln_now()
            from old where jobs.id = old.id
            returning old.outcome::text";
        const FOUND: &str = "/* deletable */
            select finished_at is null from jobs where id = $1 and deleted_at is null";
        let delete = || sqlx::query_scalar(SQL).bind(id).fetch_optional(self.pool());
        let deleted: Option<Option<String>> = self.persist(delete).await?;
        if let Some(outcome) = deleted {
            let outcome = outcome.map(|text| read_json("outcome", id, &text)).transpose()?;
            return Ok(Deletion::Deleted { outcome });
        }
        let unfinished: Option<bool> =
            self.persist(|| sqlx::query_scalar(FOUND).bind(id).fetch_optional(self.pool())).await?;
        Ok(if unfinished.unwrap_or(false) { Deletion::NotFinished } else { Deletion::NotFound })
    }

    /// Removes final requests of a certain age, oldest first, except those whose webhook is still under way. Their
    /// files are the caller's to delete.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn purge(&self, older_than: Duration, limit: u32) -> Result<Vec<Purged>, Error> {
        const SQL: &str = "/* purge */
            with old as (
                select id from jobs
                where finished_at < kiln_now() - make_interval(secs => $1)
                    and not exists (select from webhook_deliveries where job_id = jobs.id and state = 'pending')
                order by finished_at limit $2 for update skip locked
            )
            delete from jobs using old where jobs.id = old.id returning jobs.id, outcome::text";
        let seconds = older_than.as_secs_f64();
        let delete = || sqlx::query_as(SQL).bind(seconds).bind(i64::from(limit)).fetch_all(self.pool());
        let rows: Vec<(Uuid, Option<String>)> = self.persist(delete).await?;
        rows.into_iter()
            .map(|(id, outcome)| {
                let outcome = outcome.map(|text| read_json("outcome", id, &text)).transpose()?;
                Ok(Purged { id, outcome })
            })
            .collect()
    }
}

impl ListRow {
    fn listed(self, payloads: bool) -> Result<Listed, Error> {
        let deleted = self.deleted;
        let answer = (payloads && !deleted)
            .then(|| read_answer(self.id, self.outcome.as_deref(), self.failure.as_deref()))
            .transpose()?;
        let input = self.input.map(|text| read_json("input", self.id, &text)).transpose()?;
        let inference_seconds =
            self.started_at.zip(self.finished_at).map(|(from, to)| seconds_between(from, to));
        Ok(Listed {
            id: self.id,
            path: self.path,
            state: State::read(&self.state),
            created_at: self.created_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
            http_status: self.http_status.map(i16::unsigned_abs),
            inference_seconds,
            deleted,
            input,
            answer,
        })
    }
}

/// Microseconds since 1970 and the id: the sort key of the last row.
fn write_cursor(at: DateTime<Utc>, id: Uuid) -> String {
    let mut bytes = at.timestamp_micros().to_be_bytes().to_vec();
    bytes.extend(id.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

fn read_cursor(text: &str) -> Result<(DateTime<Utc>, Uuid), Error> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Error::BadCursor)?;
    let (at, id) = bytes.split_first_chunk::<8>().ok_or(Error::BadCursor)?;
    let at = DateTime::from_timestamp_micros(i64::from_be_bytes(*at)).ok_or(Error::BadCursor)?;
    // Postgres' own range is narrower than chrono's.
    let years = DateTime::UNIX_EPOCH..DateTime::from_timestamp(253_402_300_800, 0).ok_or(Error::BadCursor)?;
    let id = Uuid::from_slice(id).map_err(|_| Error::BadCursor)?;
    if years.contains(&at) { Ok((at, id)) } else { Err(Error::BadCursor) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written_and_anything_else_is_refused() {
        let at = DateTime::from_timestamp_micros(1_767_323_045_123_456).expect("in range");
        let id = Uuid::from_u128(7);
        assert_eq!(read_cursor(&write_cursor(at, id)).expect("ours"), (at, id));
        let far = write_cursor(DateTime::<Utc>::MAX_UTC, id);
        for bad in ["", "x", "!!", "AAAA", &far, &"A".repeat(500)] {
            assert!(matches!(read_cursor(bad), Err(Error::BadCursor)), "{bad}");
        }
    }
}
