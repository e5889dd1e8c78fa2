//! One transformer block: both streams in, both streams out. Legend as in `modality.rs`.
//!
//! Rows of the tables: nine per stream are shift, scale, gate of self-attention, then of the feed-forward, then of the
//! text attention's query side; the prompt's two are shift, scale. The five between the streams put scale first:
//! scale, shift into video (audio → video), scale, shift into audio, then the gate.
//! Source: `model-transformer.md` §7.

use candle_core::Tensor;
use kernels::{Mask, Modulation, gate_residual, modulate, rms_norm_modulate};

use super::{
    Args, CrossArgs, FeedForward, Halves, Skip, Stream, StreamArgs, Streams, TransformerConfig,
    attention::{Attention, AttentionArgs, AttentionConfig, Keep},
};
use crate::{Error, Result, Weights, nn::Adapters};

const SHIFT_SA: usize = 0;
const SCALE_SA: usize = 1;
const GATE_SA: usize = 2;
const SHIFT_FF: usize = 3;
const SCALE_FF: usize = 4;
const GATE_FF: usize = 5;
const SHIFT_TEXT: usize = 6;
const SCALE_TEXT: usize = 7;
const GATE_TEXT: usize = 8;
/// Rows of a stream's modulation.
pub(super) const ROWS: usize = 9;

const PROMPT_SHIFT: usize = 0;
const PROMPT_SCALE: usize = 1;
/// Rows of the text context's modulation.
pub(super) const PROMPT_ROWS: usize = 2;

/// Rows of scale and shift between the streams; the gate is one more.
pub(super) const CROSS_ROWS: usize = 4;

/// Rows (scale, shift) of the five-row tables for the update into `stream`.
const fn cross_rows(stream: Stream) -> (usize, usize) {
    match stream {
        Stream::Video => (0, 1),
        Stream::Audio => (2, 3),
    }
}

/// A block of the transformer, or the half of it that was loaded.
#[derive(Debug)]
pub struct Block {
    index: usize,
    video: Option<Half>,
    audio: Option<Half>,
    cross: Option<Cross>,
    eps: f64,
}

/// One stream's modules.
#[derive(Debug)]
struct Half {
    attn1: Attention,
    attn2: Attention,
    ff: FeedForward,
    /// [9, D].
    scale_shift_table: Tensor,
    /// [2, D].
    prompt_scale_shift_table: Tensor,
}

/// The modules between the streams.
#[derive(Debug)]
struct Cross {
    audio_to_video_attn: Attention,
    video_to_audio_attn: Attention,
    /// [5, D video].
    scale_shift_table_a2v_ca_video: Tensor,
    /// [5, D audio].
    scale_shift_table_a2v_ca_audio: Tensor,
}

impl Block {
    /// The block at `w` (`transformer_blocks.N`), number `index`.
    ///
    /// # Errors
    /// What reading its tensors reports.
    pub fn new(config: &TransformerConfig, halves: Halves, index: usize, w: &Weights) -> Result<Self> {
        let half = |stream| halves.has(stream).then(|| Half::new(config, stream, w)).transpose();
        Ok(Self {
            index,
            video: half(Stream::Video)?,
            audio: half(Stream::Audio)?,
            cross: (halves == Halves::Both).then(|| Cross::new(config, w)).transpose()?,
            eps: config.norm_eps,
        })
    }

    fn half(&self, stream: Stream) -> Result<&Half> {
        let half = match stream {
            Stream::Video => &self.video,
            Stream::Audio => &self.audio,
        };
        half.as_ref().ok_or_else(|| Error::input(stream.name(), "this half of the model was not loaded"))
    }

