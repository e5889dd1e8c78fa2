//! The table of modes: 18 definitions, 5 of them with an `ic-lora/` twin.

use crate::condition::Condition::{FirstFrame, Keyframes, Mask, Prefix, Reference, SpatialCrop, Suffix};
use crate::condition::{Chance, Window};
use crate::field::{self, Default, Field, item};
use crate::layout::{self, Sound};
use crate::mode::Role::{Absent, Frozen, Generated, IfTrained};
use crate::mode::{Mode, Preview, PreviewOutput, Targets, Twin};
use std::sync::LazyLock;

const fn preview(item: &'static str, output: PreviewOutput, needs: &'static [Field]) -> Preview {
    Preview { item, needs, output }
}

use PreviewOutput::{Audio, Video};

/// Paired files fall out of step when they are cut, so most modes with several files per item leave scenes alone.
const SPLIT_OFF: Field = field::SPLIT_INPUT_INTO_SCENES
    .default(Default::Bool(false))
    .text("Off for this mode: cutting would take the files of an item out of step. Bring clips that are cut already.");
const STEPS_3000: Field = field::NUMBER_OF_STEPS.default(Default::Int(3000));
const WITH_AUDIO_OFF: Field = field::WITH_AUDIO.default(Default::Bool(false)).text(
    "Extend sound and picture from the same window; every training and validation clip then needs a sound track. False extends the picture alone and previews are silent.",
);
const SECONDS_AT_END: Field = field::CONDITIONING_SECONDS
    .text("Seconds at the end that are given clean; fewer than audio_duration_seconds.");
const OPTIONAL_REFERENCE_AUDIO: Field = item::REFERENCE_AUDIO_URL
    .default(Default::Null)
    .text("Sound that guides the preview; without it the reference video's own track.");

