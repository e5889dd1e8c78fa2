//! The video VAE: pixels to latents and back.
//!
//! B batch, F frames, H × W pixels, C latent channels, F' × H' × W' latent frames, rows and columns.
//! Pixels are RGB in [-1, 1], `[B, 3, F, H, W]`; latents `[B, C, F', H', W']` are normalised per channel. With the
//! 22B configuration F = 8(F'−1) + 1, H = 32H', W = 32W'. Inside, activations are channels last, f32.
//!
//! Source: `model-video-vae.md`; Lightricks/LTX-2 400fd31, `ltx_core/model/video_vae`.
//! Knows nothing of files, frame rates or captions. Refuses what 2.3 does not have (its §9).

mod blocks;
mod config;
mod decoder;
mod encoder;
mod statistics;
mod tiling;

pub use config::{Block, Scale, VideoVaeConfig};
pub use decoder::VideoDecoder;
pub use encoder::VideoEncoder;
pub use statistics::Statistics;
pub use tiling::{AxisTiling, Interval, Progress, Tiling};
