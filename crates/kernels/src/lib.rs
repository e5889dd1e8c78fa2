//! Tensor operations with forward, backward and a plain CPU reference.

pub mod ops;

pub use ops::conv1d::{Walk1d, conv_transpose1d, conv1d};
pub use ops::conv2d::{Walk2d, conv2d};
pub use ops::snake::{SNAKE_TAPS, Snake, snake};
