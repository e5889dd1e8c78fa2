//! `kiln work`: a worker process.

use super::shutdown_signal;
use crate::{Parts, config::Config, database::Database};
use anyhow::{Context as _, bail};
use std::process::ExitCode;
use worker::{Options, Worker};

pub(super) async fn run(config: &Config, parts: Parts) -> anyhow::Result<ExitCode> {
    let Some(trainer) = parts.trainer else {
        bail!(
            "this build has no trainer, so it claims no jobs: they stay queued until a worker with one runs. \
             Everything else works: `kiln serve` takes requests, `kiln modes` lists what can be asked for"
        );
    };
    let shutdown = shutdown_signal()?;
    let database = Database::open(config).await?;
    let options = Options {
        log_lines: config.work.log_lines,
        stop_patience: config.work.stop_patience,
        ..Options::new(config.work.name.clone(), config.data_dir.join("scratch"))
    };
    let worked = async {
        let worker = Worker::start(database.store.clone(), options, trainer).await?;
        tokio::select! {
            ended = worker.run(&shutdown) => ended,
            never = database.store.maintain() => match never {},
        }
    }
    .await;
    database.close().await;
    worked.context("the worker cannot go on")?;
    Ok(ExitCode::SUCCESS)
}
