//! Files that clients bring: what is on its way, what arrived. The bytes are in the object store.
//!
//! ```text
//! open ──first object, or the list of parts──▶ complete ──expiry──▶ gone
//!   └──────────── no byte for a while ──────────────────────────────▲
//! ```
//!
//! A file is a list of stored objects. Completing an upload only fixes that list; nothing is copied. What loses (a part
//! sent twice, an upload given up) is named in `removals` by the statement that lets it lose.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use crate::{
    Error, Store,
    jobs::{clean, json_text},
};

/// Parts of one upload at most, and the highest part number, as with S3.
pub const MAX_PARTS: u32 = 10_000;

/// An upload about to begin.
#[derive(Debug, Clone)]
pub struct NewUpload {
    /// Its id; part of the file's public address, so it must be random.
    pub id: Uuid,
    /// Name of the file, sanitised.
    pub file_name: String,
    /// MIME type.
    pub content_type: String,
    /// SHA-256 of the secret in the upload address.
    pub secret_hash: [u8; 32],
    /// Who uploads.
    pub key_id: Option<String>,
    /// Lifetime and readers, as the client asked.
    pub lifecycle: Lifecycle,
    /// Given up when nothing arrives within this time.
    pub open_for: Duration,
    /// The request that the file came inside of.
    pub job: Option<Uuid>,
}

/// A client's wishes for a file: `X-Fal-Object-Lifecycle` and `X-Fal-Object-Lifecycle-Preference`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lifecycle {
    /// How long the file is kept; `None` until told otherwise.
    pub keep: Option<Duration>,
    /// Who may read it.
    pub acl: Option<Value>,
}

impl Lifecycle {
    /// Reads the header's JSON. Values without meaning are left out, as fal does.
    #[must_use]
    pub fn read(value: &Value) -> Lifecycle {
        /// A hundred years; further away is for ever.
        const LONGEST_SECONDS: f64 = 100.0 * 366.0 * 86_400.0;
        let seconds = value.get("expiration_duration_seconds").and_then(Value::as_f64);
        let keep = seconds.filter(|s| *s > 0.0 && *s < LONGEST_SECONDS).map(Duration::from_secs_f64);
        let acl = value.get("initial_acl").filter(|acl| acl.is_object()).cloned();
        Lifecycle { keep, acl }
    }
}

/// An object that is a file or a piece of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredObject {
    /// Its key in the object store.
    pub key: String,
    /// Its length.
    pub bytes: u64,
}

/// What a complete file consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// The objects, in order.
    pub objects: Vec<StoredObject>,
    /// Length of the file.
    pub bytes: u64,
    /// Strong validator, without quotes.
    pub etag: String,
    /// When the last byte was stored.
    pub completed_at: DateTime<Utc>,
}

/// An upload whose time is not over.
#[derive(Debug, Clone, PartialEq)]
pub struct Upload {
    /// Its id.
    pub id: Uuid,
    /// Name of the file.
    pub file_name: String,
    /// MIME type.
    pub content_type: String,
    /// SHA-256 of the secret in the upload address.
    pub secret_hash: [u8; 32],
    /// Who brought it.
    pub key_id: Option<String>,
    /// Who may read it.
    pub acl: Option<Value>,
    /// The bytes, once they are all there.
    pub content: Option<Content>,
    /// When it began.
    pub created_at: DateTime<Utc>,
    /// When it goes; `None` keeps it.
    pub expires_at: Option<DateTime<Utc>>,
}

/// One stored part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// From 1 to [`MAX_PARTS`].
    pub number: u32,
    /// Its bytes.
    pub object: StoredObject,
    /// Made from the bytes, without quotes.
    pub etag: String,
}

/// What became of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recorded {
    /// It belongs to the upload. An earlier write of the same part has lost; its object is to be removed.
    Done,
    /// The upload is complete, over or unknown.
    NotOpen,
    /// All parts together would be larger than the limit.
    TooLarge,
}

/// What became of a completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completed {
    /// The file is complete; also when it was with the same content before.
    Done(Content),
    /// The upload is over or unknown, or complete with other content.
    NotOpen,
    /// No such part was stored.
    NoPart(u32),
    /// The part was stored with another ETag.
    OtherEtag(u32),
}

