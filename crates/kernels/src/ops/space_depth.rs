//! Exchange of positions and channels around a video: patches, space-to-depth, depth-to-space. Forward only.
//!
//! B batch, F frames, C channels, activations channels last. A stride s = (st, sh, sw) makes S = st·sh·sw
//! sub-positions p = (i·sh + j)·sw + k; channel c of sub-position p is channel c·S + p on the deep side.
//! Source: Lightricks/LTX-2 400fd31, `video_vae/sampling.py` and `video_vae/ops.py`.

use crate::error::{Error, Result};
use candle_core::{CpuStorage, DType, Storage, Tensor};
use rayon::prelude::*;

/// Pixels `[B, C, F, H, W]` to patches `[B, F, H/p, W/p, C·p·p]`; channel (c·p + x offset)·p + y offset.
///
/// # Errors
/// H or W that p does not divide, another type than f32, a tracked input.
pub fn patchify(pixels: &Tensor, p: usize) -> Result<Tensor> {
    const OP: &str = "patchify";
    let (batch, channels, frames, height, width) = pixels.dims5()?;
    if p == 0 || height % p != 0 || width % p != 0 {
        let expected = format!("height and width divisible by {p}");
        return Err(Error::Shape { op: OP, what: "pixels", got: pixels.dims().to_vec(), expected }.into());
    }
    let (rows, columns) = (height / p, width / p);
    let deep = channels * p * p;
    let out = on_values(OP, &[pixels], |values| {
        let x = values[0];
        let mut out = vec![0f32; x.len()];
        out.par_chunks_mut((columns * deep).max(1)).enumerate().for_each(|(line, out)| {
            let (rest, row) = (line / rows, line % rows);
            let (sample, frame) = (rest / frames, rest % frames);
            for c in 0..channels {
                let plane = &x[((sample * channels + c) * frames + frame) * height * width..];
                for q in 0..p {
                    let from = &plane[(row * p + q) * width..][..width];
                    for (column, pixels) in from.chunks_exact(p).enumerate() {
                        for (r, pixel) in pixels.iter().enumerate() {
                            out[column * deep + (c * p + r) * p + q] = *pixel;
                        }
                    }
                }
            }
        });
        out
    })?;
    Tensor::from_vec(out, (batch, frames, rows, columns, deep), pixels.device())
}

/// Patches `[B, F, H, W, C·p·p]` to pixels `[B, C, F, H·p, W·p]`: the inverse of [`patchify`].
///
/// # Errors
/// Channels that p·p does not divide, another type than f32, a tracked input.
pub fn unpatchify(patches: &Tensor, p: usize) -> Result<Tensor> {
    const OP: &str = "unpatchify";
    let (batch, frames, rows, columns, deep) = patches.dims5()?;
    if p == 0 || deep % (p * p) != 0 {
        let expected = format!("channels divisible by {p}²");
        return Err(Error::Shape { op: OP, what: "patches", got: patches.dims().to_vec(), expected }.into());
    }
    let channels = deep / (p * p);
    let (height, width) = (rows * p, columns * p);
    let out = on_values(OP, &[patches], |values| {
        let x = values[0];
        let mut out = vec![0f32; x.len()];
        out.par_chunks_mut(width.max(1)).enumerate().for_each(|(line, out)| {
            let (rest, y) = (line / height, line % height);
            let (rest, frame) = (rest / frames, rest % frames);
            let (sample, c) = (rest / channels, rest % channels);
            let from = &x[((sample * frames + frame) * rows + y / p) * columns * deep..];
            for (column, pixels) in out.chunks_exact_mut(p).enumerate() {
                for (r, pixel) in pixels.iter_mut().enumerate() {
                    *pixel = from[column * deep + (c * p + r) * p + y % p];
                }
            }
        });
        out
    })?;
    Tensor::from_vec(out, (batch, channels, frames, height, width), patches.device())
}

