//! The masked velocity loss, in f32 whatever the prediction is.
//!
//! B batch, N target tokens, C channels.
//!
//! ```text
//! e_i = mean over C of (pred_i − target_i)²
//! L_b = mean over N of m_i·e_i / max(mean over N of m_i, 1e-8)      loss = mean over B of L_b
//! ```
//!
//! Source: `spec/training.md` §2.8.

use crate::error::{Error, Result};
use crate::host::{self, Host, Slice};
use crate::simd_fn;
use crate::vecmath::sum2;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Shape, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

/// The loss of a batch, a scalar. Gradient for `pred` only.
///
/// pred, target: [B, N, C] (target constant); mask: [B, N] f32 or u8 (constant), 1 = the token counts.
pub fn velocity_loss(pred: &Tensor, target: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let op = Loss::new(pred, target, mask)?;
    pred.contiguous()?.apply_op1(VelocityLoss(Arc::new(op)))
}

/// The loss of each sample: `[B]`. Not recorded: for logs.
pub fn velocity_loss_per_sample(pred: &Tensor, target: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let pred = pred.detach();
    let batch = pred.dims().first().copied().unwrap_or(0);
    let each = (0..batch)
        .map(|b| velocity_loss(&pred.narrow(0, b, 1)?, &target.narrow(0, b, 1)?, &mask.narrow(0, b, 1)?))
        .collect::<Result<Vec<_>>>()?;
    Tensor::stack(&each, 0)
}

/// The constants of one loss.
struct Loss {
    /// [B, N, C], f32
    target: Tensor,
    /// [B, N], f32
    mask: Tensor,
    batch: usize,
    tokens: usize,
    channels: usize,
}

impl Loss {
    fn new(pred: &Tensor, target: &Tensor, mask: &Tensor) -> Result<Self> {
        const OP: &str = "velocity_loss";
        let [batch, tokens, channels] = *pred.dims() else {
            return host::shape_error(OP, "pred", pred, "[batch, tokens, channels]");
        };
        if target.dims() != pred.dims() {
            return host::shape_error(OP, "target", target, format!("{:?}, as pred", pred.dims()));
        }
        if mask.dims() != [batch, tokens] {
            return host::shape_error(OP, "mask", mask, format!("[{batch}, {tokens}]"));
        }
        if pred.elem_count() == 0 {
            let expected = "at least one".into();
            return Err(Error::Value { op: OP, what: "elements", got: "0".into(), expected }.into());
        }
        let mask = if mask.dtype() == DType::U8 { mask.to_dtype(DType::F32)? } else { mask.clone() };
        Ok(Self {
            target: host::constant(OP, "target", target)?,
            mask: host::constant(OP, "mask", &mask)?,
            batch,
            tokens,
            channels,
        })
    }

    /// ∂loss/∂e of each token: m_i / (B · max(Σ m, N·1e-8)).
    fn token_weights(&self, mask: &[f32]) -> Vec<f64> {
        mask.chunks(self.tokens)
            .flat_map(|mask| {
                let total: f64 = mask.iter().map(|m| f64::from(*m)).sum();
                let share = 1.0 / (self.batch as f64 * total.max(self.tokens as f64 * 1e-8));
                mask.iter().map(move |m| f64::from(*m) * share)
            })
            .collect()
    }

    /// Runs with target, token weights and the number of channels.
    fn with<R>(&self, run: impl FnOnce(&[f32], &[f64], usize) -> R) -> Result<R> {
        let target = Slice::of("velocity_loss", "target", &self.target)?;
        let mask = Slice::of("velocity_loss", "mask", &self.mask)?;
        Ok(run(&target, &self.token_weights(&mask), self.channels))
    }
}

simd_fn! {
    fn squared_distance(x: &[f32], y: &[f32]) -> f32 {
        sum2(x, y, |x, y| (x - y) * (x - y))
    }
}

struct VelocityLoss(Arc<Loss>);

impl CustomOp1 for VelocityLoss {
    fn name(&self) -> &'static str {
        "velocity_loss"
    }

    fn cpu_fwd(&self, pred: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = match host::activation(self.name(), "pred", pred, layout)? {
            Host::F32(pred) => self.0.with(|target, weights, channels| {
                // Tokens without weight are left out: what stands there may be anything.
                let each: Vec<f64> = (pred.par_chunks(channels), target.par_chunks(channels), weights)
                    .into_par_iter()
                    .with_min_len((host::TASK / channels).max(1))
                    .map(|(pred, target, weight)| {
                        if *weight == 0.0 { 0.0 } else { weight * f64::from(squared_distance(pred, target)) }
                    })
                    .collect();
                CpuStorage::F32(vec![(each.iter().sum::<f64>() / channels as f64) as f32])
            })?,
            Host::F64(pred) => self.0.with(|target, weights, channels| {
                let token = |(i, weight): (usize, &f64)| -> f64 {
                    let at = i * channels..(i + 1) * channels;
                    let squares = at.map(|j| (pred[j] - f64::from(target[j])).powi(2));
                    if *weight == 0.0 { 0.0 } else { weight * squares.sum::<f64>() / channels as f64 }
                };
                CpuStorage::F64(vec![weights.iter().enumerate().map(token).sum()])
            })?,
        };
        Ok((out, Shape::from(())))
    }

    fn bwd(&self, pred: &Tensor, _loss: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(pred.apply_op2_no_bwd(grad, &Gradient(Arc::clone(&self.0)))?))
    }
}

struct Gradient(Arc<Loss>);

impl CustomOp2 for Gradient {
    fn name(&self) -> &'static str {
        "velocity_loss gradient"
    }

    fn cpu_fwd(
        &self,
        pred: &CpuStorage,
        layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let dtype = host::dtype_of(pred);
        let upstream = match host::activation(self.name(), "the gradient", grad, grad_layout)? {
            Host::F32(grad) => f64::from(grad[0]),
            Host::F64(grad) => grad[0],
        };
        let out = match host::activation(self.name(), "pred", pred, layout)? {
            Host::F32(pred) => self.0.with(|target, weights, channels| {
                let mut out = host::unset(pred.len());
                host::rows3(channels, &pred, target, &mut out, |first, pred, target, out| {
                    let rows = pred.chunks(channels).zip(target.chunks(channels));
                    for (i, (out, (pred, target))) in out.chunks_mut(channels).zip(rows).enumerate() {
                        let factor = (2.0 * upstream * weights[first + i] / channels as f64) as f32;
                        for ((out, pred), target) in out.iter_mut().zip(pred).zip(target) {
                            *out = if factor == 0.0 { 0.0 } else { factor * (pred - target) };
                        }
                    }
                });
                host::store(out, dtype)
            })?,
            Host::F64(pred) => self.0.with(|target, weights, channels| {
                let element = |(i, pred): (usize, &f64)| {
                    let weight = weights[i / channels];
                    let slope = 2.0 * upstream * weight / channels as f64;
                    if weight == 0.0 { 0.0 } else { slope * (pred - f64::from(target[i])) }
                };
                CpuStorage::F64(pred.iter().enumerate().map(element).collect())
            })?,
        };
        Ok((out, layout.shape().clone()))
    }
}
