//! The whole way from captions to contexts.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::{
    connector::{Connector, Stream},
    features::{FeatureProjection, Features, Sum},
    gemma::{Gemma, Group, Residency},
    tokenizer::{PADDED_TOKENS, Tokenizer},
};
use crate::{Checkpoint, Result};

/// Captions that go through the connectors together: 8 already fill any device, more only take memory.
const CAPTIONS_PER_PASS: usize = 8;

/// How captions are encoded.
#[derive(Debug, Clone, Copy)]
pub struct TextOptions {
    /// Tokens a caption is cut and padded to, the length of a context. 1024 for the real model.
    pub padded_tokens: usize,
    /// Type of the activations.
    pub dtype: DType,
    /// Where Gemma's layers live.
    pub residency: Residency,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self { padded_tokens: PADDED_TOKENS, dtype: DType::F32, residency: Residency::Streamed }
    }
}

/// What the transformer gets for one caption: all there is to keep of it.
#[derive(Debug, Clone)]
pub struct Context {
    /// [L, video width].
    pub video: Tensor,
    /// [L, audio width].
    pub audio: Tensor,
    /// Tokens of the caption, `<bos>` included; the rows behind them are registers.
    pub tokens: usize,
}

/// Tokenizer, language model, projections and connectors.
pub struct TextEncoder {
    tokenizer: Tokenizer,
    gemma: Gemma,
    projection: FeatureProjection,
    video_connector: Connector,
    audio_connector: Connector,
}

impl TextEncoder {
    /// Loads the text parts of `checkpoint` and the language model in `gemma`, whose tokenizer is in its folder.
    ///
    /// # Errors
    /// `Config`, `Tensors`, `Io`, `Format`; `Input` for a padded length the connectors cannot have.
    pub fn load(
        checkpoint: &Arc<Checkpoint>,
        gemma: &Arc<Checkpoint>,
        device: &Device,
        options: TextOptions,
    ) -> Result<Self> {
        let TextOptions { padded_tokens, dtype, residency } = options;
        let tokenizer = Tokenizer::open(gemma.path(), padded_tokens)?;
        let gemma = Gemma::load(gemma, device, dtype, residency)?;
        let (hidden, states) = (gemma.config().hidden, gemma.config().states());
        let connector = |stream| Connector::load(checkpoint, stream, padded_tokens, device, dtype);
        Ok(Self {
            projection: FeatureProjection::load(checkpoint, hidden, states, device)?,
            video_connector: connector(Stream::Video)?,
            audio_connector: connector(Stream::Audio)?,
            tokenizer,
            gemma,
        })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The language model.
    pub fn gemma(&self) -> &Gemma {
        &self.gemma
    }

    /// The contexts of `captions`, in their order. An empty caption has one too, and it is not zero.
    ///
    /// # Errors
    /// `Input` for a caption that cannot be tokenized, or a tokenizer that belongs to another model.
    pub fn encode<S: AsRef<str>>(&self, captions: &[S]) -> Result<Vec<Context>> {
        let ids: Vec<Vec<u32>> =
            captions.iter().map(|caption| self.tokenizer.encode(caption.as_ref())).collect::<Result<_>>()?;
        let features = self.features(&ids)?;
        let mut contexts = Vec::with_capacity(ids.len());
        for (ids, features) in ids.chunks(CAPTIONS_PER_PASS).zip(features.chunks(CAPTIONS_PER_PASS)) {
            let rows =
                |pick: fn(&Features) -> &Tensor| features.iter().map(pick).cloned().collect::<Vec<_>>();
            let video = self.video_connector.forward(&rows(|f| &f.video))?;
            let audio = self.audio_connector.forward(&rows(|f| &f.audio))?;
            for (at, ids) in ids.iter().enumerate() {
                // A copy: a row of the batch would keep the whole batch alive.
                let (video, audio) = (video.get(at)?.copy()?, audio.get(at)?.copy()?);
                contexts.push(Context { video, audio, tokens: ids.len() });
            }
        }
        Ok(contexts)
    }

    /// Feature rows of each caption, one per token.
    ///
    /// # Errors
    /// As [`Gemma::hidden_states`].
    pub fn features(&self, captions: &[Vec<u32>]) -> Result<Vec<Features>> {
        let groups = Group::split(captions);
        let mut sums: Vec<Sum> = groups.iter().map(|_| Sum::default()).collect();
        self.gemma.hidden_states(captions, self.tokenizer.padded_tokens(), |group, index, state| {
            self.projection.add(&mut sums[group.index], index, state)
        })?;
        let mut features = Vec::with_capacity(captions.len());
        for (group, sum) in groups.iter().zip(sums) {
            let all = self.projection.finish(sum)?;
            let mut start = 0;
            for caption in &captions[group.captions.clone()] {
                let cut = |rows: &Tensor| rows.narrow(0, start, caption.len());
                features.push(Features { video: cut(&all.video)?, audio: cut(&all.audio)? });
                start += caption.len();
            }
        }
        Ok(features)
    }
}
