//! Where kiln's files live, and how it reaches addresses that a user gave.
//!
//! - [`Objects`]: a local folder, or an S3, GCS or Azure bucket named by URL; streams both ways.
//! - [`Key`]: the only place where the path of an object is formed.
//! - [`outbound::Outbound`]: the one HTTP client for a user's addresses (training data, webhooks). It refuses
//!   private networks after name resolution and on every redirect, and limits size, time and redirects.
//! - [`data_uri::DataUri`], [`names`]: the forms in which files and their names arrive.
//!
//! Invariants: knows no request, no job row and no HTTP serving; holds no file in memory (chunks of a few MiB at
//! most); what a finished [`Writer`] returned is on disk or in the bucket; an unfinished one leaves nothing that a
//! reader can see.

pub mod addresses;
pub mod data_uri;
mod folder;
mod key;
pub mod names;
pub mod outbound;
mod store;

pub use key::Key;
pub use store::{ByteStream, Location, Objects, Options, Segment, Writer, Written};

/// What can go wrong with stored objects, by what the caller can do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The setting names no usable place; tell the operator.
    #[error("object storage: {0}")]
    Config(String),
    /// There is no such object.
    #[error("no object at {key}")]
    NotFound {
        /// Its key.
        key: String,
    },
    /// The storage refused, is full, or cannot be reached. Trying again later may help.
    #[error("object storage failed at {key}: {source}")]
    Unavailable {
        /// The key at hand.
        key: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// More bytes arrived than the writer was told to take; nothing was kept.
    #[error("more than {limit} bytes")]
    TooLarge {
        /// The writer's limit.
        limit: u64,
    },
}
