//! The waveform generator both stages of the vocoder are: up-sampling convolutions with anti-aliased residual blocks.
//!
//! Tensors are [B, C, L]. Source: Lightricks/LTX-2 `ltx_core/model/audio_vae/vocoder.py` at 400fd31.

use candle_core::Tensor;
use kernels::{SNAKE_TAPS, Snake, Walk1d, conv_transpose1d, conv1d, snake};

use crate::{Error, Result, Section, Weights};

/// Taps of the first and the last convolution.
const OUTER_TAPS: usize = 7;
/// The generator speaks in stereo.
const OUT_CHANNELS: usize = 2;

/// Sizes of one generator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratorConfig {
    /// Width after the first convolution; halves at every stage.
    pub initial_channels: usize,
    /// Factor of each stage.
    pub rates: Vec<usize>,
    /// Taps of each stage's up-sampling convolution.
    pub kernels: Vec<usize>,
    /// Taps of the residual blocks of a stage, one block each.
    pub res_kernels: Vec<usize>,
    /// Dilations inside each residual block.
    pub res_dilations: Vec<Vec<usize>>,
}

impl GeneratorConfig {
    /// Reads `section` (`vocoder.vocoder` or `vocoder.bwe`).
    ///
    /// # Errors
    /// `Config` naming the key that is missing or holds a value this program does not implement.
    pub fn new(section: Section<'_>) -> Result<Self> {
        section.require("resblock", "AMP1")?;
        section.require("activation", "snakebeta")?;
        section.require_or_absent("stereo", true)?;
        section.require("use_tanh_at_final", false)?;
        section.require("use_bias_at_final", false)?;
        let lists = section.get("resblock_dilation_sizes").and_then(|list| list.as_array());
        let dilations = lists.and_then(|lists| {
            let one = |list: &serde_json::Value| -> Option<Vec<usize>> {
                let sizes = list.as_array()?.iter();
                sizes.map(|n| n.as_u64().filter(|n| (1..=1024).contains(n)).map(|n| n as usize)).collect()
            };
            lists.iter().map(one).collect::<Option<Vec<_>>>()
        });
        let this = Self {
            initial_channels: section.size("upsample_initial_channel")?,
            rates: section.sizes("upsample_rates")?,
            kernels: section.sizes("upsample_kernel_sizes")?,
            res_kernels: section.sizes("resblock_kernel_sizes")?,
            res_dilations: dilations.ok_or_else(|| {
                section.refuse("resblock_dilation_sizes", "expected lists of positive integers")
            })?,
        };
        this.check(section)?;
        Ok(this)
    }

    fn check(&self, section: Section<'_>) -> Result<()> {
        let stages = self.rates.len();
        if stages == 0 || self.kernels.len() != stages {
            return Err(
                section.refuse("upsample_kernel_sizes", format!("expected {stages} entries, one per rate"))
            );
        }
        if self.initial_channels >> stages == 0 || !self.initial_channels.is_multiple_of(1 << stages) {
            let problem = format!("must be a multiple of {}: it halves at every stage", 1u64 << stages);
            return Err(section.refuse("upsample_initial_channel", problem));
        }
        for (rate, kernel) in self.rates.iter().zip(&self.kernels) {
            // With an even difference and symmetric padding a stage multiplies the length exactly. An odd one gives
            // (L − 1)·r + k − 2·⌊(k − r)/2⌋ = L·r + 1.
            if *rate > 1024 || *kernel > 1024 || kernel < rate || (kernel - rate) % 2 != 0 {
                let problem = format!("{kernel} does not go with the rate {rate}");
                return Err(section.refuse("upsample_kernel_sizes", problem));
            }
        }
        if self.res_kernels.is_empty() || self.res_kernels.iter().any(|k| k % 2 == 0 || *k > 1024) {
            return Err(section.refuse("resblock_kernel_sizes", "expected odd sizes up to 1023"));
        }
        if self.res_dilations.len() != self.res_kernels.len() {
            return Err(section.refuse("resblock_dilation_sizes", "expected one list per kernel size"));
        }
        Ok(())
    }

    /// Output samples per input frame.
    pub fn factor(&self) -> usize {
        self.rates.iter().product()
    }
}

/// A convolution that keeps the length.
#[derive(Debug)]
struct Conv {
    weight: Tensor,
    bias: Option<Tensor>,
    walk: Walk1d,
}

