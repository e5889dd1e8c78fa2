//! Settings of a store; `cli` reads them from the configuration.

use std::time::Duration;

/// How a store behaves. `Default` is what production uses.
#[derive(Debug, Clone)]
pub struct Options {
    /// Connections this process may hold, besides one that listens.
    pub max_connections: u32,
    /// How long a call rides out a lost database before it reports [`Error::Unavailable`](crate::Error).
    pub patience: Duration,
    /// How long a claim holds without being renewed. Renew every third of it.
    pub lease: Duration,
    /// Attempts that may end in a worker's death before the job fails.
    pub max_attempts: u32,
    /// Longest sleep of a waiter whose notification got lost; jittered.
    pub poll: Duration,
    /// Pause between two passes of [`Store::maintain`](crate::Store::maintain); jittered.
    pub sweep_every: Duration,
    /// How long the result of a request with `store_io = false` can be fetched.
    pub unstored_result_ttl: Duration,
    /// Age at which final jobs are removed; `None` keeps them until told otherwise.
    pub retention: Option<Duration>,
    /// Postgres settings of every connection. Tests fix the clock with `("kiln.now", "2026-01-02T03:04:05Z")`.
    pub settings: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_connections: 16,
            patience: Duration::from_secs(10),
            lease: Duration::from_secs(45),
            max_attempts: 5,
            poll: Duration::from_secs(5),
            sweep_every: Duration::from_secs(5),
            unstored_result_ttl: Duration::from_secs(3600),
            retention: None,
            settings: Vec::new(),
        }
    }
}