    /// The block's place in the list.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Applies the block: hidden states [B, T, D] in and out. Depends on nothing but its arguments, so that a
    /// backward pass can run it again.
    ///
    /// # Errors
    /// When the shapes do not fit or a stream's half was not loaded.
    pub fn forward(&self, x: &Streams, args: &Args, adapters: Adapters<'_>) -> Result<Streams> {
        let mut x = x.clone();
        for stream in Stream::BOTH {
            if let Some((state, own)) = self.updated(&x, args, stream) {
                let keep = args.perturbations.keep(Skip::SelfAttention(stream), self.index, args.batch);
                let state = self.half(stream)?.attentions(state, own, &keep, self.eps, adapters)?;
                x.set(stream, Some(state));
            }
        }
        if let (Some(video), Some(audio)) = (&x.video, &x.audio) {
            // Both updates read the states from before either of them.
            let before = Streams { video: Some(video.clone()), audio: Some(audio.clone()) };
            for stream in Stream::BOTH {
                if self.updated(&before, args, stream).is_some() {
                    x.set(stream, Some(self.cross_update(&before, args, stream, adapters)?));
                }
            }
        }
        for stream in Stream::BOTH {
            if let Some((state, own)) = self.updated(&x, args, stream) {
                let state = self.half(stream)?.feed_forward(state, own, self.eps, adapters)?;
                x.set(stream, Some(state));
            }
        }
        Ok(x)
    }

    /// State and constants of `stream`, when it is there and enabled.
    fn updated<'a>(
        &self,
        x: &'a Streams,
        args: &'a Args,
        stream: Stream,
    ) -> Option<(&'a Tensor, &'a StreamArgs)> {
        let (state, own) = (x.get(stream)?, args.get(stream)?);
        own.enabled.then_some((state, own))
    }

    /// The state of `into` after the update from the other stream.
    fn cross_update(&self, x: &Streams, args: &Args, into: Stream, adapters: Adapters<'_>) -> Result<Tensor> {
        let cross = self
            .cross
            .as_ref()
            .ok_or_else(|| Error::input("audio", "the attention between the streams was not loaded"))?;
        let missing = || Error::input(into.name(), "the constants between the streams were not prepared");
        let keep = args.perturbations.keep(Skip::CrossAttentionInto(into), self.index, args.batch);
        let (from, attention) = match into {
            Stream::Video => (Stream::Audio, &cross.audio_to_video_attn),
            Stream::Audio => (Stream::Video, &cross.video_to_audio_attn),
        };
        let (own, other) = (args.get(into).ok_or_else(missing)?, args.get(from).ok_or_else(missing)?);
        let (own_cross, other_cross) =
            (own.cross.as_ref().ok_or_else(missing)?, other.cross.as_ref().ok_or_else(missing)?);
        let (state, context) = (x.get(into).ok_or_else(missing)?, x.get(from).ok_or_else(missing)?);
        if keep == Keep::None {
            return Ok(state.clone());
        }

        let (scale, shift) = cross_rows(into);
        let query = scale_shift(own, own_cross, cross.table(into))?;
        let query = rms_norm_modulate(state, &query, shift, scale, self.eps)?;
        let key = scale_shift(other, other_cross, cross.table(from))?;
        let key = rms_norm_modulate(context, &key, shift, scale, self.eps)?;
        let update = attention.forward(
            &query,
            &key,
            &AttentionArgs {
                query_rope: Some(&own_cross.rope),
                key_rope: Some(&other_cross.rope),
                mask: &Mask::None,
                keep: &Keep::All,
                adapters,
            },
        )?;
        let gate = own_cross.gate.broadcast_add(&cross.table(into).narrow(0, CROSS_ROWS, 1)?)?;
        let gate = match keep.factors(&gate)? {
            Some(factors) => gate.broadcast_mul(&factors)?,
            None => gate,
        };
        let gate = Modulation::per_sample(&gate, state.dim(1)?)?;
        Ok(gate_residual(state, &update, &gate, 0)?)
    }
}

/// Rows 0 to 3 of the five-row table, added to what the timesteps say.
fn scale_shift(own: &StreamArgs, cross: &CrossArgs, table: &Tensor) -> Result<Modulation> {
    let rows = cross.scale_shift.broadcast_add(&table.narrow(0, 0, CROSS_ROWS)?)?;
    Ok(Modulation::new(&rows, &own.index)?)
}

