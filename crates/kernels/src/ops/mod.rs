//! One file per op: forward, backward, and the plain reference.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod column_sums;
mod columns;
mod conv;
pub mod conv1d;
pub mod conv2d;
pub(crate) mod conv3d;
pub(crate) mod feed_forward;
pub(crate) mod gated_heads;
pub(crate) mod linear;
pub(crate) mod modulate;
pub(crate) mod norm;
pub(crate) mod rms_norm_silu;
pub(crate) mod rope;
mod rowwise;
pub mod snake;
pub(crate) mod softmax;
pub(crate) mod space_depth;
mod storage;
pub(crate) mod velocity_loss;
