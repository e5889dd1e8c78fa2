//! The one product behind every dense convolution: weight times unfolded input ("im2col"), in tiles.
//!
//! A convolution is `out[r, n] = bias[r] + Σ_d weight[r, d] · col[d, n]`, where column n holds the inputs
//! that output n looks at. The column matrix is never built whole: each task unfolds some hundred columns
//! into its own scratch and multiplies them. (A sum of per-tap products would read and write the output once per tap.)

use gemm::Parallelism;
use rayon::prelude::*;
use std::ops::Range;

/// Scratch of one task, in values: 8 MiB of f32.
const SCRATCH_VALUES: usize = 2 << 20;
/// Fewer columns than this per task and packing the weight costs more than the product.
const MIN_TILE: usize = 128;
/// More columns than this gain nothing.
const MAX_TILE: usize = 4096;

/// A product `[rows, depth] × [depth, columns]` whose right side is unfolded on demand.
pub(crate) struct Columns<'a> {
    /// [rows, depth], row-major.
    pub(crate) weight: &'a [f32],
    /// Output channels.
    pub(crate) rows: usize,
    /// Input channels times taps.
    pub(crate) depth: usize,
    /// Output positions.
    pub(crate) columns: usize,
    /// One value per row, added to every column.
    pub(crate) bias: Option<&'a [f32]>,
}

/// An output that several tasks write, each its own columns.
#[derive(Clone, Copy)]
struct Output(*mut f32);

#[expect(unsafe_code, reason = "tasks write disjoint column ranges of one output")]
// SAFETY: the pointer comes from an exclusive borrow that outlives every task, and tasks write disjoint columns.
unsafe impl Send for Output {}
#[expect(unsafe_code, reason = "tasks write disjoint column ranges of one output")]
// SAFETY: as above; nothing reads through it while tasks run.
unsafe impl Sync for Output {}

impl Output {
    /// The address of column `column` in row 0.
    fn at(self, column: usize) -> *mut f32 {
        self.0.wrapping_add(column)
    }
}

impl Columns<'_> {
    /// Writes the product to `out` (`[rows, columns]`, row-major; what it held is overwritten).
    ///
    /// `fill(range, buffer)` unfolds the columns of `range`: it must write every element of `buffer`,
    /// which is `[depth, range.len()]`, row-major.
    ///
    /// # Panics
    /// When a slice has another length than the sizes say.
    pub(crate) fn product(&self, out: &mut [f32], fill: impl Fn(Range<usize>, &mut [f32]) + Sync) {
        assert_eq!(self.weight.len(), self.rows * self.depth, "invariant: weight is [rows, depth]");
        assert_eq!(out.len(), self.rows * self.columns, "invariant: out is [rows, columns]");
        if let Some(bias) = self.bias {
            assert_eq!(bias.len(), self.rows, "invariant: bias has one value per row");
        }
        if out.is_empty() {
            return;
        }
        if self.depth == 0 {
            let bias = |row: usize| self.bias.map_or(0.0, |bias| bias[row]);
            for (row, values) in out.chunks_mut(self.columns).enumerate() {
                values.fill(bias(row));
            }
            return;
        }
        let tile = self.tile();
        let target = Output(out.as_mut_ptr());
        (0..self.columns.div_ceil(tile)).into_par_iter().for_each_init(
            Vec::new,
            |scratch: &mut Vec<f32>, index| {
                let range = index * tile..((index + 1) * tile).min(self.columns);
                scratch.resize(self.depth * range.len(), 0.0);
                fill(range.clone(), scratch);
                self.multiply(target, range, scratch);
            },
        );
    }

    /// Columns per task: bounded by the scratch, and small enough that every thread has work.
    fn tile(&self) -> usize {
        let fits = (SCRATCH_VALUES / self.depth).clamp(MIN_TILE, MAX_TILE);
        let share = self.columns.div_ceil(2 * rayon::current_num_threads());
        fits.min(share.max(MIN_TILE))
    }

    #[expect(unsafe_code, reason = "gemm takes pointers, and the tile is a strided part of the output")]
    fn multiply(&self, out: Output, range: Range<usize>, columns: &[f32]) {
        let width = range.len();
        assert_eq!(columns.len(), self.depth * width, "invariant: fill keeps the buffer's length");
        if let Some(bias) = self.bias {
            for (row, value) in bias.iter().enumerate() {
                let start = out.at(row * self.columns + range.start);
                // SAFETY: row < rows and range.end <= columns, so the slice lies inside `out`;
                // no other task has a column of this range.
                unsafe { std::slice::from_raw_parts_mut(start, width) }.fill(*value);
            }
        }
        // SAFETY: lengths were checked above and in `product`; the destination is the tile's columns of
        // every row, which no other task touches.
        unsafe {
            gemm::gemm(
                self.rows,
                width,
                self.depth,
                out.at(range.start),
                1,
                self.columns as isize,
                self.bias.is_some(),
                self.weight.as_ptr(),
                1,
                self.depth as isize,
                columns.as_ptr(),
                1,
                width as isize,
                1.0f32,
                1.0f32,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }
}

/// Copies `out.len()` values starting at position `start` of a line that is zero outside `line`, every `stride`-th.
pub(crate) fn copy_zero_padded(line: &[f32], start: isize, stride: usize, out: &mut [f32]) {
    if stride == 1 {
        let skip = usize::try_from(-start).unwrap_or(0).min(out.len());
        let from = usize::try_from(start).unwrap_or(0).min(line.len());
        let count = (line.len() - from).min(out.len() - skip);
        out[..skip].fill(0.0);
        out[skip..skip + count].copy_from_slice(&line[from..from + count]);
        out[skip + count..].fill(0.0);
        return;
    }
    for (index, value) in out.iter_mut().enumerate() {
        let at = start + (index * stride) as isize;
        *value = usize::try_from(at).ok().and_then(|at| line.get(at)).copied().unwrap_or(0.0);
    }
}
