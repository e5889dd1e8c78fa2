//! A mode: what one trainer path trains, from what, and what it shows.

use crate::condition::{Condition, Window};
use crate::field::{self, Field, Modulus};
use crate::layout::{Caption, Layout, Sound};
use std::fmt;

/// What happens to one stream (video or audio) in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Noised and learned, under these conditions.
    Generated(&'static [Condition]),
    /// As `Generated` when the run trains sound, else absent. The request decides with `with_audio`, or leaves it to
    /// what the archive holds.
    IfTrained(&'static [Condition]),
    /// Clean, not learned; steers the other stream.
    Frozen,
    /// Not there.
    Absent,
}

impl Role {
    /// Its conditions, if the stream is generated.
    pub fn conditions(self) -> &'static [Condition] {
        match self {
            Role::Generated(conditions) | Role::IfTrained(conditions) => conditions,
            Role::Frozen | Role::Absent => &[],
        }
    }

    /// Word used in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Generated(_) => "generated",
            Role::IfTrained(_) => "generated if trained",
            Role::Frozen => "frozen",
            Role::Absent => "absent",
        }
    }
}

/// Which linear layers of every transformer block get an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Targets {
    /// Every attention, both streams and across.
    AllAttention,
    /// Self- and text-attention of the video stream.
    VideoAttention,
    /// The same, and the video feed-forward.
    VideoAttentionFf,
    /// Self- and text-attention of the audio stream and its feed-forward.
    AudioAttentionFf,
    /// The same, and the attention from audio to video.
    AudioAttentionFfV2a,
}

macro_rules! projections {
    ($($attention:literal),*) => { &[$(
        concat!($attention, ".to_k"), concat!($attention, ".to_q"), concat!($attention, ".to_v"), concat!($attention, ".to_out.0"),
    )*] };
    ($($attention:literal),*; $($more:literal),*) => { &[$(
        concat!($attention, ".to_k"), concat!($attention, ".to_q"), concat!($attention, ".to_v"), concat!($attention, ".to_out.0"),
    )* $($more),*] };
}

impl Targets {
    /// Every set.
    pub const ALL: [Targets; 5] = [
        Self::AllAttention,
        Self::VideoAttention,
        Self::VideoAttentionFf,
        Self::AudioAttentionFf,
        Self::AudioAttentionFfV2a,
    ];

    /// Short name.
    pub fn as_str(self) -> &'static str {
        match self {
            Targets::AllAttention => "all_attention",
            Targets::VideoAttention => "video_attention",
            Targets::VideoAttentionFf => "video_attention_ff",
            Targets::AudioAttentionFf => "audio_attention_ff",
            Targets::AudioAttentionFfV2a => "audio_attention_ff_plus_v2a",
        }
    }

    /// Patterns of module names, see [`Targets::matches`].
    ///
    /// Source: Lightricks' LTX-2 trainer, `target_modules` of its example configurations.
    pub fn patterns(self) -> &'static [&'static str] {
        match self {
            Targets::AllAttention => &["to_k", "to_q", "to_v", "to_out.0"],
            Targets::VideoAttention => projections!("attn1", "attn2"),
            Targets::VideoAttentionFf => projections!("attn1", "attn2"; "ff.net.0.proj", "ff.net.2"),
            Targets::AudioAttentionFf => {
                projections!("audio_attn1", "audio_attn2"; "audio_ff.net.0.proj", "audio_ff.net.2")
            }
            Targets::AudioAttentionFfV2a => projections!(
                "audio_attn1", "audio_attn2"; "audio_ff.net.0.proj", "audio_ff.net.2",
                "video_to_audio_attn.to_k", "video_to_audio_attn.to_q", "video_to_audio_attn.to_v", "video_to_audio_attn.to_out.0"
            ),
        }
    }

    /// True when a module path is a pattern or ends in a dot and a pattern: `attn1.to_k` is in
    /// `transformer_blocks.3.attn1.to_k` and not in `transformer_blocks.3.audio_attn1.to_k`.
    pub fn matches(self, module: &str) -> bool {
        self.patterns().iter().any(|pattern| {
            module.strip_suffix(pattern).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        })
    }
}

/// Which result field the preview comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreviewOutput {
    /// `video`.
    Video,
    /// `audio`.
    Audio,
}

impl PreviewOutput {
    /// Name of the result field.
    pub fn as_str(self) -> &'static str {
        match self {
            PreviewOutput::Video => "video",
            PreviewOutput::Audio => "audio",
        }
    }
}

