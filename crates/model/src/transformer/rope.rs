//! Rotary tables from positions. B batch, A axes, T tokens.

use candle_core::{DType, Tensor};
use kernels::{Rope, rope_grid};

use super::config::RopeConfig;
use crate::{Error, Result};

/// Tables for tokens that span an interval per axis; the middle counts.
///
/// positions: [B, A, T, 2] f32, bounds in the units of `max_pos` (A values). The grid has floor(width / 2A)
/// frequencies; what is left of width/2 is padded at the front. The tables are rounded to `dtype` when that is 16-bit.
/// Source: `model-transformer.md` §4.
///
/// # Errors
/// `Input` when the shape does not fit.
pub fn from_intervals(
    positions: &Tensor,
    max_pos: &[f64],
    heads: usize,
    head_dim: usize,
    config: RopeConfig,
    dtype: DType,
) -> Result<Rope> {
    let dims = positions.dims();
    if dims.len() != 4 || dims[1] != max_pos.len() || dims[3] != 2 {
        let want = format!("expected [batch, {}, tokens, 2], found {dims:?}", max_pos.len());
        return Err(Error::input("positions", want));
    }
    let positions = positions.to_dtype(DType::F32)?;
    let start = positions.narrow(3, 0, 1)?.squeeze(3)?;
    let end = positions.narrow(3, 1, 1)?.squeeze(3)?;
    let middle = ((start + end)? / 2.0)?;
    from_points(&middle.transpose(1, 2)?.contiguous()?, max_pos, heads, head_dim, config, dtype)
}

/// Tables for tokens at points: positions [B, T, A] f32. See [`from_intervals`].
///
/// The order of operations matters to the last digits: divide, double, subtract, all in f32, then times the grid.
///
/// # Errors
/// When the shape does not fit.
pub fn from_points(
    positions: &Tensor,
    max_pos: &[f64],
    heads: usize,
    head_dim: usize,
    config: RopeConfig,
    dtype: DType,
) -> Result<Rope> {
    let axes = max_pos.len();
    let limits: Vec<f32> = max_pos.iter().map(|&m| m as f32).collect();
    let limits = Tensor::from_vec(limits, (1, 1, axes), positions.device())?;
    let u = ((positions.to_dtype(DType::F32)?.broadcast_div(&limits)? * 2.0)? - 1.0)?;
    let grid = rope_grid(config.theta, heads * head_dim / (2 * axes), config.precision);
    let rope = Rope::split(&u, &grid, heads, head_dim)?;
    match dtype {
        DType::BF16 | DType::F16 => Ok(rope.rounded_to(dtype)?),
        _ => Ok(rope),
    }
}