/// Space-to-depth of y `[B, Fy, H, W, Cy]` plus the mean over channel groups of the space-to-depth of
/// x `[B, Fx, H, W, Cx]`: `[B, Fy/st, H/sh, W/sw, Cy·S]`.
///
/// Where x has fewer frames than y, its first frame stands in for the missing ones in front.
///
/// # Errors
/// Sizes the stride does not divide, groups that do not come out even, another type than f32, tracked inputs.
pub fn space_to_depth_add_mean(y: &Tensor, x: &Tensor, stride: [usize; 3]) -> Result<Tensor> {
    const OP: &str = "space_to_depth_add_mean";
    let [st, sh, sw] = stride;
    let s = st * sh * sw;
    let (batch, frames, height, width, cy) = y.dims5()?;
    let (xb, x_frames, xh, xw, cx) = x.dims5()?;
    let outputs = cy * s;
    let divides = s > 0 && frames % st == 0 && height % sh == 0 && width % sw == 0;
    if !divides || y.elem_count() == 0 {
        let expected = format!("frames, rows and columns divisible by {stride:?}");
        return Err(Error::Shape { op: OP, what: "y", got: y.dims().to_vec(), expected }.into());
    }
    if (xb, xh, xw) != (batch, height, width) || x_frames == 0 || x_frames > frames || (cx * s) % outputs != 0
    {
        let expected = format!("{:?} with at most as many frames and a multiple of {cy} channels", y.dims());
        return Err(Error::Shape { op: OP, what: "x", got: x.dims().to_vec(), expected }.into());
    }
    let group = cx * s / outputs;
    let lead = frames - x_frames;
    let (to, tr, tc) = (frames / st, height / sh, width / sw);
    let out = on_values(OP, &[y, x], |values| {
        let (y, x) = (values[0], values[1]);
        let mut out = vec![0f32; batch * to * tr * tc * outputs];
        out.par_chunks_mut(tc * outputs).enumerate().for_each_init(
            Vec::new,
            |deep: &mut Vec<f32>, (line, out)| {
                let (rest, row) = (line / tr, line % tr);
                let (sample, frame) = (rest / to, rest % to);
                deep.resize(cx * s, 0.0);
                for (column, out) in out.chunks_exact_mut(outputs).enumerate() {
                    for p in 0..s {
                        let (i, j, k) = (p / (sh * sw), p / sw % sh, p % sw);
                        let place = (row * sh + j) * width + column * sw + k;
                        let f = frame * st + i;
                        let from = &y[((sample * frames + f) * height * width + place) * cy..][..cy];
                        spread(from, s, p, out);
                        let f = f.saturating_sub(lead);
                        let from = &x[((sample * x_frames + f) * height * width + place) * cx..][..cx];
                        spread(from, s, p, deep);
                    }
                    for (o, members) in out.iter_mut().zip(deep.chunks_exact(group)) {
                        *o += members.iter().sum::<f32>() / group as f32;
                    }
                }
            },
        );
        out
    })?;
    Tensor::from_vec(out, (batch, to, tr, tc, outputs), y.device())
}

/// `to[c·step + at] = from[c]`.
fn spread(from: &[f32], step: usize, at: usize, to: &mut [f32]) {
    for (to, from) in to.chunks_exact_mut(step).zip(from) {
        to[at] = *from;
    }
}

/// Depth-to-space of x `[B, F, H, W, C·S]` without its first `drop` frames: `[B, F·st − drop, H·sh, W·sw, C]`.
///
/// # Errors
/// Channels that S does not divide, nothing left, another type than f32, a tracked input.
pub fn depth_to_space(x: &Tensor, stride: [usize; 3], drop: usize) -> Result<Tensor> {
    const OP: &str = "depth_to_space";
    let [st, sh, sw] = stride;
    let s = st * sh * sw;
    let (batch, frames, height, width, deep) = x.dims5()?;
    if s == 0 || deep % s != 0 || drop >= frames * st || x.elem_count() == 0 {
        let expected = format!("channels divisible by {s} and more than {drop} frames afterwards");
        return Err(Error::Shape { op: OP, what: "x", got: x.dims().to_vec(), expected }.into());
    }
    let channels = deep / s;
    let (to, tr, tc) = (frames * st - drop, height * sh, width * sw);
    let out = on_values(OP, &[x], |values| {
        let x = values[0];
        let mut out = vec![0f32; batch * to * tr * tc * channels];
        out.par_chunks_mut(tc * channels).enumerate().for_each(|(line, out)| {
            let (rest, row) = (line / tr, line % tr);
            let (sample, frame) = (rest / to, rest % to + drop);
            let from = &x[((sample * frames + frame / st) * height + row / sh) * width * deep..];
            for (column, out) in out.chunks_exact_mut(channels).enumerate() {
                let p = ((frame % st) * sh + row % sh) * sw + column % sw;
                let from = &from[column / sw * deep..][..deep];
                for (o, from) in out.iter_mut().zip(from.chunks_exact(s)) {
                    *o = from[p];
                }
            }
        });
        out
    })?;
    Tensor::from_vec(out, (batch, to, tr, tc, channels), x.device())
}

/// Hands the values of untracked f32 tensors on the CPU to `compute`.
fn on_values(
    op: &'static str,
    tensors: &[&Tensor],
    compute: impl FnOnce(&[&[f32]]) -> Vec<f32>,
) -> Result<Vec<f32>> {
    let mut dense = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        if tensor.dtype() != DType::F32 {
            return Err(Error::DType { op, what: "input", got: tensor.dtype(), expected: "f32" }.into());
        }
        if tensor.track_op() {
            return Err(Error::TrackedConstant { op, what: "input" }.into());
        }
        dense.push(tensor.contiguous()?);
    }
    let views: Vec<_> = dense.iter().map(Tensor::storage_and_layout).collect();
    let mut slices = Vec::with_capacity(views.len());
    for (storage, layout) in &views {
        let (start, end) = layout.contiguous_offsets().expect("invariant: made contiguous above");
        match &**storage {
            Storage::Cpu(CpuStorage::F32(data)) => slices.push(&data[start..end]),
            _ => return Err(Error::Device { op, what: "input" }.into()),
        }
    }
    Ok(compute(&slices))
}
