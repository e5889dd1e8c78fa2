//! The rules that look at more than one field of a request. Messages name the values that would do.
//!
//! A rule is looked at when the fields it reads are sound, whatever else is wrong, so that one answer holds all there
//! is to say. Which rules a mode has is [`Mode::rules`]'s affair; rules about the archive are `dataset`'s.

use crate::coerce::or_list;
use crate::condition::{Condition, Window};
use crate::field::{Field, Kind};
use crate::geometry::{self, Rect, Size};
use crate::mode::{Mode, Rule};
use crate::problem::{Loc, Problem, at};
use crate::train_spec::{AspectRatio, Resolution};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::fmt::Display;

/// Checks every rule of the mode that needs no data. `sound` holds the coerced fields, `given` the request as sent.
pub(crate) fn check(
    mode: &Mode,
    sound: &Map<String, Value>,
    given: &Map<String, Value>,
    problems: &mut Vec<Problem>,
) {
    let mut rules = Rules { mode, sound, given, problems };
    for rule in mode.rules() {
        // a rule whose fields are not sound has nothing to say: their own problems are noted already
        let _ = rules.check(rule);
    }
}

struct Rules<'a> {
    mode: &'a Mode,
    sound: &'a Map<String, Value>,
    given: &'a Map<String, Value>,
    problems: &'a mut Vec<Problem>,
}

