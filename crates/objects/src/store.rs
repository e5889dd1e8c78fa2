//! [`Objects`]: one interface over a folder and the clouds' object stores, streaming both ways.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{
    GetOptions, GetResultPayload, MultipartUpload, ObjectStore, ObjectStoreExt as _, PutPayload, UploadPart,
};
use url::Url;
use uuid::Uuid;

use crate::{Error, Key, folder};

/// Bytes of a file as they come.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>;

/// Pieces in which a folder is written: one blocking write each.
const FOLDER_PIECE: usize = 1 << 20;
/// Pieces in which a bucket is written. S3 asks for at least 5 MiB, and two are held at a time.
const BUCKET_PIECE: usize = 6 << 20;

/// Where objects are kept.
#[derive(Clone, Debug)]
pub enum Location {
    /// A local folder, made when it is missing.
    Folder(PathBuf),
    /// `s3://bucket/prefix`, `gs://…`, `az://…`, with the storage crate's options (`aws_access_key_id`,
    /// `aws_endpoint`, `allow_http`, …).
    Url {
        /// The bucket.
        url: String,
        /// Credentials and settings, by name.
        options: Vec<(String, String)>,
    },
}

/// Settings of the object storage.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where objects are kept.
    pub location: Location,
}

/// The object storage. Cheap to clone.
#[derive(Clone)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    folder: Option<Arc<Path>>,
}

/// One object of several that together make a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The object.
    pub key: Key,
    /// Its length in bytes.
    pub bytes: u64,
}

/// What a finished writer wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Length in bytes.
    pub bytes: u64,
}

impl Objects {
    /// Opens the storage. A folder is made; a bucket is not contacted (see [`Objects::check`]).
    ///
    /// # Errors
    /// [`Error::Config`] when the folder cannot be made, or the URL or an option is not usable.
    pub fn open(options: &Options) -> Result<Objects, Error> {
        match &options.location {
            Location::Folder(folder) => {
                let unusable = |error: &dyn std::fmt::Display| {
                    Error::Config(format!("cannot use the folder {}: {error}", folder.display()))
                };
                std::fs::create_dir_all(folder).map_err(|error| unusable(&error))?;
                let local = LocalFileSystem::new_with_prefix(folder).map_err(|error| unusable(&error))?;
                let local = local.with_fsync(true).with_automatic_cleanup(true);
                Ok(Objects { store: Arc::new(local), folder: Some(Arc::from(folder.as_path())) })
            }
            Location::Url { url, options } => {
                let unusable =
                    |error: &dyn std::fmt::Display| Error::Config(format!("cannot use {url}: {error}"));
                let parsed = Url::parse(url).map_err(|error| unusable(&error))?;
                if matches!(parsed.scheme(), "file" | "memory" | "http" | "https") {
                    return Err(unusable(&"name a folder, or a bucket as s3://, gs:// or az://"));
                }
                let options = options.iter().map(|(name, value)| (name.as_str(), value.as_str()));
                let (store, prefix) =
                    object_store::parse_url_opts(&parsed, options).map_err(|error| unusable(&error))?;
                Ok(Objects { store: Arc::new(PrefixStore::new(store, prefix)), folder: None })
            }
        }
    }

