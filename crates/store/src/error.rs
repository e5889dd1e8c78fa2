//! What can go wrong, by what the caller can do about it.

/// Why the store could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database could not be reached for longer than [`Options::patience`](crate::Options::patience). Nothing is
    /// known to be lost; try again later.
    #[error("the database cannot be reached: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// The lease no longer holds the job: stop, and drop the work.
    #[error("the lease on the job is lost: another attempt, an end or a deletion came in between")]
    LeaseLost,
    /// The private Postgres is not available.
    #[error(transparent)]
    Cluster(#[from] crate::cluster::Error),
    /// The database's address or an option cannot be used.
    #[error("{0}")]
    Config(String),
    /// The database's tables do not fit this version of kiln.
    #[error("the database could not be migrated: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A page cursor that this store did not make.
    #[error("the cursor is not one that this server handed out")]
    BadCursor,
    /// A stored value that this version of kiln cannot read.
    #[error("the stored {what} cannot be read: {source}")]
    Corrupt {
        /// Table or column, and which row.
        what: String,
        /// Why.
        source: serde_json::Error,
    },
    /// Anything else the database says; a bug on one of the two sides.
    #[error("the database refused: {0}")]
    Database(#[source] sqlx::Error),
}

impl Error {
    pub(crate) fn corrupt(what: impl Into<String>) -> impl FnOnce(serde_json::Error) -> Self {
        move |source| Self::Corrupt { what: what.into(), source }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        if crate::retry::is_transient(&error) { Self::Unavailable(error) } else { Self::Database(error) }
    }
}
