//! A checked training request with every default filled in: what the job row stores and the worker reads.

use crate::Loc;
use crate::geometry::{self, Size};
use crate::mode::Mode;
use serde::{Deserialize, Serialize};

/// Size tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    /// Long side 512.
    Low,
    /// Long side 768.
    Medium,
    /// Long side 960.
    High,
}

impl Resolution {
    /// The wire's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Resolution::Low => "low",
            Resolution::Medium => "medium",
            Resolution::High => "high",
        }
    }
}

/// Shape of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AspectRatio {
    /// Landscape.
    #[serde(rename = "16:9")]
    Landscape,
    /// Square.
    #[serde(rename = "1:1")]
    Square,
    /// Portrait.
    #[serde(rename = "9:16")]
    Portrait,
}

impl AspectRatio {
    /// The wire's word.
    pub fn as_str(self) -> &'static str {
        match self {
            AspectRatio::Landscape => "16:9",
            AspectRatio::Square => "1:1",
            AspectRatio::Portrait => "9:16",
        }
    }
}

/// One input to draw previews from. Which fields are there is the mode's affair (`mode.preview.needs`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationItem {
    /// What the preview shows.
    pub prompt: String,
    /// Image at the first frame.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image_url: Option<String>,
    /// Keyframe at the first frame.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub start_image_url: Option<String>,
    /// Keyframe at the last frame.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub end_image_url: Option<String>,
    /// Keyframe at the middle frame.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub middle_image_url: Option<String>,
    /// Source video.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub video_url: Option<String>,
    /// Mask image or video; white is regenerated.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mask_url: Option<String>,
    /// Reference video.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reference_video_url: Option<String>,
    /// Source sound.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub audio_url: Option<String>,
    /// Reference sound.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reference_audio_url: Option<String>,
    /// Stretches to regenerate, `[start, end]` in seconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub time_ranges: Option<Vec<[f64; 2]>>,
}

impl ValidationItem {
    fn urls_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut String)> {
        [
            ("image_url", &mut self.image_url),
            ("start_image_url", &mut self.start_image_url),
            ("end_image_url", &mut self.end_image_url),
            ("middle_image_url", &mut self.middle_image_url),
            ("video_url", &mut self.video_url),
            ("mask_url", &mut self.mask_url),
            ("reference_video_url", &mut self.reference_video_url),
            ("audio_url", &mut self.audio_url),
            ("reference_audio_url", &mut self.reference_audio_url),
        ]
        .into_iter()
        .filter_map(|(name, url)| url.as_mut().map(|url| (name, url)))
    }

    /// The addresses it names, by field.
    pub fn urls(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("image_url", &self.image_url),
            ("start_image_url", &self.start_image_url),
            ("end_image_url", &self.end_image_url),
            ("middle_image_url", &self.middle_image_url),
            ("video_url", &self.video_url),
            ("mask_url", &self.mask_url),
            ("reference_video_url", &self.reference_video_url),
            ("audio_url", &self.audio_url),
            ("reference_audio_url", &self.reference_audio_url),
        ]
        .into_iter()
        .filter_map(|(name, url)| url.as_deref().map(|url| (name, url)))
    }
}

/// A checked request. Fields as in the request; those a mode does not take are `None`.
///
/// Made by [`crate::parse`] or [`crate::parse_body`] only, so its values obey every rule that needs no data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSpec {
    /// The trainer path it was sent to, a twin's own path included.
    #[serde(rename = "path", with = "by_path")]
    pub mode: &'static Mode,
    /// Address of the archive: http(s) or a data URI.
    pub training_data_url: String,
    /// LoRA rank: 8, 16, 32, 64 or 128.
    pub rank: u32,
    /// Optimizer steps.
    pub number_of_steps: u32,
    /// Learning rate.
    pub learning_rate: f64,
    /// Pixel frames per training clip, 8k + 1.
    pub number_of_frames: u32,
    /// Frames per second of training clips.
    pub frame_rate: u32,
    /// Size tier of training clips.
    pub resolution: Resolution,
    /// Shape of training clips.
    pub aspect_ratio: AspectRatio,
    /// Words before every caption; may be empty.
    pub trigger_phrase: String,
    /// Retime clips to the frame count.
    pub auto_scale_input: bool,
    /// Cut long clips into scenes.
    pub split_input_into_scenes: bool,
    /// Seconds above which a clip is cut.
    pub split_input_duration_threshold: f64,
    /// Return the prepared data.
    pub debug_dataset: bool,
    /// Train sound: yes, no, or (none) by what the archive holds. None too where the mode leaves no choice.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub with_audio: Option<bool>,
    /// Bring sound to one peak level.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub audio_normalize: Option<bool>,
    /// Stretch sound without changing its pitch.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub audio_preserve_pitch: Option<bool>,
    /// Chance of a clean first frame.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub first_frame_conditioning_p: Option<f64>,
    /// Clean window in pixel frames.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub conditioning_frames: Option<u32>,
    /// Clean window in seconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub conditioning_seconds: Option<f64>,
    /// Length of sound clips in seconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub audio_duration_seconds: Option<f64>,
    /// `[x1, y1]` of the kept rectangle in training pixels.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub crop_top_left: Option<[u32; 2]>,
    /// `[x2, y2]` of the kept rectangle in training pixels.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub crop_bottom_right: Option<[u32; 2]>,
    /// Inputs to draw previews from.
    pub validation: Vec<ValidationItem>,
    /// What previews avoid.
    pub validation_negative_prompt: String,
    /// Pixel frames of previews, 8k + 1.
    pub validation_number_of_frames: u32,
    /// Frames per second of previews.
    pub validation_frame_rate: u32,
    /// Size tier of previews.
    pub validation_resolution: Resolution,
    /// Shape of previews.
    pub validation_aspect_ratio: AspectRatio,
    /// Spatio-temporal guidance of previews.
    pub stg_scale: f64,
    /// Spatial factor of the reference video.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reference_downscale_factor: Option<u32>,
    /// Temporal factor of the reference video.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reference_temporal_scale_factor: Option<u32>,
    /// Keep the middle frame too.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub include_middle_keyframe: Option<bool>,
}

impl TrainSpec {
    /// Size of training clips in pixels.
    pub fn size(&self) -> Size {
        geometry::bucket(self.resolution, self.aspect_ratio)
    }

    /// Size of previews in pixels.
    pub fn validation_size(&self) -> Size {
        geometry::bucket(self.validation_resolution, self.validation_aspect_ratio)
    }

    /// Every address of the request with its place in the body, for those that store what an address holds.
    pub fn addresses_mut(&mut self) -> Vec<(Vec<Loc>, &mut String)> {
        let mut all = vec![(crate::at("training_data_url"), &mut self.training_data_url)];
        for (index, item) in self.validation.iter_mut().enumerate() {
            let place =
                |name| vec![Loc::from("body"), Loc::from("validation"), Loc::from(index), Loc::from(name)];
            all.extend(item.urls_mut().map(|(name, url)| (place(name), url)));
        }
        all
    }

    /// The kept rectangle in training pixels, snapped to the grid, for modes that have one.
    pub fn crop(&self) -> Option<geometry::Rect> {
        let ([x1, y1], [x2, y2]) = (self.crop_top_left?, self.crop_bottom_right?);
        Some(geometry::Rect { x1, y1, x2, y2 }.snapped())
    }
}

mod by_path {
    use crate::mode::Mode;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(mode: &&'static Mode, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(mode.path)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<&'static Mode, D::Error> {
        let path = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        crate::find(&path).ok_or_else(|| D::Error::custom(format!("no trainer path {path:?}")))
    }
}
