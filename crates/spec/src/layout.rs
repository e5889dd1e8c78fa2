//! Dataset layouts: which files of an archive make one training item, told apart by suffix and media kind.

/// Kind of a media file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Media {
    /// Moving pictures, perhaps with sound.
    Video,
    /// A still.
    Image,
    /// Sound.
    Audio,
    /// A JSON list of `[start, end]` seconds.
    TimeRanges,
}

impl Media {
    /// Word used in messages and documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Media::Video => "video",
            Media::Image => "image",
            Media::Audio => "audio",
            Media::TimeRanges => "json",
        }
    }
}

/// What a member is to its item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// The clip itself, trained on.
    Clip,
    /// What the reference condition sees.
    Reference,
    /// What comes out of a transformation, trained on.
    Target,
    /// What of the target is regenerated.
    Mask,
    /// The picture a group starts from.
    Start,
    /// The sound that drives a group.
    Audio,
}

impl Part {
    /// Word used in messages and documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Part::Clip => "clip",
            Part::Reference => "reference",
            Part::Target => "target",
            Part::Mask => "mask",
            Part::Start => "start",
            Part::Audio => "audio",
        }
    }
}

/// When a member must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needed {
    /// In every item.
    Always,
    /// Unless the start member is a video with a sound track.
    UnlessStartHasTrack,
}

/// A media kind a member may be, with the extensions the endpoint's page lists (lower case, with dot).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepts {
    /// The kind.
    pub media: Media,
    /// Documented extensions; [`Member::media_of`] reads every extension the family uses for the kind.
    pub extensions: &'static [&'static str],
}

/// One file of an item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Member {
    /// What it is to the item.
    pub part: Part,
    /// What its name ends in before the extension; empty for the plain name.
    pub suffix: &'static str,
    /// What it may be.
    pub accepts: &'static [Accepts],
    /// When it must be there.
    pub needed: Needed,
    /// Remark for the person who packs the archive; may be empty.
    pub note: &'static str,
}

impl Member {
    /// Media kind of a file with this extension (with or without dot, any case), if the member may be that.
    pub fn media_of(&self, extension: &str) -> Option<Media> {
        let media = media_of(extension)?;
        self.accepts.iter().any(|accepts| accepts.media == media).then_some(media)
    }

    /// Every extension it may have, for messages.
    pub fn extensions(&self) -> Vec<&'static str> {
        self.accepts.iter().flat_map(|accepts| family(accepts.media).iter().copied()).collect()
    }
}

/// Every extension the family uses anywhere for a media kind: what is read, whichever mode.
pub fn family(media: Media) -> &'static [&'static str] {
    match media {
        Media::Video => &[".mp4", ".mov", ".avi", ".mkv", ".webm"],
        Media::Image => &[".png", ".jpg", ".jpeg", ".bmp", ".webp"],
        Media::Audio => &[".wav", ".mp3", ".flac", ".ogg", ".aac", ".m4a"],
        Media::TimeRanges => &[".json"],
    }
}

/// Media kind of an extension (with or without dot, any case).
pub fn media_of(extension: &str) -> Option<Media> {
    let extension = extension.strip_prefix('.').unwrap_or(extension);
    [Media::Video, Media::Image, Media::Audio, Media::TimeRanges]
        .into_iter()
        .find(|media| family(*media).iter().any(|known| known[1..].eq_ignore_ascii_case(extension)))
}

/// Whether same-named files of different folders are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// Kept apart by their folder.
    PerFolder,
    /// Names must be unique across the whole archive.
    Unique,
}

/// When an item needs a caption (`<name>.txt`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caption {
    /// Never; recommended.
    Optional,
    /// Unless the request has a trigger phrase.
    UnlessTrigger,
}

/// What the sound of an item must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sound {
    /// Not looked at.
    Ignored,
    /// Looked at to decide whether sound is trained, unless the request decides with `with_audio`.
    Decides,
    /// A track on every clip when `with_audio` is true, else ignored.
    WhenAsked,
    /// A track on every video the item has.
    OnEveryClip,
    /// From the audio member, else from the start video.
    FromGroup,
    /// The clips are sound.
    Itself,
}

/// What is too short to train on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MinLength {
    /// `number_of_frames` at the target rate, unless `auto_scale_input` is set; shorter items are skipped.
    Frames,
    /// `audio_duration_seconds`; shorter items are skipped.
    Seconds,
}

/// How an archive is packed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Layout {
    /// Short name of the arrangement.
    pub name: &'static str,
    /// The files of one item.
    pub members: &'static [Member],
    /// How names repeat.
    pub names: Names,
    /// When a caption is needed.
    pub caption: Caption,
    /// What the sound must be.
    pub sound: Sound,
    /// What is too short.
    pub min_length: MinLength,
}

/// Fewer items than this train poorly; a remark, not a fault.
pub const RECOMMENDED_ITEMS: usize = 10;

impl Layout {
    /// The member trained on.
    pub fn target(&self) -> &Member {
        self.members
            .iter()
            .find(|member| matches!(member.part, Part::Clip | Part::Target))
            .expect("invariant: every layout has a clip or a target")
    }

    /// The member with this part, if the layout has one.
    pub fn member(&self, part: Part) -> Option<&Member> {
        self.members.iter().find(|member| member.part == part)
    }

    /// True when the target may be stills instead of clips (never mixed with clips).
    pub fn takes_images(&self) -> bool {
        self.target().accepts.iter().any(|accepts| accepts.media == Media::Image)
    }

