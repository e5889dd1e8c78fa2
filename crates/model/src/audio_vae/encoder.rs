//! Log-mel to normalised latents.
//!
//! Source: Lightricks/LTX-2 `ltx_core/model/audio_vae/audio_vae.py` at 400fd31.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::{
    blocks::{CausalConv2d, Downsample, Mid, ResBlock, Statistics, norm_silu},
    config::AudioVaeConfig,
};
use crate::{Checkpoint, Component, Error, Result, Weights};

/// One resolution of the encoder.
#[derive(Debug)]
struct Level {
    block: Vec<ResBlock>,
    downsample: Option<Downsample>,
}

/// The convolutions, without the statistics: what lies under `audio_vae.encoder.`.
#[derive(Debug)]
struct Network {
    conv_in: CausalConv2d,
    down: Vec<Level>,
    mid: Mid,
    conv_out: CausalConv2d,
}

impl Network {
    fn new(config: &AudioVaeConfig, w: &Weights) -> Result<Self> {
        let last = config.multipliers.len() - 1;
        let mut width = config.channels;
        let mut down = Vec::new();
        for level in 0..=last {
            let w = w.pp("down").pp(level);
            let mut block = Vec::new();
            for index in 0..config.res_blocks {
                let next = config.width(level);
                block.push(ResBlock::new(width, next, &w.pp("block").pp(index))?);
                width = next;
            }
            let downsample =
                (level < last).then(|| Downsample::new(width, &w.pp("downsample"))).transpose()?;
            down.push(Level { block, downsample });
        }
        Ok(Self {
            conv_in: CausalConv2d::new(config.in_channels, config.channels, 3, &w.pp("conv_in"))?,
            down,
            mid: Mid::new(width, &w.pp("mid"))?,
            conv_out: CausalConv2d::new(width, 2 * config.latent_channels, 3, &w.pp("conv_out"))?,
        })
    }

    /// [B, 2, T, F] → [B, 2·Z, T', F'].
    fn forward(&self, mel: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(mel)?;
        for level in &self.down {
            for block in &level.block {
                x = block.forward(&x)?;
            }
            if let Some(downsample) = &level.downsample {
                x = downsample.forward(&x)?;
            }
        }
        self.conv_out.forward(&norm_silu(&self.mid.forward(&x)?)?)
    }
}

/// Encodes log-mel spectrograms. Computes in f32.
#[derive(Debug)]
pub struct AudioEncoder {
    config: AudioVaeConfig,
    network: Network,
    statistics: Statistics,
}

impl AudioEncoder {
    /// Loads encoder and statistics.
    ///
    /// # Errors
    /// `Config`, `Tensors`, `Io`.
    pub fn load(checkpoint: &Arc<Checkpoint>, device: &Device) -> Result<Self> {
        let config = AudioVaeConfig::new(checkpoint.config()?)?;
        let (channels, bins) = (config.latent_channels, config.latent_bins());
        let network =
            checkpoint.load(Component::AudioEncoder, device, DType::F32, |w| Network::new(&config, w))?;
        let statistics = checkpoint
            .load(Component::AudioStatistics, device, DType::F32, |w| Statistics::new(channels, bins, w))?;
        Ok(Self { config, network, statistics })
    }

    /// Asks `w` (at `audio_vae.encoder.`) for every tensor of the encoder: for the walk over names.
    ///
    /// # Errors
    /// What `w` reports.
    pub fn walk(config: &AudioVaeConfig, w: &Weights) -> Result<()> {
        Network::new(config, w).map(drop)
    }

    /// Asks `w` (at `audio_vae.per_channel_statistics.`) for the statistics.
    ///
    /// # Errors
    /// What `w` reports.
    pub fn walk_statistics(config: &AudioVaeConfig, w: &Weights) -> Result<()> {
        Statistics::new(config.latent_channels, config.latent_bins(), w).map(drop)
    }

    /// The sizes.
    pub fn config(&self) -> &AudioVaeConfig {
        &self.config
    }

    /// Encodes `mel` [B, 2, T, bins] (natural logarithm) to normalised latents [B, Z, ⌈T/4⌉, bins/4].
    ///
    /// # Errors
    /// `Input` when the shape does not fit.
    pub fn encode(&self, mel: &Tensor) -> Result<Tensor> {
        let fits = matches!(mel.dims(), [_, channels, frames, bins]
            if *channels == self.config.in_channels && *frames > 0 && *bins == self.config.mel_bins);
        if !fits {
            let (channels, bins) = (self.config.in_channels, self.config.mel_bins);
            let found = mel.dims();
            return Err(Error::input("mel", format!("expected [B, {channels}, T, {bins}], found {found:?}")));
        }
        let moments = self.network.forward(&mel.to_dtype(DType::F32)?)?;
        // The second half is the logarithm of the variance, which nothing uses.
        self.statistics.normalise(&moments.narrow(1, 0, self.config.latent_channels)?)
    }
}
