//! Softmax over the last axis.

use crate::error::Result;
use crate::ops::rowwise::{self, RowOp};
use crate::simd_fn;
use crate::vecmath::{exp, max, sum1, sum2};
use candle_core::Tensor;

/// eˣ / Σ eˣ over the last axis, in f32. A row of -∞ gives zeros.
pub fn softmax_last_dim(x: &Tensor) -> Result<Tensor> {
    rowwise::apply(Softmax, x)
}

struct Softmax;

simd_fn! {
    fn softmax_row(x: &[f32], y: &mut [f32]) {
        let top = max(x);
        let top = if top == f32::NEG_INFINITY { 0.0 } else { top };
        for (y, x) in y.iter_mut().zip(x) {
            *y = exp::<FMA>(x - top);
        }
        let total = sum1(y, |y| y);
        let scale = if total > 0.0 { 1.0 / total } else { total };
        for y in y.iter_mut() {
            *y *= scale;
        }
    }
}

simd_fn! {
    /// y holds the softmax and becomes the gradient y ⊙ (g − Σ g·y).
    fn softmax_backward_row(g: &[f32], y: &mut [f32]) {
        let along = sum2(g, y, |g, y| g * y);
        for (y, g) in y.iter_mut().zip(g) {
            *y *= g - along;
        }
    }
}

impl RowOp for Softmax {
    const NAME: &'static str = "softmax_last_dim";

    fn forward(&self, _: &[&[f32]], _: usize, width: usize, x: &[f32], y: &mut [f32]) {
        for (x, y) in x.chunks(width).zip(y.chunks_mut(width)) {
            softmax_row(x, y);
        }
    }

    fn backward(&self, _: &[&[f32]], _: usize, width: usize, x: &[f32], g: &[f32], dx: &mut [f32]) {
        for ((x, g), dx) in x.chunks(width).zip(g.chunks(width)).zip(dx.chunks_mut(width)) {
            softmax_row(x, dx);
            softmax_backward_row(g, dx);
        }
    }

    fn plain(&self, _: &[&[f32]], _: usize, x: &[f64], y: &mut [f64]) {
        let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if top == f64::NEG_INFINITY {
            y.fill(0.0);
            return;
        }
        let total: f64 = x.iter().map(|x| (x - top).exp()).sum();
        for (y, x) in y.iter_mut().zip(x) {
            *y = (x - top).exp() / total;
        }
    }

    fn plain_backward(&self, constants: &[&[f32]], row: usize, x: &[f64], g: &[f64], dx: &mut [f64]) {
        self.plain(constants, row, x, dx);
        let along: f64 = g.iter().zip(dx.iter()).map(|(g, y)| g * y).sum();
        for (y, g) in dx.iter_mut().zip(g) {
            *y *= g - along;
        }
    }
}
