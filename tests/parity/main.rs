//! The suites of `make parity`. Each component adds its module and its line.

use std::process::ExitCode;

use parity::Suite;

const SUITES: &[Suite] = &[];

fn main() -> ExitCode {
    parity::main(SUITES)
}
