//! The transformer and its adapters on small random models of unusual sizes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod common;
mod gradients;
mod lora;
mod passes;
