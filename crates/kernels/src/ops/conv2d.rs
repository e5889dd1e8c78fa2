//! Two-dimensional convolution with zeros around the input, each side by itself (causal in one axis, say).
//!
//! B batch, C channels, O output channels, H × W positions, R × S taps. f32 on the CPU; weights are frozen, so there
//! is no backward: asking for one is an error, not a silent zero.

use super::columns::{Columns, copy_zero_padded};
use super::storage::{Frozen, cpu_f32, read_or_none};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

/// How a convolution walks its input.
#[derive(Debug, Clone, Copy)]
pub struct Walk2d {
    /// Input steps per output step, both axes.
    pub stride: usize,
    /// Zero rows before and behind.
    pub rows: (usize, usize),
    /// Zero columns before and behind.
    pub columns: (usize, usize),
}

/// Convolves `x` [B, C, H, W] with `weight` [O, C, R, S] and adds `bias` `[O]`: [B, O, H', W'].
///
/// # Errors
/// Ranks or channel counts that do not fit, a stride or tap count of 0, an input smaller than the filter,
/// another dtype than f32.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, walk: Walk2d) -> Result<Tensor> {
    let (_, channels, _, _) = x.dims4()?;
    let (outputs, inputs, tap_rows, tap_columns) = weight.dims4()?;
    let sizes = channels * outputs * tap_rows * tap_columns * walk.stride;
    if channels != inputs || sizes == 0 {
        bail!("conv2d: input {:?} does not fit weight {:?} ({walk:?})", x.dims(), weight.dims());
    }
    let op = Conv2d {
        weight: Frozen::new(weight)?,
        bias: bias.map(|bias| Frozen::vector(bias, outputs)).transpose()?,
        outputs,
        taps: (tap_rows, tap_columns),
        walk,
    };
    x.contiguous()?.apply_op1(op)
}

struct Conv2d {
    weight: Frozen,
    bias: Option<Frozen>,
    outputs: usize,
    taps: (usize, usize),
    walk: Walk2d,
}

/// Positions of one axis of the output.
fn positions(size: usize, padding: (usize, usize), taps: usize, stride: usize) -> Option<usize> {
    Some((size + padding.0 + padding.1).checked_sub(taps)? / stride + 1)
}

impl Conv2d {
    /// Unfolds output positions `range` (row-major over H' × W') of `x` [C, H, W] into `buffer` [C·R·S, range].
    fn unfold(
        &self,
        x: &[f32],
        (height, width): (usize, usize),
        out_width: usize,
        range: std::ops::Range<usize>,
        buffer: &mut [f32],
    ) {
        let (tap_rows, tap_columns) = self.taps;
        let stride = self.walk.stride;
        for (index, values) in buffer.chunks_exact_mut(range.len()).enumerate() {
            let plane = &x[index / (tap_rows * tap_columns) * height * width..][..height * width];
            let tap_row = index / tap_columns % tap_rows;
            let tap_column = index % tap_columns;
            let mut rest = values;
            let mut position = range.start;
            while !rest.is_empty() {
                let (row, column) = (position / out_width, position % out_width);
                let count = (out_width - column).min(rest.len());
                let (line, tail) = rest.split_at_mut(count);
                let source = (row * stride + tap_row).checked_sub(self.walk.rows.0);
                match source.filter(|source| *source < height) {
                    Some(source) => {
                        let start = (column * stride + tap_column) as isize - self.walk.columns.0 as isize;
                        copy_zero_padded(&plane[source * width..][..width], start, stride, line);
                    }
                    None => line.fill(0.0),
                }
                rest = tail;
                position += count;
            }
        }
    }
}

impl CustomOp1 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = cpu_f32(storage, layout)?;
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let (tap_rows, tap_columns) = self.taps;
        let stride = self.walk.stride;
        let (Some(out_height), Some(out_width)) = (
            positions(height, self.walk.rows, tap_rows, stride),
            positions(width, self.walk.columns, tap_columns, stride),
        ) else {
            bail!(
                "conv2d: {height} × {width} positions are fewer than a filter of {tap_rows} × {tap_columns} spans"
            );
        };
        let mut out = vec![0f32; batch * self.outputs * out_height * out_width];
        self.weight.read(|weight| {
            read_or_none(self.bias.as_ref(), |bias| {
                let product = Columns {
                    weight,
                    rows: self.outputs,
                    depth: channels * tap_rows * tap_columns,
                    columns: out_height * out_width,
                    bias,
                };
                let items = x.chunks_exact((channels * height * width).max(1));
                let size = self.outputs * out_height * out_width;
                for (x, out) in items.zip(out.chunks_exact_mut(size)) {
                    product.product(out, |range, buffer| {
                        self.unfold(x, (height, width), out_width, range, buffer);
                    });
                }
                Ok(())
            })
        })?;
        Ok((CpuStorage::F32(out), Shape::from((batch, self.outputs, out_height, out_width))))
    }
}
