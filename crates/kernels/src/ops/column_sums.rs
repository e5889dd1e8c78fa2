//! Sums over all rows, as ones·X: 20 times faster than a strided sum, and in f32 where a sum of
//! 65,536 bf16 ones would end at 256.

use crate::error::Result;
use crate::host::{self, Host};
use crate::matrix::{Threads, View, ViewMut, product};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

/// Σ over all axes but the last. x: `[.., W]` → `[W]`. Gradient for x.
pub fn column_sums(x: &Tensor) -> Result<Tensor> {
    if x.rank() == 0 {
        return host::shape_error("column_sums", "x", x, "[.., width]");
    }
    x.contiguous()?.apply_op1(ColumnSums)
}

struct ColumnSums;

impl CustomOp1 for ColumnSums {
    fn name(&self) -> &'static str {
        "column_sums"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = layout.dims().last().copied().unwrap_or(1);
        let rows = layout.shape().elem_count() / width.max(1);
        let out = match host::activation(self.name(), "x", storage, layout)? {
            Host::F32(x) => {
                let mut sums = vec![0.0; width];
                let ones = vec![1.0; rows];
                let (ones, x) = (View::new(&ones, 1, rows), View::new(&x, rows, width));
                product(&mut ViewMut::new(&mut sums, 1, width), false, 1.0, ones, x, Threads::All);
                host::store(sums, host::dtype_of(storage))
            }
            Host::F64(x) => {
                let mut sums = vec![0.0; width];
                for (i, x) in x.iter().enumerate() {
                    sums[i % width] += x;
                }
                CpuStorage::F64(sums)
            }
        };
        Ok((out, Shape::from(width)))
    }

    fn bwd(&self, x: &Tensor, _sums: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad.broadcast_as(x.shape())?.contiguous()?))
    }
}
