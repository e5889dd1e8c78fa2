//! Reading f32 values out of candle's storage, for ops that run on the CPU.

use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, bail};

/// The values of a contiguous f32 operand.
///
/// # Errors
/// Another dtype, or values that are not contiguous.
pub(crate) fn cpu_f32<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let values = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("the operand of shape {:?} is not contiguous", layout.dims()),
    }
}

/// A constant that an op holds: f32, contiguous, never an operand, so it gets no gradient.
pub(crate) struct Frozen(Tensor);

impl Frozen {
    /// Takes any tensor that is f32.
    ///
    /// # Errors
    /// Another dtype.
    pub(crate) fn new(tensor: &Tensor) -> Result<Self> {
        if tensor.dtype() != DType::F32 {
            bail!("the weight must be f32, it is {:?}", tensor.dtype());
        }
        Ok(Self(tensor.detach().contiguous()?))
    }

    /// Takes a vector of `length` values.
    ///
    /// # Errors
    /// Another dtype or shape.
    pub(crate) fn vector(tensor: &Tensor, length: usize) -> Result<Self> {
        if tensor.dims() != [length] {
            bail!("the weight must be a vector of {length} values, its shape is {:?}", tensor.dims());
        }
        Self::new(tensor)
    }

    /// Another handle of the same values.
    pub(crate) fn share(&self) -> Self {
        Self(self.0.clone())
    }

    /// Lends the values to `f`.
    ///
    /// # Errors
    /// The tensor lies on another device than the CPU, and what `f` gives.
    pub(crate) fn read<T>(&self, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
        let (storage, layout) = self.0.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => f(cpu_f32(storage, layout)?),
            _ => bail!("the weight is not on the CPU"),
        }
    }
}

/// Lends the values of a constant that may be absent.
///
/// # Errors
/// As [`Frozen::read`].
pub(crate) fn read_or_none<T>(
    constant: Option<&Frozen>,
    f: impl FnOnce(Option<&[f32]>) -> Result<T>,
) -> Result<T> {
    match constant {
        Some(constant) => constant.read(|values| f(Some(values))),
        None => f(None),
    }
}
