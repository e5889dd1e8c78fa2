//! The field table: one row per request field, in the order in which requests, schemas and forms show them.
//!
//! A mode takes the common rows and names the others it takes; where a mode differs (a default, a bound, a meaning)
//! its row in `modes.rs` carries a changed copy. Parsing, schemas and the dashboard form read nothing else.

use serde_json::{Value, json};

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Any text.
    Text,
    /// An address: http(s), or a data URI.
    Url,
    /// True or false.
    Bool,
    /// A whole number, bounds included.
    Int {
        /// Smallest.
        min: i64,
        /// Largest.
        max: i64,
    },
    /// A number, bounds included.
    Number {
        /// Smallest.
        min: f64,
        /// Largest.
        max: f64,
    },
    /// One of these whole numbers.
    IntChoice(&'static [i64]),
    /// One of these words.
    TextChoice(&'static [&'static str]),
    /// A pixel position: `[x, y]`, whole numbers.
    Point,
    /// A list of `[start, end]` in seconds.
    TimeRanges,
    /// The list of the mode's validation items.
    Items,
}

/// What a field is when the request does not give it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Default {
    /// It must be given.
    Required,
    /// It stays open: null.
    Null,
    /// This truth value.
    Bool(bool),
    /// This whole number.
    Int(i64),
    /// This number.
    Number(f64),
    /// This text.
    Text(&'static str),
    /// An empty list.
    EmptyList,
}

impl Default {
    /// The default as JSON; none for a required field.
    pub fn value(self) -> Option<Value> {
        match self {
            Default::Required => None,
            Default::Null => Some(Value::Null),
            Default::Bool(value) => Some(value.into()),
            Default::Int(value) => Some(value.into()),
            Default::Number(value) => Some(value.into()),
            Default::Text(value) => Some(value.into()),
            Default::EmptyList => Some(json!([])),
        }
    }
}

/// A whole number must leave `remainder` when divided by `divisor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modulus {
    /// Divisor.
    pub divisor: i64,
    /// Remainder.
    pub remainder: i64,
}

impl Modulus {
    /// True when `value` obeys.
    pub fn holds(self, value: i64) -> bool {
        value.rem_euclid(self.divisor) == self.remainder
    }
}

/// One row: a field of the request, or of a validation item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Field {
    /// The wire's name.
    pub name: &'static str,
    /// Label of the form.
    pub title: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// What it is when not given.
    pub default: Default,
    /// Divisibility rule, for whole numbers.
    pub modulus: Option<Modulus>,
    /// What it means, for the person who fills it in.
    pub text: &'static str,
}

impl Field {
    const fn new(
        name: &'static str,
        title: &'static str,
        kind: Kind,
        default: Default,
        text: &'static str,
    ) -> Field {
        Field { name, title, kind, default, modulus: None, text }
    }

    const fn modulus(mut self, divisor: i64, remainder: i64) -> Field {
        self.modulus = Some(Modulus { divisor, remainder });
        self
    }

    /// The same field with another default.
    pub(crate) const fn default(mut self, default: Default) -> Field {
        self.default = default;
        self
    }

    /// The same field with another meaning.
    pub(crate) const fn text(mut self, text: &'static str) -> Field {
        self.text = text;
        self
    }

    /// True when a request must give it.
    pub fn required(&self) -> bool {
        self.default == Default::Required
    }

    /// True when null is a value of its own, not only "not given".
    pub fn nullable(&self) -> bool {
        self.default == Default::Null
    }

    /// The whole numbers a bounded, divisibility-ruled field allows; empty for other fields.
    pub fn legal_ints(&self) -> Vec<i64> {
        match (self.kind, self.modulus) {
            (Kind::Int { min, max }, Some(modulus)) => (min..=max).filter(|n| modulus.holds(*n)).collect(),
            _ => Vec::new(),
        }
    }
}

const TIERS: Kind = Kind::TextChoice(&["low", "medium", "high"]);
const SHAPES: Kind = Kind::TextChoice(&["16:9", "1:1", "9:16"]);
const FRAMES: Kind = Kind::Int { min: 9, max: 121 };
const FRAME_RATE_RANGE: Kind = Kind::Int { min: 8, max: 60 };

