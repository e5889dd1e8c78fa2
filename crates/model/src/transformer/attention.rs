//! Gated multi-head attention with normalised queries and keys. B batch, T tokens, H heads, d head width.

use candle_core::{D, DType, Tensor};
use kernels::{Mask, Rope};

use crate::{
    Result, Weights,
    nn::{Adapters, Linear},
};

/// Sizes of an attention module.
#[derive(Debug, Clone, Copy)]
pub struct AttentionConfig {
    /// Width of the query input, which is also that of the output.
    pub query_width: usize,
    /// Width of the key and value input.
    pub context_width: usize,
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Added under the root of the query and key norms.
    pub eps: f64,
}

/// The attention module of `model-transformer.md` §6. Also that of the text connectors.
#[derive(Debug)]
pub struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out_0: Linear,
    to_gate_logits: Linear,
    q_norm: Tensor,
    k_norm: Tensor,
    config: AttentionConfig,
}

/// What an attention call is given besides its input.
#[derive(Debug, Clone, Copy)]
pub struct AttentionArgs<'a> {
    /// Rotary tables of the queries.
    pub query_rope: Option<&'a Rope>,
    /// Rotary tables of the keys.
    pub key_rope: Option<&'a Rope>,
    /// Added to the logits.
    pub mask: &'a Mask,
    /// Which samples attend; the others pass their values through (self-attention only).
    pub keep: &'a Keep,
    /// Adapters of the linear layers.
    pub adapters: Adapters<'a>,
}

/// Which samples of a batch take part in something.
#[derive(Debug, Clone, PartialEq)]
pub enum Keep {
    /// All samples.
    All,
    /// No sample.
    None,
    /// Per sample: 1 takes part, 0 does not.
    Some(Vec<f64>),
}

impl Keep {
    /// The factors as [B, 1, 1] in `like`'s type, for `Some`.
    pub(super) fn factors(&self, like: &Tensor) -> Result<Option<Tensor>> {
        let Self::Some(factors) = self else { return Ok(None) };
        let factors = Tensor::from_slice(factors, (factors.len(), 1, 1), like.device())?;
        Ok(Some(factors.to_dtype(like.dtype())?))
    }
}

impl Attention {
    /// The module at `w`.
    ///
    /// # Errors
    /// What reading its tensors reports.
    pub fn new(config: AttentionConfig, w: &Weights) -> Result<Self> {
        let AttentionConfig { query_width, context_width, heads, head_dim, .. } = config;
        let inner = heads * head_dim;
        Ok(Self {
            to_q: Linear::new(query_width, inner, &w.pp("to_q"))?,
            to_k: Linear::new(context_width, inner, &w.pp("to_k"))?,
            to_v: Linear::new(context_width, inner, &w.pp("to_v"))?,
            to_out_0: Linear::new(inner, query_width, &w.pp("to_out").pp(0))?,
            to_gate_logits: Linear::new(query_width, heads, &w.pp("to_gate_logits"))?,
            q_norm: w.pp("q_norm").tensor("weight", inner)?,
            k_norm: w.pp("k_norm").tensor("weight", inner)?,
            config,
        })
    }

    /// x: [B, Tq, query width], context: [B, Tk, context width] → [B, Tq, query width].
    ///
    /// The gate reads `x`, and applies to passed-through values too.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, x: &Tensor, context: &Tensor, args: &AttentionArgs<'_>) -> Result<Tensor> {
        let v = self.to_v.forward(context, args.adapters)?;
        let attended = match args.keep {
            Keep::None => v,
            Keep::All => self.attend(x, context, &v, args)?,
            Keep::Some(_) => {
                let keep = args.keep.factors(&v)?.expect("invariant: Some has factors");
                let pass = (1.0 - &keep)?;
                let attended = self.attend(x, context, &v, args)?;
                (attended.broadcast_mul(&keep)? + v.broadcast_mul(&pass)?)?
            }
        };
        let logits = self.to_gate_logits.forward(x, args.adapters)?;
        let gated = kernels::gated_heads(&attended, &logits)?;
        self.to_out_0.forward(&gated, args.adapters)
    }

    fn attend(&self, x: &Tensor, context: &Tensor, v: &Tensor, args: &AttentionArgs<'_>) -> Result<Tensor> {
        let AttentionConfig { heads, head_dim, eps, .. } = self.config;
        let q = self.to_q.forward(x, args.adapters)?;
        let q = kernels::rms_norm_rope(&q, &self.q_norm, eps, args.query_rope)?;
        let k = self.to_k.forward(context, args.adapters)?;
        let k = kernels::rms_norm_rope(&k, &self.k_norm, eps, args.key_rope)?;
        let how = kernels::Attention { mask: args.mask.clone(), ..kernels::Attention::new(heads, head_dim) };
        Ok(kernels::attention(&q, &k, v, &how)?)
    }
}

/// Self-attention strengths in [0, 1], [B, T, T], as a bias of the logits: ln m, and the lowest finite number where
/// m ≤ 0, so that a query that may see nothing still has a defined result.
///
/// # Errors
/// When the mask has another rank.
pub fn strength_mask(strengths: &Tensor) -> Result<Mask> {
    let shape = strengths.dims3()?;
    let values = strengths.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let bias: Vec<f32> =
        values.iter().map(|&m| if m > 0.0 { m.max(f32::MIN_POSITIVE).ln() } else { f32::MIN }).collect();
    Ok(Mask::Pairs(Tensor::from_vec(bias, shape, strengths.device())?))
}

/// A 0/1 mask of text tokens, [B, S], as a bias of the logits.
///
/// # Errors
/// When the mask has another rank.
pub fn key_mask(mask: &Tensor) -> Result<Mask> {
    mask.dims2()?;
    let mask = mask.to_dtype(DType::F32)?;
    debug_assert!(mask.dim(D::Minus1)? > 0, "invariant: a context has tokens");
    Ok(Mask::Keys(((mask - 1.0)? * f64::from(f32::MAX))?))
}
