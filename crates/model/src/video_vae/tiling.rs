//! How a clip is cut into tiles on the latent grid, and how tiles are blended.
//!
//! Everything is separable: a tile is an interval per axis, its blend mask the product of one mask per axis.
//! Source: `model-video-vae.md` §7–8; Lightricks/LTX-2 400fd31, `ltx_core/tiling.py`.

use std::{collections::VecDeque, ops::ControlFlow};

use candle_core::{Device, Tensor};

use super::config::Scale;
use crate::{Error, Result};

const AXES: [&str; 3] = ["frames", "height", "width"];
/// Sums of masks that differ from 1 by more than this are divided out.
const COMPLEMENTARY: f32 = 1e-5;
/// Smallest sum that is divided by.
const MIN_WEIGHT: f32 = 1e-8;

/// Told before each tile and at the end: tiles done, tiles in all. `Break` stops the work.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize) -> ControlFlow<()>;

/// Tile length and overlap on one axis, in frames or pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AxisTiling {
    /// Length of a tile.
    pub tile: usize,
    /// What neighbouring tiles share.
    pub overlap: usize,
}

impl AxisTiling {
    /// A tile length and an overlap.
    pub fn new(tile: usize, overlap: usize) -> Self {
        Self { tile, overlap }
    }
}

/// Which axes are cut, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tiling {
    /// Along time, in frames.
    pub frames: Option<AxisTiling>,
    /// Along height, in pixels.
    pub height: Option<AxisTiling>,
    /// Along width, in pixels.
    pub width: Option<AxisTiling>,
}

impl Tiling {
    /// The reference's default for decoding and encoding: 768/64 pixels, 80/24 frames.
    pub fn standard() -> Self {
        Self::square(AxisTiling::new(768, 64), Some(AxisTiling::new(80, 24)))
    }

    /// What the reference trainer decodes its previews with: 384/192 pixels, 48/24 frames.
    pub fn preview() -> Self {
        Self::square(AxisTiling::new(384, 192), Some(AxisTiling::new(48, 24)))
    }

    /// What the reference trainer encodes clips with when asked to tile: 512/128 pixels, time uncut.
    pub fn dataset() -> Self {
        Self::square(AxisTiling::new(512, 128), None)
    }

    fn square(space: AxisTiling, frames: Option<AxisTiling>) -> Self {
        Self { frames, height: Some(space), width: Some(space) }
    }

    /// `space` for the longer side of `height` × `width` pixels; the shorter side's tile is shortened in proportion
    /// (in latents, rounded half to even, at least 2 and more than the overlap).
    ///
    /// # Errors
    /// `Input` when a side is shorter than one latent.
    pub fn for_long_side(
        space: AxisTiling,
        frames: Option<AxisTiling>,
        [height, width]: [usize; 2],
        scale: Scale,
    ) -> Result<Self> {
        let long = height.max(width) / scale.space;
        if height.min(width) < scale.space {
            let problem = format!("{height}×{width} pixels are less than one latent of {}", scale.space);
            return Err(Error::input("tiling", problem));
        }
        let side = |length: usize| {
            let share = (space.tile / scale.space * (length / scale.space)) as f64 / long as f64;
            let least = 2.max(space.overlap / scale.space + 1);
            let tile = least.max(share.round_ties_even() as usize) * scale.space;
            Some(AxisTiling::new(tile, space.overlap))
        };
        Ok(Self { frames, height: side(height), width: side(width) })
    }

    /// The axes in order, each with its name.
    fn axes(&self) -> [(&'static str, Option<AxisTiling>); 3] {
        [(AXES[0], self.frames), (AXES[1], self.height), (AXES[2], self.width)]
    }

    /// Refuses overlaps below `least` on cut axes.
    pub(super) fn check_overlap(&self, least: [usize; 3]) -> Result<()> {
        for ((name, axis), least) in self.axes().into_iter().zip(least) {
            if let Some(axis) = axis.filter(|axis| axis.overlap < least) {
                let problem = format!("{name} overlap by {}, at least {least} is needed here", axis.overlap);
                return Err(Error::input("tiling", problem));
            }
        }
        Ok(())
    }

    /// Cuts a latent grid of `latent` frames, rows and columns.
    ///
    /// # Errors
    /// `Input` when a tile is shorter than two latents, not longer than its overlap, or either is not whole latents.
    pub fn split(&self, scale: Scale, latent: [usize; 3]) -> Result<[Vec<Interval>; 3]> {
        let mut axes: [Vec<Interval>; 3] = Default::default();
        for (i, (name, axis)) in self.axes().into_iter().enumerate() {
            let factor = if i == 0 { scale.time } else { scale.space };
            let Some(AxisTiling { tile, overlap }) = axis else {
                axes[i] = vec![Interval::whole(latent[i])];
                continue;
            };
            if tile < 2 * factor || tile % factor != 0 || overlap % factor != 0 || overlap >= tile {
                let problem = format!(
                    "{name}: tile {tile} with overlap {overlap}; both must be multiples of {factor}, the tile at least \
                     {} and longer than the overlap",
                    2 * factor
                );
                return Err(Error::input("tiling", problem));
            }
            axes[i] = split(latent[i], tile / factor, overlap / factor);
            if i == 0 {
                // One latent more in front: a tile's first latent covers a single frame, which the ramp hides.
                for interval in axes[i].iter_mut().skip(1) {
                    interval.start -= 1;
                    interval.left += 1;
                }
            }
        }
        Ok(axes)
    }
}

/// Part of an axis, in latents, with the lengths over which it fades in and out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    /// First latent.
    pub start: usize,
    /// One past the last latent.
    pub end: usize,
    /// Latents of the fade in.
    pub left: usize,
    /// Latents of the fade out.
    pub right: usize,
}

