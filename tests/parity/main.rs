//! The suites of `make parity`. Each component adds its module and its line.

mod audio_vae;
mod text;
mod transformer;
mod video_vae;

use std::process::ExitCode;

use parity::Suite;

const SUITES: &[Suite] = &[
    Suite { name: "checkpoint", run: transformer::run_names },
    Suite { name: "text", run: text::run },
    Suite { name: "audio_vae", run: audio_vae::run },
    Suite { name: "video_vae", run: video_vae::run },
    Suite { name: "transformer", run: transformer::run },
    Suite { name: "transformer_backward", run: transformer::run_backward },
];

fn main() -> ExitCode {
    parity::main(SUITES)
}
