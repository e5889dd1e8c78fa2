//! One thing wrong with a request, in the shape fal's models answer with (`{"detail": [...]}`).
//!
//! Two families share the shape: what pydantic v2 says about fields, and fal's own types for media and archives.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::fmt;

/// One step of the way to a value: an object key or an array index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Loc {
    /// Index in an array (or the offset of a JSON error).
    Index(usize),
    /// Key of an object.
    Key(Cow<'static, str>),
}

impl From<&'static str> for Loc {
    fn from(key: &'static str) -> Self {
        Loc::Key(Cow::Borrowed(key))
    }
}
impl From<String> for Loc {
    fn from(key: String) -> Self {
        Loc::Key(Cow::Owned(key))
    }
}
impl From<usize> for Loc {
    fn from(index: usize) -> Self {
        Loc::Index(index)
    }
}
impl fmt::Display for Loc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Loc::Index(index) => write!(f, "{index}"),
            Loc::Key(key) => f.write_str(key),
        }
    }
}

/// One problem: where, what, and of which type.
///
/// Source: fal's documentation of model errors; pydantic v2 and FastAPI for the plain ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// Way to the value, from `body` downwards: `["body", "validation", 0, "prompt"]`.
    pub loc: Vec<Loc>,
    /// Sentence for a person.
    pub msg: String,
    /// Machine-readable type: `missing`, `int_parsing`, `file_download_error`, …
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
    /// Documentation of fal's own types; pydantic's have none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub url: Option<String>,
    /// Limits and alternatives, by type.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ctx: Option<Map<String, Value>>,
    /// The value that was found; `Some(Value::Null)` is a null that was sent.
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "present")]
    pub input: Option<Value>,
}

/// Reads a field that is there, null included, as `Some`.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl Problem {
    /// A problem of pydantic's family: no documentation address. Long inputs are echoed shortened, see [`echo`].
    pub fn plain(kind: &'static str, loc: Vec<Loc>, msg: impl Into<String>, input: &Value) -> Self {
        Problem {
            loc,
            msg: msg.into(),
            kind: Cow::Borrowed(kind),
            url: None,
            ctx: None,
            input: Some(echo(input)),
        }
    }

    /// Adds one entry to `ctx`.
    #[must_use]
    pub fn with_ctx(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.ctx.get_or_insert_default().insert(key.to_owned(), value.into());
        self
    }

    /// A rule across or about values that were well formed: type `value_error`, `msg` prefixed as pydantic does.
    pub fn value_error(loc: Vec<Loc>, msg: impl fmt::Display, input: &Value) -> Self {
        Problem::plain("value_error", loc, format!("Value error, {msg}"), input).with_ctx("error", json!({}))
    }

    /// A problem of fal's own family, with its documentation address and its `ctx`.
    pub fn fal(error: &FalError, loc: Vec<Loc>, msg: impl Into<String>) -> Self {
        let kind = error.kind();
        Problem {
            loc,
            msg: msg.into(),
            kind: Cow::Borrowed(kind),
            url: Some(format!("https://docs.fal.ai/errors/#{kind}")),
            ctx: error.ctx(),
            input: None,
        }
    }

    /// Sets the echoed input, shortened when long.
    #[must_use]
    pub fn with_input(mut self, input: &Value) -> Self {
        self.input = Some(echo(input));
        self
    }

    /// Field path as people write it, without the leading `body`: `validation.0.prompt`.
    pub fn path(&self) -> String {
        let skip = usize::from(self.loc.first() == Some(&Loc::from("body")));
        self.loc[skip..].iter().map(ToString::to_string).collect::<Vec<_>>().join(".")
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path().as_str() {
            "" => f.write_str(&self.msg),
            path => write!(f, "{path}: {}", self.msg),
        }
    }
}

/// Location of a top-level request field: `["body", name]`.
pub fn at(name: &'static str) -> Vec<Loc> {
    vec![Loc::from("body"), Loc::from(name)]
}

