//! The transformer's sizes, read from the `transformer` object of the embedded configuration.

use kernels::Precision;
use serde_json::Value;

use crate::{Error, Result, Section};

/// Most blocks accepted: the real model has 48.
const MAX_LAYERS: usize = 1024;

/// One of the two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// Video tokens.
    Video,
    /// Audio tokens.
    Audio,
}

impl Stream {
    /// Both streams, video first.
    pub const BOTH: [Self; 2] = [Self::Video, Self::Audio];

    /// What the checkpoint puts before the names of this stream's modules.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Video => "",
            Self::Audio => "audio_",
        }
    }

    /// The stream's name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Video => "video",
            Self::Audio => "audio",
        }
    }
}

/// Which part of the model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Halves {
    /// Both streams and the attention between them.
    Both,
    /// One stream alone.
    Only(Stream),
}

impl Halves {
    /// Whether `stream` is part of it.
    pub fn has(self, stream: Stream) -> bool {
        match self {
            Self::Both => true,
            Self::Only(one) => one == stream,
        }
    }
}

/// Sizes of one stream.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamConfig {
    /// Attention heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Channels of a latent token.
    pub in_channels: usize,
    /// Channels of a predicted token.
    pub out_channels: usize,
    /// Largest position per axis: seconds, then pixels.
    pub max_pos: Vec<f64>,
}

impl StreamConfig {
    /// Width of the stream, which is also that of its text context.
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// How rotary angles are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Precision in which the frequency grid is computed before it is rounded to f32.
    pub precision: Precision,
}

/// Everything about the transformer that a checkpoint decides.
#[derive(Debug, Clone, PartialEq)]
pub struct TransformerConfig {
    /// Blocks.
    pub layers: usize,
    /// The video stream.
    pub video: StreamConfig,
    /// The audio stream. It has as many heads as the video stream.
    pub audio: StreamConfig,
    /// Added under the root of every norm.
    pub norm_eps: f64,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Largest time of the rotary embedding between the streams, in seconds.
    pub cross_max_seconds: f64,
    /// What timesteps are multiplied by before they are embedded.
    pub timestep_scale: f64,
    /// The same for the gates between the streams.
    pub cross_gate_timestep_scale: f64,
}

impl TransformerConfig {
    /// Reads and checks the configuration at the root of a checkpoint's `config`.
    ///
    /// # Errors
    /// `Config` naming the key, for everything that is not LTX-2.3 or not supported.
    pub fn new(config: &Value) -> Result<Self> {
        let s = Section::of(config, "transformer")?;
        refuse_other_versions(&s)?;
        refuse_unsupported(&s)?;

        let heads = s.size("num_attention_heads")?;
        let audio_heads = s.size("audio_num_attention_heads")?;
        if audio_heads != heads {
            let problem =
                format!("{audio_heads}, but the video stream has {heads}: only equal numbers are supported");
            return Err(s.refuse("audio_num_attention_heads", problem));
        }
        let video = StreamConfig {
            heads,
            head_dim: even(&s, "attention_head_dim")?,
            in_channels: s.size("in_channels")?,
            out_channels: s.size("out_channels")?,
            max_pos: positions(&s, "positional_embedding_max_pos", 3)?,
        };
        let audio = StreamConfig {
            heads: audio_heads,
            head_dim: even(&s, "audio_attention_head_dim")?,
            // Absent in the real file, where it is 128; the reference's default too.
            in_channels: s.size_or("audio_in_channels", 128)?,
            out_channels: s.size("audio_out_channels")?,
            max_pos: positions(&s, "audio_positional_embedding_max_pos", 1)?,
        };
        same_width(&s, "cross_attention_dim", &video)?;
        same_width(&s, "audio_cross_attention_dim", &audio)?;
        let layers = s.size("num_layers")?;
        if layers > MAX_LAYERS {
            return Err(s.refuse("num_layers", format!("{layers}; at most {MAX_LAYERS} are supported")));
        }
        let precision = match s.get("frequencies_precision").and_then(Value::as_str) {
            Some("float64") => Precision::F64,
            Some("float32") => Precision::F32,
            None if s.get("frequencies_precision").is_none() => Precision::F32,
            _ => {
                return Err(
                    s.refuse("frequencies_precision", "only \"float64\" and \"float32\" are supported")
                );
            }
        };
        Ok(Self {
            layers,
            norm_eps: s.positive("norm_eps")?,
            rope: RopeConfig { theta: s.positive("positional_embedding_theta")?, precision },
            cross_max_seconds: video.max_pos[0].max(audio.max_pos[0]),
            timestep_scale: s.positive("timestep_scale_multiplier")?,
            // The reference falls back to 1 here, with which all shapes fit and the gates are wrong.
            cross_gate_timestep_scale: s.positive("av_ca_timestep_scale_multiplier")?,
            video,
            audio,
        })
    }