impl Interval {
    fn whole(length: usize) -> Self {
        Self { start: 0, end: length, left: 0, right: 0 }
    }

    /// Latents covered.
    #[expect(clippy::len_without_is_empty, reason = "an interval is never empty")]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Where the interval lands in time, `factor` frames per latent. A tile's first latent is one frame.
    fn in_time(&self, factor: usize) -> Span {
        let left = self.left.checked_sub(1).map_or(0, |more| 1 + more * factor);
        let length = 1 + (self.len() - 1) * factor;
        // The first value is 0: the frame that a tile's own first latent stands for is not used.
        let fade_in = (0..left).map(|i| i as f32 / left as f32);
        Span { start: self.start * factor, mask: mask(length, fade_in, self.right * factor) }
    }

    /// Where the interval lands on a side, `factor` pixels per latent.
    fn in_space(&self, factor: usize) -> Span {
        let left = self.left * factor;
        let fade_in = (0..left).map(|i| (i + 1) as f32 / (left + 1) as f32);
        Span { start: self.start * factor, mask: mask(self.len() * factor, fade_in, self.right * factor) }
    }
}

/// Tiles of `n` that share `o` with the next; the last one may be shorter.
fn split(length: usize, n: usize, o: usize) -> Vec<Interval> {
    if length <= n {
        return vec![Interval::whole(length)];
    }
    let step = n - o;
    let count = (length + n - 2 * o - 1) / step;
    (0..count)
        .map(|i| Interval {
            start: i * step,
            end: if i + 1 == count { length } else { i * step + n },
            left: if i == 0 { 0 } else { o },
            right: if i + 1 == count { 0 } else { o },
        })
        .collect()
}

/// Where a tile lands on one axis of the result, and with what weight.
#[derive(Debug, Clone, PartialEq)]
struct Span {
    start: usize,
    mask: Vec<f32>,
}

fn mask(length: usize, fade_in: impl Iterator<Item = f32>, right: usize) -> Vec<f32> {
    let mut mask = vec![1f32; length];
    for (value, fade) in mask.iter_mut().zip(fade_in) {
        *value *= fade;
    }
    // A ramp longer than the tile starts at 1 with the tile.
    let right = right.min(length);
    for (i, value) in mask[length - right..].iter_mut().enumerate() {
        *value *= (right - i) as f32 / (right + 1) as f32;
    }
    mask
}

/// Sums of masked tiles `[B, C, F, H, W]`, kept frame by frame from the first that has not been taken.
pub(super) struct Blend {
    shape: [usize; 2],
    spans: [Vec<Span>; 3],
    /// Sum of the masks per position and axis, where the sums are not all 1.
    weights: Option<[Vec<f32>; 3]>,
    sides: [usize; 2],
    first: usize,
    frames: VecDeque<Vec<f32>>,
}

impl Blend {
    /// For tiles of `axes`, which land `scale` times as large; `shape` is B and C.
    pub(super) fn new(shape: [usize; 2], axes: &[Vec<Interval>; 3], scale: Scale) -> Self {
        let spans: [Vec<Span>; 3] = [
            axes[0].iter().map(|i| i.in_time(scale.time)).collect(),
            axes[1].iter().map(|i| i.in_space(scale.space)).collect(),
            axes[2].iter().map(|i| i.in_space(scale.space)).collect(),
        ];
        let weights = spans.each_ref().map(|spans: &Vec<Span>| sums(spans));
        let complementary = weights.iter().flatten().all(|sum| (sum - 1.0).abs() <= COMPLEMENTARY);
        Self {
            shape,
            sides: [weights[1].len(), weights[2].len()],
            spans,
            weights: (!complementary).then_some(weights),
            first: 0,
            frames: VecDeque::new(),
        }
    }