/// Everything wrong with one request. Never empty where it stands for a refusal.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// The answer's body: `{"detail": [...]}`.
    pub fn to_body(&self) -> Value {
        json!({ "detail": self.0 })
    }

    /// True when nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One line: the first problem and how many more there are.
    pub fn line(&self) -> String {
        match self.0.as_slice() {
            [] => "Invalid request".to_owned(),
            [one] => one.to_string(),
            [first, rest @ ..] => format!("{first} (and {} more)", rest.len()),
        }
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Problems(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line())
    }
}
impl std::error::Error for Problems {}

/// fal's own problem types, each with the limits it reports.
///
/// Source: fal's documentation of model errors (types, `ctx` keys, status codes).
#[derive(Debug, Clone, PartialEq)]
pub enum FalError {
    /// Something broke on our side (500).
    InternalServerError,
    /// The job ran out of its time (504).
    GenerationTimeout,
    /// A service the job needs answered with an error (500).
    DownstreamServiceError,
    /// A service the job needs cannot be reached (500).
    DownstreamServiceUnavailable,
    /// The content is against the rules.
    ContentPolicyViolation,
    /// Nothing came out.
    NoMediaGenerated,
    /// A face was needed and not found.
    FaceDetectionError,
    /// An image cannot be read.
    ImageLoadError,
    /// This combination is not built.
    FeatureNotSupported,
    /// An address in the input cannot be fetched.
    FileDownloadError,
    /// A file is larger than `max_size` bytes.
    FileTooLarge {
        /// Limit in bytes.
        max_size: u64,
    },
    /// An image is smaller than this in pixels.
    ImageTooSmall {
        /// Pixels.
        min_height: u32,
        /// Pixels.
        min_width: u32,
    },
    /// An image is larger than this in pixels.
    ImageTooLarge {
        /// Pixels.
        max_height: u32,
        /// Pixels.
        max_width: u32,
    },
    /// A value must be above `gt`.
    GreaterThan {
        /// Bound, excluded.
        gt: f64,
    },
    /// A value must be at least `ge`.
    GreaterThanEqual {
        /// Bound, included.
        ge: f64,
    },
    /// A value must be below `lt`.
    LessThan {
        /// Bound, excluded.
        lt: f64,
    },
    /// A value must be at most `le`.
    LessThanEqual {
        /// Bound, included.
        le: f64,
    },
    /// A value must be a multiple of `multiple_of`.
    MultipleOf {
        /// Divisor.
        multiple_of: f64,
    },
    /// A list has fewer than `min_length` entries.
    SequenceTooShort {
        /// Entries.
        min_length: usize,
    },
    /// A list has more than `max_length` entries.
    SequenceTooLong {
        /// Entries.
        max_length: usize,
    },
    /// A value is none of `expected`.
    OneOf {
        /// The legal values.
        expected: Vec<Value>,
    },
    /// The archive is corrupt or of a foreign kind.
    InvalidArchive {
        /// Extensions that would be read.
        supported_extensions: Vec<String>,
    },
    /// The archive holds too few usable files.
    ArchiveFileCountBelowMinimum {
        /// Files needed.
        min_count: usize,
        /// Files found.
        provided_count: usize,
        /// Extensions that are counted.
        supported_extensions: Vec<String>,
    },
    /// The archive holds too many files.
    ArchiveFileCountExceedsMaximum {
        /// Files allowed.
        max_count: usize,
        /// Files found.
        provided_count: usize,
        /// Extensions that are counted.
        supported_extensions: Vec<String>,
    },
    /// An audio file is longer than `max_duration` seconds.
    AudioDurationTooLong {
        /// Seconds.
        max_duration: f64,
        /// Seconds.
        provided_duration: f64,
    },
    /// An audio file is shorter than `min_duration` seconds.
    AudioDurationTooShort {
        /// Seconds.
        min_duration: f64,
        /// Seconds.
        provided_duration: f64,
    },
    /// A video is longer than `max_duration` seconds.
    VideoDurationTooLong {
        /// Seconds.
        max_duration: f64,
        /// Seconds.
        provided_duration: f64,
    },
    /// A video is shorter than `min_duration` seconds.
    VideoDurationTooShort {
        /// Seconds.
        min_duration: f64,
        /// Seconds.
        provided_duration: f64,
    },
    /// An audio file is of a kind that cannot be read.
    UnsupportedAudioFormat {
        /// Extensions that can be read.
        supported_formats: Vec<String>,
    },
    /// An image is of a kind that cannot be read.
    UnsupportedImageFormat {
        /// Extensions that can be read.
        supported_formats: Vec<String>,
    },
    /// A video is of a kind that cannot be read.
    UnsupportedVideoFormat {
        /// Extensions that can be read.
        supported_formats: Vec<String>,
    },
}