impl Conv {
    fn new(
        (inputs, outputs, taps): (usize, usize, usize),
        dilation: usize,
        bias: bool,
        w: &Weights,
    ) -> Result<Self> {
        Ok(Self {
            weight: w.tensor("weight", (outputs, inputs, taps))?,
            bias: bias.then(|| w.tensor("bias", outputs)).transpose()?,
            walk: Walk1d::same(taps, dilation),
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(conv1d(x, &self.weight, self.bias.as_ref(), self.walk)?)
    }
}

/// An up-sampling convolution: length times `stride`.
#[derive(Debug)]
struct Up {
    weight: Tensor,
    bias: Tensor,
    stride: usize,
    padding: usize,
}

impl Up {
    fn new(inputs: usize, outputs: usize, stride: usize, taps: usize, w: &Weights) -> Result<Self> {
        Ok(Self {
            weight: w.tensor("weight", (inputs, outputs, taps))?,
            bias: w.tensor("bias", outputs)?,
            stride,
            padding: (taps - stride) / 2,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(conv_transpose1d(x, &self.weight, Some(&self.bias), self.stride, self.padding)?)
    }
}

/// Anti-aliased SnakeBeta; `upsample.filter` and `downsample.lowpass.filter` are stored per activation.
struct Activation {
    act: Snake,
}

impl Activation {
    fn new(channels: usize, w: &Weights) -> Result<Self> {
        let act = w.pp("act");
        let filter = (1, 1, SNAKE_TAPS);
        Ok(Self {
            act: Snake::new(
                &act.tensor("alpha", channels)?,
                &act.tensor("beta", channels)?,
                &w.pp("upsample").tensor("filter", filter)?,
                &w.pp("downsample").pp("lowpass").tensor("filter", filter)?,
            )?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(snake(x, &self.act)?)
    }
}

/// One residual block: per dilation an activation, a dilated convolution, an activation, a convolution.
struct AmpBlock {
    acts1: Vec<Activation>,
    convs1: Vec<Conv>,
    acts2: Vec<Activation>,
    convs2: Vec<Conv>,
}

impl AmpBlock {
    fn new(channels: usize, taps: usize, dilations: &[usize], w: &Weights) -> Result<Self> {
        let acts = |name: &str| -> Result<Vec<_>> {
            (0..dilations.len()).map(|n| Activation::new(channels, &w.pp(name).pp(n))).collect()
        };
        let convs = |name: &str, dilated: bool| -> Result<Vec<_>> {
            let one = |(n, dilation): (usize, &usize)| {
                let dilation = if dilated { *dilation } else { 1 };
                Conv::new((channels, channels, taps), dilation, true, &w.pp(name).pp(n))
            };
            dilations.iter().enumerate().map(one).collect()
        };
        Ok(Self {
            acts1: acts("acts1")?,
            convs1: convs("convs1", true)?,
            acts2: acts("acts2")?,
            convs2: convs("convs2", false)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for n in 0..self.convs1.len() {
            let y = self.convs1[n].forward(&self.acts1[n].forward(&x)?)?;
            let y = self.convs2[n].forward(&self.acts2[n].forward(&y)?)?;
            x = (x + y)?;
        }
        Ok(x)
    }
}

/// A generator: [B, inputs, T] → [B, 2, T·factor].
pub(super) struct Generator {
    conv_pre: Conv,
    ups: Vec<Up>,
    resblocks: Vec<AmpBlock>,
    act_post: Activation,
    conv_post: Conv,
    blocks_per_stage: usize,
}

impl Generator {
    pub(super) fn new(config: &GeneratorConfig, inputs: usize, w: &Weights) -> Result<Self> {
        let (mut ups, mut resblocks) = (Vec::new(), Vec::new());
        let mut width = config.initial_channels;
        for (stage, (rate, taps)) in config.rates.iter().zip(&config.kernels).enumerate() {
            ups.push(Up::new(width, width / 2, *rate, *taps, &w.pp("ups").pp(stage))?);
            width /= 2;
            for (taps, dilations) in config.res_kernels.iter().zip(&config.res_dilations) {
                let w = w.pp("resblocks").pp(resblocks.len());
                resblocks.push(AmpBlock::new(width, *taps, dilations, &w)?);
            }
        }
        Ok(Self {
            conv_pre: Conv::new((inputs, config.initial_channels, OUTER_TAPS), 1, true, &w.pp("conv_pre"))?,
            ups,
            resblocks,
            act_post: Activation::new(width, &w.pp("act_post"))?,
            conv_post: Conv::new((width, OUT_CHANNELS, OUTER_TAPS), 1, false, &w.pp("conv_post"))?,
            blocks_per_stage: config.res_kernels.len(),
        })
    }

    /// Generates from `mel` [B, 2, T, bins]; nothing is done to the last convolution's output.
    pub(super) fn forward(&self, mel: &Tensor) -> Result<Tensor> {
        let (batch, channels, frames, bins) = mel.dims4()?;
        if frames == 0 {
            return Err(Error::input("mel", "has no frame"));
        }
        let x = mel.transpose(2, 3)?.reshape((batch, channels * bins, frames))?;
        let mut x = self.conv_pre.forward(&x)?;
        for (up, blocks) in self.ups.iter().zip(self.resblocks.chunks_exact(self.blocks_per_stage)) {
            x = up.forward(&x)?;
            let mut sum = blocks[0].forward(&x)?;
            for block in &blocks[1..] {
                sum = (sum + block.forward(&x)?)?;
            }
            x = (sum / blocks.len() as f64)?;
        }
        self.conv_post.forward(&self.act_post.forward(&x)?)
    }
}