    /// The sizes of `stream`.
    pub fn stream(&self, stream: Stream) -> &StreamConfig {
        match stream {
            Stream::Video => &self.video,
            Stream::Audio => &self.audio,
        }
    }
}

/// LTX-2.3 is known by two flags; 2.0 lacks them and 2.5 has keys of its own (`model.md` §1, §2.1).
fn refuse_other_versions(s: &Section<'_>) -> Result<()> {
    for key in ["cross_attention_adaln", "caption_proj_before_connector"] {
        if !s.flag_or(key, false)? {
            return Err(
                s.refuse(key, "missing or false: this is not an LTX-2.3 model (LTX-2.0 is not supported)")
            );
        }
    }
    let later = [
        ("ff_bias", true),
        ("audio_ff_bias", true),
        ("connector_ff_bias", true),
        ("use_prompt_adaln_single", true),
        ("use_keyframes_abs_pos_embedding", false),
    ];
    for (key, value) in later {
        if s.flag_or(key, value)? != value {
            return Err(s.refuse(key, format!("{}: a feature of LTX-2.5, which is not supported", !value)));
        }
    }
    Ok(())
}

fn refuse_unsupported(s: &Section<'_>) -> Result<()> {
    s.require("rope_type", "split")?;
    s.require("apply_gated_attention", true)?;
    s.require("use_middle_indices_grid", true)?;
    let fixed: [(&str, Value); 21] = [
        ("causal_temporal_positioning", true.into()),
        ("qk_norm", "rms_norm".into()),
        ("standardization_norm", "rms_norm".into()),
        ("positional_embedding_type", "rope".into()),
        ("activation_fn", "gelu-approximate".into()),
        ("attention_bias", true.into()),
        ("attention_type", "default".into()),
        ("use_audio_video_cross_attention", true.into()),
        ("av_cross_ada_norm", true.into()),
        ("cross_attention_norm", true.into()),
        ("norm_elementwise_affine", false.into()),
        ("share_ff", false.into()),
        ("double_self_attention", false.into()),
        ("only_cross_attention", false.into()),
        ("upcast_attention", false.into()),
        ("use_linear_projection", false.into()),
        ("caption_projection_first_linear", false.into()),
        ("caption_projection_second_linear", false.into()),
        ("caption_proj_input_norm", false.into()),
        ("dropout", 0.0.into()),
        ("num_embeds_ada_norm", 1000.into()),
    ];
    for (key, value) in fixed {
        s.require_or_absent(key, value)?;
    }
    if let Some(other) = s.get("num_vector_embeds") {
        return Err(s.refuse("num_vector_embeds", format!("found {other}, only null is supported")));
    }
    Ok(())
}

/// Rotary embedding turns pairs, so a head must have an even width.
fn even(s: &Section<'_>, key: &str) -> Result<usize> {
    match s.size(key)? {
        n if n % 2 == 0 => Ok(n),
        n => Err(s.refuse(key, format!("{n} is odd: rotary embedding needs pairs"))),
    }
}

fn positions(s: &Section<'_>, key: &str, axes: usize) -> Result<Vec<f64>> {
    let found = s.numbers(key)?;
    if found.len() == axes {
        Ok(found)
    } else {
        Err(s.refuse(key, format!("{} values, expected {axes}", found.len())))
    }
}

fn same_width(s: &Section<'_>, key: &str, stream: &StreamConfig) -> Result<(), Error> {
    let (found, width) = (s.size(key)?, stream.width());
    if found == width {
        Ok(())
    } else {
        Err(s
            .refuse(key, format!("{found}, but the stream is {width} wide: only equal widths are supported")))
    }
}
