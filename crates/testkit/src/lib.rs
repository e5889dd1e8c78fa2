//! Helpers for tests: private Postgres, clocks, fake receivers. Never in a shipped build.

pub mod pg;
pub mod process;
pub mod webhook;
