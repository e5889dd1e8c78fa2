//! Attention, forward and backward, in memory that does not grow with the square of the tokens.
//!
//! B batch, Tq and Tk tokens, H query heads, G key and value heads (H a multiple of G; head h reads
//! key head h·G/H), D head size. Heads are runs of the last axis, as a linear layer makes them.
//!
//! ```text
//! S = s·Q·Kᵀ + mask      O = softmax(S)·V      L = ln Σ eˢ     (kept: one number per head and query)
//! P = e^(S − L)          dV = Pᵀ·dO            dP = dO·Vᵀ
//! dS = P ⊙ (dP − Σ dO·O) dQ = s·dS·K           dK = s·dSᵀ·Q
//! ```
//!
//! A query that sees no key gives zeros and no gradient.

mod fast;
mod plain;

use crate::error::{Error, Result};
use crate::host::{self, Host, Slice};
use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor};
use std::sync::OnceLock;

/// What is added to the scores, or which keys a query sees.
#[derive(Clone, Debug)]
pub enum Mask {
    /// Every query sees every key.
    None,
    /// [B or 1, Tk] (constant), added to the scores of every query; -∞ removes a key.
    Keys(Tensor),
    /// [B or 1, Tq, Tk] (constant), added, the same for all heads. The caller holds Tq·Tk numbers.
    Pairs(Tensor),
    /// Query i stands at key position p = i + Tk − Tq and sees keys j ≤ p, with a window only those
    /// with j > p − window.
    Causal {
        /// How many keys a query sees at most, itself included.
        window: Option<usize>,
        /// As [`Mask::Keys`], on top.
        keys: Option<Tensor>,
    },
}

/// How to attend.
#[derive(Clone, Debug)]
pub struct Attention {
    /// H
    pub heads: usize,
    /// G
    pub kv_heads: usize,
    /// s, the factor on the scores.
    pub scale: f64,
    /// Who sees whom.
    pub mask: Mask,
}

impl Attention {
    /// As many key heads as query heads, scale 1/√D, no mask.
    #[must_use]
    pub fn new(heads: usize, head_dim: usize) -> Self {
        Self { heads, kv_heads: heads, scale: 1.0 / (head_dim as f64).sqrt(), mask: Mask::None }
    }
}

/// softmax(s·Q·Kᵀ + mask)·V per head. Gradients for those of q, k and v that are tracked.
///
/// q: [B, Tq, H·D], k and v: [B, Tk, G·D] → [B, Tq, H·D].
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, how: &Attention) -> Result<Tensor> {
    const OP: &str = "attention";
    let geometry = Geometry::new(q, k, v, how)?;
    host::same_dtype(OP, "k", q, k)?;
    host::same_dtype(OP, "v", q, v)?;
    let Geometry { batch, queries, keys, .. } = geometry;
    let bias = |what, bias: &Tensor, dims: &[usize]| {
        let (first, rest) = (bias.dims().first().copied().unwrap_or(0), bias.dims().get(1..));
        if (first != 1 && first != batch) || rest != Some(dims) {
            return host::shape_error(OP, what, bias, format!("[1 or {batch}] and {dims:?}"));
        }
        host::constant(OP, what, bias)
    };
    let mask = match &how.mask {
        Mask::None => Mask::None,
        Mask::Keys(keys_bias) => Mask::Keys(bias("the key mask", keys_bias, &[keys])?),
        Mask::Pairs(pairs) => Mask::Pairs(bias("the mask", pairs, &[queries, keys])?),
        Mask::Causal { window, keys: keys_bias } => {
            let keys = keys_bias.as_ref().map(|b| bias("the key mask", b, &[keys])).transpose()?;
            Mask::Causal { window: *window, keys }
        }
    };
    let op = Op { geometry, mask, log_sum_exp: OnceLock::new() };
    q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)
}

/// The sizes of one call.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scale: f64,
}

impl Geometry {
    fn new(q: &Tensor, k: &Tensor, v: &Tensor, how: &Attention) -> Result<Self> {
        const OP: &str = "attention";
        let Attention { heads, kv_heads, scale, .. } = *how;
        if heads == 0 || kv_heads == 0 || heads % kv_heads != 0 {
            let got = format!("{heads} and {kv_heads}");
            let expected = "a multiple, neither zero".into();
            return Err(Error::Value { op: OP, what: "heads and kv_heads", got, expected }.into());
        }
        let [batch, queries, width] = *q.dims() else {
            return host::shape_error(OP, "q", q, "[batch, queries, heads × head size]");
        };
        if width % heads != 0 || width == 0 {
            return host::shape_error(OP, "q", q, format!("a last axis of {heads} heads"));
        }
        let head_dim = width / heads;
        let [_, keys, _] = *k.dims() else {
            return host::shape_error(OP, "k", k, "[batch, keys, heads × head size]");
        };
        let expected = [batch, keys, kv_heads * head_dim];
        for (what, tensor) in [("k", k), ("v", v)] {
            if tensor.dims() != expected {
                return host::shape_error(OP, what, tensor, format!("{expected:?}"));
            }
        }
        Ok(Self { batch, queries, keys, heads, kv_heads, head_dim, scale })
    }

