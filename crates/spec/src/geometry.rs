//! Sizes: the pixel buckets, and how pixels, frames and seconds become latents and tokens.
//!
//! The video autoencoder shrinks space by 32 and time by 8, with the first frame alone; the audio one makes 25 latents
//! a second. Source: Lightricks' LTX-2 packages.

use crate::train_spec::{AspectRatio, Resolution};

/// Pixels per latent cell, each way.
pub const SPATIAL: u32 = 32;
/// Pixel frames per latent frame, after the first.
pub const TEMPORAL: u32 = 8;
/// Audio latents per second.
pub const AUDIO_LATENTS_PER_SECOND: f64 = 25.0;
/// Rate at which sound is encoded.
pub const AUDIO_SAMPLE_RATE_HZ: u32 = 16_000;
/// Samples between two mel frames.
const MEL_HOP: u64 = 160;
/// Mel frames per audio latent.
const MEL_PER_LATENT: u64 = 4;

/// A picture's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Size {
    /// Pixels.
    pub width_px: u32,
    /// Pixels.
    pub height_px: u32,
}

/// A rectangle in pixels, `x2` and `y2` excluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rect {
    /// Left.
    pub x1: u32,
    /// Top.
    pub y1: u32,
    /// Right, excluded.
    pub x2: u32,
    /// Bottom, excluded.
    pub y2: u32,
}

/// A video's size in latents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LatentSize {
    /// Latent frames.
    pub frames: u32,
    /// Rows.
    pub height: u32,
    /// Columns.
    pub width: u32,
}

impl LatentSize {
    /// Tokens the transformer sees: one per cell.
    pub fn tokens(self) -> u32 {
        self.frames * self.height * self.width
    }
}

impl Size {
    const fn new(width_px: u32, height_px: u32) -> Size {
        Size { width_px, height_px }
    }

    /// Its latents for a clip of so many pixel frames (8k + 1).
    pub fn latents(self, frames: u32) -> LatentSize {
        LatentSize {
            frames: latent_frames(frames),
            height: self.height_px / SPATIAL,
            width: self.width_px / SPATIAL,
        }
    }

    /// The size divided by a reference factor.
    pub fn divided(self, factor: u32) -> Size {
        Size::new(self.width_px / factor, self.height_px / factor)
    }
}

/// Every bucket, the only place where tiers become pixels: all sides are multiples of 32.
///
/// Only high 9:16 has been observed on fal; the rest keeps the long side at 512, 768 and 960.
pub const BUCKETS: [(Resolution, AspectRatio, Size); 9] = [
    (Resolution::Low, AspectRatio::Landscape, Size::new(512, 288)),
    (Resolution::Low, AspectRatio::Square, Size::new(512, 512)),
    (Resolution::Low, AspectRatio::Portrait, Size::new(288, 512)),
    (Resolution::Medium, AspectRatio::Landscape, Size::new(768, 448)),
    (Resolution::Medium, AspectRatio::Square, Size::new(768, 768)),
    (Resolution::Medium, AspectRatio::Portrait, Size::new(448, 768)),
    (Resolution::High, AspectRatio::Landscape, Size::new(960, 544)),
    (Resolution::High, AspectRatio::Square, Size::new(960, 960)),
    (Resolution::High, AspectRatio::Portrait, Size::new(544, 960)),
];

/// Size of a tier and shape.
pub fn bucket(resolution: Resolution, aspect_ratio: AspectRatio) -> Size {
    BUCKETS
        .into_iter()
        .find_map(|(tier, shape, size)| (tier == resolution && shape == aspect_ratio).then_some(size))
        .expect("invariant: BUCKETS has every tier and shape")
}

/// Latent frames of so many pixel frames; surplus over 8k + 1 is not counted, 0 frames have none.
pub fn latent_frames(frames: u32) -> u32 {
    match frames {
        0 => 0,
        n => (n - 1) / TEMPORAL + 1,
    }
}

/// Pixel frames that so many latent frames decode to.
pub fn pixel_frames(latent_frames: u32) -> u32 {
    match latent_frames {
        0 => 0,
        n => (n - 1) * TEMPORAL + 1,
    }
}

/// Latent frames of a clean window of pixel frames at the start of a clip (frames = 8k + 1).
pub fn prefix_latents(frames: u32) -> u32 {
    latent_frames(frames)
}

