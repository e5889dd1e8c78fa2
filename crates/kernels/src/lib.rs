//! Tensor operations with forward, backward and a plain CPU reference.
//!
//! Each op is a custom op of the tensor library that dispatches on the device of its tensors. Every op on
//! a training path records a backward: the library's own fused functions silently yield no gradient,
//! and its matrix product also computes the gradient of a frozen weight.
//!
//! Main types: [`FrozenWeight`] (the only one that knows how a base weight is stored), [`FrozenLinear`]
//! and [`Adapter`], [`Modulation`], [`Rope`], [`Attention`] with [`Mask`], [`Conv3d`]. The rest are functions.
//!
//! Conventions:
//! * Heads are runs of the last axis, [B, T, H·D]: what a linear layer writes and the next one reads.
//! * Activations are f32, bf16 (arithmetic in f32, rounded at the end), or f64, which takes the plain
//!   reference loops: gradients are checked there.
//! * Sums, norms, softmax and the loss accumulate in f32 or wider.
//! * A *constant* of an op (weight, table, mask, modulation, target) is refused when it is tracked.
//!
//! Knows nothing of the model, of files, of requests. Reads no environment and starts no threads of
//! its own: loops run on rayon's pool.

mod error;
mod frozen;
mod host;
mod matrix;
pub mod ops;
pub mod simd;
pub mod vecmath;

#[cfg(feature = "check")]
pub mod check;

pub use error::{Error, Result};
pub use frozen::FrozenWeight;
pub use ops::activation::{gelu_tanh, gelu_tanh_mul, silu};
pub use ops::attention::{Attention, Mask, attention};
pub use ops::column_sums::column_sums;
pub use ops::conv1d::{Walk1d, conv_transpose1d, conv1d};
pub use ops::conv2d::{Walk2d, conv2d};
pub use ops::conv3d::{Conv3d, Padding, Walk3d};
pub use ops::feed_forward::feed_forward;
pub use ops::gated_heads::gated_heads;
pub use ops::linear::{Adapter, FrozenLinear, frozen_linear, lora_linear};
pub use ops::modulate::{Modulation, gate_residual, modulate};
pub use ops::norm::{layer_norm, layer_norm_modulate, rms_norm, rms_norm_modulate, rms_norm_rope};
pub use ops::rms_norm_silu::rms_norm_silu;
pub use ops::rope::{Precision, Rope, rope, rope_grid};
pub use ops::snake::{SNAKE_TAPS, Snake, snake};
pub use ops::softmax::softmax_last_dim;
pub use ops::space_depth::{depth_to_space, patchify, space_to_depth_add_mean, unpatchify};
pub use ops::velocity_loss::{velocity_loss, velocity_loss_per_sample};