    const fn names(mut self, names: Names) -> Layout {
        self.names = names;
        self
    }

    /// The same layout with another rule about sound.
    pub(crate) const fn sound(mut self, sound: Sound) -> Layout {
        self.sound = sound;
        self
    }
}

const VIDEO: Accepts = Accepts { media: Media::Video, extensions: &[".mp4", ".mov", ".avi", ".mkv"] };
const VIDEO_OR_WEBM: Accepts =
    Accepts { media: Media::Video, extensions: &[".mp4", ".mov", ".webm", ".mkv", ".avi"] };
const IMAGE: Accepts = Accepts { media: Media::Image, extensions: &[".png", ".jpg", ".jpeg"] };
const MASK_IMAGE: Accepts =
    Accepts { media: Media::Image, extensions: &[".png", ".jpg", ".jpeg", ".bmp", ".webp"] };
const AUDIO: Accepts =
    Accepts { media: Media::Audio, extensions: &[".wav", ".mp3", ".flac", ".ogg", ".aac", ".m4a"] };
const RANGES: Accepts = Accepts { media: Media::TimeRanges, extensions: &[".json"] };

const fn member(part: Part, suffix: &'static str, accepts: &'static [Accepts], note: &'static str) -> Member {
    Member { part, suffix, accepts, needed: Needed::Always, note }
}

const MASK: Member = member(
    Part::Mask,
    "_mask",
    &[MASK_IMAGE, VIDEO_OR_WEBM],
    "white is regenerated, black is kept; an image stands for all frames, a video is per frame (its last frame is held, surplus is cut); any size",
);
const REFERENCE_VIDEO: Member =
    member(Part::Reference, "_start", &[VIDEO], "what the transformation starts from");
const TARGET_VIDEO: Member = member(Part::Target, "_end", &[VIDEO], "what comes out of it");

const fn clips(members: &'static [Member]) -> Layout {
    Layout {
        name: "clips",
        members,
        names: Names::Unique,
        caption: Caption::Optional,
        sound: Sound::Ignored,
        min_length: MinLength::Frames,
    }
}

const fn sounds(name: &'static str, members: &'static [Member]) -> Layout {
    Layout { name, sound: Sound::Itself, min_length: MinLength::Seconds, ..clips(members) }
}

/// Clips, or stills, never both.
pub(crate) const CLIPS_OR_IMAGES: Layout =
    clips(&[member(Part::Clip, "", &[VIDEO, IMAGE], "all clips or all stills, never both")])
        .names(Names::PerFolder)
        .sound(Sound::Decides);
/// Clips; same names in different folders are different clips.
pub(crate) const CLIPS_IN_FOLDERS: Layout =
    clips(&[member(Part::Clip, "", &[VIDEO], "")]).names(Names::PerFolder);
/// Clips with names of their own.
pub(crate) const CLIPS: Layout = clips(&[member(Part::Clip, "", &[VIDEO], "")]);
/// Clips, `.webm` among the documented kinds.
pub(crate) const CLIPS_OR_WEBM: Layout = clips(&[member(Part::Clip, "", &[VIDEO_OR_WEBM], "")]);
/// A clip and the mask of what to regenerate.
pub(crate) const CLIP_AND_MASK: Layout =
    Layout { name: "clip+mask", ..clips(&[member(Part::Clip, "", &[VIDEO_OR_WEBM], ""), MASK]) };
/// A reference video and a target video.
pub(crate) const VIDEO_PAIRS: Layout = Layout { name: "pairs", ..clips(&[REFERENCE_VIDEO, TARGET_VIDEO]) };
/// A reference video, a target video and the mask of what to regenerate.
pub(crate) const TRIPLETS: Layout =
    Layout { name: "triplets", ..clips(&[REFERENCE_VIDEO, TARGET_VIDEO, MASK]) };
/// A start picture, the sound that drives it, and the video that results.
pub(crate) const GROUPS: Layout = Layout {
    name: "groups",
    caption: Caption::UnlessTrigger,
    sound: Sound::FromGroup,
    ..clips(&[
        member(
            Part::Start,
            "_start",
            &[IMAGE, VIDEO],
            "an image, or a video of which the first frame is used",
        ),
        Member {
            needed: Needed::UnlessStartHasTrack,
            ..member(Part::Audio, "_audio", &[AUDIO], "the sound that drives the video")
        },
        member(Part::Target, "_end", &[VIDEO], "the video that results; its own sound is not used"),
    ])
};
/// Sound clips.
pub(crate) const SOUNDS: Layout = sounds("clips", &[member(Part::Clip, "", &[AUDIO], "")]);
/// A reference sound and a target sound.
pub(crate) const SOUND_PAIRS: Layout = sounds(
    "pairs",
    &[
        member(Part::Reference, "_start", &[AUDIO], "what the transformation starts from"),
        member(Part::Target, "_end", &[AUDIO], "what comes out of it"),
    ],
);
/// A sound clip and the stretches to regenerate.
pub(crate) const SOUND_AND_RANGES: Layout = sounds(
    "clip+time_ranges",
    &[
        member(Part::Clip, "", &[AUDIO], ""),
        member(
            Part::Mask,
            "_mask",
            &[RANGES],
            "a list of [start, end] in seconds to regenerate, at least one inside the clip: [[1.0, 2.0]]",
        ),
    ],
);