/// Latent frames of a clean window of pixel frames at the end of a clip (frames = 8k): a tail has no single-frame latent.
pub fn suffix_latents(frames: u32) -> u32 {
    frames / TEMPORAL
}

/// Audio latents of sound that is generated: 25 a second, rounded half to even.
pub fn audio_latents(seconds: f64) -> u32 {
    (seconds * AUDIO_LATENTS_PER_SECOND).round_ties_even().max(0.0) as u32
}

/// Audio latents of sound that is encoded, from its samples at 16 kHz. Often one more than [`audio_latents`].
pub fn encoded_audio_latents(samples_16k: u64) -> u64 {
    (samples_16k / MEL_HOP + 1).div_ceil(MEL_PER_LATENT)
}

/// Audio latents of a clean window of so many seconds within a clip of `total` latents: at least one is clean and at
/// least one is generated. A clip of fewer than two latents has no window.
pub fn audio_window(seconds: f64, total: u32) -> u32 {
    match total {
        0 | 1 => 0,
        _ => audio_latents(seconds).clamp(1, total - 1),
    }
}

/// Seconds that so many pixel frames last.
pub fn seconds(frames: u32, frame_rate: u32) -> f64 {
    f64::from(frames) / f64::from(frame_rate.max(1))
}

/// Reference factors that keep both sides of every given size multiples of 32, from 1 to `max`.
pub fn spatial_factors(sizes: &[Size], max: u32) -> Vec<u32> {
    let suits = |side: u32, factor: u32| side.is_multiple_of(SPATIAL * factor);
    (1..=max)
        .filter(|factor| {
            sizes.iter().all(|size| suits(size.width_px, *factor) && suits(size.height_px, *factor))
        })
        .collect()
}

/// Reference factors that keep every given frame count (8k + 1) on the latent grid, from 1 to `max`.
pub fn temporal_factors(frame_counts: &[u32], max: u32) -> Vec<u32> {
    (1..=max)
        .filter(|factor| {
            frame_counts.iter().all(|n| (n.saturating_sub(1) / TEMPORAL).is_multiple_of(*factor))
        })
        .collect()
}

/// Frames of a reference of `frames` pixel frames thinned by a temporal factor: frame 0, then every factor-th from 1.
pub fn reference_frames(frames: u32, factor: u32) -> u32 {
    match frames {
        0 => 0,
        n => 1 + (n - 1) / factor.max(1),
    }
}

/// Pixel frame of the middle keyframe.
pub fn middle_frame(frames: u32) -> u32 {
    frames.saturating_sub(1) / 2
}

impl Rect {
    /// Each edge moved down to the grid of 32.
    pub fn snapped(self) -> Rect {
        let snap = |edge: u32| edge / SPATIAL * SPATIAL;
        Rect { x1: snap(self.x1), y1: snap(self.y1), x2: snap(self.x2), y2: snap(self.y2) }
    }

    /// True when it holds no pixel.
    pub fn is_empty(self) -> bool {
        self.x2 <= self.x1 || self.y2 <= self.y1
    }

    /// True when it covers a whole frame.
    pub fn covers(self, size: Size) -> bool {
        self.x1 == 0 && self.y1 == 0 && self.x2 >= size.width_px && self.y2 >= size.height_px
    }

    /// The same share of a frame of another size, on its grid: for previews that are not of the training size. Never
    /// empty and never the whole frame, given that it is neither in `from`.
    pub fn rescaled(self, from: Size, to: Size) -> Rect {
        let (x1, x2) = rescale_edges(self.x1, self.x2, from.width_px, to.width_px);
        let (y1, y2) = rescale_edges(self.y1, self.y2, from.height_px, to.height_px);
        Rect { x1, y1, x2, y2 }
    }
}

/// Rescales one axis in cells: rounds to the nearest cell, keeps at least one, and keeps an edge inside the frame
/// inside it.
fn rescale_edges(low: u32, high: u32, from: u32, to: u32) -> (u32, u32) {
    let cells = to / SPATIAL;
    let scale = |edge: u32| {
        let exact = f64::from(edge) * f64::from(to) / f64::from(from.max(1));
        ((exact / f64::from(SPATIAL)).round() as u32).min(cells)
    };
    let (mut a, mut b) = (scale(low), scale(high));
    if low > 0 {
        a = a.max(1);
    }
    if high < from {
        b = b.min(cells.saturating_sub(1));
    }
    a = a.min(cells.saturating_sub(1));
    b = b.max(a + 1);
    (a * SPATIAL, b * SPATIAL)
}
