//! `kiln config`: what is set, to what, and where.

use super::{print, table};
use crate::config::{Config, settings};
use std::process::ExitCode;

pub(super) fn run(config: &Config) -> anyhow::Result<ExitCode> {
    let rows: Vec<Vec<String>> = config
        .rows
        .iter()
        .map(|row| vec![row.key.to_owned(), row.value.clone(), format!("({})", row.origin)])
        .collect();
    print(&table(&rows))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn defaults() -> anyhow::Result<ExitCode> {
    print(&settings::default_toml())?;
    Ok(ExitCode::SUCCESS)
}
