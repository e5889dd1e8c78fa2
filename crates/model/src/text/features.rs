//! Projects the normalised hidden states of a token to one row per stream.
//!
//! N rows (tokens of all captions), H Gemma's width, S states. The projection's input is hidden-major: entry d·S + ℓ is
//! state ℓ's value d. It is never built: the weight is kept as S matrices [out, H], and each state is added as soon as
//! it exists.
//!
//! Source: `model-text.md` §3; Lightricks/LTX-2 `ltx_core/text_encoders/gemma/feature_extractor.py` at 400fd31.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use kernels::{FrozenWeight, frozen_linear, rms_norm};
use serde_json::Value;

use super::connector::{ConnectorConfig, Stream};
use crate::{Checkpoint, Component, Result, Section, Weights, transformer::TransformerConfig};

/// Epsilon of the norm of each state. Source: `model-text.md` §3.
const EPS: f64 = 1e-6;

/// Refuses text paths of other generations.
fn check(config: &Value) -> Result<()> {
    // Refuses everything that is not 2.3.
    TransformerConfig::new(config)?;
    Section::of(config, "transformer")?.require_or_absent("text_encoder_norm_type", "per_token_rms")
}

/// `video_aggregate_embed` or `audio_aggregate_embed`.
struct Aggregate {
    /// [S, out, H], as stored.
    weight: Tensor,
    /// [out], f32.
    bias: Tensor,
    /// √(out/H), put on the sum instead of the input.
    factor: f64,
}

impl Aggregate {
    fn new(hidden: usize, states: usize, width: usize, w: &Weights) -> Result<Self> {
        Ok(Self {
            weight: w.stored_then("weight", (width, hidden * states), |weight| {
                weight.reshape((width, hidden, states))?.permute((2, 0, 1))?.contiguous()
            })?,
            bias: w.with_dtype(DType::F32).tensor("bias", width)?,
            factor: (width as f64 / hidden as f64).sqrt(),
        })
    }

    /// What state `index`, normalised [N, H], adds to the sum: [N, out].
    fn part(&self, index: usize, state: &Tensor) -> Result<Tensor> {
        Ok(frozen_linear(state, &FrozenWeight::new(self.weight.get(index)?)?, None)?)
    }

    fn finish(&self, sum: Tensor) -> Result<Tensor> {
        Ok((sum * self.factor)?.broadcast_add(&self.bias)?)
    }
}

/// Both projections.
pub struct FeatureProjection {
    video_aggregate_embed: Aggregate,
    audio_aggregate_embed: Aggregate,
    states: usize,
}

/// Projected rows, [N, width] f32 each.
#[derive(Debug, Clone)]
pub struct Features {
    /// For the video connector.
    pub video: Tensor,
    /// For the audio connector.
    pub audio: Tensor,
}

/// Features of which some states are still missing.
#[derive(Debug, Default)]
pub struct Sum {
    video: Option<Tensor>,
    audio: Option<Tensor>,
    states: usize,
}

impl FeatureProjection {
    /// Loads the projections for a Gemma of width `hidden` with `states` hidden states.
    ///
    /// # Errors
    /// `Config` for another generation's text path, `Tensors` (a Gemma of another size misfits here), `Io`.
    pub fn load(checkpoint: &Arc<Checkpoint>, hidden: usize, states: usize, device: &Device) -> Result<Self> {
        let config = checkpoint.config()?;
        check(config)?;
        let video = ConnectorConfig::new(config, Stream::Video)?.width();
        let audio = ConnectorConfig::new(config, Stream::Audio)?.width();
        checkpoint.load(Component::TextProjection, device, DType::F32, |w| {
            Self::new(hidden, states, (video, audio), w)
        })
    }

    fn new(hidden: usize, states: usize, (video, audio): (usize, usize), w: &Weights) -> Result<Self> {
        let aggregate = |name: &str, width| Aggregate::new(hidden, states, width, &w.pp(name));
        Ok(Self {
            video_aggregate_embed: aggregate("video_aggregate_embed", video)?,
            audio_aggregate_embed: aggregate("audio_aggregate_embed", audio)?,
            states,
        })
    }

    /// Asks `w` (at `text_embedding_projection.`) for every tensor: for the walk over names. `config` is the
    /// checkpoint's, Gemma's sizes come from its own.
    ///
    /// # Errors
    /// `Config`, and what `w` reports.
    pub fn walk(config: &Value, hidden: usize, states: usize, w: &Weights) -> Result<()> {
        check(config)?;
        let width = |stream| Ok::<_, crate::Error>(ConnectorConfig::new(config, stream)?.width());
        Self::new(hidden, states, (width(Stream::Video)?, width(Stream::Audio)?), w).map(drop)
    }

    /// Adds hidden state `index` [N, H] to `sum`.
    ///
    /// # Errors
    /// Only what the ops report.
    pub fn add(&self, sum: &mut Sum, index: usize, state: &Tensor) -> Result<()> {
        let state = rms_norm(&state.to_dtype(DType::F32)?, None, EPS)?;
        let add = |sum: &mut Option<Tensor>, aggregate: &Aggregate| -> Result<()> {
            let part = aggregate.part(index, &state)?;
            *sum = Some(match sum.take() {
                Some(sum) => (sum + part)?,
                None => part,
            });
            Ok(())
        };
        add(&mut sum.video, &self.video_aggregate_embed)?;
        add(&mut sum.audio, &self.audio_aggregate_embed)?;
        sum.states += 1;
        Ok(())
    }

    /// The features once every state was added.
    ///
    /// # Panics
    /// When states are missing.
    ///
    /// # Errors
    /// Only what the ops report.
    pub fn finish(&self, sum: Sum) -> Result<Features> {
        assert_eq!(sum.states, self.states, "invariant: every hidden state was added once");
        let (Some(video), Some(audio)) = (sum.video, sum.audio) else {
            unreachable!("invariant: there is at least one state")
        };
        Ok(Features {
            video: self.video_aggregate_embed.finish(video)?,
            audio: self.audio_aggregate_embed.finish(audio)?,
        })
    }
}