impl FalError {
    /// Value of `type`.
    pub fn kind(&self) -> &'static str {
        use FalError as E;
        match self {
            E::InternalServerError => "internal_server_error",
            E::GenerationTimeout => "generation_timeout",
            E::DownstreamServiceError => "downstream_service_error",
            E::DownstreamServiceUnavailable => "downstream_service_unavailable",
            E::ContentPolicyViolation => "content_policy_violation",
            E::NoMediaGenerated => "no_media_generated",
            E::FaceDetectionError => "face_detection_error",
            E::ImageLoadError => "image_load_error",
            E::FeatureNotSupported => "feature_not_supported",
            E::FileDownloadError => "file_download_error",
            E::FileTooLarge { .. } => "file_too_large",
            E::ImageTooSmall { .. } => "image_too_small",
            E::ImageTooLarge { .. } => "image_too_large",
            E::GreaterThan { .. } => "greater_than",
            E::GreaterThanEqual { .. } => "greater_than_equal",
            E::LessThan { .. } => "less_than",
            E::LessThanEqual { .. } => "less_than_equal",
            E::MultipleOf { .. } => "multiple_of",
            E::SequenceTooShort { .. } => "sequence_too_short",
            E::SequenceTooLong { .. } => "sequence_too_long",
            E::OneOf { .. } => "one_of",
            E::InvalidArchive { .. } => "invalid_archive",
            E::ArchiveFileCountBelowMinimum { .. } => "archive_file_count_below_minimum",
            E::ArchiveFileCountExceedsMaximum { .. } => "archive_file_count_exceeds_maximum",
            E::AudioDurationTooLong { .. } => "audio_duration_too_long",
            E::AudioDurationTooShort { .. } => "audio_duration_too_short",
            E::VideoDurationTooLong { .. } => "video_duration_too_long",
            E::VideoDurationTooShort { .. } => "video_duration_too_short",
            E::UnsupportedAudioFormat { .. } => "unsupported_audio_format",
            E::UnsupportedImageFormat { .. } => "unsupported_image_format",
            E::UnsupportedVideoFormat { .. } => "unsupported_video_format",
        }
    }

    /// Status of an answer that carries this problem.
    pub fn http_status(&self) -> u16 {
        use FalError as E;
        match self {
            E::InternalServerError | E::DownstreamServiceError | E::DownstreamServiceUnavailable => 500,
            E::GenerationTimeout => 504,
            _ => 422,
        }
    }

    /// Value of `ctx`, none for types without limits.
    fn ctx(&self) -> Option<Map<String, Value>> {
        use FalError as E;
        let ctx = match self {
            E::FileTooLarge { max_size } => json!({ "max_size": max_size }),
            E::ImageTooSmall { min_height, min_width } => {
                json!({ "min_height": min_height, "min_width": min_width })
            }
            E::ImageTooLarge { max_height, max_width } => {
                json!({ "max_height": max_height, "max_width": max_width })
            }
            E::GreaterThan { gt } => json!({ "gt": gt }),
            E::GreaterThanEqual { ge } => json!({ "ge": ge }),
            E::LessThan { lt } => json!({ "lt": lt }),
            E::LessThanEqual { le } => json!({ "le": le }),
            E::MultipleOf { multiple_of } => json!({ "multiple_of": multiple_of }),
            E::SequenceTooShort { min_length } => json!({ "min_length": min_length }),
            E::SequenceTooLong { max_length } => json!({ "max_length": max_length }),
            E::OneOf { expected } => json!({ "expected": expected }),
            E::InvalidArchive { supported_extensions } => {
                json!({ "supported_extensions": supported_extensions })
            }
            E::ArchiveFileCountBelowMinimum { min_count, provided_count, supported_extensions } => {
                json!({ "min_count": min_count, "provided_count": provided_count, "supported_extensions": supported_extensions })
            }
            E::ArchiveFileCountExceedsMaximum { max_count, provided_count, supported_extensions } => {
                json!({ "max_count": max_count, "provided_count": provided_count, "supported_extensions": supported_extensions })
            }
            E::AudioDurationTooLong { max_duration, provided_duration }
            | E::VideoDurationTooLong { max_duration, provided_duration } => {
                json!({ "max_duration": max_duration, "provided_duration": provided_duration })
            }
            E::AudioDurationTooShort { min_duration, provided_duration }
            | E::VideoDurationTooShort { min_duration, provided_duration } => {
                json!({ "min_duration": min_duration, "provided_duration": provided_duration })
            }
            E::UnsupportedAudioFormat { supported_formats }
            | E::UnsupportedImageFormat { supported_formats }
            | E::UnsupportedVideoFormat { supported_formats } => {
                json!({ "supported_formats": supported_formats })
            }
            _ => return None,
        };
        match ctx {
            Value::Object(map) => Some(map),
            _ => None,
        }
    }
}