/// What a preview needs and gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preview {
    /// Schema name of the validation item.
    pub item: &'static str,
    /// Fields of a validation item, in order.
    pub needs: &'static [Field],
    /// Where it is shown.
    pub output: PreviewOutput,
}

/// The second path of a definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Twin {
    /// Its path.
    pub path: &'static str,
    /// Its title.
    pub title: &'static str,
}

/// One trainer path.
#[derive(Clone, Copy)]
pub struct Mode {
    /// Path after the alias: `av2av`, `ic-lora/av2av`.
    pub path: &'static str,
    /// Title in words.
    pub title: &'static str,
    /// A second path with the same behaviour; on the twin itself none.
    pub twin: Option<Twin>,
    /// On a twin, the path it behaves like.
    pub twin_of: Option<&'static str>,
    /// What happens to the picture.
    pub video: Role,
    /// What happens to the sound.
    pub audio: Role,
    /// How the archive is packed.
    pub layout: Layout,
    /// Where the adapters sit.
    pub targets: Targets,
    /// The fields it takes besides the common ones, and changed copies of common ones.
    pub(crate) fields: &'static [Field],
    /// What a preview needs.
    pub preview: Preview,
}

impl PartialEq for Mode {
    /// Modes are rows of one table: the path says which.
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}
impl Eq for Mode {}

impl fmt::Debug for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mode({})", self.path)
    }
}

/// A rule that looks at more than one value, or at the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// `number_of_frames` is one more than a multiple of 8.
    FramesMod8,
    /// `validation_number_of_frames` too.
    ValidationFramesMod8,
    /// Training (and preview) size stay multiples of 32 when divided by `reference_downscale_factor`.
    ReferenceDownscale,
    /// `(frames - 1) / 8` is divisible by `reference_temporal_scale_factor`.
    ReferenceTemporalScale,
    /// `crop_bottom_right` lies right of and below `crop_top_left`.
    CropOrder,
    /// The rectangle lies inside the training frame.
    CropInside,
    /// Snapped to the grid of 32, the rectangle is neither empty nor the whole frame.
    CropSnap,
    /// Every validation item has `middle_image_url` when `include_middle_keyframe` is set.
    MiddleKeyframe,
    /// `conditioning_frames` fits the latent grid.
    ConditioningFramesMod8,
    /// The clean window is shorter than the clip.
    ConditioningFramesLtClip,
    /// The clean window is shorter than the previews.
    ConditioningFramesLtValidationClip,
    /// Every clip has a sound track when `with_audio` is set; checked on the data.
    WithAudioNeedsTracks,
    /// Every group has a caption unless there is a trigger phrase; checked on the data.
    CaptionOrTrigger,
    /// `conditioning_seconds` is less than `audio_duration_seconds`.
    ConditioningSecondsLtDuration,
    /// Every time range has its start before its end and starts inside the clip.
    TimeRangesValid,
}

impl Rule {
    /// Short name.
    pub fn id(self) -> &'static str {
        match self {
            Rule::FramesMod8 => "frames_mod8",
            Rule::ValidationFramesMod8 => "validation_frames_mod8",
            Rule::ReferenceDownscale => "reference_downscale",
            Rule::ReferenceTemporalScale => "reference_temporal_scale",
            Rule::CropOrder => "crop_order",
            Rule::CropInside => "crop_inside",
            Rule::CropSnap => "crop_snap",
            Rule::MiddleKeyframe => "middle_keyframe",
            Rule::ConditioningFramesMod8 => "conditioning_frames_mod8",
            Rule::ConditioningFramesLtClip => "conditioning_frames_lt_clip",
            Rule::ConditioningFramesLtValidationClip => "conditioning_frames_lt_validation_clip",
            Rule::WithAudioNeedsTracks => "with_audio_needs_tracks",
            Rule::CaptionOrTrigger => "caption_or_trigger",
            Rule::ConditioningSecondsLtDuration => "conditioning_seconds_lt_duration",
            Rule::TimeRangesValid => "time_ranges_valid",
        }
    }

    /// The rule in words.
    pub fn text(self) -> &'static str {
        match self {
            Rule::FramesMod8 => "number_of_frames is one more than a multiple of 8",
            Rule::ValidationFramesMod8 => "validation_number_of_frames is one more than a multiple of 8",
            Rule::ReferenceDownscale => {
                "width and height of the training size, and of the preview size when there are validation items, stay multiples of 32 when divided by reference_downscale_factor"
            }
            Rule::ReferenceTemporalScale => {
                "(number_of_frames - 1) / 8, and the same of validation_number_of_frames when there are validation items, is divisible by reference_temporal_scale_factor"
            }
            Rule::CropOrder => "crop_bottom_right lies to the right of and below crop_top_left",
            Rule::CropInside => "the kept rectangle lies inside the training frame",
            Rule::CropSnap => {
                "snapped down to the grid of 32 pixels, the kept rectangle is neither empty nor the whole frame"
            }
            Rule::MiddleKeyframe => {
                "with include_middle_keyframe, every validation item has middle_image_url"
            }
            Rule::ConditioningFramesMod8 => "conditioning_frames fits the latent grid of 8 frames",
            Rule::ConditioningFramesLtClip => {
                "the clean window has fewer latent frames than the training clip"
            }
            Rule::ConditioningFramesLtValidationClip => {
                "with validation items, the clean window has fewer latent frames than a preview"
            }
            Rule::WithAudioNeedsTracks => {
                "with with_audio, every training and validation clip has a sound track"
            }
            Rule::CaptionOrTrigger => "every group has a caption, or there is a trigger_phrase",
            Rule::ConditioningSecondsLtDuration => "conditioning_seconds is less than audio_duration_seconds",
            Rule::TimeRangesValid => {
                "every validation item has at least one time range, and each has 0 <= start < end and starts inside audio_duration_seconds"
            }
        }
    }
}

