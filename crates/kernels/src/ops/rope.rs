//! Split rotary embedding: each head's vector is cut in halves z₁, z₂ and turned to
//! [z₁·cos − z₂·sin, z₂·cos + z₁·sin].
//!
//! B batch, T tokens, A axes, H heads, D head size. Angles, cosines and sines are f32.
//! Source: `spec/model-transformer.md` §4, `spec/model-text.md` §2.3 and §4.

use crate::error::{Error, Result};
use crate::host;
use crate::ops::norm::{Affine, Kind, Norm};
use crate::ops::rowwise;
use crate::simd_fn;
use candle_core::{DType, Device, Tensor};

/// In which precision the frequency grid is computed before it is rounded to f32, the checkpoint's
/// `frequencies_precision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// "float64": exponents, powers and the product with π/2 in f64.
    F64,
    /// "float32": all in f32.
    F32,
}

/// The frequency grid g_k = (π/2)·θ^(k/(n−1)), k = 0 … n−1, rounded to f32 once.
#[must_use]
pub fn rope_grid(theta: f64, n: usize, precision: Precision) -> Vec<f32> {
    let last = n.saturating_sub(1).max(1);
    (0..n)
        .map(|k| match precision {
            Precision::F64 => (std::f64::consts::FRAC_PI_2 * theta.powf(k as f64 / last as f64)) as f32,
            Precision::F32 => std::f32::consts::FRAC_PI_2 * (theta as f32).powf(k as f32 / last as f32),
        })
        .collect()
}

/// Cosines and sines of every token.
#[derive(Clone, Debug)]
pub struct Rope {
    /// [B or 1, T, E], f32, E = H·D/2 or D/2
    cos: Tensor,
    sin: Tensor,
    head_dim: usize,
    tokens: usize,
    /// Tables per batch item: 1 for all, else B.
    batch: usize,
    /// E
    entries: usize,
}

impl Rope {
    /// Takes ready tables.
    ///
    /// cos, sin: [B or 1, T, H·D/2] (each head its own run) or [B or 1, T, D/2] (shared by all heads).
    pub fn new(cos: &Tensor, sin: &Tensor, head_dim: usize) -> Result<Self> {
        const OP: &str = "Rope";
        let [batch, tokens, entries] = *cos.dims() else {
            return host::shape_error(OP, "cos", cos, "[batch or 1, tokens, entries]");
        };
        if sin.dims() != cos.dims() {
            return host::shape_error(OP, "sin", sin, format!("{:?}, as cos", cos.dims()));
        }
        if head_dim == 0 || !head_dim.is_multiple_of(2) || !entries.is_multiple_of(head_dim / 2) {
            let expected = "even, and entries a multiple of its half".into();
            let got = format!("{head_dim} with {entries} entries per token");
            return Err(Error::Value { op: OP, what: "head_dim", got, expected }.into());
        }
        let (cos, sin) = (host::constant(OP, "cos", cos)?, host::constant(OP, "sin", sin)?);
        Ok(Self { cos, sin, head_dim, tokens, batch, entries })
    }

    /// Makes the tables of the split embedding.
    ///
    /// positions: [B or 1, T, A] f32, each already mapped to u = 2·(q/M) − 1; grid from [`rope_grid`].
    /// Entry k·A + a is the angle g_k·u_a in f32; what is missing up to H·D/2 entries is padded in
    /// front with cos 1, sin 0.
    pub fn split(positions: &Tensor, grid: &[f32], heads: usize, head_dim: usize) -> Result<Self> {
        const OP: &str = "Rope::split";
        let [batch, tokens, axes] = *positions.dims() else {
            return host::shape_error(OP, "positions", positions, "[batch or 1, tokens, axes]");
        };
        if positions.dtype() != DType::F32 {
            // bf16 positions would shift every angle.
            let expected = "f32";
            return Err(Error::DType { op: OP, what: "positions", got: positions.dtype(), expected }.into());
        }
        let entries = heads * head_dim / 2;
        let Some(pad) = entries.checked_sub(grid.len() * axes) else {
            let got = format!("{} frequencies on {axes} axes", grid.len());
            let expected = format!("at most {entries} entries per token");
            return Err(Error::Value { op: OP, what: "grid", got, expected }.into());
        };
        let positions = positions.flatten_all()?.to_vec1::<f32>()?;
        let mut cos = vec![1.0f32; batch * tokens * entries];
        let mut sin = vec![0.0f32; batch * tokens * entries];
        for (token, u) in positions.chunks(axes.max(1)).enumerate() {
            let start = token * entries + pad;
            for (k, g) in grid.iter().enumerate() {
                for (a, u) in u.iter().enumerate() {
                    let angle = u * g;
                    cos[start + k * axes + a] = angle.cos();
                    sin[start + k * axes + a] = angle.sin();
                }
            }
        }
        let table = |data| Tensor::from_vec(data, (batch, tokens, entries), &Device::Cpu);
        Self::new(&table(cos)?, &table(sin)?, head_dim)
    }