#[derive(sqlx::FromRow)]
struct UploadRow {
    id: Uuid,
    file_name: String,
    content_type: String,
    secret_hash: Vec<u8>,
    key_id: Option<String>,
    acl: Option<Json<Value>>,
    bytes: Option<i64>,
    etag: Option<String>,
    segment_keys: Option<Vec<String>>,
    segment_bytes: Option<Vec<i64>>,
    completed_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
}

impl UploadRow {
    fn content(&mut self) -> Option<Content> {
        let keys = self.segment_keys.take()?.into_iter();
        let objects = keys
            .zip(self.segment_bytes.take()?)
            .map(|(key, bytes)| StoredObject { key, bytes: bytes.unsigned_abs() });
        Some(Content {
            objects: objects.collect(),
            bytes: self.bytes?.unsigned_abs(),
            etag: self.etag.take()?,
            completed_at: self.completed_at?,
        })
    }
}

impl From<UploadRow> for Upload {
    fn from(mut row: UploadRow) -> Self {
        let content = row.content();
        let hash = row.secret_hash.try_into();
        Self {
            id: row.id,
            file_name: row.file_name,
            content_type: row.content_type,
            secret_hash: hash.expect("invariant: a constraint says that hashes have 32 bytes"),
            key_id: row.key_id,
            acl: row.acl.map(|json| json.0),
            content,
            created_at: row.created_at,
            expires_at: row.expires_at,
        }
    }
}