    /// Adds the tile at `place` (indices into the axes).
    pub(super) fn add(&mut self, tile: &Tensor, place: [usize; 3]) -> Result<()> {
        let [time, rows, columns] = std::array::from_fn(|axis| &self.spans[axis][place[axis]]);
        let planes = self.shape[0] * self.shape[1];
        let [height, width] = self.sides;
        let (frames, tile_rows, tile_columns) = (time.mask.len(), rows.mask.len(), columns.mask.len());
        let expected = [self.shape[0], self.shape[1], frames, tile_rows, tile_columns];
        assert_eq!(tile.dims(), expected, "invariant: a tile has the size its intervals say");
        let values = tile.flatten_all()?.to_vec1::<f32>()?;
        let held = time.start + frames - self.first;
        while self.frames.len() < held {
            self.frames.push_back(vec![0f32; planes * height * width]);
        }
        for (line, values) in values.chunks_exact(tile_columns).enumerate() {
            let (rest, row) = (line / tile_rows, line % tile_rows);
            let (plane, frame) = (rest / frames, rest % frames);
            let weight = time.mask[frame] * rows.mask[row];
            let into = &mut self.frames[time.start - self.first + frame];
            let start = (plane * height + rows.start + row) * width + columns.start;
            for ((sum, value), mask) in
                into[start..][..tile_columns].iter_mut().zip(values).zip(&columns.mask)
            {
                *sum += value * (weight * mask);
            }
        }
        Ok(())
    }

    /// Takes the frames up to `end` out: `[B, C, n, H, W]`. Nothing may be added to them afterwards.
    pub(super) fn take(&mut self, end: usize, device: &Device) -> Result<Tensor> {
        let count = end - self.first;
        let [height, width] = self.sides;
        let side = height * width;
        let planes = self.shape[0] * self.shape[1];
        let mut out = vec![0f32; planes * count * side];
        for (i, mut frame) in self.frames.drain(..count).enumerate() {
            if let Some([time, rows, columns]) = &self.weights {
                for (line, values) in frame.chunks_exact_mut(width).enumerate() {
                    let weight = time[self.first + i] * rows[line % height];
                    for (value, column) in values.iter_mut().zip(columns) {
                        *value /= (weight * column).max(MIN_WEIGHT);
                    }
                }
            }
            for (plane, values) in frame.chunks_exact(side).enumerate() {
                out[(plane * count + i) * side..][..side].copy_from_slice(values);
            }
        }
        self.first = end;
        Ok(Tensor::from_vec(out, (self.shape[0], self.shape[1], count, height, width), device)?)
    }
}

/// Sum of the masks at each position of an axis.
fn sums(spans: &[Span]) -> Vec<f32> {
    let end = spans.iter().map(|span| span.start + span.mask.len()).max().unwrap_or(0);
    let mut sums = vec![0f32; end];
    for span in spans {
        for (sum, mask) in sums[span.start..].iter_mut().zip(&span.mask) {
            *sum += mask;
        }
    }
    sums
}

/// Counts tiles for [`Progress`].
pub(super) struct Counter<'a> {
    done: usize,
    total: usize,
    progress: Progress<'a>,
}

impl<'a> Counter<'a> {
    pub(super) fn new(axes: &[Vec<Interval>; 3], progress: Progress<'a>) -> Self {
        Self { done: 0, total: axes.iter().map(Vec::len).product(), progress }
    }

    /// Before a tile.
    pub(super) fn next_tile(&mut self) -> Result<()> {
        self.tell()?;
        self.done += 1;
        Ok(())
    }

