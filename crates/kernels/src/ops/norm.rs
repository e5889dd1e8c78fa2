//! Norms over the last axis, with what follows them in a block folded in: a weight or a modulation,
//! then a rotation. One pass over memory instead of three.
//!
//! T tokens, W width (last axis). All sums in f32 (f64 in the reference).
//!
//! ```text
//! n = x·r,        r = 1/√(mean(x²) + ε)            RMS
//! n = (x − μ)·r,  r = 1/√(mean((x − μ)²) + ε)      layer
//! y = rotate(n ⊙ α + β)        α: weight or 1 + scale; β: shift
//! ```
//!
//! The gradient recomputes r from x: nothing but x is kept.

use crate::error::Result;
use crate::host;
use crate::ops::modulate::{Modulation, Rows};
use crate::ops::rope::{Rope, rotate, rotate_plain};
use crate::ops::rowwise::{self, RowOp};
use crate::simd_fn;
use crate::vecmath::{sum1, sum2};
use candle_core::Tensor;

/// RMS norm over the last axis: x / √(mean(x²) + ε), times `weight` where one is given.
///
/// x: [.., W], weight: `[W]` (constant). Gemma's weights are offsets from one: add the one at load.
pub fn rms_norm(x: &Tensor, weight: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let affine = match weight {
        Some(weight) => Affine::Weight(norm_weight("rms_norm", x, weight)?),
        None => Affine::None,
    };
    rowwise::apply(Norm { kind: Kind::Rms(eps), affine, rope: None }, x)
}

/// Layer norm over the last axis without weight or bias: (x − mean) / √(variance + ε). x: [.., W].
pub fn layer_norm(x: &Tensor, eps: f64) -> Result<Tensor> {
    rowwise::apply(Norm { kind: Kind::Layer(eps), affine: Affine::None, rope: None }, x)
}

/// RMS norm over the whole width, times `weight`, then the rotation of each head.
///
/// x: [B, T, H·D], weight: [H·D] (constant). Source: `spec/model-transformer.md` §6, step 2 and 3.
pub fn rms_norm_rope(x: &Tensor, weight: &Tensor, eps: f64, rope: Option<&Rope>) -> Result<Tensor> {
    let weight = norm_weight("rms_norm_rope", x, weight)?;
    let rope = rope.map(|rope| rope.fit("rms_norm_rope", x)).transpose()?;
    rowwise::apply(Norm { kind: Kind::Rms(eps), affine: Affine::Weight(weight), rope }, x)
}

/// RMS norm, then ·(1 + scale) + shift of each token's modulation. x: [B, T, W].
pub fn rms_norm_modulate(x: &Tensor, m: &Modulation, shift: usize, scale: usize, eps: f64) -> Result<Tensor> {
    let rows = m.rows("rms_norm_modulate", x, &[shift, scale])?;
    rowwise::apply(Norm { kind: Kind::Rms(eps), affine: Affine::ScaleShift(rows), rope: None }, x)
}

/// Layer norm, then ·(1 + scale) + shift of each token's modulation. x: [B, T, W].
pub fn layer_norm_modulate(
    x: &Tensor,
    m: &Modulation,
    shift: usize,
    scale: usize,
    eps: f64,
) -> Result<Tensor> {
    let rows = m.rows("layer_norm_modulate", x, &[shift, scale])?;
    rowwise::apply(Norm { kind: Kind::Layer(eps), affine: Affine::ScaleShift(rows), rope: None }, x)
}

fn norm_weight(op: &'static str, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let width = x.dims().last().copied().unwrap_or(0);
    if weight.dims() != [width] {
        return host::shape_error(op, "weight", weight, format!("[{width}], the last axis of x"));
    }
    host::constant(op, "weight", weight)
}

/// Which norm, with its ε.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Identity,
    Rms(f64),
    Layer(f64),
}

/// α and β. The rows of a [`Modulation`] are per token.
pub(crate) enum Affine {
    None,
    Weight(Tensor),
    /// Rows 0 and 1: shift, scale.
    ScaleShift(Rows),
    /// Row 0: a plain factor.
    Gate(Rows),
}