/// Echoed inputs above this many bytes are shortened: a body may carry an archive as a data URI, and an answer, a job
/// row and a webhook must not carry it back once per problem.
const ECHO_BYTES: usize = 8 * 1024;
/// How much of one long string a shortened echo keeps, in characters.
const ECHO_CHARS: usize = 200;

/// Copies a value for `input`, whole up to 8 KiB, else with long strings cut and the rest left out, marked by `…`.
pub(crate) fn echo(value: &Value) -> Value {
    let mut budget = ECHO_BYTES;
    if fits(value, &mut budget) {
        return value.clone();
    }
    budget = ECHO_BYTES;
    shorten(value, &mut budget)
}

/// Takes the value's approximate size off the budget; false when it does not fit.
fn fits(value: &Value, budget: &mut usize) -> bool {
    let own = match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => return take(budget, 2) && items.iter().all(|item| fits(item, budget)),
        Value::Object(map) => {
            return take(budget, 2)
                && map.iter().all(|(key, item)| take(budget, key.len() + 4) && fits(item, budget));
        }
        _ => 8,
    };
    take(budget, own)
}

fn take(budget: &mut usize, bytes: usize) -> bool {
    match budget.checked_sub(bytes) {
        Some(left) => {
            *budget = left;
            true
        }
        None => false,
    }
}

fn shorten_text(text: &str) -> String {
    match text.char_indices().nth(ECHO_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}… ({} bytes in all)", &text[..end], text.len()),
    }
}

fn shorten(value: &Value, budget: &mut usize) -> Value {
    match value {
        Value::String(text) => {
            let short = shorten_text(text);
            *budget = budget.saturating_sub(short.len() + 2);
            Value::String(short)
        }
        Value::Array(items) => {
            let mut kept = Vec::new();
            for item in items {
                if !take(budget, 2) || *budget == 0 {
                    kept.push(Value::from("…"));
                    break;
                }
                kept.push(shorten(item, budget));
            }
            Value::Array(kept)
        }
        Value::Object(map) => {
            let mut kept = Map::new();
            for (key, item) in map {
                let key = shorten_text(key);
                if !take(budget, key.len() + 4) {
                    kept.insert("…".to_owned(), Value::from("…"));
                    break;
                }
                let item = shorten(item, budget);
                kept.insert(key, item);
            }
            Value::Object(kept)
        }
        other => {
            *budget = budget.saturating_sub(8);
            other.clone()
        }
    }
}
