//! The kiln program: configuration, telemetry, commands.

fn main() {}
