//! The kiln program with the scripted trainer: `scripted-worker work` is a worker for tests.

use kiln_tests::scripted::ScriptedTrainer;
use std::process::ExitCode;

fn main() -> ExitCode {
    kiln_cli::main(kiln_cli::Parts { trainer: Some(Box::new(|| Ok(Box::new(ScriptedTrainer)))) })
}
