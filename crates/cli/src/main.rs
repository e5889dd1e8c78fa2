//! The kiln program. Everything it does is in the library beside it, so that a build with another trainer is as short
//! as this one.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    kiln_cli::main(kiln_cli::Parts::default())
}
