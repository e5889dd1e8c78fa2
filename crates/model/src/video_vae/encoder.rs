//! Pixels to latents.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use kernels::patchify;

use super::{
    blocks::{CausalConv3d, Down, ResBlocks, Time, norm_silu},
    config::{Block, Scale, VideoVaeConfig},
    statistics::Statistics,
    tiling::{Blend, Counter, Progress, Tiling},
};
use crate::{Checkpoint, Component, Error, Result, Weights};

/// Smallest overlaps of tiles, in frames and pixels: the reference refuses smaller ones.
const MIN_OVERLAP: [usize; 3] = [16, 64, 64];

/// `vae.encoder`: causal in time, deterministic (the mean is returned, the variance dropped).
#[derive(Debug)]
pub struct VideoEncoder {
    conv_in: CausalConv3d,
    down_blocks: Vec<DownBlock>,
    conv_out: CausalConv3d,
    per_channel_statistics: Statistics,
    config: VideoVaeConfig,
}

#[derive(Debug)]
enum DownBlock {
    Residual(ResBlocks),
    Down(Down),
}

impl VideoEncoder {
    /// Loads encoder and statistics of `file`, after checking that their tensors are exactly those needed.
    ///
    /// # Errors
    /// `Config`, `Tensors`, `Tensor`, `Io`.
    pub fn load(file: &Arc<Checkpoint>, device: &Device) -> Result<Self> {
        let config = VideoVaeConfig::read(file.config()?)?;
        let statistics = load_statistics(file, device, &config)?;
        file.load(Component::VideoEncoder, device, DType::F32, |w| Self::new(&config, w, statistics.clone()))
    }

    /// Builds the encoder from weights under `vae.encoder`.
    ///
    /// # Errors
    /// `Config`, and what reading the tensors reports.
    pub fn new(config: &VideoVaeConfig, w: &Weights, statistics: Statistics) -> Result<Self> {
        let padding = config.spatial_padding;
        let widths = config.encoder_widths().map_err(|e| Error::config("vae.encoder_blocks", e))?;
        let last = *widths.last().expect("invariant: starts with one");
        let down_blocks = config
            .encoder_blocks
            .iter()
            .zip(widths.windows(2))
            .enumerate()
            .map(|(i, (block, width))| {
                let w = w.pp("down_blocks").pp(i);
                Ok(match *block {
                    Block::Residual { layers } => {
                        DownBlock::Residual(ResBlocks::new(layers, width[0], padding, &w)?)
                    }
                    Block::Compress { stride, .. } => {
                        DownBlock::Down(Down::new(width[0], width[1], stride, padding, &w)?)
                    }
                })
            })
            .collect::<Result<_>>()?;
        let conv = |inputs, outputs, name: &str| CausalConv3d::new(inputs, outputs, padding, &w.pp(name));
        Ok(Self {
            conv_in: conv(config.patch_channels(), widths[0], "conv_in")?,
            down_blocks,
            // One channel more than the means: the log-variance they share.
            conv_out: conv(last, config.latent_channels + 1, "conv_out")?,
            per_channel_statistics: statistics,
            config: config.clone(),
        })
    }

    /// Pixels per latent.
    pub fn scale(&self) -> Scale {
        self.config.scale
    }

    /// Encodes `[B, 3, F, H, W]` to normalised `[B, C, F', H', W']`, f32. Pixels are floats in [-1, 1] or u8
    /// (value / 127.5 − 1). Frames after the last 8k + 1 are left out.
    ///
    /// # Errors
    /// `Input` for sizes that do not fit.
    pub fn encode(&self, pixels: &Tensor) -> Result<Tensor> {
        let (pixels, _) = self.fitting(pixels)?;
        let mut x =
            self.conv_in.forward(&patchify(&in_range(&pixels)?, self.config.patch_size)?, Time::Causal)?;
        for block in &self.down_blocks {
            x = match block {
                DownBlock::Residual(blocks) => blocks.forward(x, Time::Causal)?,
                DownBlock::Down(down) => down.forward(&x)?,
            };
        }
        let x = self.conv_out.forward(&norm_silu(&x)?, Time::Causal)?;
        let means = x.narrow(4, 0, self.config.latent_channels)?;
        Ok(self.per_channel_statistics.normalise(&means)?.permute((0, 4, 1, 2, 3))?.contiguous()?)
    }

    /// Encodes tile by tile and blends the latents; memory is that of one tile. Tiles are encoded stand-alone, so
    /// the result differs from [`Self::encode`] near the seams.
    ///
    /// # Errors
    /// `Input` for sizes or a tiling that do not fit, `Stopped` when `progress` says so.
    pub fn encode_tiled(&self, pixels: &Tensor, tiling: &Tiling, progress: Progress<'_>) -> Result<Tensor> {
        let (pixels, latent) = self.fitting(pixels)?;
        tiling.check_overlap(MIN_OVERLAP)?;
        let Scale { time, space } = self.config.scale;
        let axes = tiling.split(self.config.scale, latent)?;
        let shape = [pixels.dim(0)?, self.config.latent_channels];
        let mut blend = Blend::new(shape, &axes, Scale { time: 1, space: 1 });
        let mut counter = Counter::new(&axes, progress);
        for (t, frames) in axes[0].iter().enumerate() {
            for (r, rows) in axes[1].iter().enumerate() {
                for (c, columns) in axes[2].iter().enumerate() {
                    counter.next_tile()?;
                    let tile = pixels
                        .narrow(2, frames.start * time, (frames.len() - 1) * time + 1)?
                        .narrow(3, rows.start * space, rows.len() * space)?
                        .narrow(4, columns.start * space, columns.len() * space)?;
                    blend.add(&self.encode(&tile)?, [t, r, c])?;
                }
            }
        }
        counter.finish()?;
        blend.take(latent[0], pixels.device())
    }

    /// The clip without surplus frames, and its latent sizes.
    fn fitting(&self, pixels: &Tensor) -> Result<(Tensor, [usize; 3])> {
        let dims = pixels.dims();
        let &[_, channels, frames, height, width] = dims else {
            return Err(Error::input("pixels", format!("expected [B, 3, F, H, W], found shape {dims:?}")));
        };
        if channels != self.config.pixel_channels {
            let expected = self.config.pixel_channels;
            return Err(Error::input(
                "pixels",
                format!("expected {expected} channels, found shape {dims:?}"),
            ));
        }
        let latent = self.config.scale.latent(frames, height, width)?;
        let kept = self.config.scale.pixels(latent)[0];
        Ok((pixels.narrow(2, 0, kept)?, latent))
    }
}

/// Pixels in [-1, 1], f32.
fn in_range(pixels: &Tensor) -> Result<Tensor> {
    let wide = pixels.to_dtype(DType::F32)?;
    Ok(if pixels.dtype() == DType::U8 { wide.affine(1.0 / 127.5, -1.0)? } else { wide })
}

pub(super) fn load_statistics(
    file: &Arc<Checkpoint>,
    device: &Device,
    config: &VideoVaeConfig,
) -> Result<Statistics> {
    file.load(Component::VideoStatistics, device, DType::F32, |w| Statistics::new(config.latent_channels, w))
}