impl Store {
    /// Records an upload before its first byte.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn create_upload(&self, upload: &NewUpload) -> Result<(), Error> {
        const SQL: &str = "/* create_upload */
            insert into uploads (id, file_name, content_type, secret_hash, key_id, acl, keep_seconds, job_id,
                created_at, expires_at)
            values ($1, $2, $3, $4, $5, $6::json, $7, $8, kiln_now(), kiln_now() + make_interval(secs => $9))
            on conflict (id) do nothing";
        let write = || {
            sqlx::query(SQL)
                .bind(upload.id)
                .bind(clean(&upload.file_name))
                .bind(clean(&upload.content_type))
                .bind(&upload.secret_hash[..])
                .bind(&upload.key_id)
                .bind(upload.lifecycle.acl.as_ref().map(json_text))
                .bind(upload.lifecycle.keep.map(|keep| keep.as_secs_f64()))
                .bind(upload.job)
                .bind(upload.open_for.as_secs_f64())
                .execute(self.pool())
        };
        self.persist(write).await.map(drop)
    }

    /// Reads an upload; `None` when there is none or its time is over.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn upload(&self, id: Uuid) -> Result<Option<Upload>, Error> {
        let row =
            self.persist(|| async { read_upload(&mut *self.pool().acquire().await?, id).await }).await?;
        Ok(row.map(Upload::from))
    }

    /// Records a stored part. A later write of the same number replaces an earlier one.
    ///
    /// `limit` is for all parts together. The upload stays open for `open_for` from now on.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`]: whether it was recorded is unknown.
    pub async fn record_part(
        &self,
        id: Uuid,
        part: &Part,
        limit: u64,
        open_for: Duration,
    ) -> Result<Recorded, Error> {
        self.persist(|| self.try_record_part(id, part, limit, open_for)).await
    }

    async fn try_record_part(
        &self,
        id: Uuid,
        part: &Part,
        limit: u64,
        open_for: Duration,
    ) -> Result<Recorded, sqlx::Error> {
        const OTHERS: &str = "/* other_parts */
            select coalesce(sum(bytes), 0)::bigint from upload_parts where upload_id = $1 and number <> $2";
        const SQL: &str = "/* record_part */
            with lost as (
                insert into removals (object_key, due_at)
                select object_key, kiln_now() from upload_parts
                where upload_id = $1 and number = $2 and object_key <> $3
            ), stay as (
                update uploads set expires_at = greatest(expires_at, kiln_now() + make_interval(secs => $6))
                where id = $1
            )
            insert into upload_parts (upload_id, number, object_key, bytes, etag) values ($1, $2, $3, $4, $5)
            on conflict (upload_id, number)
                do update set object_key = excluded.object_key, bytes = excluded.bytes, etag = excluded.etag";
        let mut tx = self.pool().begin().await?;
        if !lock_open(&mut tx, id).await? {
            return Ok(Recorded::NotOpen);
        }
        let number = i32::try_from(part.number).unwrap_or(i32::MAX);
        let others: i64 = sqlx::query_scalar(OTHERS).bind(id).bind(number).fetch_one(&mut *tx).await?;
        if others.unsigned_abs().saturating_add(part.object.bytes) > limit {
            return Ok(Recorded::TooLarge);
        }
        sqlx::query(SQL)
            .bind(id)
            .bind(number)
            .bind(&part.object.key)
            .bind(part.object.bytes.cast_signed())
            .bind(&part.etag)
            .bind(open_for.as_secs_f64())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(Recorded::Done)
    }

    /// Completes an upload that came as one object. The first object wins; another one with the same ETag is a
    /// repetition and answered with the first.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`]: whether it is complete is unknown.
    pub async fn complete_upload(
        &self,
        id: Uuid,
        object: &StoredObject,
        etag: &str,
    ) -> Result<Completed, Error> {
        let objects = std::slice::from_ref(object);
        let write = || async {
            let mut tx = self.pool().begin().await?;
            if lock_open(&mut tx, id).await? {
                let content = fix_content(&mut tx, id, objects, etag).await?;
                tx.commit().await?;
                return Ok(Completed::Done(content));
            }
            // An earlier try may have done it, its answer lost.
            let found = read_upload(&mut tx, id).await?.and_then(|mut row| row.content());
            Ok(match found.filter(|content| content.etag == etag) {
                Some(content) => Completed::Done(content),
                None => Completed::NotOpen,
            })
        };
        self.persist(write).await
    }

    /// Completes an upload that came in parts: the listed ones, by number, are the file. Parts that are stored but not
    /// listed have lost. Completing again with the same list is fine.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`]: whether it is complete is unknown.
    pub async fn complete_parts(&self, id: Uuid, parts: &[(u32, String)]) -> Result<Completed, Error> {
        let mut parts = parts.to_vec();
        parts.sort();
        parts.dedup();
        self.persist(|| self.try_complete_parts(id, &parts)).await
    }

    async fn try_complete_parts(&self, id: Uuid, parts: &[(u32, String)]) -> Result<Completed, sqlx::Error> {
        const PARTS: &str = "/* parts_of_upload */
            select number, object_key, bytes, etag from upload_parts where upload_id = $1 order by number";
        let etag = etag_of_parts(parts);
        let mut tx = self.pool().begin().await?;
        if !lock_open(&mut tx, id).await? {
            let found = read_upload(&mut tx, id).await?.and_then(|mut row| row.content());
            return Ok(match found.filter(|content| content.etag == etag) {
                Some(content) => Completed::Done(content),
                None => Completed::NotOpen,
            });
        }
        let stored: Vec<(i32, String, i64, String)> =
            sqlx::query_as(PARTS).bind(id).fetch_all(&mut *tx).await?;
        let mut objects = Vec::with_capacity(parts.len());
        for (number, etag) in parts {
            let found = stored.iter().find(|(stored, ..)| u32::try_from(*stored) == Ok(*number));
            match found {
                None => return Ok(Completed::NoPart(*number)),
                Some((_, _, _, stored)) if stored != etag => return Ok(Completed::OtherEtag(*number)),
                Some((_, key, bytes, _)) => {
                    objects.push(StoredObject { key: key.clone(), bytes: bytes.unsigned_abs() });
                }
            }
        }
        let content = fix_content(&mut tx, id, &objects, &etag).await?;
        tx.commit().await?;
        Ok(Completed::Done(content))
    }

    /// Forgets an upload and lets its bytes go; false when there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn delete_upload(&self, id: Uuid) -> Result<bool, Error> {
        const SQL: &str = "/* delete_upload */ delete from uploads where id = $1";
        let done = self.persist(|| sqlx::query(SQL).bind(id).execute(self.pool())).await?;
        Ok(done.rows_affected() > 0)
    }

    /// Of these uploads, the keys of all objects that belong to one. Any other object of theirs is nobody's.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn named_objects(&self, uploads: &[Uuid]) -> Result<Vec<String>, Error> {
        const SQL: &str = "/* named_objects */
            select unnest(segment_keys) from uploads where id = any($1)
            union all select object_key from upload_parts where upload_id = any($1)";
        self.persist(|| sqlx::query_scalar(SQL).bind(uploads).fetch_all(self.pool())).await
    }
}

