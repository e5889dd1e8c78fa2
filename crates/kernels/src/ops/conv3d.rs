//! 3-D convolution, channels last, with a frozen weight. Forward only.
//!
//! B batch, T frames, H × W positions, I input channels, O output channels, kt × kh × kw taps.

pub use super::conv::Padding;

use super::conv::{Axis, Conv, ConvWeight, Values};
use crate::error::{Error, Result};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Storage, Tensor};

const OP: &str = "conv3d";

/// How a convolution walks over its input: one entry per axis (frames, rows, columns).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walk3d {
    /// Input steps per output step.
    pub stride: [usize; 3],
    /// Positions added before and after.
    pub pad: [(usize, usize); 3],
    /// What the added positions hold.
    pub padding: [Padding; 3],
}

/// A convolution with its weight `[O, I, kt, kh, kw]` and bias `[O]`.
///
/// The weight stays in the type it is stored in (f32 or bf16, widened piece by piece: exact) and is rearranged
/// once. One whose strides are all zero (a stand-in without memory) is kept as it is and rearranged at each use.
#[derive(Debug, Clone)]
pub struct Conv3d {
    weight: Weight,
    shape: [usize; 5],
    bias: Option<Tensor>,
}

#[derive(Debug, Clone)]
enum Weight {
    Packed(std::sync::Arc<ConvWeight>),
    Plain(Tensor),
}

impl Conv3d {
    /// Takes a weight `[O, I, kt, kh, kw]` (f32 or bf16) and a bias `[O]`.
    ///
    /// # Errors
    /// Another rank, type or device; a bias of another length; a tensor that is tracked for gradients.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let (o, i, kt, kh, kw) = weight.dims5()?;
        let shape = [o, i, kt, kh, kw];
        if weight.elem_count() == 0 {
            let expected = "at least one channel and one tap".to_owned();
            return Err(Error::Shape { op: OP, what: "weight", got: shape.to_vec(), expected }.into());
        }
        if weight.track_op() || bias.as_ref().is_some_and(Tensor::track_op) {
            return Err(Error::TrackedConstant { op: OP, what: "weight or bias" }.into());
        }
        if let Some(bias) = &bias
            && bias.dims() != [o]
        {
            let expected = format!("[{o}]");
            return Err(Error::Shape { op: OP, what: "bias", got: bias.dims().to_vec(), expected }.into());
        }
        let placeholder = weight.elem_count() > 1 && weight.stride().iter().all(|s| *s == 0);
        let weight =
            if placeholder { Weight::Plain(weight) } else { Weight::Packed(pack(&weight, shape)?.into()) };
        Ok(Self { weight, shape, bias })
    }

    /// `[O, I, kt, kh, kw]`.
    pub fn shape(&self) -> [usize; 5] {
        self.shape
    }

    /// Bytes the weight takes in memory.
    pub fn bytes(&self) -> usize {
        match &self.weight {
            Weight::Packed(weight) => weight.bytes(),
            Weight::Plain(_) => 0,
        }
    }

    /// Convolves x `[B, T, H, W, I]` (f32) and adds the bias and `residual` `[B, T', H', W', O]`:
    /// `[B, T', H', W', O]`.
    ///
    /// # Errors
    /// Shapes that do not fit, another type than f32, an input tracked for gradients (there is no backward).
    pub fn forward(&self, x: &Tensor, walk: &Walk3d, residual: Option<&Tensor>) -> Result<Tensor> {
        let channels = x.dims5()?.4;
        if channels != self.shape[1] {
            let expected = format!("{} channels on the last axis", self.shape[1]);
            return Err(Error::Shape { op: OP, what: "x", got: x.dims().to_vec(), expected }.into());
        }
        for (what, tensor) in std::iter::once(("x", x)).chain(residual.map(|r| ("residual", r))) {
            if tensor.dtype() != DType::F32 {
                return Err(Error::DType { op: OP, what, got: tensor.dtype(), expected: "f32" }.into());
            }
            if tensor.track_op() {
                return Err(Error::TrackedConstant { op: OP, what }.into());
            }
        }
        let weight = match &self.weight {
            Weight::Packed(weight) => weight.clone(),
            Weight::Plain(tensor) => pack(&tensor.contiguous()?, self.shape)?.into(),
        };
        let op = Forward {
            weight,
            bias: self.bias.as_ref().map(|b| b.to_dtype(DType::F32)?.to_vec1()).transpose()?,
            residual: residual.map(Tensor::contiguous).transpose()?,
            walk: *walk,
        };
        x.contiguous()?.apply_op1_no_bwd(&op)
    }
}

fn pack(weight: &Tensor, shape: [usize; 5]) -> Result<ConvWeight> {
    let weight = weight.contiguous()?;
    let (storage, layout) = weight.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        return Err(Error::Device { op: OP, what: "weight" }.into());
    };
    let range = layout.start_offset()..layout.start_offset() + weight.elem_count();
    let values = match storage {
        CpuStorage::F32(data) => Values::F32(&data[range]),
        CpuStorage::BF16(data) => Values::Bf16(&data[range]),
        _ => {
            return Err(Error::DType {
                op: OP,
                what: "weight",
                got: weight.dtype(),
                expected: "f32 or bf16",
            }
            .into());
        }
    };
    ConvWeight::new(&values, shape).map_err(refused)
}

fn refused(problem: String) -> candle_core::Error {
    candle_core::Error::msg(format!("{OP}: {problem}")).bt()
}

struct Forward {
    weight: std::sync::Arc<ConvWeight>,
    bias: Option<Vec<f32>>,
    residual: Option<Tensor>,
    walk: Walk3d,
}

impl CustomOp1 for Forward {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, t, h, w, _) = layout.shape().dims5()?;
        let kernel = self.weight.kernel();
        let sizes = [t, h, w];
        let axes = std::array::from_fn(|i| Axis {
            size: sizes[i],
            kernel: kernel[i],
            stride: self.walk.stride[i],
            pad: self.walk.pad[i],
            padding: self.walk.padding[i],
        });
        let residual = self.residual.as_ref().map(|r| r.storage_and_layout());
        let residual = match residual.as_ref().map(|(storage, layout)| (&**storage, *layout)) {
            None => None,
            Some((Storage::Cpu(storage), layout)) => Some(values(storage, layout)?),
            Some(_) => return Err(Error::Device { op: OP, what: "residual" }.into()),
        };
        let conv = Conv { batch, axes, weight: &self.weight, bias: self.bias.as_deref(), residual };
        let [t, h, w] = conv.output().map_err(refused)?;
        let out = conv.run(values(storage, layout)?).map_err(refused)?;
        Ok((CpuStorage::F32(out), (batch, t, h, w, self.weight.outputs()).into()))
    }
}

fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (start, end) = layout.contiguous_offsets().expect("invariant: made contiguous before");
    Ok(&storage.as_slice::<f32>()?[start..end])
}