/// Negative prompt of previews when none is given. Source: fal's published schema of the family; the same text stands in
/// Lightricks' LTX-2 trainer configurations.
pub const NEGATIVE_PROMPT: &str = "blurry, out of focus, overexposed, underexposed, low contrast, washed out colors, excessive noise, grainy texture, poor lighting, flickering, motion blur, distorted proportions, unnatural skin tones, deformed facial features, asymmetrical face, missing facial features, extra limbs, disfigured hands, wrong hand count, artifacts around text, inconsistent perspective, camera shake, incorrect depth of field, background too sharp, background clutter, distracting reflections, harsh shadows, inconsistent lighting direction, color banding, cartoonish rendering, 3D CGI look, unrealistic materials, uncanny valley effect, incorrect ethnicity, wrong gender, exaggerated expressions, wrong gaze direction, mismatched lip sync, silent or muted audio, distorted voice, robotic voice, echo, background noise, off-sync audio, incorrect dialogue, added dialogue, repetitive speech, jittery movement, awkward pauses, incorrect timing, unnatural transitions, inconsistent framing, tilted camera, flat lighting, inconsistent tone, cinematic oversaturation, stylized filters, or AI artifacts.";

macro_rules! rows {
    ($($id:ident = $($row:expr),+;)*) => { $(pub(crate) const $id: Field = Field::new($($row),+);)* };
}

