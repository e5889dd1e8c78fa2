//! Comparison with the reference tensors: the table of differences and the ledger of what was compared.
//!
//! The suites live beside this crate (`main.rs` and one module per component). A tensor of a reference file that a
//! suite opened and neither compared nor took as an input counts as failed. Sizes come from the checkpoint in the
//! reference folder, never from here.

mod harness;
mod table;

pub use harness::{Suite, main};
pub use table::{Limit, Table};
