//! What a finished job hands back.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A file of the result: a public, absolute address and what is behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Public address; needs no key.
    pub url: String,
    /// MIME type.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub content_type: Option<String>,
    /// Name, last segment of the address.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file_name: Option<String>,
    /// Size in bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file_size: Option<u64>,
}

/// The result of a training job: the same shape for all modes, files that do not apply are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Combined preview of modes that make video, when validation items were given.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub video: Option<File>,
    /// Combined preview of modes that make only audio, when validation items were given.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub audio: Option<File>,
    /// The trained adapter, `.safetensors`.
    pub lora_file: File,
    /// Settings for inference, `.json`.
    pub config_file: File,
    /// The prepared data, `.zip`, when `debug_dataset` was set.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub debug_dataset: Option<File>,
}

impl Outcome {
    /// The result answer's body.
    pub fn to_result(&self) -> Value {
        serde_json::to_value(self).expect("invariant: an outcome is plain strings and numbers")
    }

    /// The files that are there, by their name in the result.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &File)> {
        [
            ("video", self.video.as_ref()),
            ("audio", self.audio.as_ref()),
            ("lora_file", Some(&self.lora_file)),
            ("config_file", Some(&self.config_file)),
            ("debug_dataset", self.debug_dataset.as_ref()),
        ]
        .into_iter()
        .filter_map(|(name, file)| file.map(|file| (name, file)))
    }
}