rows! {
    TRAINING_DATA_URL = "training_data_url", "Training Data URL", Kind::Url, Default::Required,
        "Where the training archive (.zip) is: an http(s) address or a base64 data URI. What it must hold depends on the mode; a .txt caption may lie beside each media file under the same base name.";
    RANK = "rank", "Rank", Kind::IntChoice(&[8, 16, 32, 64, 128]), Default::Int(32),
        "Rank of the LoRA: higher learns more detail and makes a larger file.";
    NUMBER_OF_STEPS = "number_of_steps", "Number Of Steps", Kind::Int { min: 100, max: 10_000 }, Default::Int(2000),
        "How many optimizer steps to train.";
    LEARNING_RATE = "learning_rate", "Learning Rate", Kind::Number { min: 1e-6, max: 1.0 }, Default::Number(2e-4),
        "Learning rate of the optimizer.";
    FRAME_RATE = "frame_rate", "Frame Rate", FRAME_RATE_RANGE, Default::Int(24),
        "Frames per second of the training clips; the model's own rate is 24.";
    RESOLUTION = "resolution", "Resolution", TIERS, Default::Text("medium"),
        "Size tier of the training clips; together with the aspect ratio it picks the size in pixels.";
    ASPECT_RATIO = "aspect_ratio", "Aspect Ratio", SHAPES, Default::Text("1:1"),
        "Shape of the training clips.";
    TRIGGER_PHRASE = "trigger_phrase", "Trigger Phrase", Kind::Text, Default::Text(""),
        "Words put before every caption, to call the adapter up by.";
    AUTO_SCALE_INPUT = "auto_scale_input", "Auto Scale Input", Kind::Bool, Default::Bool(false),
        "Retime every clip to the target frame count and rate instead of skipping short ones. Does nothing to images.";
    SPLIT_INPUT_INTO_SCENES = "split_input_into_scenes", "Split Input Into Scenes", Kind::Bool, Default::Bool(true),
        "Cut clips longer than split_input_duration_threshold into scenes before training.";
    SPLIT_INPUT_DURATION_THRESHOLD = "split_input_duration_threshold", "Split Input Duration Threshold", Kind::Number { min: 1.0, max: 60.0 }, Default::Number(30.0),
        "Length in seconds above which a clip is cut into scenes.";
    DEBUG_DATASET = "debug_dataset", "Debug Dataset", Kind::Bool, Default::Bool(false),
        "Also return an archive of the prepared training data.";

    WITH_AUDIO = "with_audio", "With Audio", Kind::Bool, Default::Null,
        "Train the sound together with the picture. Null decides by the data: sound is trained when every clip has a track. True demands tracks, false leaves sound out.";
    AUDIO_NORMALIZE = "audio_normalize", "Audio Normalize", Kind::Bool, Default::Bool(true),
        "Bring the peak level of every clip's sound to the same height.";
    AUDIO_PRESERVE_PITCH = "audio_preserve_pitch", "Audio Preserve Pitch", Kind::Bool, Default::Bool(true),
        "Where sound must fit a length, stretch it without changing its pitch. False cuts it or pads it with silence.";
    FIRST_FRAME_CONDITIONING_P = "first_frame_conditioning_p", "First Frame Conditioning P", Kind::Number { min: 0.0, max: 1.0 }, Default::Number(0.5),
        "Chance per step that the first frame is given clean. 0.5 makes an adapter that works from an image and from text alone.";
    CONDITIONING_SECONDS = "conditioning_seconds", "Conditioning Seconds", Kind::Number { min: 0.1, max: 30.0 }, Default::Number(1.0),
        "Seconds at the start that are given clean; fewer than audio_duration_seconds.";
    AUDIO_DURATION_SECONDS = "audio_duration_seconds", "Audio Duration Seconds", Kind::Number { min: 0.5, max: 60.0 }, Default::Number(5.0),
        "Length of the training clips in seconds: longer ones are trimmed, shorter ones skipped.";
    CROP_TOP_LEFT = "crop_top_left", "Crop Top Left", Kind::Point, Default::Required,
        "[x1, y1] of the inner rectangle that is kept, in pixels of the training size (not of the uploaded clip), on a grid of 32.";
    CROP_BOTTOM_RIGHT = "crop_bottom_right", "Crop Bottom Right", Kind::Point, Default::Required,
        "[x2, y2] of the inner rectangle that is kept, in the same pixels and inside the frame; everything around it is generated.";

    VALIDATION = "validation", "Validation", Kind::Items, Default::EmptyList,
        "Inputs to draw previews from; at most 64.";
    VALIDATION_NEGATIVE_PROMPT = "validation_negative_prompt", "Validation Negative Prompt", Kind::Text, Default::Text(NEGATIVE_PROMPT),
        "What previews should avoid. A preview is drawn in one stage and only approximates the two-stage distilled pipelines.";
    VALIDATION_FRAME_RATE = "validation_frame_rate", "Validation Frame Rate", FRAME_RATE_RANGE, Default::Int(24),
        "Frames per second of previews.";
    VALIDATION_RESOLUTION = "validation_resolution", "Validation Resolution", TIERS, Default::Text("high"),
        "Size tier of previews.";
    VALIDATION_ASPECT_RATIO = "validation_aspect_ratio", "Validation Aspect Ratio", SHAPES, Default::Text("1:1"),
        "Shape of previews.";
    STG_SCALE = "stg_scale", "STG Scale", Kind::Number { min: 0.0, max: 3.0 }, Default::Number(1.0),
        "Strength of spatio-temporal guidance in previews: 1 is usual, 0 turns it off.";

    REFERENCE_DOWNSCALE_FACTOR = "reference_downscale_factor", "Reference Downscale Factor", Kind::Int { min: 1, max: 8 }, Default::Int(1),
        "Shrink the reference video by this factor before it is encoded. Its sides must still be multiples of 32.";
    REFERENCE_TEMPORAL_SCALE_FACTOR = "reference_temporal_scale_factor", "Reference Temporal Scale Factor", Kind::Int { min: 1, max: 8 }, Default::Int(1),
        "Keep only every so many frames of the reference video. (number_of_frames - 1) / 8 must be divisible by it.";
    INCLUDE_MIDDLE_KEYFRAME = "include_middle_keyframe", "Include Middle Keyframe", Kind::Bool, Default::Bool(false),
        "Keep the middle frame too, besides the first and the last; every validation item then needs middle_image_url.";
}

