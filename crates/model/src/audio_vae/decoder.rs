//! Normalised latents to log-mel.
//!
//! Source: Lightricks/LTX-2 `ltx_core/model/audio_vae/audio_vae.py` at 400fd31.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::{
    blocks::{CausalConv2d, Mid, ResBlock, Statistics, Upsample, norm_silu},
    config::AudioVaeConfig,
};
use crate::{Checkpoint, Component, Error, Result, Weights};

/// One resolution of the decoder.
#[derive(Debug)]
struct Level {
    block: Vec<ResBlock>,
    upsample: Option<Upsample>,
}

/// The convolutions, without the statistics: what lies under `audio_vae.decoder.`.
#[derive(Debug)]
struct Network {
    conv_in: CausalConv2d,
    mid: Mid,
    /// In the order of the names; the pass walks them from the last (narrowest) to the first.
    up: Vec<Level>,
    conv_out: CausalConv2d,
}

impl Network {
    fn new(config: &AudioVaeConfig, w: &Weights) -> Result<Self> {
        let last = config.multipliers.len() - 1;
        let widest = config.width(last);
        let mut width = widest;
        let mut up = Vec::new();
        for level in (0..=last).rev() {
            let w = w.pp("up").pp(level);
            let mut block = Vec::new();
            for index in 0..=config.res_blocks {
                let next = config.width(level);
                block.push(ResBlock::new(width, next, &w.pp("block").pp(index))?);
                width = next;
            }
            let upsample = (level > 0).then(|| Upsample::new(width, &w.pp("upsample"))).transpose()?;
            up.push(Level { block, upsample });
        }
        up.reverse();
        Ok(Self {
            conv_in: CausalConv2d::new(config.latent_channels, widest, 3, &w.pp("conv_in"))?,
            mid: Mid::new(widest, &w.pp("mid"))?,
            up,
            conv_out: CausalConv2d::new(width, config.out_channels, 3, &w.pp("conv_out"))?,
        })
    }

    /// [B, Z, T, F] → [B, 2, 4T − 3, 4F] with three levels.
    fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let mut x = self.mid.forward(&self.conv_in.forward(latents)?)?;
        for level in self.up.iter().rev() {
            for block in &level.block {
                x = block.forward(&x)?;
            }
            if let Some(upsample) = &level.upsample {
                x = upsample.forward(&x)?;
            }
        }
        self.conv_out.forward(&norm_silu(&x)?)
    }
}

/// Decodes latents. Computes in f32.
#[derive(Debug)]
pub struct AudioDecoder {
    config: AudioVaeConfig,
    network: Network,
    statistics: Statistics,
}

impl AudioDecoder {
    /// Loads decoder and statistics.
    ///
    /// # Errors
    /// `Config`, `Tensors`, `Io`.
    pub fn load(checkpoint: &Arc<Checkpoint>, device: &Device) -> Result<Self> {
        let config = AudioVaeConfig::new(checkpoint.config()?)?;
        let (channels, bins) = (config.latent_channels, config.latent_bins());
        let network =
            checkpoint.load(Component::AudioDecoder, device, DType::F32, |w| Network::new(&config, w))?;
        let statistics = checkpoint
            .load(Component::AudioStatistics, device, DType::F32, |w| Statistics::new(channels, bins, w))?;
        Ok(Self { config, network, statistics })
    }

    /// Asks `w` (at `audio_vae.decoder.`) for every tensor of the decoder: for the walk over names.
    ///
    /// # Errors
    /// What `w` reports.
    pub fn walk(config: &AudioVaeConfig, w: &Weights) -> Result<()> {
        Network::new(config, w).map(drop)
    }

    /// The sizes.
    pub fn config(&self) -> &AudioVaeConfig {
        &self.config
    }

    /// Decodes normalised latents [B, Z, T, bins/4] to a log-mel [B, 2, 4T − 3, bins]; no activation at the end.
    ///
    /// # Errors
    /// `Input` when the shape does not fit.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let (channels, bins) = (self.config.latent_channels, self.config.latent_bins());
        let fits = matches!(latents.dims(), [_, c, steps, b] if *c == channels && *steps > 0 && *b == bins);
        if !fits {
            let found = latents.dims();
            return Err(Error::input(
                "latents",
                format!("expected [B, {channels}, T, {bins}], found {found:?}"),
            ));
        }
        self.network.forward(&self.statistics.restore(&latents.to_dtype(DType::F32)?)?)
    }
}
