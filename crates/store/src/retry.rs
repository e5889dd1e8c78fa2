//! Riding out a database that restarts or drops connections.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use rand::Rng;

use crate::Error;

/// First pause; a dead pooled connection is usually cured by taking another at once.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Runs an operation until it succeeds, fails for good, or `patience` is used up.
///
/// Whether an operation that failed half-way has happened is unknown, so everything passed in here must be
/// repeatable without effect.
pub(crate) async fn persist<T, F, Fut>(patience: Duration, operation: F) -> Result<T, Error>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<T, sqlx::Error>>,
{
    let begun = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        match operation().await {
            Ok(value) => return Ok(value),
            Err(error) if is_transient(&error) && begun.elapsed() < patience => {
                tracing::debug!(%error, "trying a database operation again");
                tokio::time::sleep(jittered(pause)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether the same operation may succeed later: lost connections, a server that stops or starts, conflicts.
pub(crate) fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        // A server that is killed can leave half a message behind.
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::Tls(_) => true,
        sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            // Source: PostgreSQL documentation, appendix A "PostgreSQL Error Codes".
            code.starts_with("08") // connection exceptions
                || matches!(
                    &*code,
                    "57P01" | "57P02" | "57P03" // shutdown, crash, starting up
                        | "53300" // too many connections
                        | "40001" | "40P01" // serialization failure, deadlock
                        | "25006" // read-only: a standby on its way to become the primary
                )
        }),
        _ => false,
    }
}

/// The duration give or take a quarter, so that many waiters do not move in step.
pub(crate) fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(rand::rng().random_range(0.75..1.25))
}