    /// The key head that a query head reads.
    fn kv_head(&self, head: usize) -> usize {
        head * self.kv_heads / self.heads
    }

    fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// A mask on the host.
#[derive(Clone, Copy, Default)]
struct HostMask<'a> {
    keys: Option<&'a [f32]>,
    pairs: Option<&'a [f32]>,
    causal: bool,
    window: Option<usize>,
}

impl<'a> HostMask<'a> {
    /// The keys a query may see at all, by position.
    fn visible(&self, g: &Geometry, query: usize) -> (usize, usize) {
        if !self.causal {
            return (0, g.keys);
        }
        let end = (query + g.keys + 1).saturating_sub(g.queries).min(g.keys);
        let start = self.window.map_or(0, |window| (query + g.keys + 1).saturating_sub(g.queries + window));
        (start.min(end), end)
    }

    /// What is added to the scores of all queries of a batch item. [Tk]
    fn keys_of(&self, g: &Geometry, batch: usize) -> Option<&'a [f32]> {
        let keys = self.keys?;
        let item = if keys.len() == g.keys { 0 } else { batch };
        Some(&keys[item * g.keys..][..g.keys])
    }

    /// What is added to the scores of one query. [Tk]
    fn pairs_of(&self, g: &Geometry, batch: usize, query: usize) -> Option<&'a [f32]> {
        let pairs = self.pairs?;
        let item = if pairs.len() == g.queries * g.keys { 0 } else { batch };
        Some(&pairs[(item * g.queries + query) * g.keys..][..g.keys])
    }
}

struct Op {
    geometry: Geometry,
    mask: Mask,
    /// [B, H, Tq], written by the forward pass.
    log_sum_exp: OnceLock<Vec<f32>>,
}

impl Op {
    fn with_mask<R>(&self, run: impl FnOnce(HostMask<'_>) -> R) -> Result<R> {
        let view = |tensor| Slice::of("attention", "the mask", tensor);
        Ok(match &self.mask {
            Mask::None => run(HostMask::default()),
            Mask::Keys(keys) => run(HostMask { keys: Some(&view(keys)?), ..HostMask::default() }),
            Mask::Pairs(pairs) => run(HostMask { pairs: Some(&view(pairs)?), ..HostMask::default() }),
            Mask::Causal { window, keys } => {
                let keys = keys.as_ref().map(view).transpose()?;
                let keys = keys.as_deref();
                run(HostMask { keys, pairs: None, causal: true, window: *window })
            }
        })
    }
}

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let dtype = host::dtype_of(q);
        let q = host::activation(self.name(), "q", q, q_layout)?;
        let k = host::activation(self.name(), "k", k, k_layout)?;
        let out = match (q, k, host::activation(self.name(), "v", v, v_layout)?) {
            (Host::F32(q), Host::F32(k), Host::F32(v)) => {
                let (out, log_sum_exp) =
                    self.with_mask(|mask| fast::forward(&self.geometry, mask, &q, &k, &v))?;
                // An op runs forward once; a second run would write the same numbers.
                let _ = self.log_sum_exp.set(log_sum_exp);
                host::store(out, dtype)
            }
            (Host::F64(q), Host::F64(k), Host::F64(v)) => {
                CpuStorage::F64(self.with_mask(|mask| plain::forward(&self.geometry, mask, q, k, v))?)
            }
            _ => return Err(host::wrong_dtype(self.name(), "q, k and v", dtype)),
        };
        Ok((out, q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let op = self.name();
        let want = [q.track_op(), k.track_op(), v.track_op()];
        let grad = grad.contiguous()?;
        let tensors = [q, k, v, out, &grad];
        let stores = tensors.map(Tensor::storage_and_layout);
        let hosts = stores
            .iter()
            .map(|(storage, layout)| host::activation(op, "an argument", host::cpu(op, storage)?, layout))
            .collect::<Result<Vec<_>>>()?;
        let grads = match &hosts[..] {
            [Host::F32(q), Host::F32(k), Host::F32(v), Host::F32(out), Host::F32(grad)] => {
                let log_sum_exp = self.log_sum_exp.get().map(Vec::as_slice).unwrap_or_default();
                let saved = fast::Saved { q, k, v, out, log_sum_exp };
                self.with_mask(|mask| fast::backward(&self.geometry, mask, &saved, grad, want))?
                    .map(|grad| grad.map(|grad| host::store(grad, out_dtype(tensors[0]))))
            }
            [Host::F64(q), Host::F64(k), Host::F64(v), Host::F64(_), Host::F64(grad)] => {
                let grads = self.with_mask(|mask| plain::backward(&self.geometry, mask, q, k, v, grad))?;
                let mut want = want.into_iter();
                grads.map(|grad| want.next().unwrap_or(false).then_some(CpuStorage::F64(grad)))
            }
            _ => return Err(host::wrong_dtype(op, "q, k, v and the gradient", tensors[0].dtype())),
        };
        let [dq, dk, dv] = grads;
        Ok((
            dq.map(|d| host::tensor(d, q.shape())),
            dk.map(|d| host::tensor(d, k.shape())),
            dv.map(|d| host::tensor(d, v.shape())),
        ))
    }
}

fn out_dtype(tensor: &Tensor) -> candle_core::DType {
    tensor.dtype()
}