    /// The same tables after a round trip through `dtype`: what a model running in bf16 uses.
    pub fn rounded_to(&self, dtype: DType) -> Result<Self> {
        Self::new(&self.cos.to_dtype(dtype)?, &self.sin.to_dtype(dtype)?, self.head_dim)
    }

    /// [B or 1, T, entries], f32.
    #[must_use]
    pub fn cos(&self) -> &Tensor {
        &self.cos
    }

    /// [B or 1, T, entries], f32.
    #[must_use]
    pub fn sin(&self) -> &Tensor {
        &self.sin
    }

    /// D
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Checks the tables against x: [B, T, H·D].
    pub(crate) fn fit(&self, op: &'static str, x: &Tensor) -> Result<Self> {
        let fits = match *x.dims() {
            [batch, tokens, width] => {
                (self.batch == 1 || self.batch == batch)
                    && tokens == self.tokens
                    && width % self.head_dim == 0
                    && (self.entries * 2 == self.head_dim || self.entries * 2 == width)
            }
            _ => false,
        };
        if fits {
            return Ok(self.clone());
        }
        let expected = format!(
            "[batch, {}, heads × {}] for tables of {:?}",
            self.tokens,
            self.head_dim,
            self.cos.dims()
        );
        host::shape_error(op, "x", x, expected)
    }

    /// The entries of one row of x.
    pub(crate) fn row<'a>(&self, table: &'a [f32], row: usize) -> &'a [f32] {
        let row = if self.batch == 1 { row % self.tokens } else { row };
        &table[row * self.entries..][..self.entries]
    }
}

/// Turns each head of x: [B, T, H·D].
pub fn rope(x: &Tensor, rope: &Rope) -> Result<Tensor> {
    let rope = rope.fit("rope", x)?;
    rowwise::apply(Norm { kind: Kind::Identity, affine: Affine::None, rope: Some(rope) }, x)
}

simd_fn! {
    /// Turns one row in place; `direction` -1 turns back, which is the gradient.
    pub(crate) fn rotate(head_dim: usize, direction: f32, cos: &[f32], sin: &[f32], row: &mut [f32]) {
        let half = head_dim / 2;
        let shared = cos.len() == half;
        for (head, z) in row.chunks_exact_mut(head_dim).enumerate() {
            let start = if shared { 0 } else { head * half };
            let (cos, sin) = (&cos[start..start + half], &sin[start..start + half]);
            let (z1, z2) = z.split_at_mut(half);
            for (((a, b), c), s) in z1.iter_mut().zip(z2).zip(cos).zip(sin) {
                let s = direction * s;
                let turned = *a * c - *b * s;
                *b = *b * c + *a * s;
                *a = turned;
            }
        }
    }
}

/// The reference of [`rotate`].
pub(crate) fn rotate_plain(head_dim: usize, direction: f64, cos: &[f32], sin: &[f32], row: &mut [f64]) {
    let half = head_dim / 2;
    for head in 0..row.len() / head_dim {
        for i in 0..half {
            let entry = (head * half + i) % cos.len();
            let (c, s) = (f64::from(cos[entry]), direction * f64::from(sin[entry]));
            let (z1, z2) = (row[head * head_dim + i], row[head * head_dim + half + i]);
            row[head * head_dim + i] = z1 * c - z2 * s;
            row[head * head_dim + half + i] = z2 * c + z1 * s;
        }
    }
}
