//! The plumbing of ops that map each row (last axis) to a row of the same width, with a gradient
//! for that one input: dtype, threads, the graph. The arithmetic is in the op.

use crate::error::Result;
use crate::host::{self, Host, Slice};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor};
use std::sync::Arc;

/// A row to row op. `constants` are f32 tensors (see [`host::constant`]), handed to the loops as slices.
pub(crate) trait RowOp: Send + Sync + 'static {
    const NAME: &'static str;
    /// Every element is its own row: blocks need not end with the last axis.
    const ELEMENTWISE: bool = false;

    fn constants(&self) -> Vec<&Tensor> {
        Vec::new()
    }
    /// Fast forward over a block of whole rows, the first of which is number `first`.
    fn forward(&self, constants: &[&[f32]], first: usize, width: usize, x: &[f32], y: &mut [f32]);
    /// Fast gradient over a block: `dx` is written, not added to.
    fn backward(
        &self,
        constants: &[&[f32]],
        first: usize,
        width: usize,
        x: &[f32],
        g: &[f32],
        dx: &mut [f32],
    );
    /// The reference: one row, the formula as it is written in the page that defines it.
    fn plain(&self, constants: &[&[f32]], row: usize, x: &[f64], y: &mut [f64]);
    /// The reference gradient of one row.
    fn plain_backward(&self, constants: &[&[f32]], row: usize, x: &[f64], g: &[f64], dx: &mut [f64]);
}

/// Applies an op, recorded when `x` is tracked.
pub(crate) fn apply<O: RowOp>(op: O, x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Rows(Arc::new(op)))
}

/// Applies an op to something outside the graph, such as a gradient.
pub(crate) fn apply_untracked<O: RowOp>(op: O, x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1_no_bwd(&Rows(Arc::new(op)))
}

struct Rows<O>(Arc<O>);
struct RowsBackward<O>(Arc<O>);

fn width_of<O: RowOp>(layout: &Layout) -> usize {
    if O::ELEMENTWISE { 1 } else { layout.dims().last().copied().unwrap_or(1).max(1) }
}

fn with_constants<O: RowOp, R>(op: &O, run: impl FnOnce(&[&[f32]]) -> R) -> Result<R> {
    let tensors = op.constants();
    let views = tensors.iter().map(|t| Slice::of(O::NAME, "a constant", t)).collect::<Result<Vec<_>>>()?;
    let slices: Vec<&[f32]> = views.iter().map(|view| &**view).collect();
    Ok(run(&slices))
}

impl<O: RowOp> CustomOp1 for Rows<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let op = &*self.0;
        let width = width_of::<O>(layout);
        let dtype = host::dtype_of(storage);
        let out = match host::activation(O::NAME, "x", storage, layout)? {
            Host::F32(x) => {
                let mut y = host::unset(x.len());
                with_constants(op, |c| {
                    host::rows2(width, &x, &mut y, |first, x, y| op.forward(c, first, width, x, y));
                })?;
                host::store(y, dtype)
            }
            Host::F64(x) => {
                let mut y = vec![0.0; x.len()];
                with_constants(op, |c| {
                    for (row, (x, y)) in x.chunks(width).zip(y.chunks_mut(width)).enumerate() {
                        op.plain(c, row, x, y);
                    }
                })?;
                CpuStorage::F64(y)
            }
        };
        Ok((out, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let op = RowsBackward(Arc::clone(&self.0));
        Ok(Some(x.apply_op2_no_bwd(&grad.contiguous()?, &op)?))
    }
}

impl<O: RowOp> CustomOp2 for RowsBackward<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let op = &*self.0;
        let width = width_of::<O>(layout);
        let dtype = host::dtype_of(storage);
        let x = host::activation(O::NAME, "x", storage, layout)?;
        let out = match (x, host::activation(O::NAME, "the gradient", grad, grad_layout)?) {
            (Host::F32(x), Host::F32(g)) => {
                let mut dx = host::unset(x.len());
                with_constants(op, |c| {
                    host::rows3(width, &x, &g, &mut dx, |first, x, g, dx| {
                        op.backward(c, first, width, x, g, dx);
                    });
                })?;
                host::store(dx, dtype)
            }
            (Host::F64(x), Host::F64(g)) => {
                let mut dx = vec![0.0; x.len()];
                with_constants(op, |c| {
                    let rows = x.chunks(width).zip(g.chunks(width)).zip(dx.chunks_mut(width));
                    for (row, ((x, g), dx)) in rows.enumerate() {
                        op.plain_backward(c, row, x, g, dx);
                    }
                })?;
                CpuStorage::F64(dx)
            }
            _ => return Err(host::wrong_dtype(O::NAME, "the gradient", dtype)),
        };
        Ok((out, layout.shape().clone()))
    }
}

/// The gradient of an op, to apply to (x, gradient of the result) outside the graph.
pub(crate) fn backward_of<O: RowOp>(op: O) -> impl CustomOp2 {
    RowsBackward(Arc::new(op))
}