impl Rules<'_> {
    fn check(&mut self, rule: Rule) -> Option<()> {
        match rule {
            // each field's own divisibility is part of reading the field
            Rule::FramesMod8 | Rule::ValidationFramesMod8 | Rule::ConditioningFramesMod8 => None,
            // these look at the data: `dataset`
            Rule::WithAudioNeedsTracks | Rule::CaptionOrTrigger => None,
            Rule::ReferenceDownscale => self.reference_downscale(),
            Rule::ReferenceTemporalScale => self.reference_temporal_scale(),
            Rule::CropOrder => self.crop_order(),
            Rule::CropInside => self.crop_inside(),
            Rule::CropSnap => self.crop_snap(),
            Rule::MiddleKeyframe => self.middle_keyframe(),
            Rule::ConditioningFramesLtClip => self.window_fits("number_of_frames"),
            Rule::ConditioningFramesLtValidationClip => {
                self.previews_asked()?;
                self.window_fits("validation_number_of_frames")
            }
            Rule::ConditioningSecondsLtDuration => self.seconds_window(),
            Rule::TimeRangesValid => self.time_ranges(),
        }
    }

    fn field(&self, name: &str) -> Option<&Field> {
        self.mode.field(name)
    }

    fn int(&self, name: &str) -> Option<i64> {
        self.sound.get(name)?.as_i64()
    }

    fn count(&self, name: &str) -> Option<u32> {
        u32::try_from(self.int(name)?).ok()
    }

    fn number(&self, name: &str) -> Option<f64> {
        self.sound.get(name)?.as_f64()
    }

    fn word<'v, T: Deserialize<'v>>(&'v self, name: &str) -> Option<T> {
        T::deserialize(self.sound.get(name)?).ok()
    }

    fn size(&self, resolution: &str, aspect_ratio: &str) -> Option<Size> {
        Some(geometry::bucket(self.word::<Resolution>(resolution)?, self.word::<AspectRatio>(aspect_ratio)?))
    }

    /// Some when the request asks for at least one preview. Unsound items still ask for one.
    fn previews_asked(&self) -> Option<()> {
        let asked =
            self.given.get("validation").and_then(Value::as_array).is_some_and(|items| !items.is_empty());
        asked.then_some(())
    }

    /// Notes that a top-level field breaks a rule.
    fn note(&mut self, name: &'static str, msg: impl Display) {
        let input = self.given.get(name).or_else(|| self.sound.get(name)).cloned().unwrap_or_default();
        self.problems.push(Problem::value_error(at(name), msg, &input));
    }

    /// Largest value the field's own bounds allow.
    fn field_max(&self, name: &str) -> u32 {
        match self.field(name).map(|field| field.kind) {
            Some(Kind::Int { max, .. }) => u32::try_from(max).unwrap_or(u32::MAX),
            _ => 0,
        }
    }

    fn reference_downscale(&mut self) -> Option<()> {
        const NAME: &str = "reference_downscale_factor";
        let factor = self.count(NAME)?;
        let training = self.size("resolution", "aspect_ratio")?;
        let mut sizes = vec![training];
        let mut which = format!("the {}x{} training size", training.width_px, training.height_px);
        if self.previews_asked().is_some() {
            let preview = self.size("validation_resolution", "validation_aspect_ratio")?;
            sizes.push(preview);
            which += &format!(" and the {}x{} preview size", preview.width_px, preview.height_px);
        }
        let legal = geometry::spatial_factors(&sizes, self.field_max(NAME));
        self.factor(NAME, factor, &legal, &format!("{which} divided by it must stay multiples of 32"))
    }

    fn reference_temporal_scale(&mut self) -> Option<()> {
        const NAME: &str = "reference_temporal_scale_factor";
        let factor = self.count(NAME)?;
        let frames = self.count("number_of_frames")?;
        let mut counts = vec![frames];
        let mut which = format!("(number_of_frames - 1) / 8 = {}", (frames - 1) / 8);
        if self.previews_asked().is_some() {
            let preview = self.count("validation_number_of_frames")?;
            counts.push(preview);
            which += &format!(" and (validation_number_of_frames - 1) / 8 = {}", (preview - 1) / 8);
        }
        let legal = geometry::temporal_factors(&counts, self.field_max(NAME));
        self.factor(NAME, factor, &legal, &format!("{which} must be divisible by it"))
    }

    fn factor(&mut self, name: &'static str, factor: u32, legal: &[u32], why: &str) -> Option<()> {
        if !legal.contains(&factor) {
            let legal: Vec<String> = legal.iter().map(ToString::to_string).collect();
            self.note(name, format!("{name} {factor} does not fit, {why}: use {}", or_list(&legal)));
        }
        Some(())
    }

    fn point(&self, name: &str) -> Option<[i64; 2]> {
        self.word(name)
    }

    fn corners(&self) -> Option<([i64; 2], [i64; 2])> {
        Some((self.point("crop_top_left")?, self.point("crop_bottom_right")?))
    }

    fn crop_order(&mut self) -> Option<()> {
        let (low, high) = self.corners()?;
        if high[0] <= low[0] || high[1] <= low[1] {
            self.note(
                "crop_bottom_right",
                format!(
                    "crop_bottom_right must lie to the right of and below crop_top_left: x2 > {} and y2 > {}",
                    low[0], low[1]
                ),
            );
        }
        Some(())
    }

    fn crop_inside(&mut self) -> Option<()> {
        let frame = self.size("resolution", "aspect_ratio")?;
        for name in ["crop_top_left", "crop_bottom_right"] {
            if let Some(corner) = self.point(name)
                && !inside(corner, frame)
            {
                self.note(
                    name,
                    format!(
                        "{name} must lie inside the training frame: x from 0 to {} and y from 0 to {}",
                        frame.width_px, frame.height_px
                    ),
                );
            }
        }
        Some(())
    }

    fn crop_snap(&mut self) -> Option<()> {
        let frame = self.size("resolution", "aspect_ratio")?;
        let (low, high) = self.corners()?;
        let in_order = high[0] > low[0] && high[1] > low[1];
        if !in_order || !inside(low, frame) || !inside(high, frame) {
            return None;
        }
        let edge = |n: i64| u32::try_from(n).ok();
        let rect =
            Rect { x1: edge(low[0])?, y1: edge(low[1])?, x2: edge(high[0])?, y2: edge(high[1])? }.snapped();
        let (x, y) = (format!("{}..{}", rect.x1, rect.x2), format!("{}..{}", rect.y1, rect.y2));
        if rect.is_empty() {
            self.note(
                "crop_bottom_right",
                format!("coordinates snap down to multiples of 32, which leaves an empty rectangle (x {x}, y {y}): make it larger"),
            );
        } else if rect.covers(frame) {
            self.note(
                "crop_bottom_right",
                format!(
                    "the rectangle covers the whole {}x{} frame, so nothing is left to generate: leave at least 32 pixels on one side",
                    frame.width_px, frame.height_px
                ),
            );
        }
        Some(())
    }

    fn middle_keyframe(&mut self) -> Option<()> {
        if self.sound.get("include_middle_keyframe")? != &Value::Bool(true) {
            return None;
        }
        let items = self.given.get("validation")?.as_array()?;
        for (index, item) in items.iter().enumerate().take(crate::MAX_VALIDATION_ITEMS) {
            let Some(map) = item.as_object() else { continue };
            if map.get("middle_image_url").is_none_or(Value::is_null) {
                let loc = item_loc(index, "middle_image_url");
                let msg = "middle_image_url is required on every validation item when include_middle_keyframe is true";
                self.problems.push(Problem::value_error(loc, msg, item));
            }
        }
        Some(())
    }

    /// The clean window of frames must leave at least one latent frame to generate.
    fn window_fits(&mut self, clip: &'static str) -> Option<()> {
        let window = self.count("conditioning_frames")?;
        let total = geometry::latent_frames(self.count(clip)?);
        let suffix = self.mode.conditions().any(|c| c == Condition::Suffix(Window::Frames));
        let latents = if suffix { geometry::suffix_latents } else { geometry::prefix_latents };
        if latents(window) < total {
            return Some(());
        }
        let field = self.field("conditioning_frames")?;
        let largest =
            field.legal_ints().into_iter().rfind(|n| u32::try_from(*n).is_ok_and(|n| latents(n) < total));
        let given = self.int(clip)?;
        let advice = match largest {
            Some(largest) => format!("use at most {largest}, or raise {clip}"),
            None => format!("raise {clip}"),
        };
        self.note(
            "conditioning_frames",
            format!("conditioning_frames {window} leaves nothing to generate of {clip} {given}: {advice}"),
        );
        Some(())
    }

    fn seconds_window(&mut self) -> Option<()> {
        let window = self.number("conditioning_seconds")?;
        let total = self.number("audio_duration_seconds")?;
        if window >= total {
            self.note(
                "conditioning_seconds",
                format!("conditioning_seconds must be less than audio_duration_seconds ({total})"),
            );
        }
        Some(())
    }

    fn time_ranges(&mut self) -> Option<()> {
        let items = self.sound.get("validation")?.as_array()?;
        let total = self.number("audio_duration_seconds");
        let mut found = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let Some(ranges) = item.get("time_ranges").and_then(|v| Vec::<[f64; 2]>::deserialize(v).ok())
            else {
                continue;
            };
            let loc = item_loc(index, "time_ranges");
            if ranges.is_empty() {
                found.push(Problem::value_error(
                    loc,
                    "give at least one [start, end] to regenerate",
                    &Value::Array(vec![]),
                ));
                continue;
            }
            for (range_index, range) in ranges.into_iter().enumerate() {
                if let Some(msg) = range_fault(range, total) {
                    let mut loc = loc.clone();
                    loc.push(range_index.into());
                    found.push(Problem::value_error(loc, msg, &serde_json::json!(range)));
                }
            }
        }
        self.problems.append(&mut found);
        Some(())
    }
}

fn item_loc(index: usize, name: &'static str) -> Vec<Loc> {
    vec!["body".into(), "validation".into(), index.into(), name.into()]
}

fn inside([x, y]: [i64; 2], frame: Size) -> bool {
    (0..=i64::from(frame.width_px)).contains(&x) && (0..=i64::from(frame.height_px)).contains(&y)
}

fn range_fault([start, end]: [f64; 2], total: Option<f64>) -> Option<String> {
    if start < 0.0 {
        return Some(format!("the range starts at {start}, before the clip: use 0 or more"));
    }
    if end <= start {
        return Some(format!("the range ends at {end}, not after its start at {start}"));
    }
    let total = total.filter(|total| start >= *total)?;
    Some(format!("the range starts at {start}, beyond audio_duration_seconds ({total})"))
}