impl Mode {
    /// The whole endpoint id: `fal-ai/ltx23-trainer-v2/av2av`.
    pub fn endpoint_id(&self) -> String {
        format!("{}/{}/{}", crate::OWNER, crate::ALIAS, self.path)
    }

    /// The request fields, common ones included, in order, as this mode has them.
    pub fn fields(&self) -> impl Iterator<Item = &Field> {
        field::TABLE.iter().filter_map(|(common, row)| {
            let own = self.fields.iter().find(|own| own.name == row.name);
            own.or(common.then_some(row))
        })
    }

    /// One of its request fields.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields().find(|field| field.name == name)
    }

    /// The conditions of both streams.
    pub fn conditions(&self) -> impl Iterator<Item = Condition> {
        self.video.conditions().iter().chain(self.audio.conditions()).copied()
    }

    /// True when it has nothing to do with pictures.
    pub fn audio_only(&self) -> bool {
        self.video == Role::Absent
    }

    /// The rules a request of this mode, and its archive, must obey beyond each field's own.
    pub fn rules(&self) -> Vec<Rule> {
        let has = |name| self.field(name).is_some();
        let ruled = |name| self.field(name).is_some_and(|field| field.modulus.is_some_and(Modulus::is_rule));
        let frames_window = self
            .conditions()
            .any(|c| matches!(c, Condition::Prefix(Window::Frames) | Condition::Suffix(Window::Frames)));
        let seconds_window = self
            .conditions()
            .any(|c| matches!(c, Condition::Prefix(Window::Seconds) | Condition::Suffix(Window::Seconds)));
        let crop = self.conditions().any(|c| c == Condition::SpatialCrop);
        [
            (Rule::FramesMod8, ruled("number_of_frames")),
            (Rule::ValidationFramesMod8, ruled("validation_number_of_frames")),
            (Rule::ReferenceDownscale, has("reference_downscale_factor")),
            (Rule::ReferenceTemporalScale, has("reference_temporal_scale_factor")),
            (Rule::CropOrder, crop),
            (Rule::CropInside, crop),
            (Rule::CropSnap, crop),
            (Rule::MiddleKeyframe, has("include_middle_keyframe")),
            (Rule::ConditioningFramesMod8, ruled("conditioning_frames")),
            (Rule::ConditioningFramesLtClip, frames_window),
            (Rule::ConditioningFramesLtValidationClip, frames_window),
            (Rule::WithAudioNeedsTracks, self.layout.sound == Sound::WhenAsked),
            (Rule::CaptionOrTrigger, self.layout.caption == Caption::UnlessTrigger),
            (Rule::ConditioningSecondsLtDuration, seconds_window),
            (Rule::TimeRangesValid, self.preview.needs.iter().any(|f| f.kind == field::Kind::TimeRanges)),
        ]
        .into_iter()
        .filter_map(|(rule, applies)| applies.then_some(rule))
        .collect()
    }
}

impl Modulus {
    /// True when it forbids anything.
    fn is_rule(self) -> bool {
        self.divisor > 1
    }
}
