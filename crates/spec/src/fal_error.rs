//! fal's own problem types: names, limits, status codes.

use serde_json::{Map, Value, json};

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
    pub(crate) fn ctx(&self) -> Option<Map<String, Value>> {
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
