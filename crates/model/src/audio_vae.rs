//! Sound: waveform → log-mel → latents, and back through the vocoder to 48 kHz.
//!
//! [`mel`] is the front end (channel mixing, resampling, log-mel), [`AudioEncoder`] and [`AudioDecoder`] are the two
//! halves of the autoencoder with the latent statistics inside, [`Vocoder`] turns a decoded mel into a waveform.
//! Everything computes in f32: the front end because latents are stored from it, the vocoder because a hundred
//! convolutions in a row audibly degrade in bf16 (`model-vocoder.md` §1).

mod blocks;
mod config;
mod decoder;
mod encoder;
mod generator;
pub mod mel;
mod vocoder;

pub use config::AudioVaeConfig;
pub use decoder::AudioDecoder;
pub use encoder::AudioEncoder;
pub use generator::GeneratorConfig;
pub use vocoder::{Vocoder, VocoderConfig};
