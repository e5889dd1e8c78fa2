//! What goes into a pass, per stream. B batch, T tokens, C channels, A axes, S text tokens, D width, K distinct
//! timesteps.

use candle_core::Tensor;
use kernels::{Mask, Rope};

use super::{Perturbations, Stream};

/// One stream of a forward pass.
#[derive(Debug, Clone)]
pub struct Modality {
    /// Tokens, [B, T, C]; noisy, or clean where the timestep is 0.
    pub latent: Tensor,
    /// Noise level of the stream, `[B]`, 0 to 1; 0 when the whole stream is a condition.
    pub sigma: Tensor,
    /// Noise level per token, [B, T], 0 to 1.
    pub timesteps: Tensor,
    /// Bounds per axis, [B, A, T, 2] f32: seconds, and for video pixels down and across.
    pub positions: Tensor,
    /// Text context, [B, S, D].
    pub context: Tensor,
    /// 1 where a context token counts, [B, S]. LTX-2.3's connectors leave no padding, so `None` is the rule.
    pub context_mask: Option<Tensor>,
    /// Strength of self-attention in [0, 1], [B, T, T]; row attends to column.
    pub attention_mask: Option<Tensor>,
    /// A disabled stream is not updated and still serves the other one as context.
    pub enabled: bool,
}

/// The streams of a forward pass; at least one is there.
#[derive(Debug, Clone, Copy, Default)]
pub struct Inputs<'a> {
    /// Video.
    pub video: Option<&'a Modality>,
    /// Audio.
    pub audio: Option<&'a Modality>,
}

impl<'a> Inputs<'a> {
    /// Both streams.
    pub fn both(video: &'a Modality, audio: &'a Modality) -> Self {
        Self { video: Some(video), audio: Some(audio) }
    }

    /// One stream.
    pub fn only(stream: Stream, modality: &'a Modality) -> Self {
        match stream {
            Stream::Video => Self { video: Some(modality), audio: None },
            Stream::Audio => Self { video: None, audio: Some(modality) },
        }
    }

    /// The input of `stream`.
    pub fn get(&self, stream: Stream) -> Option<&'a Modality> {
        match stream {
            Stream::Video => self.video,
            Stream::Audio => self.audio,
        }
    }
}

/// A tensor per stream: hidden states [B, T, D], velocities [B, T, C] or their gradients.
#[derive(Debug, Clone, Default)]
pub struct Streams {
    /// Video.
    pub video: Option<Tensor>,
    /// Audio.
    pub audio: Option<Tensor>,
}

impl Streams {
    /// The tensor of `stream`.
    pub fn get(&self, stream: Stream) -> Option<&Tensor> {
        match stream {
            Stream::Video => self.video.as_ref(),
            Stream::Audio => self.audio.as_ref(),
        }
    }

    /// Puts the tensor of `stream`.
    pub fn set(&mut self, stream: Stream, tensor: Option<Tensor>) {
        match stream {
            Stream::Video => self.video = tensor,
            Stream::Audio => self.audio = tensor,
        }
    }

    /// The same values outside any recorded graph.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self {
            video: self.video.as_ref().map(Tensor::detach),
            audio: self.audio.as_ref().map(Tensor::detach),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.video.is_none() && self.audio.is_none()
    }
}

/// What every block of a pass needs besides the hidden states: constants, made once.
#[derive(Debug, Clone)]
pub struct Args {
    /// Of the video stream.
    pub video: Option<StreamArgs>,
    /// Of the audio stream.
    pub audio: Option<StreamArgs>,
    /// What is skipped.
    pub perturbations: Perturbations,
    /// Samples.
    pub batch: usize,
}

impl Args {
    /// The constants of `stream`.
    pub fn get(&self, stream: Stream) -> Option<&StreamArgs> {
        match stream {
            Stream::Video => self.video.as_ref(),
            Stream::Audio => self.audio.as_ref(),
        }
    }
}

/// One stream's constants of a pass.
#[derive(Debug, Clone)]
pub struct StreamArgs {
    /// Which distinct timestep a token has, [B, T] u32, below K.
    pub index: Tensor,
    /// Modulation per distinct timestep, [K, 9, D], tables not added.
    pub modulation: Tensor,
    /// Embedded timestep for the output head, [K, D].
    pub embedded: Tensor,
    /// Modulation of the text context per sample, [B, 2, D].
    pub prompt: Tensor,
    /// Text context, [B, S, D].
    pub context: Tensor,
    /// Text tokens that count.
    pub context_mask: Mask,
    /// Strength of self-attention.
    pub self_mask: Mask,
    /// Rotary tables of self-attention.
    pub rope: Rope,
    /// Constants of the attention between the streams, when both are there.
    pub cross: Option<CrossArgs>,
    /// Whether the stream is updated.
    pub enabled: bool,
}

/// One stream's constants of the attention between the streams.
#[derive(Debug, Clone)]
pub struct CrossArgs {
    /// Scale and shift per distinct timestep of this stream, [K, 4, D].
    pub scale_shift: Tensor,
    /// Gate of this stream's update per sample, [B, 1, D], driven by the other stream's sigma.
    pub gate: Tensor,
    /// Rotary tables on the shared clock.
    pub rope: Rope,
}
