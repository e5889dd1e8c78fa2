//! Base weights: the only type that knows how one is stored.

use crate::error::{Error, Result};
use crate::host::{self, widen_slice};
use crate::matrix::{Threads, View, ViewMut, product};
use candle_core::{CpuStorage, DType, Device, Storage, StorageRef, Tensor};
use half::bf16;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

/// A weight that never changes and never receives a gradient.
///
/// Stored as it came (f32, bf16; f64 in checks). bf16 is widened in blocks of rows into scratch on
/// the way into the product: exact, half the memory. Clones share the storage.
#[derive(Clone, Debug)]
pub struct FrozenWeight {
    /// [out, in], contiguous (but for a placeholder), untracked.
    tensor: Tensor,
    rows: usize,
    cols: usize,
}

/// Elements of a weight that are widened at a time: 8 MiB of f32 per thread that multiplies.
const BLOCK: usize = 2 << 20;

impl FrozenWeight {
    /// Takes a weight of shape [out, in] in f32, bf16 or f64.
    pub fn new(tensor: Tensor) -> Result<Self> {
        const OP: &str = "FrozenWeight";
        let [rows, cols] = *tensor.dims() else {
            return host::shape_error(OP, "weight", &tensor, "[out, in]");
        };
        if tensor.track_op() {
            return Err(Error::TrackedConstant { op: OP, what: "weight" }.into());
        }
        if !matches!(tensor.dtype(), DType::F32 | DType::BF16 | DType::F64) {
            return Err(host::wrong_dtype(OP, "weight", tensor.dtype()));
        }
        // A value without memory of its own (a placeholder of a walk that learns names and shapes) stays one:
        // making it contiguous would allocate the weight. Products refuse it.
        let placeholder = tensor.stride().iter().all(|&stride| stride == 0);
        let tensor = if placeholder { tensor } else { tensor.contiguous()? };
        Ok(Self { tensor, rows, cols })
    }

    /// Rows of the weight.
    #[must_use]
    pub fn out_features(&self) -> usize {
        self.rows
    }

    /// Columns of the weight.
    #[must_use]
    pub fn in_features(&self) -> usize {
        self.cols
    }

    /// The dtype it is stored in.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.tensor.dtype()
    }

    /// Bytes it occupies.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.rows * self.cols * self.tensor.dtype().size_in_bytes()
    }

    /// Where it lies.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.tensor.device()
    }

    /// A widened copy of the whole weight: [out, in].
    pub fn to_tensor(&self, dtype: DType) -> Result<Tensor> {
        self.tensor.to_dtype(dtype)
    }

    /// Widened copies of some rows: [ids, in]. An embedding lookup.
    pub fn rows(&self, ids: &[u32], dtype: DType) -> Result<Tensor> {
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.rows) {
            let expected = format!("below {}, the rows of the weight", self.rows);
            let got = id.to_string();
            return Err(Error::Value { op: "FrozenWeight::rows", what: "id", got, expected }.into());
        }
        let ids = Tensor::new(ids, self.tensor.device())?;
        self.tensor.index_select(&ids, 0)?.to_dtype(dtype)
    }

    /// Opens it for products on the host.
    pub(crate) fn open(&self) -> Result<Opened<'_>> {
        let (storage, layout) = self.tensor.storage_and_layout();
        let Some((start, _)) = layout.contiguous_offsets() else {
            return host::shape_error("FrozenWeight", "weight", &self.tensor, "contiguous elements");
        };
        if !matches!(&*storage, Storage::Cpu(_)) {
            return Err(Error::Device { op: "FrozenWeight", what: "weight" }.into());
        }
        Ok(Opened { storage, start, rows: self.rows, cols: self.cols })
    }
}

/// A weight W on the host, as products see it. Holds the storage's read lock.
pub(crate) struct Opened<'a> {
    storage: StorageRef<'a>,
    start: usize,
    rows: usize,
    cols: usize,
}

