//! One-dimensional convolution and its transpose, for the vocoder and for analysis by stored bases.
//!
//! B batch, C channels, O output channels, L length, K taps. f32 on the CPU; weights are frozen, so there is no
//! backward: asking for one is an error, not a silent zero.

use super::columns::{Columns, copy_zero_padded};
use super::storage::{Frozen, cpu_f32, read_or_none};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// How a convolution walks its input.
#[derive(Debug, Clone, Copy)]
pub struct Walk1d {
    /// Input steps per output step.
    pub stride: usize,
    /// Input steps between two taps.
    pub dilation: usize,
    /// Zeros before and behind the input.
    pub padding: (usize, usize),
}

impl Walk1d {
    /// Stride 1, the same length out as in for an odd number of taps.
    pub fn same(taps: usize, dilation: usize) -> Self {
        let side = dilation * (taps.saturating_sub(1)) / 2;
        Self { stride: 1, dilation, padding: (side, side) }
    }

    fn output_length(&self, length: usize, taps: usize) -> Option<usize> {
        let padded = length + self.padding.0 + self.padding.1;
        let reach = self.dilation * (taps - 1) + 1;
        Some(padded.checked_sub(reach)? / self.stride + 1)
    }
}

/// Convolves `x` [B, C, L] with `weight` [O, C, K] and adds `bias` `[O]`: [B, O, L'].
///
/// # Errors
/// Ranks or channel counts that do not fit, a stride, dilation or tap count of 0, an input shorter than the filter,
/// another dtype than f32.
pub fn conv1d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, walk: Walk1d) -> Result<Tensor> {
    let (_, channels, _) = x.dims3()?;
    let (outputs, inputs, taps) = weight.dims3()?;
    if channels != inputs || channels * outputs * taps == 0 || walk.stride == 0 || walk.dilation == 0 {
        bail!("conv1d: input {:?} does not fit weight {:?} ({walk:?})", x.dims(), weight.dims());
    }
    let op = Conv1d {
        weight: Frozen::new(weight)?,
        bias: bias.map(|bias| Frozen::vector(bias, outputs)).transpose()?,
        outputs,
        taps,
        walk,
    };
    x.contiguous()?.apply_op1(op)
}

struct Conv1d {
    weight: Frozen,
    bias: Option<Frozen>,
    outputs: usize,
    taps: usize,
    walk: Walk1d,
}

impl CustomOp1 for Conv1d {
    fn name(&self) -> &'static str {
        "conv1d"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = cpu_f32(storage, layout)?;
        let (batch, channels, length) = layout.shape().dims3()?;
        let Walk1d { stride, dilation, padding } = self.walk;
        let Some(columns) = self.walk.output_length(length, self.taps) else {
            bail!("conv1d: {length} samples are fewer than a filter of {} taps spans", self.taps);
        };
        let mut out = vec![0f32; batch * self.outputs * columns];
        self.weight.read(|weight| {
            read_or_none(self.bias.as_ref(), |bias| {
                let product =
                    Columns { weight, rows: self.outputs, depth: channels * self.taps, columns, bias };
                let items = x.chunks_exact((channels * length).max(1));
                for (x, out) in items.zip(out.chunks_exact_mut(self.outputs * columns)) {
                    product.product(out, |range, buffer| {
                        for (row, values) in buffer.chunks_exact_mut(range.len()).enumerate() {
                            let line = &x[row / self.taps * length..][..length];
                            let start = range.start * stride + row % self.taps * dilation;
                            copy_zero_padded(line, start as isize - padding.0 as isize, stride, values);
                        }
                    });
                }
                Ok(())
            })
        })?;
        Ok((CpuStorage::F32(out), Shape::from((batch, self.outputs, columns))))
    }
}

/// Spreads `x` [B, C, L] by `stride` with `weight` [C, O, K], drops `padding` steps at both ends and adds `bias` `[O]`:
/// [B, O, (L − 1)·stride + K − 2·padding].
///
/// # Errors
/// As [`conv1d`], and a padding that leaves nothing.
pub fn conv_transpose1d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    let (_, channels, length) = x.dims3()?;
    let (inputs, outputs, taps) = weight.dims3()?;
    let whole = (length.max(1) - 1) * stride + taps;
    let sizes = channels * outputs * taps * length * stride;
    if channels != inputs || sizes == 0 || whole <= 2 * padding {
        bail!(
            "conv_transpose1d: input {:?} does not fit weight {:?} (stride {stride}, padding {padding})",
            x.dims(),
            weight.dims()
        );
    }
    let op = ConvTranspose1d {
        // [O·K, C]: one row per output channel and tap
        weight: Frozen::new(&weight.flatten(1, 2)?.t()?)?,
        bias: bias.map(|bias| Frozen::vector(bias, outputs)).transpose()?,
        outputs,
        taps,
        stride,
        padding,
        length: whole - 2 * padding,
    };
    x.contiguous()?.apply_op1(op)
}

struct ConvTranspose1d {
    weight: Frozen,
    bias: Option<Frozen>,
    outputs: usize,
    taps: usize,
    stride: usize,
    padding: usize,
    length: usize,
}

impl ConvTranspose1d {
    /// Adds what every input step gives to one output channel; `spread` is [K, L].
    fn gather(&self, spread: &[f32], input_length: usize, out: &mut [f32]) {
        for (tap, values) in spread.chunks_exact(input_length).enumerate() {
            for (step, value) in values.iter().enumerate() {
                let at = (step * self.stride + tap).checked_sub(self.padding);
                if let Some(sum) = at.and_then(|at| out.get_mut(at)) {
                    *sum += value;
                }
            }
        }
    }
}

impl CustomOp1 for ConvTranspose1d {
    fn name(&self) -> &'static str {
        "conv_transpose1d"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = cpu_f32(storage, layout)?;
        let (batch, channels, length) = layout.shape().dims3()?;
        let mut spread = vec![0f32; self.outputs * self.taps * length];
        let mut out = vec![0f32; batch * self.outputs * self.length];
        self.weight.read(|weight| {
            read_or_none(self.bias.as_ref(), |bias| {
                let product = Columns {
                    weight,
                    rows: self.outputs * self.taps,
                    depth: channels,
                    columns: length,
                    bias: None,
                };
                let items = x.chunks_exact(channels * length);
                for (x, out) in items.zip(out.chunks_exact_mut(self.outputs * self.length)) {
                    product.product(&mut spread, |range, buffer| {
                        let lines = x.chunks_exact(length);
                        for (line, values) in lines.zip(buffer.chunks_exact_mut(range.len())) {
                            values.copy_from_slice(&line[range.clone()]);
                        }
                    });
                    out.par_chunks_exact_mut(self.length)
                        .zip(spread.par_chunks_exact(self.taps * length))
                        .enumerate()
                        .for_each(|(channel, (out, spread))| {
                            out.fill(bias.map_or(0.0, |bias| bias[channel]));
                            self.gather(spread, length, out);
                        });
                }
                Ok(())
            })
        })?;
        Ok((CpuStorage::F32(out), Shape::from((batch, self.outputs, self.length))))
    }
}
