//! Log lines on standard error, as text for people or JSON for machines.

use crate::config::Log;
use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

/// Starts logging for the process.
///
/// # Errors
/// When the filter cannot be read.
pub(crate) fn start(log: &Log) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().parse(&log.filter).with_context(|| {
        format!("log.filter cannot be read: {:?}; write a level as in \"info\"", log.filter)
    })?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if log.json {
        lines.json().flatten_event(true).init();
    } else {
        lines.with_target(false).init();
    }
    Ok(())
}
