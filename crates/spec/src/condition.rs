//! What a generated stream is given besides text, and the numbers that go with it.
//!
//! Two kinds: *clean tokens* (part of the target itself is given clean: no noise, no loss) and *extra tokens* (clean
//! tokens beside the target, cut off before the loss).

use crate::TrainSpec;

/// How often a condition applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chance {
    /// At every step.
    Always,
    /// With the probability `first_frame_conditioning_p` of the request.
    FirstFrameP,
}

impl Chance {
    /// The probability for a request, 0 to 1.
    pub fn of(self, spec: &TrainSpec) -> f64 {
        match self {
            Chance::Always => 1.0,
            Chance::FirstFrameP => spec.first_frame_conditioning_p.unwrap_or(1.0),
        }
    }
}

/// Which field says how long a clean window at the start or the end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// `conditioning_frames`, in pixel frames; sound follows the picture.
    Frames,
    /// `conditioning_seconds`.
    Seconds,
}

/// One condition of a generated stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Clean tokens: the first latent frame.
    FirstFrame(Chance),
    /// Clean tokens: a window at the start.
    Prefix(Window),
    /// Clean tokens: a window at the end.
    Suffix(Window),
    /// Clean tokens: the rectangle between `crop_top_left` and `crop_bottom_right`, in every frame.
    SpatialCrop,
    /// Clean tokens: everything that the item's mask does not mark for regeneration.
    Mask,
    /// Extra tokens: the item's reference, put before the target.
    Reference,
    /// Extra tokens: the last frame (and the middle one with `include_middle_keyframe`), each encoded as a still image;
    /// the first frame is clean within the target.
    Keyframes,
}

impl Condition {
    /// Name as in the reference trainer's configurations.
    pub fn name(self) -> &'static str {
        match self {
            Condition::FirstFrame(_) => "first_frame",
            Condition::Prefix(_) => "prefix",
            Condition::Suffix(_) => "suffix",
            Condition::SpatialCrop => "spatial_crop",
            Condition::Mask => "mask",
            Condition::Reference => "reference",
            Condition::Keyframes => "keyframes",
        }
    }

    /// How often it applies.
    pub fn chance(self) -> Chance {
        match self {
            Condition::FirstFrame(chance) => chance,
            _ => Chance::Always,
        }
    }

    /// True when it adds tokens beside the target.
    pub fn adds_tokens(self) -> bool {
        matches!(self, Condition::Reference | Condition::Keyframes)
    }
}
