//! Safe views of matrices inside slices, and their product through the `gemm` crate.

use std::ops::Range;

/// A matrix to read: element (i, j) is `data[i·row_stride + j·col_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// A row-major matrix to write: element (i, j) is `data[i·row_stride + j]`.
pub(crate) struct ViewMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

/// The last element of a matrix must lie inside its slice.
fn check(len: usize, rows: usize, cols: usize, row_stride: usize, col_stride: usize) {
    let inside = rows == 0 || cols == 0 || (rows - 1) * row_stride + (cols - 1) * col_stride < len;
    assert!(inside, "invariant: a {rows}×{cols} matrix lies inside its slice of {len}");
}

impl<'a> View<'a> {
    /// Dense and row-major.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Row-major with rows `row_stride` apart.
    pub(crate) fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        check(data.len(), rows, cols, row_stride, 1);
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Some columns.
    pub(crate) fn columns(self, range: Range<usize>) -> Self {
        assert!(range.end <= self.cols, "invariant: columns {range:?} of {}", self.cols);
        let start = (range.start * self.col_stride).min(self.data.len());
        Self { data: &self.data[start..], cols: range.len(), ..self }
    }
}

impl<'a> ViewMut<'a> {
    /// Dense and row-major.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Row-major with rows `row_stride` apart.
    pub(crate) fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        check(data.len(), rows, cols, row_stride, 1);
        assert!(rows < 2 || cols <= row_stride, "invariant: rows to write do not overlap");
        Self { data, rows, cols, row_stride }
    }

    /// Some columns.
    pub(crate) fn columns(&mut self, range: Range<usize>) -> ViewMut<'_> {
        assert!(range.end <= self.cols, "invariant: columns {range:?} of {}", self.cols);
        let start = range.start.min(self.data.len());
        ViewMut {
            data: &mut self.data[start..],
            rows: self.rows,
            cols: range.len(),
            row_stride: self.row_stride,
        }
    }
}

/// On how many threads one product runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The caller's only: for use inside a task.
    One,
    /// All of the pool.
    All,
}

/// out = scale·lhs·rhs, or out += scale·lhs·rhs.
pub(crate) fn product(
    out: &mut ViewMut<'_>,
    add: bool,
    scale: f32,
    lhs: View<'_>,
    rhs: View<'_>,
    threads: Threads,
) {
    let (m, n, k) = (lhs.rows, rhs.cols, lhs.cols);
    assert!(out.rows == m && out.cols == n && rhs.rows == k, "invariant: the shapes of a product agree");
    // The views checked their slices; `columns` may have cut the slice, never below the last element.
    check(lhs.data.len(), m, k, lhs.row_stride, lhs.col_stride);
    check(rhs.data.len(), k, n, rhs.row_stride, rhs.col_stride);
    check(out.data.len(), m, n, out.row_stride, 1);
    let small = m * n * k < 64 * 64 * 64;
    let parallelism = match threads {
        Threads::All if !small => gemm::Parallelism::Rayon(rayon::current_num_threads()),
        _ => gemm::Parallelism::None,
    };
    #[expect(unsafe_code, reason = "the product's interface takes raw pointers")]
    // SAFETY: each matrix lies inside its slice (checked above), `out` is borrowed mutably and thus
    // disjoint from the others, its rows do not overlap, and strides fit in isize as slices do.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.data.as_mut_ptr(),
            1,
            out.row_stride as isize,
            add,
            lhs.data.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// The reference: out[i, j] += scale·Σₖ lhs[i, k]·rhs(k, j), in f64.
pub(crate) fn product_plain(
    out: &mut [f64],
    scale: f64,
    (m, n, k): (usize, usize, usize),
    lhs: impl Fn(usize, usize) -> f64,
    rhs: impl Fn(usize, usize) -> f64,
) {
    for i in 0..m {
        for l in 0..k {
            let factor = scale * lhs(i, l);
            for j in 0..n {
                out[i * n + j] += factor * rhs(l, j);
            }
        }
    }
}