#[derive(Clone, Copy)]
enum Elements<'a> {
    F32(&'a [f32]),
    BF16(&'a [bf16]),
    F64(&'a [f64]),
}

thread_local! {
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Lends this thread's scratch. A nested loan (work stolen while waiting) gets a fresh one.
pub(crate) fn with_scratch<R>(len: usize, run: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut scratch = SCRATCH.take();
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    let result = run(&mut scratch[..len]);
    SCRATCH.set(scratch);
    result
}

impl Opened<'_> {
    fn elements(&self) -> Elements<'_> {
        let range = self.start..self.start + self.rows * self.cols;
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(data)) => Elements::F32(&data[range]),
            Storage::Cpu(CpuStorage::BF16(data)) => Elements::BF16(&data[range]),
            Storage::Cpu(CpuStorage::F64(data)) => Elements::F64(&data[range]),
            _ => unreachable!("invariant: checked when the weight was made and opened"),
        }
    }

    /// Element (row, column), for the reference loops.
    pub(crate) fn at(&self, row: usize, col: usize) -> f64 {
        let i = row * self.cols + col;
        match self.elements() {
            Elements::F32(data) => f64::from(data[i]),
            Elements::BF16(data) => f64::from(data[i].to_f32()),
            Elements::F64(data) => data[i],
        }
    }

    /// Calls `run(rows of this block, the block)` for W[rows, cols] in blocks of rows.
    fn blocks(&self, rows: Range<usize>, cols: Range<usize>, mut run: impl FnMut(Range<usize>, View<'_>)) {
        assert!(rows.end <= self.rows && cols.end <= self.cols, "invariant: a block lies inside the weight");
        let (ld, width) = (self.cols, cols.len());
        let elements = self.elements();
        if let Elements::F32(data) = elements {
            if !rows.is_empty() && width > 0 {
                let view = View::strided(&data[rows.start * ld + cols.start..], rows.len(), width, ld);
                run(rows, view);
            }
            return;
        }
        let widen = |row: usize, to: &mut [f32]| {
            let at = row * ld + cols.start..row * ld + cols.end;
            match elements {
                Elements::F32(data) => to.copy_from_slice(&data[at]),
                Elements::BF16(data) => widen_slice(&data[at], to),
                Elements::F64(data) => to.iter_mut().zip(&data[at]).for_each(|(to, from)| *to = *from as f32),
            }
        };
        let height = (BLOCK / width.max(1)).clamp(1, rows.len().max(1));
        with_scratch(height * width, |scratch| {
            let mut first = rows.start;
            while first < rows.end {
                let block = first..rows.end.min(first + height);
                let wide = &mut scratch[..block.len() * width];
                wide.par_chunks_mut(width.max(1))
                    .with_min_len((host::TASK / width.max(1)).max(1))
                    .enumerate()
                    .for_each(|(i, to)| widen(block.start + i, to));
                run(block.clone(), View::new(wide, block.len(), width));
                first = block.end;
            }
        });
    }

    /// y (+)= x · W[rows, cols]ᵀ. x: [M, cols], y: [M, rows].
    pub(crate) fn times_transposed(
        &self,
        rows: Range<usize>,
        cols: Range<usize>,
        x: View<'_>,
        y: &mut ViewMut<'_>,
        add: bool,
    ) {
        let start = rows.start;
        self.blocks(rows, cols, |block, w| {
            let part = block.start - start..block.end - start;
            product(&mut y.columns(part), add, 1.0, x, w.transposed(), Threads::All);
        });
    }

    /// dx (+)= g · W[rows, cols]. g: [M, rows], dx: [M, cols].
    pub(crate) fn times(
        &self,
        rows: Range<usize>,
        cols: Range<usize>,
        g: View<'_>,
        dx: &mut ViewMut<'_>,
        add: bool,
    ) {
        let start = rows.start;
        self.blocks(rows, cols, |block, w| {
            let add = add || block.start > start;
            product(dx, add, 1.0, g.columns(block.start - start..block.end - start), w, Threads::All);
        });
    }
}
