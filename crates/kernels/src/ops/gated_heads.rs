//! The attention gate: each head's output times 2·σ(its logit).
//!
//! B batch, T tokens, H heads, D head size. Source: `spec/model-transformer.md` §6, step 6.

use crate::error::Result;
use crate::host::{self, Host};
use crate::simd_fn;
use crate::vecmath::sum2;
use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};

/// o·2σ(logit) per head. o: [B, T, H·D], logits: [B, T, H]. Gradients for both.
pub fn gated_heads(o: &Tensor, logits: &Tensor) -> Result<Tensor> {
    const OP: &str = "gated_heads";
    let split = o.dims().split_last().zip(logits.dims().split_last());
    let fits = split.is_some_and(|((width, rows), (heads, logit_rows))| {
        *heads > 0 && width % heads == 0 && rows == logit_rows
    });
    if !fits {
        let expected = format!("the leading axes of o {:?} and its heads", o.dims());
        return host::shape_error(OP, "logits", logits, expected);
    }
    host::same_dtype(OP, "logits", o, logits)?;
    o.contiguous()?.apply_op2(&logits.contiguous()?, GatedHeads)
}

struct GatedHeads;
struct LogitGradient;

fn gate(logit: f32) -> f32 {
    2.0 / (1.0 + (-logit).exp())
}

fn gate_plain(logit: f64) -> f64 {
    2.0 / (1.0 + (-logit).exp())
}

simd_fn! {
    fn scale(factor: f32, x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = x * factor;
        }
    }
}

simd_fn! {
    fn dot(x: &[f32], y: &[f32]) -> f32 {
        sum2(x, y, |x, y| x * y)
    }
}

/// Head size, from two layouts of [.., H·D] and [.., H].
fn head_dim(o: &Layout, logits: &Layout) -> usize {
    o.shape().elem_count() / logits.shape().elem_count().max(1)
}

impl CustomOp2 for GatedHeads {
    fn name(&self) -> &'static str {
        "gated_heads"
    }

    fn cpu_fwd(
        &self,
        o: &CpuStorage,
        layout: &Layout,
        logits: &CpuStorage,
        logits_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (op, dtype, d) = (self.name(), host::dtype_of(o), head_dim(layout, logits_layout));
        let o = host::activation(op, "o", o, layout)?;
        let out = match (o, host::activation(op, "logits", logits, logits_layout)?) {
            (Host::F32(o), Host::F32(logits)) => {
                let mut y = host::unset(o.len());
                host::rows2(d, &o, &mut y, |first, o, y| {
                    for (i, (o, y)) in o.chunks(d).zip(y.chunks_mut(d)).enumerate() {
                        scale(gate(logits[first + i]), o, y);
                    }
                });
                host::store(y, dtype)
            }
            (Host::F64(o), Host::F64(logits)) => {
                CpuStorage::F64(o.iter().enumerate().map(|(i, o)| o * gate_plain(logits[i / d])).collect())
            }
            _ => return Err(host::wrong_dtype(op, "logits", dtype)),
        };
        Ok((out, layout.shape().clone()))
    }

    fn bwd(
        &self,
        o: &Tensor,
        logits: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let to_o = || grad.apply_op2_no_bwd(logits, &GatedHeads);
        // The logits' gradient needs three tensors and comes out in the shape of the logits.
        let to_logits = || o.apply_op3_no_bwd(logits, &grad, &LogitGradient);
        Ok((o.track_op().then(to_o).transpose()?, logits.track_op().then(to_logits).transpose()?))
    }
}

impl candle_core::CustomOp3 for LogitGradient {
    fn name(&self) -> &'static str {
        "gated_heads gradient"
    }

    fn cpu_fwd(
        &self,
        o: &CpuStorage,
        layout: &Layout,
        logits: &CpuStorage,
        logits_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (op, dtype, d) = (self.name(), host::dtype_of(o), head_dim(layout, logits_layout));
        let o = host::activation(op, "o", o, layout)?;
        let logits = host::activation(op, "logits", logits, logits_layout)?;
        let out = match (o, logits, host::activation(op, "the gradient", grad, grad_layout)?) {
            (Host::F32(o), Host::F32(logits), Host::F32(grad)) => {
                let mut d_logits = host::unset(logits.len());
                host::rows2(1, &logits, &mut d_logits, |first, logits, d_logits| {
                    for (i, (logit, d_logit)) in logits.iter().zip(d_logits).enumerate() {
                        let at = (first + i) * d..(first + i + 1) * d;
                        let gate = gate(*logit);
                        *d_logit = dot(&o[at.clone()], &grad[at]) * gate * (1.0 - gate / 2.0);
                    }
                });
                host::store(d_logits, dtype)
            }
            (Host::F64(o), Host::F64(logits), Host::F64(grad)) => {
                let d_logit = |(i, logit): (usize, &f64)| {
                    let dot: f64 = (i * d..(i + 1) * d).map(|j| o[j] * grad[j]).sum();
                    let sigma = gate_plain(*logit) / 2.0;
                    dot * 2.0 * sigma * (1.0 - sigma)
                };
                CpuStorage::F64(logits.iter().enumerate().map(d_logit).collect())
            }
            _ => return Err(host::wrong_dtype(op, "the gradient", dtype)),
        };
        Ok((out, logits_layout.shape().clone()))
    }
}