/// The row op behind every function of this module, of `modulate` and of `rope`.
pub(crate) struct Norm {
    pub(crate) kind: Kind,
    pub(crate) affine: Affine,
    pub(crate) rope: Option<Rope>,
}

/// One row's α = base + a and β.
#[derive(Clone, Copy)]
struct RowAffine<'a> {
    base: f32,
    a: Option<&'a [f32]>,
    shift: Option<&'a [f32]>,
}

impl Norm {
    fn affine<'a>(&self, constants: &[&'a [f32]], row: usize) -> RowAffine<'a> {
        match &self.affine {
            Affine::None => RowAffine { base: 1.0, a: None, shift: None },
            Affine::Weight(_) => RowAffine { base: 0.0, a: Some(constants[0]), shift: None },
            Affine::ScaleShift(rows) => RowAffine {
                base: 1.0,
                a: Some(rows.get(constants[0], row, 1)),
                shift: Some(rows.get(constants[0], row, 0)),
            },
            Affine::Gate(rows) => {
                RowAffine { base: 0.0, a: Some(rows.get(constants[0], row, 0)), shift: None }
            }
        }
    }

    /// The cosines and sines of a row.
    fn angles<'a>(&self, constants: &[&'a [f32]], row: usize) -> Option<(&'a [f32], &'a [f32])> {
        let rope = self.rope.as_ref()?;
        let [.., cos, sin] = constants else { return None };
        Some((rope.row(cos, row), rope.row(sin, row)))
    }
}

impl RowOp for Norm {
    const NAME: &'static str = "norm";

    fn constants(&self) -> Vec<&Tensor> {
        let mut all = match &self.affine {
            Affine::None => vec![],
            Affine::Weight(weight) => vec![weight],
            Affine::ScaleShift(rows) | Affine::Gate(rows) => vec![rows.table()],
        };
        if let Some(rope) = &self.rope {
            all.extend([rope.cos(), rope.sin()]);
        }
        all
    }

    fn forward(&self, constants: &[&[f32]], first: usize, width: usize, x: &[f32], y: &mut [f32]) {
        for (i, (x, y)) in x.chunks(width).zip(y.chunks_mut(width)).enumerate() {
            normalise(self.kind, self.affine(constants, first + i), x, y);
            if let (Some((cos, sin)), Some(rope)) = (self.angles(constants, first + i), &self.rope) {
                rotate(rope.head_dim(), 1.0, cos, sin, y);
            }
        }
    }

    fn backward(
        &self,
        constants: &[&[f32]],
        first: usize,
        width: usize,
        x: &[f32],
        g: &[f32],
        dx: &mut [f32],
    ) {
        for (i, ((x, g), dx)) in x.chunks(width).zip(g.chunks(width)).zip(dx.chunks_mut(width)).enumerate() {
            dx.copy_from_slice(g);
            if let (Some((cos, sin)), Some(rope)) = (self.angles(constants, first + i), &self.rope) {
                rotate(rope.head_dim(), -1.0, cos, sin, dx);
            }
            normalise_backward(self.kind, self.affine(constants, first + i), x, dx);
        }
    }

    fn plain(&self, constants: &[&[f32]], row: usize, x: &[f64], y: &mut [f64]) {
        let affine = self.affine(constants, row);
        let (mean, r) = moments(self.kind, x);
        for i in 0..x.len() {
            let alpha = f64::from(affine.base) + affine.a.map_or(0.0, |a| f64::from(a[i]));
            let shift = affine.shift.map_or(0.0, |shift| f64::from(shift[i]));
            y[i] = (x[i] - mean) * r * alpha + shift;
        }
        if let (Some((cos, sin)), Some(rope)) = (self.angles(constants, row), &self.rope) {
            rotate_plain(rope.head_dim(), 1.0, cos, sin, y);
        }
    }

