//! Activations, element by element.

use crate::error::Result;
use crate::host::{self, Host};
use crate::ops::rowwise::{self, RowOp};
use crate::simd_fn;
use crate::vecmath::{mul_add, sigmoid};
use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};

/// GELU in its tanh form: x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))).
///
/// Computed as x·σ(2u), the same function without the cancellation for negative x.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    rowwise::apply(Gelu, x)
}

/// SiLU: x·σ(x).
pub fn silu(x: &Tensor) -> Result<Tensor> {
    rowwise::apply(Silu, x)
}

/// GELU(gate) ⊙ up, both of one shape, in one pass. Gradients for both.
pub fn gelu_tanh_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    const OP: &str = "gelu_tanh_mul";
    if gate.dims() != up.dims() {
        return host::shape_error(OP, "up", up, format!("{:?}, as gate", gate.dims()));
    }
    host::same_dtype(OP, "up", gate, up)?;
    gate.contiguous()?.apply_op2(&up.contiguous()?, GeluMul)
}

const CUBIC: f64 = 0.044_715;
/// 2·√(2/π)
const SLOPE: f64 = 1.595_769_121_605_730_8;

/// gelu(x) and its derivative.
#[inline(always)]
fn gelu<const FMA: bool>(x: f32) -> (f32, f32) {
    const A: f32 = SLOPE as f32;
    const B: f32 = (SLOPE * CUBIC) as f32;
    let x2 = x * x;
    let s = sigmoid::<FMA>(x * mul_add::<FMA>(B, x2, A));
    let slope = mul_add::<FMA>(3.0 * B, x2, A);
    (x * s, mul_add::<FMA>(x * s * (1.0 - s), slope, s))
}

/// The formula as the page writes it.
fn gelu_plain(x: f64) -> (f64, f64) {
    let t = (SLOPE / 2.0 * (x + CUBIC * x * x * x)).tanh();
    let inner = SLOPE / 2.0 * (1.0 + 3.0 * CUBIC * x * x);
    (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner)
}

simd_fn! {
    /// y = gelu(x)
    pub(crate) fn gelu_slice(x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = gelu::<FMA>(*x).0;
        }
    }
}

simd_fn! {
    /// d ← d·gelu'(x)
    pub(crate) fn gelu_backward_slice(x: &[f32], d: &mut [f32]) {
        for (d, x) in d.iter_mut().zip(x) {
            *d *= gelu::<FMA>(*x).1;
        }
    }
}

simd_fn! {
    fn silu_slice(x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = x * sigmoid::<FMA>(*x);
        }
    }
}

simd_fn! {
    fn silu_backward_slice(x: &[f32], g: &[f32], dx: &mut [f32]) {
        for ((dx, x), g) in dx.iter_mut().zip(x).zip(g) {
            let s = sigmoid::<FMA>(*x);
            *dx = g * s * (1.0 + x * (1.0 - s));
        }
    }
}

struct Gelu;

impl RowOp for Gelu {
    const NAME: &'static str = "gelu_tanh";
    const ELEMENTWISE: bool = true;

    fn forward(&self, _: &[&[f32]], _: usize, _: usize, x: &[f32], y: &mut [f32]) {
        gelu_slice(x, y);
    }

    fn backward(&self, _: &[&[f32]], _: usize, _: usize, x: &[f32], g: &[f32], dx: &mut [f32]) {
        dx.copy_from_slice(g);
        gelu_backward_slice(x, dx);
    }

    fn plain(&self, _: &[&[f32]], _: usize, x: &[f64], y: &mut [f64]) {
        y[0] = gelu_plain(x[0]).0;
    }

    fn plain_backward(&self, _: &[&[f32]], _: usize, x: &[f64], g: &[f64], dx: &mut [f64]) {
        dx[0] = g[0] * gelu_plain(x[0]).1;
    }
}

struct Silu;

impl RowOp for Silu {
    const NAME: &'static str = "silu";
    const ELEMENTWISE: bool = true;

    fn forward(&self, _: &[&[f32]], _: usize, _: usize, x: &[f32], y: &mut [f32]) {
        silu_slice(x, y);
    }

    fn backward(&self, _: &[&[f32]], _: usize, _: usize, x: &[f32], g: &[f32], dx: &mut [f32]) {
        silu_backward_slice(x, g, dx);
    }

    fn plain(&self, _: &[&[f32]], _: usize, x: &[f64], y: &mut [f64]) {
        y[0] = x[0] / (1.0 + (-x[0]).exp());
    }

    fn plain_backward(&self, _: &[&[f32]], _: usize, x: &[f64], g: &[f64], dx: &mut [f64]) {
        let s = 1.0 / (1.0 + (-x[0]).exp());
        dx[0] = g[0] * (s + x[0] * s * (1.0 - s));
    }
}

struct GeluMul;

simd_fn! {
    fn gelu_mul_slice(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
            *y = gelu::<FMA>(*gate).0 * up;
        }
    }
}

impl CustomOp2 for GeluMul {
    fn name(&self) -> &'static str {
        "gelu_tanh_mul"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (op, dtype) = (self.name(), host::dtype_of(gate));
        let gate = host::activation(op, "gate", gate, layout)?;
        let out = match (gate, host::activation(op, "up", up, up_layout)?) {
            (Host::F32(gate), Host::F32(up)) => {
                let mut y = host::unset(gate.len());
                host::rows3(1, &gate, &up, &mut y, |_, gate, up, y| gelu_mul_slice(gate, up, y));
                host::store(y, dtype)
            }
            (Host::F64(gate), Host::F64(up)) => {
                CpuStorage::F64(gate.iter().zip(up).map(|(gate, up)| gelu_plain(*gate).0 * up).collect())
            }
            _ => return Err(host::wrong_dtype(op, "up", dtype)),
        };
        Ok((out, layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let to_gate = || {
            let product = grad.mul(up)?;
            gate.apply_op2_no_bwd(&product.contiguous()?, &rowwise::backward_of(Gelu))
        };
        let to_up = || gate.apply_op2_no_bwd(&grad.contiguous()?, &GeluMul);
        Ok((gate.track_op().then(to_gate).transpose()?, up.track_op().then(to_up).transpose()?))
    }
}
