//! The kiln program with the scripted trainer: `scripted-worker work` is a worker for tests.

use anyhow::Context as _;
use kiln_tests::scripted::ScriptedTrainer;
use objects::{Location, Objects, Options};
use std::{path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    kiln_cli::main(kiln_cli::Parts { trainer: Some(Box::new(|| Ok(Box::new(trainer()?)))) })
}

/// A trainer whose files go where the house's servers look for them.
fn trainer() -> anyhow::Result<ScriptedTrainer> {
    let data = std::env::var_os("KILN_DATA_DIR").context("the house sets KILN_DATA_DIR")?;
    let objects =
        Objects::open(&Options { location: Location::Folder(PathBuf::from(data).join("objects")) })?;
    Ok(ScriptedTrainer::new(objects)?)
}
