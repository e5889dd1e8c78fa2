//! Layers shared by the components.

mod linear;

pub use linear::{Adapters, Linear};
