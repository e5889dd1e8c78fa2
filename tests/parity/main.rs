//! The suites of `make parity`. Each component adds its module and its line.

mod audio_vae;
mod video_vae;

use std::process::ExitCode;

use parity::Suite;

const SUITES: &[Suite] =
    &[Suite { name: "audio_vae", run: audio_vae::run }, Suite { name: "video_vae", run: video_vae::run }];

fn main() -> ExitCode {
    parity::main(SUITES)
}
