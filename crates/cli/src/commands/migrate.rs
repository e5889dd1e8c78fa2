//! `kiln migrate`: the tables, up to date.

use super::print;
use crate::{
    config::Config,
    database::{Place, leave},
};
use anyhow::Context as _;
use std::process::ExitCode;
use store::Store;

pub(super) async fn run(config: &Config) -> anyhow::Result<ExitCode> {
    let place = Place::of(config).await?;
    let done = Store::migrate(&place.url)
        .await
        .with_context(|| format!("the database ({}) cannot be brought up to date", place.words));
    leave(place.cluster).await;
    let done = done?;
    print(&match done.applied.len() {
        0 => format!("{}: already at version {}\n", place.words, done.version),
        count => format!("{}: {count} migrations applied, now at version {}\n", place.words, done.version),
    })?;
    Ok(ExitCode::SUCCESS)
}
