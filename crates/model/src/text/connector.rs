//! Feature rows of a caption to the context of one stream: registers behind the rows, then a small transformer.
//!
//! B captions, L padded length, D width of the stream. Source: `model-text.md` §4; Lightricks/LTX-2
//! `ltx_core/text_encoders/gemma/embeddings_connector.py` at 400fd31.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use kernels::{FrozenWeight, Mask, Rope, rms_norm};
use serde_json::Value;

pub use crate::transformer::Stream;
use crate::{
    Checkpoint, Component, Error, Result, Section, Weights,
    nn::Adapters,
    transformer::{
        FeedForward, RopeConfig, TransformerConfig,
        attention::{Attention, AttentionArgs, AttentionConfig, Keep},
        rope,
    },
};

/// Epsilon of all norms.
const EPS: f64 = 1e-6;
/// Base of the rotary frequencies; the configuration has no key for it.
const THETA: f64 = 10_000.0;

/// Sizes of one stream's connector.
#[derive(Debug, Clone, PartialEq)]
pub struct ConnectorConfig {
    /// Blocks.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// Learned rows that stand in for missing tokens; the padded length is a multiple of it.
    pub registers: usize,
    /// Position the rotary angles are relative to.
    pub max_pos: f64,
    rope: RopeConfig,
}

impl ConnectorConfig {
    /// Reads the connector's keys of the `transformer` object of a checkpoint's configuration.
    ///
    /// # Errors
    /// `Config` naming the key that is missing or holds a value this program does not implement.
    pub fn new(config: &Value, stream: Stream) -> Result<Self> {
        let transformer = TransformerConfig::new(config)?;
        let s = Section::of(config, "transformer")?;
        s.require_or_absent("use_embeddings_connector", true)?;
        s.require("connector_apply_gated_attention", true)?;
        s.require_or_absent("connector_norm_output", true)?;
        let layers = s.size("connector_num_layers")?;
        // The reference gives the audio connector as many layers as the video one.
        s.require_or_absent("audio_connector_num_layers", layers)?;
        let key = |name: &str| format!("{}connector_{name}", stream.prefix());
        let max_pos = s.numbers("connector_positional_embedding_max_pos")?;
        let [max_pos] = max_pos[..] else {
            return Err(s.refuse("connector_positional_embedding_max_pos", "expected one number"));
        };
        let this = Self {
            layers,
            heads: s.size(&key("num_attention_heads"))?,
            head_dim: s.size(&key("attention_head_dim"))?,
            registers: s.size("connector_num_learnable_registers")?,
            max_pos,
            rope: RopeConfig { theta: THETA, ..transformer.rope },
        };
        let expected = transformer.stream(stream).width();
        if !this.head_dim.is_multiple_of(2) || this.width() != expected {
            let problem = format!(
                "{} heads of {} make {}, the {} stream's context has {expected}",
                this.heads,
                this.head_dim,
                this.width(),
                stream.name()
            );
            return Err(s.refuse(&key("attention_head_dim"), problem));
        }
        Ok(this)
    }

    /// Width of features and contexts.
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn attention(&self) -> AttentionConfig {
        AttentionConfig {
            query_width: self.width(),
            context_width: self.width(),
            heads: self.heads,
            head_dim: self.head_dim,
            eps: EPS,
        }
    }
}

/// One block: attention, feed-forward, each on the normalised input and added to it.
struct Block {
    attn1: Attention,
    ff: FeedForward,
}

impl Block {
    fn new(config: &ConnectorConfig, w: &Weights) -> Result<Self> {
        Ok(Self {
            attn1: Attention::new(config.attention(), &w.pp("attn1"))?,
            ff: FeedForward::new(config.width(), &w.pp("ff"))?,
        })
    }

    fn forward(&self, h: &Tensor, rope: &Rope) -> Result<Tensor> {
        let x = rms_norm(h, None, EPS)?;
        let args = AttentionArgs {
            query_rope: Some(rope),
            key_rope: Some(rope),
            mask: &Mask::None,
            keep: &Keep::All,
            adapters: Adapters::none(),
        };
        let h = (h + self.attn1.forward(&x, &x, &args)?)?;
        let x = rms_norm(&h, None, EPS)?;
        Ok((&h + self.ff.forward(&x, Adapters::none())?)?)
    }
}

