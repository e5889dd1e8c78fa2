//! Latents to pixels.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use kernels::unpatchify;

use super::{
    blocks::{CausalConv3d, ResBlocks, Time, Up, norm_silu},
    config::{Block, Scale, VideoVaeConfig},
    encoder::load_statistics,
    statistics::Statistics,
    tiling::{Blend, Counter, Progress, Tiling},
};
use crate::{Checkpoint, Component, Error, Result, Weights};

/// `vae.decoder`.
#[derive(Debug)]
pub struct VideoDecoder {
    per_channel_statistics: Statistics,
    conv_in: CausalConv3d,
    up_blocks: Vec<UpBlock>,
    conv_out: CausalConv3d,
    config: VideoVaeConfig,
}

#[derive(Debug)]
enum UpBlock {
    Residual(ResBlocks),
    Up(Up),
}

impl VideoDecoder {
    /// Loads decoder and statistics of `file`, after checking that their tensors are exactly those needed.
    ///
    /// # Errors
    /// `Config`, `Tensors`, `Tensor`, `Io`.
    pub fn load(file: &Arc<Checkpoint>, device: &Device) -> Result<Self> {
        let config = VideoVaeConfig::read(file.config()?)?;
        let statistics = load_statistics(file, device, &config)?;
        file.load(Component::VideoDecoder, device, DType::F32, |w| Self::new(&config, w, statistics.clone()))
    }

    /// Builds the decoder from weights under `vae.decoder`.
    ///
    /// # Errors
    /// `Config`, and what reading the tensors reports.
    pub fn new(config: &VideoVaeConfig, w: &Weights, statistics: Statistics) -> Result<Self> {
        let padding = config.spatial_padding;
        let widths = config.decoder_widths().map_err(|e| Error::config("vae.decoder_blocks", e))?;
        let last = *widths.last().expect("invariant: starts with one");
        let up_blocks = config
            .decoder_blocks
            .iter()
            .zip(widths.windows(2))
            .enumerate()
            .map(|(i, (block, width))| {
                let w = w.pp("up_blocks").pp(i);
                Ok(match *block {
                    Block::Residual { layers } => {
                        UpBlock::Residual(ResBlocks::new(layers, width[0], padding, &w)?)
                    }
                    Block::Compress { stride, .. } => {
                        UpBlock::Up(Up::new(width[0], width[1], stride, padding, &w)?)
                    }
                })
            })
            .collect::<Result<_>>()?;
        let conv = |inputs, outputs, name: &str| CausalConv3d::new(inputs, outputs, padding, &w.pp(name));
        Ok(Self {
            per_channel_statistics: statistics,
            conv_in: conv(config.latent_channels, widths[0], "conv_in")?,
            up_blocks,
            conv_out: conv(last, config.patch_channels(), "conv_out")?,
            config: config.clone(),
        })
    }

    /// Pixels per latent.
    pub fn scale(&self) -> Scale {
        self.config.scale
    }

    /// Decodes normalised latents `[B, C, F', H', W']` to pixels `[B, 3, F, H, W]`, f32, around [-1, 1]: not clamped.
    ///
    /// # Errors
    /// `Input` for a shape that does not fit.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.fitting(latents)?;
        let time = if self.config.causal_decoder { Time::Causal } else { Time::Symmetric };
        let x = latents.to_dtype(DType::F32)?.permute((0, 2, 3, 4, 1))?.contiguous()?;
        let mut x = self.conv_in.forward(&self.per_channel_statistics.denormalise(&x)?, time)?;
        for block in &self.up_blocks {
            x = match block {
                UpBlock::Residual(blocks) => blocks.forward(x, time)?,
                UpBlock::Up(up) => up.forward(&x, time)?,
            };
        }
        let x = self.conv_out.forward(&norm_silu(&x)?, time)?;
        Ok(unpatchify(&x, self.config.patch_size)?)
    }

    /// Decodes tile by tile, blends, and hands pixels `[B, 3, n, H, W]` to `frames` as soon as they are complete, in
    /// order; memory is that of one tile and of the frames two neighbouring tiles cover. Tiles are decoded
    /// stand-alone, so the result differs from [`Self::decode`] near the seams.
    ///
    /// # Errors
    /// `Input` for a shape or a tiling that does not fit, `Stopped` when `progress` says so, what `frames` reports.
    pub fn decode_tiled(
        &self,
        latents: &Tensor,
        tiling: &Tiling,
        progress: Progress<'_>,
        frames: &mut dyn FnMut(Tensor) -> Result<()>,
    ) -> Result<()> {
        let latent = self.fitting(latents)?;
        let axes = tiling.split(self.config.scale, latent)?;
        let shape = [latents.dim(0)?, self.config.pixel_channels];
        let mut blend = Blend::new(shape, &axes, self.config.scale);
        let mut counter = Counter::new(&axes, progress);
        let last = self.config.scale.pixels(latent)[0];
        for (t, time) in axes[0].iter().enumerate() {
            for (r, rows) in axes[1].iter().enumerate() {
                for (c, columns) in axes[2].iter().enumerate() {
                    counter.next_tile()?;
                    let tile = latents
                        .narrow(2, time.start, time.len())?
                        .narrow(3, rows.start, rows.len())?
                        .narrow(4, columns.start, columns.len())?;
                    blend.add(&self.decode(&tile)?, [t, r, c])?;
                }
            }
            // No later tile reaches back before the start of the next group.
            let complete = axes[0].get(t + 1).map_or(last, |next| next.start * self.config.scale.time);
            frames(blend.take(complete, latents.device())?)?;
        }
        counter.finish()
    }

    /// The latents' sizes.
    fn fitting(&self, latents: &Tensor) -> Result<[usize; 3]> {
        let dims = latents.dims();
        match *dims {
            [_, channels, frames, rows, columns]
                if channels == self.config.latent_channels && !dims.contains(&0) =>
            {
                Ok([frames, rows, columns])
            }
            _ => {
                let expected = self.config.latent_channels;
                let problem =
                    format!("expected [B, {expected}, F, H, W] without empty axes, found shape {dims:?}");
                Err(Error::input("latents", problem))
            }
        }
    }
}
