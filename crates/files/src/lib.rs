//! Files: what a row of the store and objects of the object store are together.
//!
//! - [`Address`]: where a file is found, as clients and rows spell it.
//! - [`Files`]: finds a file, reads it, resolves what a request names ([`Files::resolve`]), takes new ones in
//!   ([`Intake`]), and removes what nothing names any more ([`Files::maintain`]).
//!
//! Invariants:
//! - a row names an object only after the object is durable; an object that no row names is removed a day later;
//! - a file is served under an address only while a row says so;
//! - no file is held in memory;
//! - knows no HTTP and no training request. Servers and workers use it alike.

mod address;
mod intake;
mod sweep;

use std::ops::Range;

use chrono::{DateTime, Utc};
use objects::{ByteStream, Key, Objects, Segment};
use sha2::{Digest as _, Sha256};
use store::{Content, Store};
use uuid::Uuid;

pub use address::Address;
pub use intake::{Intake, NewFile, Taken};
pub use sweep::Swept;

/// What can go wrong with files, by what the caller can do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rows.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The objects.
    #[error(transparent)]
    Objects(#[from] objects::Error),
    /// A data URI that holds no file.
    #[error(transparent)]
    DataUri(#[from] objects::data_uri::Invalid),
    /// A row names an object in a way that this version does not know.
    #[error("the row of {address} names the unusable object key {key:?}")]
    BadKey {
        /// The file.
        address: String,
        /// What the row says.
        key: String,
    },
}

/// Rows and objects. Cheap to clone.
#[derive(Clone)]
pub struct Files {
    store: Store,
    objects: Objects,
}

/// A complete file.
#[derive(Debug, Clone, PartialEq)]
pub struct File {
    /// Where it is found.
    pub address: Address,
    /// MIME type, as the one who brought or made it said.
    pub content_type: Option<String>,
    /// Its length.
    pub bytes: u64,
    /// Strong validator, without quotes.
    pub etag: String,
    /// When it was complete.
    pub modified: DateTime<Utc>,
    /// When it goes.
    pub expires_at: Option<DateTime<Utc>>,
    /// Whose it is.
    pub key_id: Option<String>,
    /// Who may read it.
    pub acl: Option<serde_json::Value>,
    /// Its objects, in order.
    pub segments: Vec<Segment>,
}

/// What an address in a request leads to.
#[derive(Debug, Clone, PartialEq)]
pub enum Resolved {
    /// A file of kiln's own: read it with [`Files::read`].
    Own(Box<File>),
    /// A file of kiln's own that is gone or never was.
    Gone,
    /// Somebody else's: fetch it with [`objects::outbound::Outbound`].
    Remote,
}

impl Files {
    /// Puts the parts together.
    #[must_use]
    pub fn new(store: Store, objects: Objects) -> Files {
        Files { store, objects }
    }

    /// The object storage.
    #[must_use]
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Finds a file; `None` when there is none, it is not complete, or its time is over.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Objects`] when rows or objects cannot be asked.
    pub async fn find(&self, address: &Address) -> Result<Option<File>, Error> {
        match address {
            Address::Upload { id, name } => self.find_upload(address, *id, name).await,
            Address::Output { .. } => self.find_output(address).await,
        }
    }

    async fn find_upload(&self, address: &Address, id: Uuid, name: &str) -> Result<Option<File>, Error> {
        let Some(upload) = self.store.upload(id).await?.filter(|upload| upload.file_name == name) else {
            return Ok(None);
        };
        let Some(content) = upload.content else { return Ok(None) };
        Ok(Some(File {
            address: address.clone(),
            content_type: Some(upload.content_type),
            bytes: content.bytes,
            segments: segments(address, &content)?,
            etag: content.etag,
            modified: content.completed_at,
            expires_at: upload.expires_at,
            key_id: upload.key_id,
            acl: upload.acl,
        }))
    }

    async fn find_output(&self, address: &Address) -> Result<Option<File>, Error> {
        let Some(output) = self.store.output(&address.reference()).await? else { return Ok(None) };
        let Some(key) = address.output_key() else { return Ok(None) };
        let bytes = match output.bytes {
            Some(bytes) => bytes,
            None => match self.objects.bytes(&key).await {
                Err(objects::Error::NotFound { .. }) => return Ok(None),
                bytes => bytes?,
            },
        };
        // An output is written once under its address, so the address names the content.
        let etag = hex::encode(&Sha256::digest(format!("{address} {bytes}"))[..16]);
        Ok(Some(File {
            address: address.clone(),
            content_type: output.content_type,
            bytes,
            etag,
            modified: output.created_at,
            expires_at: output.expires_at,
            key_id: output.key_id,
            acl: output.acl,
            segments: vec![Segment { key, bytes }],
        }))
    }

    /// Says what an address leads to, as it stands in a request: http(s), or a reference that the server put there.
    ///
    /// # Errors
    /// As [`Files::find`].
    pub async fn resolve(&self, address: &str) -> Result<Resolved, Error> {
        let reference = address.starts_with(store::OWN_SCHEME);
        let own = if reference { Address::from_reference(address) } else { Address::from_url(address) };
        let found = match own {
            Some(own) => self.find(&own).await?,
            None => None,
        };
        Ok(match found {
            Some(file) => Resolved::Own(Box::new(file)),
            None if reference => Resolved::Gone,
            None => Resolved::Remote,
        })
    }

    /// Reads a range of a file, which must lie inside it.
    #[must_use]
    pub fn read(&self, file: &File, range: Range<u64>) -> ByteStream {
        self.objects.read_segments(&file.segments, range)
    }
}

fn segments(address: &Address, content: &Content) -> Result<Vec<Segment>, Error> {
    let segment = |object: &store::StoredObject| match Key::from_row(&object.key) {
        Some(key) => Ok(Segment { key, bytes: object.bytes }),
        None => Err(Error::BadKey { address: address.path(), key: object.key.clone() }),
    };
    content.objects.iter().map(segment).collect()
}
