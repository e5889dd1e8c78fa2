//! Taking files in: bytes stream into objects, then a row names them.

use std::time::Duration;

use bytes::Bytes;
use objects::data_uri::DataUri;
use objects::{Key, Writer, names};
use sha2::{Digest as _, Sha256};
use store::{Completed, Lifecycle, NewUpload, Part, Recorded, StoredObject};
use uuid::Uuid;

use crate::{Address, Error, Files};

/// A file inside a request is stored and named within this time.
const INSIDE_OPEN_FOR: Duration = Duration::from_secs(3600);

/// A file that is about to come.
#[derive(Debug, Clone, Default)]
pub struct NewFile {
    /// Its name as the client wrote it; made safe here.
    pub name: String,
    /// MIME type.
    pub content_type: String,
    /// Who brings it.
    pub key_id: Option<String>,
    /// Lifetime and readers, as the client asked.
    pub lifecycle: Lifecycle,
    /// The request that it comes inside of.
    pub job: Option<Uuid>,
}

/// Bytes on their way into one object. Dropped before [`Intake::finish`], it leaves nothing.
pub struct Intake {
    key: Key,
    writer: Writer,
    hash: Sha256,
}

/// One stored object that no row names yet.
#[derive(Debug, Clone)]
pub struct Taken {
    key: Key,
    object: StoredObject,
    etag: String,
}

impl Taken {
    /// Strong validator of the bytes, without quotes.
    #[must_use]
    pub fn etag(&self) -> &str {
        &self.etag
    }

    /// How many bytes it is.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.object.bytes
    }
}

impl Intake {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`objects::Error::TooLarge`] past the limit, [`objects::Error::Unavailable`].
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), objects::Error> {
        self.hash.update(&bytes);
        self.writer.write(bytes).await
    }

    /// Makes the object durable.
    ///
    /// # Errors
    /// [`objects::Error::Unavailable`]; nothing is kept then.
    pub async fn finish(self) -> Result<Taken, objects::Error> {
        let written = self.writer.finish().await?;
        let object = StoredObject { key: self.key.to_string(), bytes: written.bytes };
        Ok(Taken { key: self.key, object, etag: hex::encode(&self.hash.finalize()[..16]) })
    }
}

impl Files {
    /// Begins an upload. Returns the file's address and the secret for writing it.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn begin(&self, file: NewFile, open_for: Duration) -> Result<(Address, String), Error> {
        let id = Uuid::new_v4();
        let name = names::sanitise(&file.name);
        let secret = hex::encode(rand::random::<[u8; 32]>());
        let upload = NewUpload {
            id,
            file_name: name.clone(),
            content_type: file.content_type,
            secret_hash: Sha256::digest(&secret).into(),
            key_id: file.key_id,
            lifecycle: file.lifecycle,
            open_for,
            job: file.job,
        };
        self.store.create_upload(&upload).await?;
        Ok((Address::Upload { id, name }, secret))
    }

    /// Whether this is the secret of an upload.
    #[must_use]
    pub fn opens(upload: &store::Upload, secret: &str) -> bool {
        // Comparing hashes tells nothing about the secret, however long it takes.
        <[u8; 32]>::from(Sha256::digest(secret)) == upload.secret_hash
    }

    /// Starts an object for an upload, or for one try of one of its parts.
    #[must_use]
    pub fn intake(&self, upload: Uuid, limit: u64) -> Intake {
        let key = Key::part(upload, Uuid::new_v4());
        Intake { writer: self.objects.writer(key.clone(), Some(limit)), key, hash: Sha256::new() }
    }

    /// Records an object as the whole file. What is not recorded is removed.
    ///
    /// # Errors
    /// [`Error::Store`]: whether it was recorded is unknown.
    pub async fn complete(&self, upload: Uuid, taken: Taken) -> Result<Completed, Error> {
        let done = self.store.complete_upload(upload, &taken.object, &taken.etag).await?;
        let recorded = matches!(&done, Completed::Done(content) if content.objects.contains(&taken.object));
        if !recorded {
            self.discard(&taken).await;
        }
        Ok(done)
    }

    /// Records an object as a part. What is not recorded is removed.
    ///
    /// `limit` is for all parts together; the upload stays open for `open_for` from now on.
    ///
    /// # Errors
    /// [`Error::Store`]: whether it was recorded is unknown.
    pub async fn record(
        &self,
        upload: Uuid,
        number: u32,
        taken: Taken,
        limit: u64,
        open_for: Duration,
    ) -> Result<Recorded, Error> {
        let part = Part { number, object: taken.object.clone(), etag: taken.etag.clone() };
        let recorded = self.store.record_part(upload, &part, limit, open_for).await?;
        if recorded != Recorded::Done {
            self.discard(&taken).await;
        }
        Ok(recorded)
    }

    /// Stores the file inside a data URI.
    ///
    /// # Errors
    /// [`Error::DataUri`], [`objects::Error::TooLarge`], or rows and objects that cannot be written.
    pub async fn keep(&self, uri: &DataUri<'_>, file: NewFile, limit: u64) -> Result<Address, Error> {
        let (address, _) = self.begin(file, INSIDE_OPEN_FOR).await?;
        let Address::Upload { id, .. } = address else { return Ok(address) };
        let mut intake = self.intake(id, limit);
        for chunk in uri.chunks() {
            intake.write(chunk?).await?;
        }
        let taken = intake.finish().await?;
        self.complete(id, taken).await?;
        Ok(address)
    }

    /// Lets go of a file that was brought.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn forget(&self, upload: Uuid) -> Result<(), Error> {
        self.store.delete_upload(upload).await?;
        Ok(())
    }

    /// Removes an object that no row names. The sweep finds it when this fails.
    async fn discard(&self, taken: &Taken) {
        if let Err(error) = self.objects.delete(&taken.key).await {
            tracing::warn!(%error, "an object that is not needed stays for a day");
        }
    }
}
