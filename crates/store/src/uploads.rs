//! Files that clients bring: what is on its way, what arrived, what has to go. The bytes are in the object store.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::types::Json;
use uuid::Uuid;

use crate::{
    Error, Store,
    jobs::{clean, json_text},
};

/// An upload about to begin.
#[derive(Debug, Clone)]
pub struct NewUpload {
    /// Its id.
    pub id: Uuid,
    /// Where the object store will keep the bytes.
    pub object_key: String,
    /// Name of the file, sanitised.
    pub file_name: String,
    /// MIME type.
    pub content_type: String,
    /// SHA-256 of the secret in the upload address.
    pub secret_hash: [u8; 32],
    /// Who uploads.
    pub key_id: Option<String>,
    /// Who may read it, as the client asked.
    pub acl: Option<Value>,
    /// Given up unless complete within this time.
    pub open_for: Duration,
}

/// Whether the bytes are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UploadState {
    /// On their way.
    Open,
    /// All of them.
    Complete {
        /// How many.
        bytes: u64,
    },
}

/// An upload.
#[derive(Debug, Clone, PartialEq)]
pub struct Upload {
    /// Its id.
    pub id: Uuid,
    /// Where the object store keeps the bytes.
    pub object_key: String,
    /// Name of the file.
    pub file_name: String,
    /// MIME type.
    pub content_type: String,
    /// Whether the bytes are there.
    pub state: UploadState,
    /// SHA-256 of the secret in the upload address.
    pub secret_hash: [u8; 32],
    /// The object store's name for a multipart upload in progress.
    pub multipart_id: Option<String>,
    /// Who may read it.
    pub acl: Option<Value>,
    /// When it began.
    pub created_at: DateTime<Utc>,
    /// When it goes; `None` keeps it.
    pub expires_at: Option<DateTime<Utc>>,
}

#[derive(sqlx::FromRow)]
struct UploadRow {
    id: Uuid,
    object_key: String,
    file_name: String,
    content_type: String,
    secret_hash: Vec<u8>,
    multipart_id: Option<String>,
    bytes: Option<i64>,
    acl: Option<Json<Value>>,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
}

impl From<UploadRow> for Upload {
    fn from(row: UploadRow) -> Self {
        let state = match row.bytes {
            Some(bytes) => UploadState::Complete { bytes: bytes.unsigned_abs() },
            None => UploadState::Open,
        };
        let hash = row.secret_hash.try_into();
        Self {
            id: row.id,
            object_key: row.object_key,
            file_name: row.file_name,
            content_type: row.content_type,
            state,
            secret_hash: hash.expect("invariant: a constraint says that hashes have 32 bytes"),
            multipart_id: row.multipart_id,
            acl: row.acl.map(|json| json.0),
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
            insert into uploads (id, object_key, file_name, content_type, secret_hash, key_id, acl, created_at,
                expires_at)
            values ($1, $2, $3, $4, $5, $6, $7::json, kiln_now(), kiln_now() + make_interval(secs => $8))
            on conflict (id) do nothing";
        let write = || {
            sqlx::query(SQL)
                .bind(upload.id)
                .bind(&upload.object_key)
                .bind(clean(&upload.file_name))
                .bind(clean(&upload.content_type))
                .bind(&upload.secret_hash[..])
                .bind(&upload.key_id)
                .bind(upload.acl.as_ref().map(json_text))
                .bind(upload.open_for.as_secs_f64())
                .execute(self.pool())
        };
        self.persist(write).await.map(drop)
    }

    /// Reads an upload.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn upload(&self, id: Uuid) -> Result<Option<Upload>, Error> {
        const SQL: &str = "/* upload */
            select id, object_key, file_name, content_type, secret_hash, multipart_id, bytes, acl, created_at,
                expires_at
            from uploads where id = $1";
        let row: Option<UploadRow> =
            self.persist(|| sqlx::query_as(SQL).bind(id).fetch_optional(self.pool())).await?;
        Ok(row.map(Upload::from))
    }

    /// Records the object store's name for the multipart upload; false when the upload is not open.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn set_upload_multipart(&self, id: Uuid, multipart_id: &str) -> Result<bool, Error> {
        const SQL: &str = "/* set_upload_multipart */
            update uploads set multipart_id = $2 where id = $1 and state = 'open'";
        let write = || sqlx::query(SQL).bind(id).bind(multipart_id).execute(self.pool());
        Ok(self.persist(write).await?.rows_affected() > 0)
    }

    /// Records that every byte is stored, and for how long to keep the file; false when the upload is not open.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn complete_upload(&self, id: Uuid, bytes: u64, keep: Option<Duration>) -> Result<bool, Error> {
        // Completing again with the same size is a repetition, not a second object.
        const SQL: &str = "/* complete_upload */
            update uploads set state = 'complete', bytes = $2, completed_at = coalesce(completed_at, kiln_now()),
                multipart_id = null, expires_at = kiln_now() + make_interval(secs => $3)
            where id = $1 and (state = 'open' or bytes = $2)";
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let keep = keep.map(|keep| keep.as_secs_f64());
        let write = || sqlx::query(SQL).bind(id).bind(bytes).bind(keep).execute(self.pool());
        Ok(self.persist(write).await?.rows_affected() > 0)
    }

    /// Uploads and files whose time is over, longest first. Delete the bytes, then the row.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn expired_uploads(&self, limit: u32) -> Result<Vec<Upload>, Error> {
        const SQL: &str = "/* expired_uploads */
            select id, object_key, file_name, content_type, secret_hash, multipart_id, bytes, acl, created_at,
                expires_at
            from uploads where expires_at <= kiln_now() order by expires_at limit $1";
        let read = || sqlx::query_as(SQL).bind(i64::from(limit)).fetch_all(self.pool());
        let rows: Vec<UploadRow> = self.persist(read).await?;
        Ok(rows.into_iter().map(Upload::from).collect())
    }

    /// Forgets an upload; false when there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn delete_upload(&self, id: Uuid) -> Result<bool, Error> {
        const SQL: &str = "/* delete_upload */ delete from uploads where id = $1";
        let done = self.persist(|| sqlx::query(SQL).bind(id).execute(self.pool())).await?;
        Ok(done.rows_affected() > 0)
    }
}
