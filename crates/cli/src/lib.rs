//! The kiln program: configuration, telemetry, commands. The one place that builds things.
//!
//! [`main`] is the whole program; [`Parts`] are the pieces that differ between builds of it, today the trainer. Only
//! this crate reads files of settings, the environment and flags; every other crate is handed an `Options` value.
//! It holds no logic of the queue, of the wire or of training.

mod arguments;
mod commands;
mod config;
mod database;
mod storage;
mod telemetry;

use clap::Parser as _;
use std::process::ExitCode;

/// What a build of the program brings along.
#[derive(Default)]
pub struct Parts {
    /// Builds the trainer, on the thread that will own it. Absent: `kiln work` refuses to claim jobs.
    pub trainer: Option<BuildTrainer>,
}

/// Builds a trainer; called again after one panicked.
pub type BuildTrainer =
    Box<dyn FnMut() -> Result<Box<dyn worker::Trainer>, Box<dyn std::error::Error + Send + Sync>> + Send>;

/// Runs the program with the process's arguments and environment: prints an error and what to do, and returns the
/// exit status (0 done, 1 failed, 2 wrong usage).
#[must_use]
pub fn main(parts: Parts) -> ExitCode {
    let arguments = arguments::Arguments::parse();
    let environment: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    match commands::run(arguments, &environment, parts) {
        Ok(status) => status,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the program's own last words")]
            {
                eprintln!("kiln: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}
