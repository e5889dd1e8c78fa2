//! Files that jobs made, and what the object store is to remove.
//!
//! An output is known by kiln's own address ([`OWN_SCHEME`]), as the job's outcome names it; the row appears in the
//! transaction that ends the job. Files of attempts that did not end the job have no row and are not served.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use spec::Outcome;
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use crate::{Error, Lifecycle, Store, jobs::json_text};

/// How an address of kiln's own begins where no client sees it: in outcomes and in requests that a worker reads.
pub const OWN_SCHEME: &str = "kiln:";

/// A file that a job made.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// The job.
    pub job: Uuid,
    /// The key that submitted it.
    pub key_id: Option<String>,
    /// MIME type, when the worker said it.
    pub content_type: Option<String>,
    /// Length, when the worker said it.
    pub bytes: Option<u64>,
    /// Who may read it.
    pub acl: Option<Value>,
    /// When the job ended.
    pub created_at: DateTime<Utc>,
    /// When it goes; `None` keeps it.
    pub expires_at: Option<DateTime<Utc>>,
}

/// Something that the object store is to remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// Its number.
    pub id: i64,
    /// What.
    pub what: Doomed,
}

/// What is to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doomed {
    /// One object, by its key.
    Object(String),
    /// One output, by its address.
    Output(String),
    /// Everything of an upload.
    Upload(Uuid),
    /// Everything of a job.
    Job(Uuid),
}

/// A line of an outcome that becomes an output.
#[derive(Debug, Clone)]
pub(crate) struct NewOutput {
    address: String,
    content_type: Option<String>,
    bytes: Option<i64>,
}

impl NewOutput {
    /// The files of an outcome that kiln itself keeps.
    pub(crate) fn all(outcome: &Outcome) -> Vec<NewOutput> {
        let own = outcome.files().filter(|(_, file)| file.url.starts_with(OWN_SCHEME));
        own.map(|(_, file)| NewOutput {
            address: file.url.clone(),
            content_type: file.content_type.clone(),
            bytes: file.file_size.and_then(|bytes| i64::try_from(bytes).ok()),
        })
        .collect()
    }
}

#[derive(sqlx::FromRow)]
struct OutputRow {
    job_id: Uuid,
    key_id: Option<String>,
    content_type: Option<String>,
    bytes: Option<i64>,
    acl: Option<Json<Value>>,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
}

#[derive(sqlx::FromRow)]
struct RemovalRow {
    id: i64,
    object_key: Option<String>,
    address: Option<String>,
    upload_id: Option<Uuid>,
    job_id: Option<Uuid>,
}