    fn plain_backward(&self, constants: &[&[f32]], row: usize, x: &[f64], g: &[f64], dx: &mut [f64]) {
        let affine = self.affine(constants, row);
        let mut g = g.to_vec();
        if let (Some((cos, sin)), Some(rope)) = (self.angles(constants, row), &self.rope) {
            rotate_plain(rope.head_dim(), -1.0, cos, sin, &mut g);
        }
        for (i, g) in g.iter_mut().enumerate() {
            *g *= f64::from(affine.base) + affine.a.map_or(0.0, |a| f64::from(a[i]));
        }
        let (mean, r) = moments(self.kind, x);
        let width = x.len() as f64;
        let n: Vec<f64> = x.iter().map(|x| (x - mean) * r).collect();
        let along: f64 = g.iter().zip(&n).map(|(g, n)| g * n).sum::<f64>() / width;
        let level: f64 = g.iter().sum::<f64>() / width;
        for i in 0..x.len() {
            dx[i] = match self.kind {
                Kind::Identity => g[i],
                Kind::Rms(_) => r * (g[i] - n[i] * along),
                Kind::Layer(_) => r * (g[i] - level - n[i] * along),
            };
        }
    }
}

/// Mean to subtract and factor, by the formula of the module's head.
fn moments(kind: Kind, x: &[f64]) -> (f64, f64) {
    let width = x.len() as f64;
    match kind {
        Kind::Identity => (0.0, 1.0),
        Kind::Rms(eps) => (0.0, 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / width + eps).sqrt()),
        Kind::Layer(eps) => {
            let mean = x.iter().sum::<f64>() / width;
            let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / width;
            (mean, 1.0 / (variance + eps).sqrt())
        }
    }
}

#[inline(always)]
fn moments32(kind: Kind, x: &[f32]) -> (f32, f32) {
    let width = x.len() as f32;
    match kind {
        Kind::Identity => (0.0, 1.0),
        Kind::Rms(eps) => (0.0, 1.0 / (sum1(x, |x| x * x) / width + eps as f32).sqrt()),
        Kind::Layer(eps) => {
            let mean = sum1(x, |x| x) / width;
            let variance = sum1(x, |x| (x - mean) * (x - mean)) / width;
            (mean, 1.0 / (variance + eps as f32).sqrt())
        }
    }
}

simd_fn! {
    /// One row forward, without the rotation.
    fn normalise(kind: Kind, affine: RowAffine<'_>, x: &[f32], y: &mut [f32]) {
        let (mean, r) = moments32(kind, x);
        let base = affine.base;
        match (affine.a, affine.shift) {
            (None, _) => {
                for (y, x) in y.iter_mut().zip(x) {
                    *y = (x - mean) * r * base;
                }
            }
            (Some(a), None) => {
                for ((y, x), a) in y.iter_mut().zip(x).zip(a) {
                    *y = (x - mean) * r * (base + a);
                }
            }
            (Some(a), Some(shift)) => {
                for (((y, x), a), shift) in y.iter_mut().zip(x).zip(a).zip(shift) {
                    *y = (x - mean) * r * (base + a) + shift;
                }
            }
        }
    }
}

simd_fn! {
    /// One row backward: `d` holds the gradient of n ⊙ α + β and becomes that of x.
    fn normalise_backward(kind: Kind, affine: RowAffine<'_>, x: &[f32], d: &mut [f32]) {
        if let Some(a) = affine.a {
            for (d, a) in d.iter_mut().zip(a) {
                *d *= affine.base + a;
            }
        }
        let width = x.len() as f32;
        match kind {
            Kind::Identity => {}
            Kind::Rms(_) => {
                let (_, r) = moments32(kind, x);
                let along = sum2(x, d, |x, d| x * d) * r * r / width;
                for (d, x) in d.iter_mut().zip(x) {
                    *d = r * (*d - x * along);
                }
            }
            Kind::Layer(_) => {
                let (mean, r) = moments32(kind, x);
                let level = sum1(d, |d| d) / width;
                let along = sum2(x, d, |x, d| (x - mean) * d) * r * r / width;
                for (d, x) in d.iter_mut().zip(x) {
                    *d = r * (*d - level - (x - mean) * along);
                }
            }
        }
    }
}