    /// Writes, reads and removes a small object: what `kiln doctor` asks.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn check(&self) -> Result<(), Error> {
        let key = Key::probe(Uuid::new_v4());
        self.put(&key, Bytes::from_static(b"kiln")).await?;
        let read: Vec<Bytes> = self.read(&key, None).await?.try_collect().await?;
        self.delete(&key).await?;
        if read.concat() == b"kiln" {
            Ok(())
        } else {
            Err(unavailable(&key, "read back other bytes than written"))
        }
    }

    /// Starts an object. Nothing can be read at `key` before [`Writer::finish`] returned, and nothing is left when the
    /// writer is dropped.
    #[must_use]
    pub fn writer(&self, key: Key, limit: Option<u64>) -> Writer {
        let piece = if self.folder.is_some() { FOLDER_PIECE } else { BUCKET_PIECE };
        Writer {
            store: self.store.clone(),
            key,
            limit: limit.unwrap_or(u64::MAX),
            piece,
            bytes: 0,
            buffer: Vec::new(),
            buffered: 0,
            upload: None,
            in_flight: None,
        }
    }

    /// Stores a small object whole.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn put(&self, key: &Key, bytes: Bytes) -> Result<(), Error> {
        self.store.put(key.path(), bytes.into()).await.map_err(|error| failed(key, error))?;
        Ok(())
    }

    /// Stores a local file, streaming.
    ///
    /// # Errors
    /// [`Error::Unavailable`], also when the file cannot be read.
    pub async fn put_file(&self, key: &Key, path: &Path) -> Result<Written, Error> {
        let path = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || {
            let file = std::fs::File::open(path)?;
            let bytes = file.metadata()?.len();
            Ok::<_, std::io::Error>((file, bytes))
        })
        .await;
        let (file, bytes) = joined(opened).map_err(|error| unavailable(key, error))?;
        let mut writer = self.writer(key.clone(), None);
        let mut pieces = std::pin::pin!(folder::read(file, 0..bytes));
        while let Some(piece) = pieces.next().await {
            writer.write(piece.map_err(|error| unavailable(key, error))?).await?;
        }
        writer.finish().await
    }

    /// Length of an object.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn bytes(&self, key: &Key) -> Result<u64, Error> {
        Ok(self.store.head(key.path()).await.map_err(|error| failed(key, error))?.size)
    }

    /// Reads an object, or a range of it (which must lie inside).
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream, Error> {
        let options = GetOptions { range: range.map(Into::into), ..GetOptions::default() };
        let result = self.store.get_opts(key.path(), options).await.map_err(|error| failed(key, error))?;
        let (key, range) = (key.clone(), result.range.clone());
        Ok(match result.payload {
            GetResultPayload::File(file, _) => {
                folder::read(file, range).map_err(move |error| unavailable(&key, error)).boxed()
            }
            GetResultPayload::Stream(stream) => stream.map_err(move |error| failed(&key, error)).boxed(),
        })
    }

    /// Reads a file that is kept as several objects, or a range of it. Objects are opened one after the other.
    pub fn read_segments(&self, segments: &[Segment], range: Range<u64>) -> ByteStream {
        let mut start = 0;
        let mut wanted = Vec::new();
        for segment in segments {
            let end = start + segment.bytes;
            let inside = range.start.max(start)..range.end.min(end);
            if inside.start < inside.end {
                wanted.push((segment.key.clone(), inside.start - start..inside.end - start));
            }
            start = end;
        }
        let objects = self.clone();
        stream::iter(wanted)
            .then(move |(key, range)| {
                let objects = objects.clone();
                async move { objects.read(&key, Some(range)).await }
            })
            .try_flatten()
            .boxed()
    }

    /// Removes an object; a missing one is fine.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn delete(&self, key: &Key) -> Result<(), Error> {
        match self.store.delete(key.path()).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(key, error)),
        }
    }

    /// Removes every object under a prefix and returns how many there were.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; what was removed until then stays removed.
    pub async fn delete_all(&self, prefix: &Key) -> Result<u64, Error> {
        let found: Vec<Key> = self.list(prefix).try_collect().await?;
        for key in &found {
            self.delete(key).await?;
        }
        Ok(found.len() as u64)
    }

    /// The objects under a prefix.
    pub fn list(&self, prefix: &Key) -> impl Stream<Item = Result<Key, Error>> + Send + use<> {
        let (store, prefix) = (self.store.clone(), prefix.clone());
        store.list(Some(prefix.path())).map(move |found| {
            found.map(|meta| Key::listed(meta.location)).map_err(|error| failed(&prefix, error))
        })
    }

    /// The objects under a prefix that were written before `cutoff`.
    pub fn list_before(
        &self,
        prefix: &Key,
        cutoff: SystemTime,
    ) -> impl Stream<Item = Result<Key, Error>> + Send + use<> {
        let (store, prefix) = (self.store.clone(), prefix.clone());
        store.list(Some(prefix.path())).filter_map(move |found| {
            let key = match found {
                Ok(meta) if SystemTime::from(meta.last_modified) >= cutoff => None,
                Ok(meta) => Some(Ok(Key::listed(meta.location))),
                Err(error) => Some(Err(failed(&prefix, error))),
            };
            std::future::ready(key)
        })
    }

    /// The file on this machine that holds an object, where there is one: workers read it without copying.
    #[must_use]
    pub fn local_path(&self, key: &Key) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(key.path().as_ref()))
    }

    /// Removes what processes that were killed left half written before `cutoff`, and returns how many files that were.
    /// Only a folder has such files; a bucket drops them by its own lifecycle rule for unfinished uploads.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn sweep_unfinished(&self, cutoff: SystemTime) -> Result<u64, Error> {
        let Some(folder) = self.folder.clone() else { return Ok(0) };
        let swept = tokio::task::spawn_blocking(move || folder::sweep_unfinished(&folder, cutoff)).await;
        swept
            .map_err(std::io::Error::other)
            .flatten()
            .map_err(|error| unavailable(&Key::all_uploads(), error))
    }
}