/// The definitions, in the order in which they are listed everywhere.
static DEFINITIONS: [Mode; 18] = [
    Mode {
        path: "t2v",
        title: "Text-to-Video",
        twin: None,
        twin_of: None,
        video: Generated(&[]),
        audio: IfTrained(&[]),
        layout: layout::CLIPS_OR_IMAGES,
        targets: Targets::AllAttention,
        fields: &[field::WITH_AUDIO, field::AUDIO_NORMALIZE, field::AUDIO_PRESERVE_PITCH],
        preview: preview("T2VValidation", Video, &[item::PROMPT]),
    },
    Mode {
        path: "i2v",
        title: "Image-to-Video",
        twin: None,
        twin_of: None,
        video: Generated(&[FirstFrame(Chance::FirstFrameP)]),
        audio: IfTrained(&[]),
        layout: layout::CLIPS_OR_IMAGES,
        targets: Targets::AllAttention,
        fields: &[
            field::WITH_AUDIO,
            field::AUDIO_NORMALIZE,
            field::AUDIO_PRESERVE_PITCH,
            field::FIRST_FRAME_CONDITIONING_P,
        ],
        preview: preview("I2VValidation", Video, &[item::PROMPT, item::IMAGE_URL]),
    },
    Mode {
        path: "v2v",
        title: "Video-to-Video",
        twin: Some(Twin { path: "ic-lora/v2v", title: "Video-to-Video IC-LoRA" }),
        twin_of: None,
        video: Generated(&[Reference, FirstFrame(Chance::FirstFrameP)]),
        audio: Absent,
        layout: layout::VIDEO_PAIRS,
        targets: Targets::VideoAttentionFf,
        fields: &[
            STEPS_3000,
            field::FIRST_FRAME_CONDITIONING_P.default(Default::Number(0.1)).text(
                "Chance per step that the first frame of the target is given clean as well. Low values suit transformations.",
            ),
            field::REFERENCE_DOWNSCALE_FACTOR,
            field::REFERENCE_TEMPORAL_SCALE_FACTOR,
        ],
        preview: preview(
            "V2VValidation",
            Video,
            &[item::PROMPT, item::REFERENCE_VIDEO_URL.text("Video to transform.")],
        ),
    },
    Mode {
        path: "v2v-masked",
        title: "Masked Video-to-Video",
        twin: Some(Twin { path: "ic-lora/v2v-masked", title: "Masked Video-to-Video IC-LoRA" }),
        twin_of: None,
        video: Generated(&[Mask, Reference]),
        audio: Absent,
        layout: layout::TRIPLETS,
        targets: Targets::VideoAttentionFf,
        fields: &[STEPS_3000, SPLIT_OFF],
        preview: preview(
            "V2VMaskedValidation",
            Video,
            &[
                item::PROMPT,
                item::VIDEO_URL.text("Video whose unmasked part is kept."),
                item::MASK_URL,
                item::REFERENCE_VIDEO_URL.text("Control video that guides the regenerated part."),
            ],
        ),
    },
    Mode {
        path: "inpaint",
        title: "Video Inpainting",
        twin: None,
        twin_of: None,
        video: Generated(&[Mask]),
        audio: Absent,
        layout: layout::CLIP_AND_MASK,
        targets: Targets::VideoAttention,
        fields: &[SPLIT_OFF],
        preview: preview(
            "InpaintValidation",
            Video,
            &[item::PROMPT, item::VIDEO_URL.text("Video to inpaint."), item::MASK_URL],
        ),
    },
    Mode {
        path: "outpaint",
        title: "Spatial Outpainting",
        twin: None,
        twin_of: None,
        video: Generated(&[SpatialCrop]),
        audio: Absent,
        layout: layout::CLIPS_IN_FOLDERS,
        targets: Targets::VideoAttention,
        fields: &[field::CROP_TOP_LEFT, field::CROP_BOTTOM_RIGHT],
        preview: preview(
            "OutpaintValidation",
            Video,
            &[item::PROMPT, item::VIDEO_URL.text("Video on the full canvas; what lies around the kept rectangle is regenerated.")],
        ),
    },
    Mode {
        path: "interpolate",
        title: "Keyframe Interpolation",
        twin: None,
        twin_of: None,
        video: Generated(&[Keyframes]),
        audio: Absent,
        layout: layout::CLIPS_OR_WEBM,
        targets: Targets::VideoAttention,
        fields: &[field::INCLUDE_MIDDLE_KEYFRAME],
        preview: preview(
            "InterpolateValidation",
            Video,
            &[item::PROMPT, item::START_IMAGE_URL, item::END_IMAGE_URL, item::MIDDLE_IMAGE_URL],
        ),
    },
    Mode {
        path: "extend-prefix",
        title: "Forward Video Extension",
        twin: None,
        twin_of: None,
        video: Generated(&[Prefix(Window::Frames)]),
        audio: IfTrained(&[Prefix(Window::Frames)]),
        layout: layout::CLIPS_IN_FOLDERS.sound(Sound::WhenAsked),
        targets: Targets::AllAttention,
        fields: &[
            WITH_AUDIO_OFF,
            field::AUDIO_NORMALIZE,
            field::AUDIO_PRESERVE_PITCH,
            field::CONDITIONING_FRAMES_PREFIX,
        ],
        preview: preview(
            "ExtendValidation",
            Video,
            &[item::PROMPT, item::VIDEO_URL.text("Video to extend in time.")],
        ),
    },
    Mode {
        path: "extend-suffix",
        title: "Backward Video Extension",
        twin: None,
        twin_of: None,
        video: Generated(&[Suffix(Window::Frames)]),
        audio: IfTrained(&[Suffix(Window::Frames)]),
        layout: layout::CLIPS_IN_FOLDERS.sound(Sound::WhenAsked),
        targets: Targets::AllAttention,
        fields: &[
            WITH_AUDIO_OFF,
            field::AUDIO_NORMALIZE,
            field::AUDIO_PRESERVE_PITCH,
            field::CONDITIONING_FRAMES_SUFFIX,
        ],
        preview: preview(
            "ExtendValidation",
            Video,
            &[item::PROMPT, item::VIDEO_URL.text("Video to extend in time.")],
        ),
    },
    Mode {
        path: "a2v",
        title: "Audio-to-Video",
        twin: None,
        twin_of: None,
        video: Generated(&[FirstFrame(Chance::Always)]),
        audio: Frozen,
        layout: layout::GROUPS,
        targets: Targets::AllAttention,
        fields: &[
            field::SPLIT_INPUT_INTO_SCENES
                .default(Default::Bool(false))
                .text("Off for this mode; set it to cut long clips once start image and sound are joined to them."),
            field::AUDIO_NORMALIZE,
            field::AUDIO_PRESERVE_PITCH,
        ],
        preview: preview(
            "A2VValidation",
            Video,
            &[item::PROMPT, item::IMAGE_URL, item::AUDIO_URL.text("Sound that drives the video.")],
        ),
    },
    Mode {
        path: "v2a",
        title: "Video-to-Audio",
        twin: None,
        twin_of: None,
        video: Frozen,
        audio: Generated(&[]),
        layout: layout::CLIPS.sound(Sound::OnEveryClip),
        targets: Targets::AudioAttentionFfV2a,
        fields: &[field::SPLIT_INPUT_INTO_SCENES
            .default(Default::Bool(false))
            .text("Off for this mode: cutting may leave silent pieces, and every piece must have sound.")],
        preview: preview(
            "V2AValidation",
            Audio,
            &[item::PROMPT, item::VIDEO_URL.text("Video that gets sound; a track of its own is not heard.")],
        ),
    },
    Mode {
        path: "t2a",
        title: "Text-to-Audio",
        twin: None,
        twin_of: None,
        video: Absent,
        audio: Generated(&[]),
        layout: layout::SOUNDS,
        targets: Targets::AudioAttentionFf,
        fields: &[field::AUDIO_NORMALIZE, field::AUDIO_PRESERVE_PITCH, field::AUDIO_DURATION_SECONDS],
        preview: preview("T2AValidation", Audio, &[item::PROMPT]),
    },
    Mode {
        path: "a2a",
        title: "Audio-to-Audio",
        twin: Some(Twin { path: "ic-lora/a2a", title: "Audio-to-Audio IC-LoRA" }),
        twin_of: None,
        video: Absent,
        audio: Generated(&[Reference]),
        layout: layout::SOUND_PAIRS,
        targets: Targets::AudioAttentionFf,
        fields: &[
            SPLIT_OFF,
            field::AUDIO_NORMALIZE,
            field::AUDIO_PRESERVE_PITCH,
            field::AUDIO_DURATION_SECONDS,
        ],
        preview: preview(
            "A2AValidation",
            Audio,
            &[item::PROMPT, item::REFERENCE_AUDIO_URL.text("Sound to transform.")],
        ),
    },
    Mode {
        path: "audio-extend-prefix",
        title: "Forward Audio Extension",
        twin: None,
        twin_of: None,
        video: Absent,
        audio: Generated(&[Prefix(Window::Seconds)]),
        layout: layout::SOUNDS,
        targets: Targets::AudioAttentionFf,
        fields: &[
            field::AUDIO_NORMALIZE,
            field::AUDIO_PRESERVE_PITCH,
            field::CONDITIONING_SECONDS,
            field::AUDIO_DURATION_SECONDS,
        ],
        preview: preview(
            "AudioExtendValidation",
            Audio,
            &[item::PROMPT, item::AUDIO_URL.text("Sound to extend in time.")],
        ),
    },
    Mode {
        path: "audio-extend-suffix",
        title: "Backward Audio Extension",
        twin: None,
        twin_of: None,
        video: Absent,
        audio: Generated(&[Suffix(Window::Seconds)]),
        layout: layout::SOUNDS,
        targets: Targets::AudioAttentionFf,
        fields: &[
            field::AUDIO_NORMALIZE,
            field::AUDIO_PRESERVE_PITCH,
            SECONDS_AT_END,
            field::AUDIO_DURATION_SECONDS,
        ],
        preview: preview(
            "AudioExtendValidation",
            Audio,
            &[item::PROMPT, item::AUDIO_URL.text("Sound to extend in time.")],
        ),
    },
    Mode {
        path: "audio-inpaint",
        title: "Audio Inpainting",
        twin: None,
        twin_of: None,
        video: Absent,
        audio: Generated(&[Mask]),
        layout: layout::SOUND_AND_RANGES,
        targets: Targets::AudioAttentionFf,
        fields: &[field::AUDIO_NORMALIZE, field::AUDIO_PRESERVE_PITCH, field::AUDIO_DURATION_SECONDS],
        preview: preview(
            "AudioInpaintValidation",
            Audio,
            &[item::PROMPT, item::AUDIO_URL.text("Sound to inpaint."), item::TIME_RANGES],
        ),
    },
    Mode {
        path: "av2av",
        title: "Audio+Video Reference Transformation",
        twin: Some(Twin { path: "ic-lora/av2av", title: "Audio+Video Reference IC-LoRA" }),
        twin_of: None,
        video: Generated(&[Reference]),
        audio: Generated(&[Reference]),
        layout: layout::VIDEO_PAIRS.sound(Sound::OnEveryClip),
        targets: Targets::AllAttention,
        fields: &[
            SPLIT_OFF,
            field::AUDIO_NORMALIZE,
            field::AUDIO_PRESERVE_PITCH,
            field::REFERENCE_DOWNSCALE_FACTOR,
            field::REFERENCE_TEMPORAL_SCALE_FACTOR,
        ],
        preview: preview(
            "AV2AVValidation",
            Video,
            &[
                item::PROMPT,
                item::REFERENCE_VIDEO_URL.text("Video to transform; its track is the reference sound unless one is given."),
                OPTIONAL_REFERENCE_AUDIO,
            ],
        ),
    },
    Mode {
        path: "av2av-masked",
        title: "Masked Audio+Video Transformation",
        twin: Some(Twin { path: "ic-lora/av2av-masked", title: "Masked Audio+Video IC-LoRA" }),
        twin_of: None,
        video: Generated(&[Mask, Reference]),
        audio: Generated(&[Reference]),
        layout: layout::TRIPLETS.sound(Sound::OnEveryClip),
        targets: Targets::AllAttention,
        fields: &[SPLIT_OFF, field::AUDIO_NORMALIZE, field::AUDIO_PRESERVE_PITCH],
        preview: preview(
            "AV2AVMaskedValidation",
            Video,
            &[
                item::PROMPT,
                item::VIDEO_URL.text("Video whose unmasked part is kept."),
                item::MASK_URL,
                item::REFERENCE_VIDEO_URL.text("Reference video; its track is the reference sound unless one is given."),
                OPTIONAL_REFERENCE_AUDIO,
            ],
        ),
    },
];

static MODES: LazyLock<Vec<Mode>> = LazyLock::new(|| {
    let twins = DEFINITIONS.iter().filter_map(|mode| {
        mode.twin.map(|twin| Mode {
            path: twin.path,
            title: twin.title,
            twin: None,
            twin_of: Some(mode.path),
            ..*mode
        })
    });
    DEFINITIONS.iter().copied().chain(twins).collect()
});

/// Every trainer path: the definitions, then their twins.
pub fn modes() -> &'static [Mode] {
    &MODES
}

/// The mode at a path (`av2av`, `ic-lora/av2av`), without slashes around it.
pub fn find(path: &str) -> Option<&'static Mode> {
    modes().iter().find(|mode| mode.path == path)
}
