//! Adaptive scale, shift and gate.
//!
//! B batch, T tokens, W width, K distinct timesteps, R rows of a modulation set.
//!
//! A sample has one or two distinct timesteps, so the table holds one set of rows per distinct value and
//! each token an index: 6,000 tokens × 9 rows × 4096 are never written out. Modulation is made of
//! frozen weights and timesteps alone and takes no gradient.

use crate::error::{Error, Result};
use crate::host::{self, Host, Slice};
use crate::ops::norm::{Affine, Kind, Norm};
use crate::ops::rowwise;
use crate::simd_fn;
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Shape, Tensor};
use std::sync::Arc;

/// Sets of modulation rows, and which set each token uses.
#[derive(Clone, Debug)]
pub struct Modulation {
    /// [K, R, W], f32
    table: Tensor,
    /// Token → set; shared with the ops.
    index: Arc<[u32]>,
    /// [B, T]
    tokens: [usize; 2],
}

impl Modulation {
    /// Takes the final rows (table plus embedding) of each distinct timestep, and each token's set.
    ///
    /// table: [K, R, W] (constant), index: [B, T] u32, every value below K.
    pub fn new(table: &Tensor, index: &Tensor) -> Result<Self> {
        const OP: &str = "Modulation";
        if table.rank() != 3 {
            return host::shape_error(OP, "table", table, "[distinct timesteps, rows, width]");
        }
        let (batch, tokens) = match *index.dims() {
            [batch, tokens] => (batch, tokens),
            _ => return host::shape_error(OP, "index", index, "[batch, tokens]"),
        };
        if index.dtype() != DType::U32 {
            return Err(Error::DType { op: OP, what: "index", got: index.dtype(), expected: "u32" }.into());
        }
        let index: Arc<[u32]> = index.flatten_all()?.to_vec1::<u32>()?.into();
        let sets = table.dim(0)?;
        if let Some(&bad) = index.iter().find(|&&set| set as usize >= sets) {
            let expected = format!("below {sets}, the sets of the table");
            return Err(Error::Value { op: OP, what: "index", got: bad.to_string(), expected }.into());
        }
        Ok(Self { table: host::constant(OP, "table", table)?, index, tokens: [batch, tokens] })
    }

    /// One set per sample, the same for all its tokens. table: [B, R, W] (constant).
    pub fn per_sample(table: &Tensor, tokens: usize) -> Result<Self> {
        let (batch, _, _) = table.dims3()?;
        let index: Vec<u32> = (0..batch).flat_map(|b| std::iter::repeat_n(b as u32, tokens)).collect();
        Self::new(table, &Tensor::from_vec(index, (batch, tokens), table.device())?)
    }

    /// The rows of every set: [K, R, W], f32.
    #[must_use]
    pub fn table(&self) -> &Tensor {
        &self.table
    }

    /// Picks rows for an op over x: [B, T, W].
    pub(crate) fn rows(&self, op: &'static str, x: &Tensor, rows: &[usize]) -> Result<Rows> {
        let (_, count, width) = self.table.dims3()?;
        let [batch, tokens] = self.tokens;
        if x.dims() != [batch, tokens, width] {
            return host::shape_error(op, "x", x, format!("[{batch}, {tokens}, {width}], as the modulation"));
        }
        if let Some(row) = rows.iter().find(|row| **row >= count) {
            let expected = format!("below {count}, the rows of the modulation");
            return Err(Error::Value { op, what: "row", got: row.to_string(), expected }.into());
        }
        let rows = [rows[0], rows.get(1).copied().unwrap_or(rows[0])];
        Ok(Rows { table: self.table.clone(), index: Arc::clone(&self.index), count, width, rows })
    }
}

/// One or two rows of a [`Modulation`], per token.
#[derive(Clone)]
pub(crate) struct Rows {
    table: Tensor,
    index: Arc<[u32]>,
    count: usize,
    width: usize,
    rows: [usize; 2],
}

impl Rows {
    pub(crate) fn table(&self) -> &Tensor {
        &self.table
    }

    /// The `which`-th picked row for a token.
    pub(crate) fn get<'a>(&self, table: &'a [f32], token: usize, which: usize) -> &'a [f32] {
        let start = (self.index[token] as usize * self.count + self.rows[which]) * self.width;
        &table[start..start + self.width]
    }
}

/// x·(1 + scale) + shift, with each token's rows. x: [B, T, W].
///
/// Source: `spec/model-transformer.md` §7.
pub fn modulate(x: &Tensor, m: &Modulation, shift: usize, scale: usize) -> Result<Tensor> {
    let rows = m.rows("modulate", x, &[shift, scale])?;
    rowwise::apply(Norm { kind: Kind::Identity, affine: Affine::ScaleShift(rows), rope: None }, x)
}

/// residual + x·gate, with each token's row. residual, x: [B, T, W]. Gradients for both.
pub fn gate_residual(residual: &Tensor, x: &Tensor, m: &Modulation, gate: usize) -> Result<Tensor> {
    const OP: &str = "gate_residual";
    if residual.dims() != x.dims() {
        return host::shape_error(OP, "residual", residual, format!("{:?}, as x", x.dims()));
    }
    host::same_dtype(OP, "residual", x, residual)?;
    let rows = m.rows(OP, x, &[gate])?;
    residual.contiguous()?.apply_op2(&x.contiguous()?, GateResidual { gate: rows })
}

struct GateResidual {
    gate: Rows,
}

impl CustomOp2 for GateResidual {
    fn name(&self) -> &'static str {
        "gate_residual"
    }

    fn cpu_fwd(
        &self,
        residual: &CpuStorage,
        residual_layout: &Layout,
        x: &CpuStorage,
        layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let op = self.name();
        let table = Slice::of(op, "modulation", self.gate.table())?;
        let (table, width) = (&*table, self.gate.width);
        let dtype = host::dtype_of(x);
        let residual = host::activation(op, "residual", residual, residual_layout)?;
        let out = match (residual, host::activation(op, "x", x, layout)?) {
            (Host::F32(residual), Host::F32(x)) => {
                let mut y = host::unset(x.len());
                host::rows3(width, &x, &residual, &mut y, |first, x, residual, y| {
                    let rows = x.chunks(width).zip(residual.chunks(width)).zip(y.chunks_mut(width));
                    for (i, ((x, residual), y)) in rows.enumerate() {
                        add_scaled(residual, x, self.gate.get(table, first + i, 0), y);
                    }
                });
                host::store(y, dtype)
            }
            (Host::F64(residual), Host::F64(x)) => {
                let gate = |i: usize| f64::from(self.gate.get(table, i / width, 0)[i % width]);
                CpuStorage::F64((0..x.len()).map(|i| residual[i] + x[i] * gate(i)).collect())
            }
            _ => return Err(host::wrong_dtype(op, "residual", dtype)),
        };
        Ok((out, layout.shape().clone()))
    }

    fn bwd(
        &self,
        residual: &Tensor,
        x: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let to_x = || {
            let affine = Affine::Gate(self.gate.clone());
            rowwise::apply_untracked(Norm { kind: Kind::Identity, affine, rope: None }, grad)
        };
        Ok((residual.track_op().then(|| grad.clone()), x.track_op().then(to_x).transpose()?))
    }
}

simd_fn! {
    fn add_scaled(residual: &[f32], x: &[f32], gate: &[f32], y: &mut [f32]) {
        for (((y, x), residual), gate) in y.iter_mut().zip(x).zip(residual).zip(gate) {
            *y = residual + x * gate;
        }
    }
}
