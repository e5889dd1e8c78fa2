//! What the builders ask for, component by component: the one list over all of them.
//!
//! Names and shapes come from walking the builders ([`Weights::record`]), so nothing is written down twice. The name
//! contract, [`crate::init_tiny`] and [`crate::inspect`] read it.

use candle_core::{DType, Device};
use serde_json::Value;

use crate::{
    Component, Error, Result, TensorSpec, Weights,
    audio_vae::{AudioDecoder, AudioEncoder, AudioVaeConfig, Vocoder, VocoderConfig},
    text::{Connector, ConnectorConfig, FeatureProjection, Gemma, GemmaConfig, Stream},
    transformer::{Halves, Transformer, TransformerConfig},
    video_vae::{Statistics, VideoDecoder, VideoEncoder, VideoVaeConfig},
};

/// Sizes of the language model that the text projections depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextWidth {
    /// Width of a hidden state.
    pub hidden: usize,
    /// Hidden states of a token.
    pub states: usize,
}

impl From<&GemmaConfig> for TextWidth {
    fn from(config: &GemmaConfig) -> Self {
        Self { hidden: config.hidden, states: config.states() }
    }
}

/// Names (relative to the component) and shapes of every tensor of a component of the unified checkpoint.
///
/// # Errors
/// `Config` for a configuration this program does not support; [`Component::Gemma`] is in a file of its own, see
/// [`gemma_specs`].
pub fn specs(component: Component, config: &Value, text: TextWidth) -> Result<Vec<TensorSpec>> {
    let record = |build: &dyn Fn(&Weights) -> Result<()>| Weights::record(component, build);
    let connector = |stream| -> Result<Vec<TensorSpec>> {
        let sizes = ConnectorConfig::new(config, stream)?;
        record(&|w| Connector::walk(&sizes, w))
    };
    match component {
        Component::Transformer => Transformer::specs(&TransformerConfig::new(config)?, Halves::Both),
        Component::VideoConnector => connector(Stream::Video),
        Component::AudioConnector => connector(Stream::Audio),
        Component::TextProjection => {
            record(&|w| FeatureProjection::walk(config, text.hidden, text.states, w))
        }
        Component::VideoEncoder | Component::VideoDecoder | Component::VideoStatistics => {
            let sizes = VideoVaeConfig::read(config)?;
            // Encoder and decoder hold the statistics, which are a component of their own.
            let statistics = || {
                let any = Weights::random(Component::VideoStatistics, 0, &Device::Cpu, DType::F32);
                Statistics::new(sizes.latent_channels, &any)
            };
            record(&|w| match component {
                Component::VideoEncoder => VideoEncoder::new(&sizes, w, statistics()?).map(drop),
                Component::VideoDecoder => VideoDecoder::new(&sizes, w, statistics()?).map(drop),
                _ => Statistics::new(sizes.latent_channels, w).map(drop),
            })
        }
        Component::AudioEncoder | Component::AudioDecoder | Component::AudioStatistics => {
            let sizes = AudioVaeConfig::new(config)?;
            record(&|w| match component {
                Component::AudioEncoder => AudioEncoder::walk(&sizes, w),
                Component::AudioDecoder => AudioDecoder::walk(&sizes, w),
                _ => AudioEncoder::walk_statistics(&sizes, w),
            })
        }
        Component::Vocoder | Component::BandwidthExtension | Component::VocoderMel => {
            let sizes = VocoderConfig::new(config)?;
            record(&|w| match component {
                Component::Vocoder => Vocoder::walk_main(&sizes, w),
                Component::BandwidthExtension => Vocoder::walk_extension(&sizes, w),
                _ => Vocoder::walk_mel(&sizes, w),
            })
        }
        Component::Gemma => Err(Error::config("text_config", "the language model is in a folder of its own")),
    }
}

/// Names (relative) and shapes of every tensor of the language model.
///
/// # Errors
/// What recording reports.
pub fn gemma_specs(config: &GemmaConfig) -> Result<Vec<TensorSpec>> {
    Weights::record(Component::Gemma, |w| Gemma::walk(config, w))
}
