//! Tensors seen as slices on the host, and results made from vectors.
//!
//! The fast path works in f32: bf16 activations are widened on entry and rounded on return. f64
//! activations take the plain reference loops.

use crate::error::{Error, Result};
use crate::simd_fn;
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, Layout, Shape, Storage, StorageRef, Tensor};
use half::bf16;
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Deref;

/// Elements one task should have at least: below this a second thread costs more than it brings.
pub(crate) const TASK: usize = 32 * 1024;

/// The activations of an op: fast in f32, plain in f64.
pub(crate) enum Host<'a> {
    F32(Cow<'a, [f32]>),
    F64(&'a [f64]),
}

/// Views contiguous storage of an activation.
pub(crate) fn activation<'a>(
    op: &'static str,
    what: &'static str,
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<Host<'a>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(Error::Shape {
            op,
            what,
            got: layout.dims().to_vec(),
            expected: format!("contiguous elements, its strides are {:?}", layout.stride()),
        }
        .into());
    };
    match storage {
        CpuStorage::F32(data) => Ok(Host::F32(Cow::Borrowed(&data[start..end]))),
        CpuStorage::BF16(data) => Ok(Host::F32(Cow::Owned(widen(&data[start..end])))),
        CpuStorage::F64(data) => Ok(Host::F64(&data[start..end])),
        other => Err(wrong_dtype(op, what, dtype_of(other))),
    }
}

pub(crate) fn wrong_dtype(op: &'static str, what: &'static str, got: DType) -> candle_core::Error {
    Error::DType { op, what, got, expected: "f32, bf16 or f64" }.into()
}

/// The dtype of storage.
pub(crate) fn dtype_of(storage: &CpuStorage) -> DType {
    candle_core::backend::BackendStorage::dtype(storage)
}

/// Makes storage of the given dtype (f32, or bf16 by rounding) from a result.
pub(crate) fn store(result: Vec<f32>, dtype: DType) -> CpuStorage {
    if dtype == DType::BF16 {
        let mut rounded = vec![bf16::ZERO; result.len()];
        rounded
            .par_chunks_mut(TASK)
            .zip(result.par_chunks(TASK))
            .for_each(|(to, from)| round_slice(from, to));
        CpuStorage::BF16(rounded)
    } else {
        CpuStorage::F32(result)
    }
}

fn widen(data: &[bf16]) -> Vec<f32> {
    let mut wide = unset(data.len());
    wide.par_chunks_mut(TASK).zip(data.par_chunks(TASK)).for_each(|(to, from)| widen_slice(from, to));
    wide
}

simd_fn! {
    /// Widens bf16 to f32: exact.
    pub(crate) fn widen_slice(from: &[bf16], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(from.to_bits()) << 16);
        }
    }
}

simd_fn! {
    /// Rounds f32 to the nearest bf16, ties to even; NaN stays NaN.
    pub(crate) fn round_slice(from: &[f32], to: &mut [bf16]) {
        for (to, from) in to.iter_mut().zip(from) {
            let bits = from.to_bits();
            let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
            let quiet = (bits >> 16) | 0x40;
            let nan = (bits & 0x7fff_ffff) > 0x7f80_0000;
            *to = bf16::from_bits(if nan { quiet } else { rounded } as u16);
        }
    }
}

/// A vector whose elements the caller must all write before reading any.
///
/// Clearing tens of megabytes per op costs as much as a norm. Builds with debug assertions fill it
/// with NaN instead, so that the tests notice an element nobody wrote.
#[expect(unsafe_code, clippy::uninit_vec, reason = "skips clearing memory that is about to be written")]
pub(crate) fn unset(len: usize) -> Vec<f32> {
    if cfg!(debug_assertions) {
        return vec![f32::NAN; len];
    }
    let mut vec = Vec::with_capacity(len);
    // SAFETY: the capacity was just reserved, any bits are an f32, and the callers in this crate
    // write every element first (the NaN fill of the test builds shows it).
    unsafe {
        vec.set_len(len);
    }
    vec
}

/// A borrowed f32 tensor on the host. Holds the storage's read lock.
pub(crate) struct Slice<'a> {
    storage: StorageRef<'a>,
    start: usize,
    end: usize,
}

impl<'a> Slice<'a> {
    /// Views a constant made by [`constant`].
    pub(crate) fn of(op: &'static str, what: &'static str, tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let offsets = layout.contiguous_offsets();
        match (&*storage, offsets) {
            (Storage::Cpu(CpuStorage::F32(_)), Some((start, end))) => Ok(Self { storage, start, end }),
            (Storage::Cpu(_), _) => Err(wrong_dtype(op, what, tensor.dtype())),
            _ => Err(Error::Device { op, what }.into()),
        }
    }
}

impl Deref for Slice<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(data)) => &data[self.start..self.end],
            _ => unreachable!("invariant: checked when the view was made"),
        }
    }
}

/// Makes a constant of an op ready: untracked, f32, contiguous.
pub(crate) fn constant(op: &'static str, what: &'static str, tensor: &Tensor) -> Result<Tensor> {
    if tensor.track_op() {
        return Err(Error::TrackedConstant { op, what }.into());
    }
    match tensor.dtype() {
        DType::F32 | DType::BF16 | DType::F16 | DType::F64 => tensor.to_dtype(DType::F32)?.contiguous(),
        got => Err(wrong_dtype(op, what, got)),
    }
}

/// Refuses activations of different dtypes.
pub(crate) fn same_dtype(op: &'static str, what: &'static str, first: &Tensor, other: &Tensor) -> Result<()> {
    if first.dtype() == other.dtype() {
        return Ok(());
    }
    let expected = "the dtype of the op's first argument";
    Err(Error::DType { op, what, got: other.dtype(), expected }.into())
}

/// Refuses a shape.
pub(crate) fn shape_error<T>(
    op: &'static str,
    what: &'static str,
    tensor: &Tensor,
    expected: impl Into<String>,
) -> Result<T> {
    Err(Error::Shape { op, what, got: tensor.dims().to_vec(), expected: expected.into() }.into())
}

/// Runs `task(first_row, x, y)` over blocks of rows, on several threads when that pays.
pub(crate) fn rows2<T, U>(width: usize, x: &[T], y: &mut [U], task: impl Fn(usize, &[T], &mut [U]) + Sync)
where
    T: Sync,
    U: Send,
{
    if y.is_empty() {
        return;
    }
    let rows = (TASK / width).max(1);
    if x.len() <= rows * width {
        return task(0, x, y);
    }
    y.par_chunks_mut(rows * width)
        .zip(x.par_chunks(rows * width))
        .enumerate()
        .for_each(|(block, (y, x))| task(block * rows, x, y));
}

/// As [`rows2`], with two inputs of one width.
pub(crate) fn rows3<T, U>(
    width: usize,
    x: &[T],
    g: &[T],
    y: &mut [U],
    task: impl Fn(usize, &[T], &[T], &mut [U]) + Sync,
) where
    T: Sync,
    U: Send,
{
    rows2(width, x, y, |first, x, y| task(first, x, &g[first * width..first * width + x.len()], y));
}

/// The host storage behind a tensor.
pub(crate) fn cpu<'a>(op: &'static str, storage: &'a Storage) -> Result<&'a CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => Err(Error::Device { op, what: "an argument" }.into()),
    }
}

/// A tensor outside any graph.
pub(crate) fn tensor(storage: CpuStorage, shape: &Shape) -> Tensor {
    Tensor::from_storage(Storage::Cpu(storage), shape.clone(), BackpropOp::none(), false)
}