pub(crate) const NUMBER_OF_FRAMES: Field = Field::new(
    "number_of_frames",
    "Number Of Frames",
    FRAMES,
    Default::Int(89),
    "Frames of each training clip: one more than a multiple of 8.",
)
.modulus(8, 1);
pub(crate) const VALIDATION_NUMBER_OF_FRAMES: Field = Field::new(
    "validation_number_of_frames",
    "Validation Number Of Frames",
    FRAMES,
    Default::Int(89),
    "Frames of each preview: one more than a multiple of 8.",
)
.modulus(8, 1);
pub(crate) const CONDITIONING_FRAMES_PREFIX: Field = Field::new(
    "conditioning_frames",
    "Conditioning Frames",
    FRAMES,
    Default::Int(9),
    "Frames at the start that are given clean (with_audio: their sound too): one more than a multiple of 8, and fewer latent frames ((n - 1) / 8 + 1) than the clip has.",
)
.modulus(8, 1);
pub(crate) const CONDITIONING_FRAMES_SUFFIX: Field = Field::new(
    "conditioning_frames",
    "Conditioning Frames",
    Kind::Int { min: 8, max: 121 },
    Default::Int(8),
    "Frames at the end that are given clean (with_audio: their sound too): a multiple of 8, and fewer latent frames (n / 8) than the clip has.",
)
.modulus(8, 0);

/// The table: every field of every mode once, in order; `true` marks those that all modes take.
pub(crate) const TABLE: [(bool, Field); 32] = [
    (true, TRAINING_DATA_URL),
    (true, RANK),
    (true, NUMBER_OF_STEPS),
    (true, LEARNING_RATE),
    (true, NUMBER_OF_FRAMES),
    (true, FRAME_RATE),
    (true, RESOLUTION),
    (true, ASPECT_RATIO),
    (true, TRIGGER_PHRASE),
    (true, AUTO_SCALE_INPUT),
    (true, SPLIT_INPUT_INTO_SCENES),
    (true, SPLIT_INPUT_DURATION_THRESHOLD),
    (true, DEBUG_DATASET),
    (false, WITH_AUDIO),
    (false, AUDIO_NORMALIZE),
    (false, AUDIO_PRESERVE_PITCH),
    (false, FIRST_FRAME_CONDITIONING_P),
    (false, CONDITIONING_FRAMES_PREFIX),
    (false, CONDITIONING_SECONDS),
    (false, AUDIO_DURATION_SECONDS),
    (false, CROP_TOP_LEFT),
    (false, CROP_BOTTOM_RIGHT),
    (true, VALIDATION),
    (true, VALIDATION_NEGATIVE_PROMPT),
    (true, VALIDATION_NUMBER_OF_FRAMES),
    (true, VALIDATION_FRAME_RATE),
    (true, VALIDATION_RESOLUTION),
    (true, VALIDATION_ASPECT_RATIO),
    (true, STG_SCALE),
    (false, REFERENCE_DOWNSCALE_FACTOR),
    (false, REFERENCE_TEMPORAL_SCALE_FACTOR),
    (false, INCLUDE_MIDDLE_KEYFRAME),
];

/// Fields of validation items. Addresses are texts there too: http(s) or a data URI.
pub(crate) mod item {
    use super::{Default, Field, Kind};

    rows! {
        PROMPT = "prompt", "Prompt", Kind::Text, Default::Required,
            "What the preview shows.";
        IMAGE_URL = "image_url", "Image URL", Kind::Url, Default::Required,
            "Image that becomes the first frame.";
        START_IMAGE_URL = "start_image_url", "Start Image URL", Kind::Url, Default::Required,
            "Image at the first frame.";
        END_IMAGE_URL = "end_image_url", "End Image URL", Kind::Url, Default::Required,
            "Image at the last frame.";
        MIDDLE_IMAGE_URL = "middle_image_url", "Middle Image URL", Kind::Url, Default::Null,
            "Image at the middle frame; needed when include_middle_keyframe is set.";
        VIDEO_URL = "video_url", "Video URL", Kind::Url, Default::Required,
            "Video to start from.";
        MASK_URL = "mask_url", "Mask URL", Kind::Url, Default::Required,
            "Mask, an image or a video of any size: white is regenerated, black is kept.";
        REFERENCE_VIDEO_URL = "reference_video_url", "Reference Video URL", Kind::Url, Default::Required,
            "Video that guides the preview.";
        AUDIO_URL = "audio_url", "Audio URL", Kind::Url, Default::Required,
            "Sound to start from.";
        REFERENCE_AUDIO_URL = "reference_audio_url", "Reference Audio URL", Kind::Url, Default::Required,
            "Sound that guides the preview.";
        TIME_RANGES = "time_ranges", "Time Ranges", Kind::TimeRanges, Default::Required,
            "Stretches to regenerate, each [start, end] in seconds; the rest is kept.";
    }
}