impl Store {
    /// A job's output by its address; `None` when there is none or its time is over.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn output(&self, address: &str) -> Result<Option<Output>, Error> {
        const SQL: &str = "/* output */
            select job_id, key_id, content_type, bytes, acl, created_at, expires_at from outputs
            where address = $1 and (expires_at is null or expires_at > kiln_now())";
        let row: Option<OutputRow> =
            self.persist(|| sqlx::query_as(SQL).bind(address).fetch_optional(self.pool())).await?;
        Ok(row.map(|row| Output {
            job: row.job_id,
            key_id: row.key_id,
            content_type: row.content_type,
            bytes: row.bytes.map(i64::unsigned_abs),
            acl: row.acl.map(|json| json.0),
            created_at: row.created_at,
            expires_at: row.expires_at,
        }))
    }

    /// Lets go of uploads that were given up, files whose time is over, and files inside requests that were never
    /// accepted. Returns how many; fewer than `limit` of each kind means that there are no more.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn expire_files(&self, limit: u32) -> Result<u64, Error> {
        const UPLOADS: &str = "/* expire_uploads */
            delete from uploads where id in (
                select id from uploads where expires_at <= kiln_now()
                order by expires_at limit $1 for update skip locked)";
        const OUTPUTS: &str = "/* expire_outputs */
            with gone as (
                delete from outputs where address in (
                    select address from outputs where expires_at <= kiln_now()
                    order by expires_at limit $1 for update skip locked)
                returning address
            )
            insert into removals (address, due_at) select address, kiln_now() from gone";
        // The request is committed seconds after its files; a day later it never will be.
        const ORPHANS: &str = "/* expire_orphans */
            delete from uploads where id in (
                select id from uploads
                where job_id is not null and created_at < kiln_now() - interval '1 day'
                    and not exists (select from jobs where jobs.id = uploads.job_id)
                limit $1 for update skip locked)";
        let mut expired = 0;
        for statement in [UPLOADS, OUTPUTS, ORPHANS] {
            let delete = || sqlx::query(statement).bind(i64::from(limit)).execute(self.pool());
            expired += self.persist(delete).await?.rows_affected();
        }
        Ok(expired)
    }

    /// Takes things to remove, oldest first. Nobody else gets them for the time of `hold`.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn due_removals(&self, limit: u32, hold: Duration) -> Result<Vec<Removal>, Error> {
        const SQL: &str = "/* due_removals */
            update removals set due_at = kiln_now() + make_interval(secs => $2)
            where id in (
                select id from removals where due_at <= kiln_now()
                order by due_at limit $1 for update skip locked)
            returning id, object_key, address, upload_id, job_id";
        let take =
            || sqlx::query_as(SQL).bind(i64::from(limit)).bind(hold.as_secs_f64()).fetch_all(self.pool());
        let rows: Vec<RemovalRow> = self.persist(take).await?;
        let what = |row: RemovalRow| {
            let object = row.object_key.map(Doomed::Object);
            let output = row.address.map(Doomed::Output);
            let upload = row.upload_id.map(Doomed::Upload);
            Some(Removal { id: row.id, what: object.or(output).or(upload).or(row.job_id.map(Doomed::Job))? })
        };
        Ok(rows.into_iter().filter_map(what).collect())
    }

    /// Records that these were removed.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn removed(&self, ids: &[i64]) -> Result<(), Error> {
        const SQL: &str = "/* removed */ delete from removals where id = any($1)";
        self.persist(|| sqlx::query(SQL).bind(ids).execute(self.pool())).await.map(drop)
    }
}

/// Writes the outputs of a job in the transaction that ends it.
pub(crate) async fn insert_outputs(
    connection: &mut PgConnection,
    job: Uuid,
    outputs: &[NewOutput],
) -> Result<(), sqlx::Error> {
    const WISHES: &str = "/* output_wishes */ select lifecycle from jobs where id = $1";
    const SQL: &str = "/* insert_outputs */
        insert into outputs (address, job_id, key_id, content_type, bytes, acl, created_at, expires_at)
        select file.address, jobs.id, jobs.key_id, file.content_type, file.bytes, $5::json, kiln_now(),
            kiln_now() + make_interval(secs => $6)
        from jobs, unnest($2::text[], $3::text[], $4::bigint[]) as file (address, content_type, bytes)
        where jobs.id = $1
        on conflict (address) do nothing";
    if outputs.is_empty() {
        return Ok(());
    }
    let wishes: Option<Json<Value>> =
        sqlx::query_scalar(WISHES).bind(job).fetch_one(&mut *connection).await?;
    let wishes = wishes.map(|json| Lifecycle::read(&json.0)).unwrap_or_default();
    sqlx::query(SQL)
        .bind(job)
        .bind(outputs.iter().map(|output| output.address.as_str()).collect::<Vec<_>>())
        .bind(outputs.iter().map(|output| output.content_type.as_deref()).collect::<Vec<_>>())
        .bind(outputs.iter().map(|output| output.bytes).collect::<Vec<_>>())
        .bind(wishes.acl.as_ref().map(json_text))
        .bind(wishes.keep.map(|keep| keep.as_secs_f64()))
        .execute(connection)
        .await?;
    Ok(())
}