impl Half {
    fn new(config: &TransformerConfig, stream: Stream, w: &Weights) -> Result<Self> {
        let (sizes, prefix) = (config.stream(stream), stream.prefix());
        let width = sizes.width();
        let attention = AttentionConfig {
            query_width: width,
            context_width: width,
            heads: sizes.heads,
            head_dim: sizes.head_dim,
            eps: config.norm_eps,
        };
        Ok(Self {
            attn1: Attention::new(attention, &w.pp(format!("{prefix}attn1")))?,
            attn2: Attention::new(attention, &w.pp(format!("{prefix}attn2")))?,
            ff: FeedForward::new(width, &w.pp(format!("{prefix}ff")))?,
            scale_shift_table: w.tensor(&format!("{prefix}scale_shift_table"), (ROWS, width))?,
            prompt_scale_shift_table: w
                .tensor(&format!("{prefix}prompt_scale_shift_table"), (PROMPT_ROWS, width))?,
        })
    }

    fn modulation(&self, own: &StreamArgs) -> Result<Modulation> {
        let rows = own.modulation.broadcast_add(&self.scale_shift_table)?;
        Ok(Modulation::new(&rows, &own.index)?)
    }

    /// Self-attention, then attention to the text.
    fn attentions(
        &self,
        x: &Tensor,
        own: &StreamArgs,
        keep: &Keep,
        eps: f64,
        adapters: Adapters<'_>,
    ) -> Result<Tensor> {
        let m = self.modulation(own)?;
        let h = rms_norm_modulate(x, &m, SHIFT_SA, SCALE_SA, eps)?;
        let args = AttentionArgs {
            query_rope: Some(&own.rope),
            key_rope: Some(&own.rope),
            mask: &own.self_mask,
            keep,
            adapters,
        };
        let x = gate_residual(x, &self.attn1.forward(&h, &h, &args)?, &m, GATE_SA)?;

        let query = rms_norm_modulate(&x, &m, SHIFT_TEXT, SCALE_TEXT, eps)?;
        let prompt = own.prompt.broadcast_add(&self.prompt_scale_shift_table)?;
        let prompt = Modulation::per_sample(&prompt, own.context.dim(1)?)?;
        // The context is not normalised.
        let context = modulate(&own.context, &prompt, PROMPT_SHIFT, PROMPT_SCALE)?;
        let args = AttentionArgs {
            query_rope: None,
            key_rope: None,
            mask: &own.context_mask,
            keep: &Keep::All,
            adapters,
        };
        Ok(gate_residual(&x, &self.attn2.forward(&query, &context, &args)?, &m, GATE_TEXT)?)
    }

    fn feed_forward(&self, x: &Tensor, own: &StreamArgs, eps: f64, adapters: Adapters<'_>) -> Result<Tensor> {
        let m = self.modulation(own)?;
        let h = rms_norm_modulate(x, &m, SHIFT_FF, SCALE_FF, eps)?;
        Ok(gate_residual(x, &self.ff.forward(&h, adapters)?, &m, GATE_FF)?)
    }
}

impl Cross {
    fn new(config: &TransformerConfig, w: &Weights) -> Result<Self> {
        let (video, audio) = (&config.video, &config.audio);
        // The attention between the streams has the audio stream's heads in both directions.
        let attention = |query: usize, context: usize, name: &str| {
            let config = AttentionConfig {
                query_width: query,
                context_width: context,
                heads: audio.heads,
                head_dim: audio.head_dim,
                eps: config.norm_eps,
            };
            Attention::new(config, &w.pp(name))
        };
        let rows = CROSS_ROWS + 1;
        Ok(Self {
            audio_to_video_attn: attention(video.width(), audio.width(), "audio_to_video_attn")?,
            video_to_audio_attn: attention(audio.width(), video.width(), "video_to_audio_attn")?,
            scale_shift_table_a2v_ca_video: w
                .tensor("scale_shift_table_a2v_ca_video", (rows, video.width()))?,
            scale_shift_table_a2v_ca_audio: w
                .tensor("scale_shift_table_a2v_ca_audio", (rows, audio.width()))?,
        })
    }

    fn table(&self, stream: Stream) -> &Tensor {
        match stream {
            Stream::Video => &self.scale_shift_table_a2v_ca_video,
            Stream::Audio => &self.scale_shift_table_a2v_ca_audio,
        }
    }
}
