//! Layers both halves of the audio autoencoder are made of.
//!
//! Tensors are [B, C, T, F]: T mel frames (causal: zeros in front only), F mel bins (zeros on both sides).

use candle_core::Tensor;
use kernels::{Walk2d, conv2d};

use crate::{Result, Weights};

/// Epsilon of the norm over channels. Source: `model-audio-vae.md` §4.
const EPS: f64 = 1e-6;

/// Weight and bias of a convolution.
#[derive(Debug)]
pub(super) struct Kernel {
    weight: Tensor,
    bias: Tensor,
    taps: usize,
}

impl Kernel {
    fn new(inputs: usize, outputs: usize, taps: usize, w: &Weights) -> Result<Self> {
        Ok(Self {
            weight: w.tensor("weight", (outputs, inputs, taps, taps))?,
            bias: w.tensor("bias", outputs)?,
            taps,
        })
    }

    fn forward(&self, x: &Tensor, walk: Walk2d) -> Result<Tensor> {
        Ok(conv2d(x, &self.weight, Some(&self.bias), walk)?)
    }
}

/// A convolution that sees no later frame.
#[derive(Debug)]
pub(super) struct CausalConv2d {
    conv: Kernel,
}

impl CausalConv2d {
    pub(super) fn new(inputs: usize, outputs: usize, taps: usize, w: &Weights) -> Result<Self> {
        Ok(Self { conv: Kernel::new(inputs, outputs, taps, &w.pp("conv"))? })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let around = self.conv.taps - 1;
        self.conv.forward(x, Walk2d { stride: 1, rows: (around, 0), columns: (around / 2, around / 2) })
    }
}

/// Norm over channels and SiLU, one pass.
pub(super) fn norm_silu(x: &Tensor) -> Result<Tensor> {
    let scale = (x.sqr()?.mean_keepdim(1)? + EPS)?.sqrt()?;
    Ok(x.broadcast_div(&scale)?.silu()?)
}

/// Two convolutions beside a shortcut.
#[derive(Debug)]
pub(super) struct ResBlock {
    conv1: CausalConv2d,
    conv2: CausalConv2d,
    nin_shortcut: Option<CausalConv2d>,
}

impl ResBlock {
    pub(super) fn new(inputs: usize, outputs: usize, w: &Weights) -> Result<Self> {
        let nin_shortcut = (inputs != outputs)
            .then(|| CausalConv2d::new(inputs, outputs, 1, &w.pp("nin_shortcut")))
            .transpose()?;
        Ok(Self {
            conv1: CausalConv2d::new(inputs, outputs, 3, &w.pp("conv1"))?,
            conv2: CausalConv2d::new(outputs, outputs, 3, &w.pp("conv2"))?,
            nin_shortcut,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.conv1.forward(&norm_silu(x)?)?;
        let h = self.conv2.forward(&norm_silu(&h)?)?;
        Ok(match &self.nin_shortcut {
            Some(shortcut) => (shortcut.forward(x)? + h)?,
            None => (x + h)?,
        })
    }
}

/// The two blocks at the narrowest point.
#[derive(Debug)]
pub(super) struct Mid {
    block_1: ResBlock,
    block_2: ResBlock,
}

impl Mid {
    pub(super) fn new(width: usize, w: &Weights) -> Result<Self> {
        Ok(Self {
            block_1: ResBlock::new(width, width, &w.pp("block_1"))?,
            block_2: ResBlock::new(width, width, &w.pp("block_2"))?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.block_2.forward(&self.block_1.forward(x)?)
    }
}

/// Halves both axes: T → ⌈T/2⌉, F → F/2.
#[derive(Debug)]
pub(super) struct Downsample {
    conv: Kernel,
}

impl Downsample {
    pub(super) fn new(width: usize, w: &Weights) -> Result<Self> {
        Ok(Self { conv: Kernel::new(width, width, 3, &w.pp("conv"))? })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.conv.forward(x, Walk2d { stride: 2, rows: (2, 0), columns: (0, 1) })
    }
}

/// Doubles both axes: T → 2T − 1 (the first frame stands for itself alone), F → 2F.
#[derive(Debug)]
pub(super) struct Upsample {
    conv: CausalConv2d,
}

impl Upsample {
    pub(super) fn new(width: usize, w: &Weights) -> Result<Self> {
        Ok(Self { conv: CausalConv2d::new(width, width, 3, &w.pp("conv"))? })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, _, frames, bins) = x.dims4()?;
        let x = self.conv.forward(&x.upsample_nearest2d(2 * frames, 2 * bins)?)?;
        Ok(x.narrow(2, 1, 2 * frames - 1)?)
    }
}

/// Mean and deviation of every value of a latent step.
#[derive(Debug)]
pub(super) struct Statistics {
    mean_of_means: Tensor,
    std_of_means: Tensor,
}

impl Statistics {
    /// `channels` × `bins` values; kept as [1, C, 1, F].
    pub(super) fn new(channels: usize, bins: usize, w: &Weights) -> Result<Self> {
        let take = |name| w.tensor_then(name, channels * bins, |t| t.reshape((1, channels, 1, bins)));
        Ok(Self { mean_of_means: take("mean-of-means")?, std_of_means: take("std-of-means")? })
    }

    /// Latents [B, C, T, F] to mean 0 and deviation 1.
    pub(super) fn normalise(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.broadcast_sub(&self.mean_of_means)?.broadcast_div(&self.std_of_means)?)
    }

    /// The inverse of [`Self::normalise`].
    pub(super) fn restore(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.broadcast_mul(&self.std_of_means)?.broadcast_add(&self.mean_of_means)?)
    }
}
