//! The feed-forward part without adapters: second(gelu(first(x))).
//!
//! M rows of x, W width, I inner width (4·W). Of the two inner [M, I] tensors only the one before the
//! activation is kept for the gradient; the other is made and used up in slices of `SLICE` columns.

use crate::error::Result;
use crate::host::{self, Host};
use crate::matrix::{View, ViewMut};
use crate::ops::activation::{gelu_backward_slice, gelu_slice, gelu_tanh};
use crate::ops::linear::{FrozenLinear, start_with_bias};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use std::sync::Mutex;

/// Inner columns handled at a time.
const SLICE: usize = 2048;

/// second(gelu_tanh(first(x))). x: [.., W] → [.., W]. Gradient for x only.
pub fn feed_forward(x: &Tensor, first: &FrozenLinear, second: &FrozenLinear) -> Result<Tensor> {
    const OP: &str = "feed_forward";
    if x.dims().last() != Some(&first.in_features()) {
        let expected = format!("[.., {}], the columns of the first weight", first.in_features());
        return host::shape_error(OP, "x", x, expected);
    }
    if second.in_features() != first.out_features() {
        let got = second.weight().to_tensor(second.weight().dtype())?;
        let expected = format!("[.., {}], the rows of the first weight", first.out_features());
        return host::shape_error(OP, "second weight", &got, expected);
    }
    if x.dtype() == candle_core::DType::F64 {
        // The reference is the composition itself.
        return second.forward(&gelu_tanh(&first.forward(x, None)?)?, None);
    }
    let op = FeedForward {
        first: first.clone(),
        second: second.clone(),
        keep: x.track_op(),
        inner: Mutex::default(),
    };
    x.contiguous()?.apply_op1(op)
}

struct FeedForward {
    first: FrozenLinear,
    second: FrozenLinear,
    /// Whether a gradient may be asked for.
    keep: bool,
    /// first(x), slice after slice: [M, ≤ SLICE] each.
    inner: Mutex<Vec<Vec<f32>>>,
}

fn slices(inner: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..inner).step_by(SLICE).map(move |start| start..inner.min(start + SLICE))
}

impl FeedForward {
    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<Vec<f32>>> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn forward(&self, x: &[f32], m: usize) -> Result<Vec<f32>> {
        let (width, inner, out) =
            (self.first.in_features(), self.first.out_features(), self.second.out_features());
        let mut y = host::unset(m * out);
        let mut begun = start_with_bias(self.second.bias(), &mut y)?;
        let (w1, w2) = (self.first.weight().open()?, self.second.weight().open()?);
        let mut y_view = ViewMut::new(&mut y, m, out);
        let mut active = host::unset(m * SLICE.min(inner));
        let mut kept = Vec::new();
        for slice in slices(inner) {
            let len = slice.len();
            let mut before = host::unset(m * len);
            let bias = self.first.bias().map(|bias| bias.narrow(0, slice.start, len)).transpose()?;
            let biased = start_with_bias(bias.as_ref(), &mut before)?;
            let x = View::new(x, m, width);
            w1.times_transposed(slice.clone(), 0..width, x, &mut ViewMut::new(&mut before, m, len), biased);
            let active = &mut active[..m * len];
            host::rows2(1, &before, active, |_, before, active| gelu_slice(before, active));
            w2.times_transposed(0..out, slice, View::new(active, m, len), &mut y_view, begun);
            begun = true;
            if self.keep {
                kept.push(before);
            }
        }
        *self.kept() = kept;
        Ok(y)
    }

    fn backward(&self, g: &[f32], m: usize) -> Result<Vec<f32>> {
        let (width, inner, out) =
            (self.first.in_features(), self.first.out_features(), self.second.out_features());
        let mut dx = host::unset(m * width);
        let mut dx_view = ViewMut::new(&mut dx, m, width);
        let (w1, w2) = (self.first.weight().open()?, self.second.weight().open()?);
        let mut d = host::unset(m * SLICE.min(inner));
        let kept = self.kept();
        for (slice, before) in slices(inner).zip(&*kept) {
            let len = slice.len();
            let d = &mut d[..m * len];
            w2.times(0..out, slice.clone(), View::new(g, m, out), &mut ViewMut::new(d, m, len), false);
            host::rows2(1, before, d, |_, before, d| gelu_backward_slice(before, d));
            let add = slice.start > 0;
            w1.times(slice, 0..width, View::new(d, m, len), &mut dx_view, add);
        }
        Ok(dx)
    }
}

impl CustomOp1 for FeedForward {
    fn name(&self) -> &'static str {
        "feed_forward"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut dims = layout.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = self.second.out_features();
        }
        let shape = Shape::from(dims);
        let dtype = host::dtype_of(storage);
        match host::activation(self.name(), "x", storage, layout)? {
            Host::F32(x) => {
                let m = x.len() / self.first.in_features().max(1);
                Ok((host::store(self.forward(&x, m)?, dtype), shape))
            }
            Host::F64(_) => Err(host::wrong_dtype(self.name(), "x", dtype)),
        }
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let (storage, layout) = grad.storage_and_layout();
        let storage = host::cpu(self.name(), &storage)?;
        match host::activation(self.name(), "the gradient", storage, layout)? {
            Host::F32(g) => {
                let m = g.len() / self.second.out_features().max(1);
                let dx = host::store(self.backward(&g, m)?, x.dtype());
                Ok(Some(host::tensor(dx, x.shape())))
            }
            Host::F64(_) => Err(host::wrong_dtype(self.name(), "the gradient", grad.dtype())),
        }
    }
}