    /// After the last tile.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.tell()
    }

    fn tell(&mut self) -> Result<()> {
        match (self.progress)(self.done, self.total) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Stopped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCALE: Scale = Scale { time: 8, space: 32 };

    fn frames(tile: usize, overlap: usize, latent: usize) -> Vec<Interval> {
        let tiling = Tiling { frames: Some(AxisTiling::new(tile * 8, overlap * 8)), ..Tiling::default() };
        let [time, _, _] = tiling.split(SCALE, [latent, 1, 1]).unwrap();
        time
    }

    fn plain(intervals: &[Interval]) -> Vec<(usize, usize, usize, usize)> {
        intervals.iter().map(|i| (i.start, i.end, i.left, i.right)).collect()
    }

    #[test]
    fn axes_are_cut_as_the_reference_cuts_them() {
        assert_eq!(plain(&frames(6, 3, 12)), [(0, 6, 0, 3), (2, 9, 4, 3), (5, 12, 4, 0)]);
        assert_eq!(plain(&frames(10, 3, 16)), [(0, 10, 0, 3), (6, 16, 4, 0)]);
        assert_eq!(plain(&frames(10, 3, 10)), [(0, 10, 0, 0)]);
        assert_eq!(plain(&split(24, 12, 6)), [(0, 12, 0, 6), (6, 18, 6, 6), (12, 24, 6, 0)]);
        assert_eq!(plain(&split(40, 24, 2)), [(0, 24, 0, 2), (22, 40, 2, 0)]);
    }

    #[test]
    fn a_tile_in_time_lands_on_frames_and_fades_in_from_zero() {
        let span = Interval { start: 2, end: 9, left: 4, right: 3 }.in_time(8);
        assert_eq!((span.start, span.mask.len()), (16, 65 - 16));
        for (i, value) in span.mask[..25].iter().enumerate() {
            assert!((value - i as f32 * 0.04).abs() < 1e-6);
        }
        for (i, value) in span.mask[25..].iter().enumerate() {
            assert!((value - (24 - i) as f32 * 0.04).abs() < 1e-6, "{value} at {i}");
        }
    }

    #[test]
    fn masks_of_neighbouring_tiles_sum_to_one() {
        for n in 2..14 {
            for o in 0..=n / 2 {
                for length in 1..60 {
                    let space = split(length, n, o);
                    let time = frames(n, o, length);
                    for (name, spans) in [
                        ("rows", space.iter().map(|i| i.in_space(32)).collect::<Vec<_>>()),
                        ("latent rows", space.iter().map(|i| i.in_space(1)).collect()),
                        ("frames", time.iter().map(|i| i.in_time(8)).collect()),
                        ("latent frames", time.iter().map(|i| i.in_time(1)).collect()),
                    ] {
                        let sums = sums(&spans);
                        let latent = if name.starts_with("latent") {
                            length
                        } else if name == "rows" {
                            length * 32
                        } else {
                            length * 8 - 7
                        };
                        assert_eq!(sums.len(), latent, "{name} {n} {o} {length}");
                        let worst = sums.iter().map(|s| (s - 1.0).abs()).fold(0f32, f32::max);
                        assert!(
                            worst < 1e-6,
                            "{name}: tile {n}, overlap {o}, length {length}: off by {worst}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn overlaps_beyond_half_a_tile_are_weighed_out() {
        let axes = [frames(3, 2, 9), vec![Interval::whole(1)], vec![Interval::whole(1)]];
        let mut blend = Blend::new([1, 1], &axes, SCALE);
        assert!(blend.weights.is_some());
        for (t, interval) in axes[0].iter().enumerate() {
            let tile = Tensor::full(3f32, (1, 1, interval.len() * 8 - 7, 32, 32), &Device::Cpu).unwrap();
            blend.add(&tile, [t, 0, 0]).unwrap();
        }
        let out = blend.take(65, &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(out.len(), 65 * 32 * 32);
        assert!(out.iter().all(|v| (v - 3.0).abs() < 1e-5));
    }

    #[test]
    fn the_short_side_gets_its_share_of_the_tile() {
        let tiling = |height, width| {
            Tiling::for_long_side(AxisTiling::new(768, 64), None, [height, width], SCALE).unwrap()
        };
        let sides = |t: Tiling| [t.height.unwrap().tile, t.width.unwrap().tile];
        assert_eq!(sides(tiling(1088, 1920)), [32 * 14, 768]);
        assert_eq!(sides(tiling(1920, 1088)), [768, 32 * 14]);
        assert_eq!(sides(tiling(64, 1920)), [96, 768]);
        assert!(Tiling::for_long_side(AxisTiling::new(768, 64), None, [31, 64], SCALE).is_err());
    }

    #[test]
    fn tiles_that_are_no_whole_latents_are_refused() {
        let width =
            |tile, overlap| Tiling { width: Some(AxisTiling::new(tile, overlap)), ..Tiling::default() };
        for (tile, overlap) in [(32, 0), (80, 32), (128, 40), (128, 128), (0, 0)] {
            let error = width(tile, overlap).split(SCALE, [1, 9, 9]).unwrap_err().to_string();
            assert!(error.contains("width"), "{error}");
        }
        assert!(width(128, 32).check_overlap([16, 64, 64]).unwrap_err().to_string().contains("width"));
        assert!(Tiling::standard().check_overlap([16, 64, 64]).is_ok());
    }
}