/// The ETag of a file made of parts: from their ETags, and how many there are, as with S3.
fn etag_of_parts(parts: &[(u32, String)]) -> String {
    let mut hash = Sha256::new();
    for (_, etag) in parts {
        hash.update(etag.as_bytes());
        hash.update(b"\n");
    }
    format!("{}-{}", hex::encode(&hash.finalize()[..16]), parts.len())
}

/// Locks an upload until the end of the transaction; false when it is not open.
async fn lock_open(connection: &mut PgConnection, id: Uuid) -> Result<bool, sqlx::Error> {
    const SQL: &str = "/* lock_open_upload */
        select state = 'open' and (expires_at is null or expires_at > kiln_now()) from uploads where id = $1 for update";
    let open: Option<bool> = sqlx::query_scalar(SQL).bind(id).fetch_optional(connection).await?;
    Ok(open.unwrap_or(false))
}

async fn read_upload(connection: &mut PgConnection, id: Uuid) -> Result<Option<UploadRow>, sqlx::Error> {
    const SQL: &str = "/* upload */
        select id, file_name, content_type, secret_hash, key_id, acl, bytes, etag, segment_keys, segment_bytes,
            completed_at, created_at, expires_at
        from uploads where id = $1 and (expires_at is null or expires_at > kiln_now())";
    sqlx::query_as(SQL).bind(id).fetch_optional(connection).await
}

/// Writes what the file consists of. From now on its own lifetime counts.
async fn fix_content(
    connection: &mut PgConnection,
    id: Uuid,
    objects: &[StoredObject],
    etag: &str,
) -> Result<Content, sqlx::Error> {
    const SQL: &str = "/* fix_content */
        update uploads set state = 'complete', completed_at = kiln_now(), segment_keys = $2, segment_bytes = $3,
            bytes = $4, etag = $5, expires_at = kiln_now() + make_interval(secs => keep_seconds)
        where id = $1 returning completed_at";
    const CLEAR: &str = "/* clear_parts */
        with gone as (delete from upload_parts where upload_id = $1 returning object_key)
        insert into removals (object_key, due_at)
        select object_key, kiln_now() from gone where object_key <> all($2)";
    let keys: Vec<&str> = objects.iter().map(|object| object.key.as_str()).collect();
    let lengths: Vec<i64> = objects.iter().map(|object| object.bytes.cast_signed()).collect();
    let bytes: u64 = objects.iter().map(|object| object.bytes).sum();
    let completed_at: DateTime<Utc> = sqlx::query_scalar(SQL)
        .bind(id)
        .bind(&keys)
        .bind(lengths)
        .bind(bytes.cast_signed())
        .bind(etag)
        .fetch_one(&mut *connection)
        .await?;
    sqlx::query(CLEAR).bind(id).bind(&keys).execute(connection).await?;
    Ok(Content { objects: objects.to_vec(), bytes, etag: etag.to_owned(), completed_at })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_lifecycle_is_read_leniently() {
        let read = |value| Lifecycle::read(&value);
        let acl = json!({ "default": "forbid" });
        assert_eq!(
            read(json!({ "expiration_duration_seconds": 3600, "initial_acl": acl })),
            Lifecycle { keep: Some(Duration::from_secs(3600)), acl: Some(acl) }
        );
        for empty in [
            json!({}),
            json!(null),
            json!([1]),
            json!({ "expiration_duration_seconds": null, "initial_acl": "x" }),
            json!({ "expiration_duration_seconds": 0 }),
            json!({ "expiration_duration_seconds": -1.5 }),
            json!({ "expiration_duration_seconds": 1e300 }),
            json!({ "expiration_duration_seconds": "60" }),
        ] {
            assert_eq!(read(empty.clone()), Lifecycle::default(), "{empty}");
        }
    }
}
