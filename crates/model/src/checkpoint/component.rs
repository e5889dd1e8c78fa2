//! Which tensor of a file belongs to which component: the one table of prefixes.

use std::fmt;

use super::Checkpoint;

/// A part of the model with a name space of its own in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// The 48-block audio+video transformer.
    Transformer,
    /// Connector of the video stream's text context.
    VideoConnector,
    /// Connector of the audio stream's text context.
    AudioConnector,
    /// Projections of the language model's states.
    TextProjection,
    /// Pixels to video latents.
    VideoEncoder,
    /// Video latents to pixels.
    VideoDecoder,
    /// Mean and deviation of video latents per channel.
    VideoStatistics,
    /// Mel to audio latents.
    AudioEncoder,
    /// Audio latents to mel.
    AudioDecoder,
    /// Mean and deviation of audio latents per channel.
    AudioStatistics,
    /// Mel to waveform.
    Vocoder,
    /// The generator that extends the vocoder's waveform to full bandwidth.
    BandwidthExtension,
    /// Stored Fourier and mel bases of the bandwidth extension.
    VocoderMel,
    /// The Gemma 3 language model, in its own folder.
    Gemma,
}

/// How a component's tensors are found.
struct Row {
    component: Component,
    words: &'static str,
    /// Prefixes in the order they are tried; the first is the original one.
    prefixes: &'static [&'static str],
    /// A prefix counts when it leads to one of these; without any, when it leads to any tensor.
    markers: &'static [&'static str],
    /// Beginnings (after the prefix) that belong to something else.
    not: &'static [&'static str],
}

/// Source: `model.md` §3 and `model-text.md` §2. Repacked files may drop the transformer's prefix.
const TABLE: &[Row] = &[
    Row {
        component: Component::Transformer,
        words: "transformer",
        prefixes: &["model.diffusion_model.", ""],
        markers: &["patchify_proj.weight", "audio_patchify_proj.weight"],
        not: &[
            "video_embeddings_connector.",
            "audio_embeddings_connector.",
            "text_embedding_projection.",
            "vae.",
            "audio_vae.",
            "vocoder.",
        ],
    },
    Row {
        component: Component::VideoConnector,
        words: "video text connector",
        prefixes: &["model.diffusion_model.video_embeddings_connector.", "video_embeddings_connector."],
        markers: &[],
        not: &[],
    },
    Row {
        component: Component::AudioConnector,
        words: "audio text connector",
        prefixes: &["model.diffusion_model.audio_embeddings_connector.", "audio_embeddings_connector."],
        markers: &[],
        not: &[],
    },
    plain(Component::TextProjection, "text projections", &["text_embedding_projection."]),
    plain(Component::VideoEncoder, "video encoder", &["vae.encoder."]),
    plain(Component::VideoDecoder, "video decoder", &["vae.decoder."]),
    plain(Component::VideoStatistics, "video latent statistics", &["vae.per_channel_statistics."]),
    plain(Component::AudioEncoder, "audio encoder", &["audio_vae.encoder."]),
    plain(Component::AudioDecoder, "audio decoder", &["audio_vae.decoder."]),
    plain(Component::AudioStatistics, "audio latent statistics", &["audio_vae.per_channel_statistics."]),
    plain(Component::Vocoder, "vocoder", &["vocoder.vocoder."]),
    plain(Component::BandwidthExtension, "vocoder's bandwidth extension", &["vocoder.bwe_generator."]),
    plain(Component::VocoderMel, "vocoder's mel front end", &["vocoder.mel_stft."]),
    Row {
        component: Component::Gemma,
        words: "Gemma text model",
        prefixes: &["language_model.model.", "model.language_model.", "model."],
        markers: &["embed_tokens.weight"],
        not: &["vision_tower.", "multi_modal_projector.", "diffusion_model."],
    },
];

const fn plain(component: Component, words: &'static str, prefixes: &'static [&'static str]) -> Row {
    Row { component, words, prefixes, markers: &[], not: &[] }
}

impl Component {
    /// Every component, in the order of the file.
    pub const ALL: &'static [Self] = &[
        Self::Transformer,
        Self::VideoConnector,
        Self::AudioConnector,
        Self::TextProjection,
        Self::VideoEncoder,
        Self::VideoDecoder,
        Self::VideoStatistics,
        Self::AudioEncoder,
        Self::AudioDecoder,
        Self::AudioStatistics,
        Self::Vocoder,
        Self::BandwidthExtension,
        Self::VocoderMel,
        Self::Gemma,
    ];

    fn row(self) -> &'static Row {
        TABLE.iter().find(|row| row.component == self).expect("invariant: every component has a row")
    }

    /// The component's prefix in the original files.
    pub fn original_prefix(self) -> &'static str {
        self.row().prefixes[0]
    }

    /// The component's prefix in `file`: the first of its row that leads to tensors, else the original one.
    pub fn prefix(self, file: &Checkpoint) -> &'static str {
        let row = self.row();
        let leads = |prefix: &str| {
            if row.markers.is_empty() {
                file.entries
                    .range(prefix.to_owned()..)
                    .next()
                    .is_some_and(|(name, _)| name.starts_with(prefix))
            } else {
                row.markers.iter().any(|marker| file.entry(&format!("{prefix}{marker}")).is_some())
            }
        };
        row.prefixes.iter().copied().find(|prefix| leads(prefix)).unwrap_or(row.prefixes[0])
    }

    /// `name` without `prefix`, when it belongs to this component.
    pub(super) fn relative<'a>(self, prefix: &str, name: &'a str) -> Option<&'a str> {
        let relative = name.strip_prefix(prefix)?;
        (!self.row().not.iter().any(|other| relative.starts_with(other))).then_some(relative)
    }

    /// Whether the tensor called `name` in `file` belongs to this component.
    pub(super) fn owns(self, file: &Checkpoint, name: &str) -> bool {
        self.relative(self.prefix(file), name).is_some()
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().words)
    }
}
