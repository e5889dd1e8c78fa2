//! Claims jobs and walks each through its trainer.
//!
//! [`Worker::run`] claims the oldest runnable job, hands it to a [`Trainer`] on the one thread that owns the device,
//! and meanwhile, on the async side, renews the lease (`lease`), writes log lines and progress (`report`) and
//! watches for the three reasons to stop early: the client cancelled, the worker shuts down, the lease is gone.
//!
//! Invariants:
//! - The trainer knows no database, no network and no runtime; it sees a [`Job`] and a [`Context`].
//! - Nothing is written for a job whose lease is lost: every write carries the lease, and the first refusal sets the
//!   trainer's stop flag and ends the reporting.
//! - What a trainer returns is written before the worker claims again, or given up only when the lease is lost.
//! - Nothing here serves HTTP or knows what a layer is.

mod flag;
mod job;
mod lease;
mod report;
mod scratch;
mod thread;
mod trainer;

pub use flag::{StopFlag, Why};
pub use job::Worker;
pub use trainer::{Context, Job, Stop, Trainer};

use std::{path::PathBuf, time::Duration};

/// How a worker works. The lease itself and the pace of looking for jobs belong to the store's options.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name in the job table and in logs.
    pub name: String,
    /// Folder for the jobs' files; one folder per job is made in it, and removed when the job is final.
    pub scratch: PathBuf,
    /// Log lines that one attempt may write; after them only warnings and errors, and those in moderation.
    pub log_lines: usize,
    /// How long a shutdown waits for the trainer to reach a stopping point.
    pub stop_patience: Duration,
}

impl Options {
    /// The usual values: 400 log lines, 30 s of patience.
    #[must_use]
    pub fn new(name: impl Into<String>, scratch: impl Into<PathBuf>) -> Options {
        Options {
            name: name.into(),
            scratch: scratch.into(),
            log_lines: 400,
            stop_patience: Duration::from_secs(30),
        }
    }
}

/// Why a worker could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The trainer could not be built: nothing was claimed.
    #[error("the trainer cannot start: {0}")]
    Trainer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The scratch folder cannot be used.
    #[error("the scratch folder {} cannot be used: {source}; give kiln a folder it may write to", path.display())]
    Scratch {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The trainer's thread could not be started, or is gone.
    #[error("the trainer's thread is gone: {0}")]
    Thread(String),
    /// The database refused for a reason that waiting does not mend.
    #[error(transparent)]
    Store(#[from] store::Error),
}
