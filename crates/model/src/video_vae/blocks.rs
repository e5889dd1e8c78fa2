//! The parts that encoder and decoder are made of. Activations `[B, F, H, W, channels]`.

use candle_core::Tensor;
use kernels::{Conv3d, Padding, Walk3d, depth_to_space, rms_norm_silu, space_to_depth_add_mean};

use crate::{Result, Weights};

/// Added to the mean square in the norm over channels (the audio VAE has 1e-6).
const NORM_EPS: f64 = 1e-8;

/// How the frame axis is continued beyond the clip: its edge frames are repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Time {
    /// Two first frames in front, so that nothing sees the future.
    Causal,
    /// As `Causal` for a clip that itself starts with its first frame once more.
    CausalDoubledStart,
    /// One frame on either side.
    Symmetric,
}

/// SiLU of the norm over channels at each position.
pub(super) fn norm_silu(x: &Tensor) -> Result<Tensor> {
    Ok(rms_norm_silu(x, NORM_EPS)?)
}

/// A 3×3×3 convolution that keeps the size.
#[derive(Debug)]
pub(super) struct CausalConv3d {
    conv: Conv3d,
    padding: Padding,
}

impl CausalConv3d {
    pub(super) fn new(inputs: usize, outputs: usize, padding: Padding, w: &Weights) -> Result<Self> {
        let w = w.pp("conv");
        let weight = w.stored("weight", (outputs, inputs, 3, 3, 3))?;
        let bias = w.tensor("bias", outputs)?;
        Ok(Self { conv: Conv3d::new(weight, Some(bias))?, padding })
    }

    pub(super) fn forward(&self, x: &Tensor, time: Time) -> Result<Tensor> {
        self.forward_onto(x, time, None)
    }

    /// Adds `residual` to the result.
    fn forward_onto(&self, x: &Tensor, time: Time, residual: Option<&Tensor>) -> Result<Tensor> {
        let frames = match time {
            Time::Causal => (2, 0),
            Time::CausalDoubledStart => (3, 0),
            Time::Symmetric => (1, 1),
        };
        let walk = Walk3d {
            stride: [1; 3],
            pad: [frames, (1, 1), (1, 1)],
            padding: [Padding::Replicate, self.padding, self.padding],
        };
        Ok(self.conv.forward(x, &walk, residual)?)
    }
}

/// x + conv2(act(conv1(act(x)))), act = SiLU of the norm.
#[derive(Debug)]
struct ResBlock {
    conv1: CausalConv3d,
    conv2: CausalConv3d,
}

/// Residual blocks of one width (`res_x`).
#[derive(Debug)]
pub(super) struct ResBlocks {
    res_blocks: Vec<ResBlock>,
}

impl ResBlocks {
    pub(super) fn new(layers: usize, channels: usize, padding: Padding, w: &Weights) -> Result<Self> {
        let conv = |w: &Weights| CausalConv3d::new(channels, channels, padding, w);
        let res_blocks = (0..layers)
            .map(|i| {
                let w = w.pp("res_blocks").pp(i);
                Ok(ResBlock { conv1: conv(&w.pp("conv1"))?, conv2: conv(&w.pp("conv2"))? })
            })
            .collect::<Result<_>>()?;
        Ok(Self { res_blocks })
    }

    pub(super) fn forward(&self, x: Tensor, time: Time) -> Result<Tensor> {
        let mut x = x;
        for block in &self.res_blocks {
            let y = block.conv1.forward(&norm_silu(&x)?, time)?;
            x = block.conv2.forward_onto(&norm_silu(&y)?, time, Some(&x))?;
        }
        Ok(x)
    }
}

/// `compress_…_res` of the encoder: fewer positions, more channels.
#[derive(Debug)]
pub(super) struct Down {
    conv: CausalConv3d,
    stride: [usize; 3],
}

impl Down {
    pub(super) fn new(
        inputs: usize,
        outputs: usize,
        stride: [usize; 3],
        padding: Padding,
        w: &Weights,
    ) -> Result<Self> {
        let cells: usize = stride.iter().product();
        Ok(Self { conv: CausalConv3d::new(inputs, outputs / cells, padding, &w.pp("conv"))?, stride })
    }

    /// Halving the frame axis, the first frame counts twice: 8k + 1 frames become 4k + 1.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let time = if self.stride[0] == 2 { Time::CausalDoubledStart } else { Time::Causal };
        let y = self.conv.forward(x, time)?;
        Ok(space_to_depth_add_mean(&y, x, self.stride)?)
    }
}

/// `compress_…` of the decoder: more positions, fewer channels.
#[derive(Debug)]
pub(super) struct Up {
    conv: CausalConv3d,
    stride: [usize; 3],
}

impl Up {
    pub(super) fn new(
        inputs: usize,
        outputs: usize,
        stride: [usize; 3],
        padding: Padding,
        w: &Weights,
    ) -> Result<Self> {
        let cells: usize = stride.iter().product();
        Ok(Self { conv: CausalConv3d::new(inputs, outputs * cells, padding, &w.pp("conv"))?, stride })
    }

    /// Doubling the frame axis, the first frame is dropped: k frames become 2k − 1.
    pub(super) fn forward(&self, x: &Tensor, time: Time) -> Result<Tensor> {
        let y = self.conv.forward(x, time)?;
        Ok(depth_to_space(&y, self.stride, self.stride[0] - 1)?)
    }
}