/// The connector of one stream.
pub struct Connector {
    config: ConnectorConfig,
    learnable_registers: FrozenWeight,
    transformer_1d_blocks: Vec<Block>,
    rope: Rope,
    padded_tokens: usize,
    device: Device,
    dtype: DType,
}

impl Connector {
    /// Loads the connector of `stream` for contexts of `padded_tokens`. Computes in `dtype`.
    ///
    /// # Errors
    /// `Config`, `Tensors`, `Io`; `Input` when `padded_tokens` is no multiple of the number of registers.
    pub fn load(
        checkpoint: &Arc<Checkpoint>,
        stream: Stream,
        padded_tokens: usize,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let config = ConnectorConfig::new(checkpoint.config()?, stream)?;
        if padded_tokens == 0 || !padded_tokens.is_multiple_of(config.registers) {
            let problem = format!("{padded_tokens} is no multiple of the {} registers", config.registers);
            return Err(Error::input("padded_tokens", problem));
        }
        let component = match stream {
            Stream::Video => Component::VideoConnector,
            Stream::Audio => Component::AudioConnector,
        };
        let (learnable_registers, transformer_1d_blocks) =
            checkpoint.load(component, device, dtype, |w| Self::build(&config, w))?;
        let positions: Vec<f32> = (0..padded_tokens).map(|i| i as f32).collect();
        let positions = Tensor::from_vec(positions, (1, padded_tokens, 1), device)?;
        let rope = rope::from_points(
            &positions,
            &[config.max_pos],
            config.heads,
            config.head_dim,
            config.rope,
            dtype,
        )?;
        let device = device.clone();
        Ok(Self { config, learnable_registers, transformer_1d_blocks, rope, padded_tokens, device, dtype })
    }

    fn build(config: &ConnectorConfig, w: &Weights) -> Result<(FrozenWeight, Vec<Block>)> {
        let registers = w.stored("learnable_registers", (config.registers, config.width()))?;
        let blocks = (0..config.layers).map(|i| Block::new(config, &w.pp("transformer_1d_blocks").pp(i)));
        Ok((FrozenWeight::new(registers)?, blocks.collect::<Result<_>>()?))
    }

    /// Asks `w` (at the connector's prefix) for every tensor: for the walk over names.
    ///
    /// # Errors
    /// What `w` reports.
    pub fn walk(config: &ConnectorConfig, w: &Weights) -> Result<()> {
        Self::build(config, w).map(drop)
    }

    /// The sizes.
    pub fn config(&self) -> &ConnectorConfig {
        &self.config
    }

    /// The contexts [B, L, D] of captions with these feature rows, [n, D] each. Every row of a context has mean
    /// square 1; there is no mask, registers and text see each other.
    ///
    /// # Errors
    /// `Input` when a caption has more than L rows or rows of another width.
    pub fn forward(&self, captions: &[Tensor]) -> Result<Tensor> {
        let mut batch = Vec::with_capacity(captions.len());
        for rows in captions {
            batch.push(self.with_registers(rows)?);
        }
        let mut h = Tensor::stack(&batch, 0)?;
        for block in &self.transformer_1d_blocks {
            h = block.forward(&h, &self.rope)?;
        }
        Ok(rms_norm(&h, None, EPS)?)
    }

    /// [n, D] → [L, D]: position i ≥ n is register i mod R, counted from the start of the context.
    fn with_registers(&self, rows: &Tensor) -> Result<Tensor> {
        let (length, width) = (self.padded_tokens, self.config.width());
        let found = rows.dims();
        if !matches!(found, [n, w] if *n <= length && *w == width) {
            let problem = format!("expected at most {length} rows of {width}, found {found:?}");
            return Err(Error::input("features", problem));
        }
        let rows = rows.to_dtype(self.dtype)?;
        let n = rows.dim(0)?;
        if n == length {
            return Ok(rows);
        }
        let ids: Vec<u32> = (n..length).map(|i| (i % self.config.registers) as u32).collect();
        let registers = self.learnable_registers.rows(&ids, self.dtype)?.to_device(&self.device)?;
        Ok(Tensor::cat(&[rows, registers], 0)?)
    }
}