/// Writes one object piece by piece; holds at most two pieces.
pub struct Writer {
    store: Arc<dyn ObjectStore>,
    key: Key,
    limit: u64,
    piece: usize,
    bytes: u64,
    buffer: Vec<Bytes>,
    buffered: usize,
    upload: Option<Box<dyn MultipartUpload>>,
    in_flight: Option<tokio::task::JoinHandle<object_store::Result<()>>>,
}

impl Writer {
    /// Takes the next bytes; waits while the storage is slower than the sender.
    ///
    /// # Errors
    /// [`Error::TooLarge`] past the limit, [`Error::Unavailable`]. Drop the writer then.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), Error> {
        self.bytes += bytes.len() as u64;
        if self.bytes > self.limit {
            return Err(Error::TooLarge { limit: self.limit });
        }
        self.buffered += bytes.len();
        if !bytes.is_empty() {
            self.buffer.push(bytes);
        }
        while self.buffered >= self.piece {
            let piece = self.take(self.piece);
            self.send(piece).await?;
        }
        Ok(())
    }

    /// Completes the object. When this returned, it is on disk or in the bucket.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; nothing is kept then.
    pub async fn finish(mut self) -> Result<Written, Error> {
        let rest = self.take(self.buffered);
        if self.upload.is_none() {
            let put = self.store.put(self.key.path(), rest).await;
            put.map_err(|error| failed(&self.key, error))?;
            return Ok(Written { bytes: self.bytes });
        }
        if rest.content_length() > 0 {
            self.send(rest).await?;
        }
        self.wait().await?;
        if let Some(upload) = self.upload.as_mut() {
            upload.complete().await.map_err(|error| failed(&self.key, error))?;
        }
        self.upload = None;
        Ok(Written { bytes: self.bytes })
    }

    /// Splits `bytes` bytes off the buffer's front. All pieces but the last have one size: some stores ask for that.
    fn take(&mut self, bytes: usize) -> PutPayload {
        let mut taken = Vec::new();
        let mut missing = bytes;
        let mut rest = std::mem::take(&mut self.buffer).into_iter();
        for mut chunk in rest.by_ref() {
            if chunk.len() <= missing {
                missing -= chunk.len();
                taken.push(chunk);
            } else {
                if missing > 0 {
                    taken.push(chunk.split_to(missing));
                }
                self.buffer.push(chunk);
                break;
            }
        }
        self.buffer.extend(rest);
        self.buffered -= bytes;
        taken.into_iter().collect()
    }

    async fn send(&mut self, piece: PutPayload) -> Result<(), Error> {
        self.wait().await?;
        if self.upload.is_none() {
            let upload = self.store.put_multipart(self.key.path()).await;
            self.upload = Some(upload.map_err(|error| failed(&self.key, error))?);
        }
        let part: Option<UploadPart> = self.upload.as_mut().map(|upload| upload.put_part(piece));
        self.in_flight = part.map(tokio::spawn);
        Ok(())
    }

    /// Waits for the piece under way.
    async fn wait(&mut self) -> Result<(), Error> {
        match self.in_flight.take() {
            None => Ok(()),
            Some(task) => match task.await {
                Ok(result) => result.map_err(|error| failed(&self.key, error)),
                Err(error) => Err(unavailable(&self.key, error)),
            },
        }
    }
}

impl Drop for Writer {
    /// An unfinished upload is called off in the background: a bucket would keep (and bill) its pieces.
    fn drop(&mut self) {
        let (Some(mut upload), Ok(runtime)) = (self.upload.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let in_flight = self.in_flight.take();
        let key = self.key.clone();
        runtime.spawn(async move {
            if let Some(task) = in_flight {
                let _ = task.await;
            }
            if let Err(error) = upload.abort().await {
                tracing::debug!(%key, %error, "an unfinished upload could not be called off");
            }
        });
    }
}

/// The result of blocking work; its panic is an I/O error.
fn joined<T>(result: Result<std::io::Result<T>, tokio::task::JoinError>) -> std::io::Result<T> {
    result.map_err(std::io::Error::other)?
}

fn failed(key: &Key, error: object_store::Error) -> Error {
    match error {
        object_store::Error::NotFound { .. } => Error::NotFound { key: key.to_string() },
        other => unavailable(key, other),
    }
}

fn unavailable(key: &Key, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Unavailable { key: key.to_string(), source: cause.into() }
}
