//! The whole transformer: entry, blocks, output head. Legend as in `modality.rs`.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use kernels::{Mask, Modulation, layer_norm_modulate};

use super::{
    Args, Block, CrossArgs, Halves, Inputs, Modality, Perturbations, Stream, StreamArgs, StreamConfig,
    Streams, TransformerConfig,
    adaln::{AdaLayerNormSingle, Distinct},
    attention::{key_mask, strength_mask},
    block::{CROSS_ROWS, PROMPT_ROWS, ROWS},
    rope,
};
use crate::{
    Checkpoint, Component, Error, Result, TensorSpec, Weights,
    nn::{Adapters, Linear},
};

/// Name of the list of blocks in the checkpoint.
const BLOCKS: &str = "transformer_blocks";

/// The transformer, or the half of it that was loaded.
#[derive(Debug)]
pub struct Transformer {
    config: TransformerConfig,
    halves: Halves,
    video: Option<Side>,
    audio: Option<Side>,
    blocks: Vec<Block>,
    dtype: DType,
    device: Device,
}

/// One stream's modules outside the blocks.
#[derive(Debug)]
struct Side {
    patchify_proj: Linear,
    adaln_single: AdaLayerNormSingle,
    prompt_adaln_single: AdaLayerNormSingle,
    cross: Option<CrossSide>,
    /// [2, D]: shift, scale.
    scale_shift_table: Tensor,
    proj_out: Linear,
}

/// One stream's modules for the attention between the streams.
#[derive(Debug)]
struct CrossSide {
    /// `av_ca_{video,audio}_scale_shift_adaln_single`.
    scale_shift: AdaLayerNormSingle,
    /// `av_ca_{a2v,v2a}_gate_adaln_single`.
    gate: AdaLayerNormSingle,
}

impl Transformer {
    /// Builds the model, or a half of it, from `w`, whose compute type becomes the type of activations.
    ///
    /// # Errors
    /// What reading its tensors reports.
    pub fn new(config: &TransformerConfig, halves: Halves, w: &Weights) -> Result<Self> {
        let side = |stream| halves.has(stream).then(|| Side::new(config, stream, halves, w)).transpose();
        let (video, audio) = (side(Stream::Video)?, side(Stream::Audio)?);
        let blocks = w.pp(BLOCKS);
        let blocks = (0..config.layers).map(|i| Block::new(config, halves, i, &blocks.pp(i)));
        Ok(Self {
            config: config.clone(),
            halves,
            video,
            audio,
            blocks: blocks.collect::<Result<_>>()?,
            dtype: w.dtype(),
            device: w.device().clone(),
        })
    }

    /// The tensors of the model, or of a half of it, by its configuration alone.
    ///
    /// # Errors
    /// None for a configuration that was read from a checkpoint.
    pub fn specs(config: &TransformerConfig, halves: Halves) -> Result<Vec<TensorSpec>> {
        Weights::record(Component::Transformer, |w| Self::new(config, halves, w).map(drop))
    }

    /// Loads the model, or a half of it, after checking the whole transformer's names and shapes.
    ///
    /// # Errors
    /// `Config` for a model that is not supported, `Tensors` with everything that does not fit, `Io`.
    pub fn load(file: &Arc<Checkpoint>, halves: Halves, device: &Device, dtype: DType) -> Result<Self> {
        let config = Self::check(file, halves)?;
        Self::new(&config, halves, &file.weights(Component::Transformer, device, dtype))
    }

    /// Checks a file's transformer without reading any weight, and returns its configuration.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn check(file: &Arc<Checkpoint>, halves: Halves) -> Result<TransformerConfig> {
        let config = TransformerConfig::new(file.config()?)?;
        let known = Self::specs(&config, Halves::Both)?;
        match halves {
            Halves::Both => file.verify(Component::Transformer, &known, &known)?,
            Halves::Only(_) => {
                file.verify(Component::Transformer, &Self::specs(&config, halves)?, &known)?;
            }
        }
        Ok(config)
    }

    /// Loads block `index` alone.
    ///
    /// # Errors
    /// `Tensor` naming the tensor that does not fit; `Io`.
    pub fn load_block(
        file: &Arc<Checkpoint>,
        config: &TransformerConfig,
        halves: Halves,
        index: usize,
        device: &Device,
        dtype: DType,
    ) -> Result<Block> {
        let w = file.weights(Component::Transformer, device, dtype).pp(BLOCKS).pp(index);
        Block::new(config, halves, index, &w)
    }

    /// The sizes.
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }

    /// Which part is loaded.
    pub fn halves(&self) -> Halves {
        self.halves
    }

    /// The blocks, in order.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Predicts velocities, [B, T, C] per stream that is there.
    ///
    /// # Errors
    /// `Input` when an argument does not fit the model.
    pub fn forward(
        &self,
        inputs: &Inputs<'_>,
        perturbations: &Perturbations,
        adapters: Adapters<'_>,
    ) -> Result<Streams> {
        let args = self.prepare(inputs, perturbations, adapters)?;
        let mut x = self.enter(inputs, adapters)?;
        for block in &self.blocks {
            x = block.forward(&x, &args, adapters)?;
        }
        self.leave(&x, &args, adapters)
    }

    /// Checks the inputs and makes what all blocks share.
    ///
    /// # Errors
    /// `Input` when an argument does not fit the model.
    pub fn prepare(
        &self,
        inputs: &Inputs<'_>,
        perturbations: &Perturbations,
        adapters: Adapters<'_>,
    ) -> Result<Args> {
        let Some(first) = inputs.video.or(inputs.audio) else {
            return Err(Error::input("inputs", "neither video nor audio is there"));
        };
        let batch = first.latent.dims3()?.0;
        let args = |stream: Stream, other: Stream| {
            let Some(own) = inputs.get(stream) else { return Ok(None) };
            self.stream_args(stream, own, inputs.get(other), batch, adapters).map(Some)
        };
        Ok(Args {
            video: args(Stream::Video, Stream::Audio)?,
            audio: args(Stream::Audio, Stream::Video)?,
            perturbations: perturbations.clone(),
            batch,
        })
    }

    /// Latent tokens to hidden states, the input of the first block.
    ///
    /// # Errors
    /// When a stream's half was not loaded.
    pub fn enter(&self, inputs: &Inputs<'_>, adapters: Adapters<'_>) -> Result<Streams> {
        let latents = Streams {
            video: inputs.video.map(|m| m.latent.clone()),
            audio: inputs.audio.map(|m| m.latent.clone()),
        };
        self.enter_latents(&latents, adapters)
    }

    pub(super) fn enter_latents(&self, latents: &Streams, adapters: Adapters<'_>) -> Result<Streams> {
        self.each(latents, |side, _, latent| {
            side.patchify_proj.forward(&latent.to_dtype(self.dtype)?, adapters)
        })
    }

    /// Hidden states of the last block to velocities.
    ///
    /// # Errors
    /// When a stream's half was not loaded.
    pub fn leave(&self, x: &Streams, args: &Args, adapters: Adapters<'_>) -> Result<Streams> {
        self.each(x, |side, stream, x| {
            let own = args.get(stream).expect("invariant: a stream in the pass has constants");
            side.head(x, own, self.config.norm_eps, adapters)
        })
    }

    fn each(&self, x: &Streams, run: impl Fn(&Side, Stream, &Tensor) -> Result<Tensor>) -> Result<Streams> {
        let mut out = Streams::default();
        for stream in Stream::BOTH {
            if let Some(state) = x.get(stream) {
                out.set(stream, Some(run(self.side(stream)?, stream, state)?));
            }
        }
        Ok(out)
    }

    fn side(&self, stream: Stream) -> Result<&Side> {
        let side = match stream {
            Stream::Video => &self.video,
            Stream::Audio => &self.audio,
        };
        side.as_ref().ok_or_else(|| Error::input(stream.name(), "this half of the model was not loaded"))
    }

    fn stream_args(
        &self,
        stream: Stream,
        own: &Modality,
        other: Option<&Modality>,
        batch: usize,
        adapters: Adapters<'_>,
    ) -> Result<StreamArgs> {
        let (side, sizes) = (self.side(stream)?, self.config.stream(stream));
        check_shapes(stream, own, sizes, batch)?;
        let config = &self.config;
        let embed = |module: &AdaLayerNormSingle, values: &[f32], scale: f64| {
            let scaled: Vec<f32> = values.iter().map(|value| value * scale as f32).collect();
            module.forward(&scaled, self.dtype, &self.device, adapters)
        };

        let distinct = Distinct::of(&own.timesteps)?;
        let modulation = embed(&side.adaln_single, &distinct.values, config.timestep_scale)?;
        let prompt = embed(&side.prompt_adaln_single, &sigmas(own)?, config.timestep_scale)?;
        let cross = match (&side.cross, other) {
            (Some(modules), Some(other)) => {
                // The attention between the streams is as wide as the audio stream.
                let (heads, head_dim) = (config.audio.heads, config.audio.head_dim);
                let seconds = own.positions.narrow(1, 0, 1)?;
                let max = [config.cross_max_seconds];
                let gate = embed(&modules.gate, &sigmas(other)?, config.cross_gate_timestep_scale)?;
                let scale_shift = embed(&modules.scale_shift, &distinct.values, config.timestep_scale)?;
                Some(CrossArgs {
                    scale_shift: scale_shift.modulation,
                    gate: gate.modulation,
                    rope: rope::from_intervals(&seconds, &max, heads, head_dim, config.rope, self.dtype)?,
                })
            }
            _ => None,
        };
        let (heads, head_dim) = (sizes.heads, sizes.head_dim);
        Ok(StreamArgs {
            index: distinct.index,
            modulation: modulation.modulation,
            embedded: modulation.timestep,
            prompt: prompt.modulation,
            context: own.context.to_dtype(self.dtype)?,
            context_mask: own.context_mask.as_ref().map_or(Ok(Mask::None), key_mask)?,
            self_mask: own.attention_mask.as_ref().map_or(Ok(Mask::None), strength_mask)?,
            rope: rope::from_intervals(
                &own.positions,
                &sizes.max_pos,
                heads,
                head_dim,
                config.rope,
                self.dtype,
            )?,
            cross,
            enabled: own.enabled,
        })
    }
}

impl Side {
    fn new(config: &TransformerConfig, stream: Stream, halves: Halves, w: &Weights) -> Result<Self> {
        let (sizes, prefix) = (config.stream(stream), stream.prefix());
        let width = sizes.width();
        let named = |name: &str| w.pp(format!("{prefix}{name}"));
        let cross = match halves {
            Halves::Both => Some(CrossSide::new(stream, width, w)?),
            Halves::Only(_) => None,
        };
        Ok(Self {
            patchify_proj: Linear::new(sizes.in_channels, width, &named("patchify_proj"))?,
            adaln_single: AdaLayerNormSingle::new(width, ROWS, &named("adaln_single"))?,
            prompt_adaln_single: AdaLayerNormSingle::new(width, PROMPT_ROWS, &named("prompt_adaln_single"))?,
            cross,
            scale_shift_table: w.tensor(&format!("{prefix}scale_shift_table"), (2, width))?,
            proj_out: Linear::new(width, sizes.out_channels, &named("proj_out"))?,
        })
    }

    /// Layer norm, shift and scale by the embedded timestep, projection.
    fn head(&self, x: &Tensor, own: &StreamArgs, eps: f64, adapters: Adapters<'_>) -> Result<Tensor> {
        let rows = own.embedded.unsqueeze(1)?.broadcast_add(&self.scale_shift_table.unsqueeze(0)?)?;
        let m = Modulation::new(&rows, &own.index)?;
        self.proj_out.forward(&layer_norm_modulate(x, &m, 0, 1, eps)?, adapters)
    }
}

impl CrossSide {
    fn new(stream: Stream, width: usize, w: &Weights) -> Result<Self> {
        let (scale_shift, gate) = match stream {
            Stream::Video => ("av_ca_video_scale_shift_adaln_single", "av_ca_a2v_gate_adaln_single"),
            Stream::Audio => ("av_ca_audio_scale_shift_adaln_single", "av_ca_v2a_gate_adaln_single"),
        };
        Ok(Self {
            scale_shift: AdaLayerNormSingle::new(width, CROSS_ROWS, &w.pp(scale_shift))?,
            gate: AdaLayerNormSingle::new(width, 1, &w.pp(gate))?,
        })
    }
}

fn sigmas(modality: &Modality) -> Result<Vec<f32>> {
    Ok(modality.sigma.to_dtype(DType::F32)?.to_vec1::<f32>()?)
}

fn check_shapes(stream: Stream, own: &Modality, sizes: &StreamConfig, batch: usize) -> Result<()> {
    let tokens = own.latent.dims3()?.1;
    let context = own.context.dims();
    let text = context.get(1).copied().unwrap_or(0);
    let mut wanted = vec![
        ("latent", &own.latent, vec![batch, tokens, sizes.in_channels]),
        ("sigma", &own.sigma, vec![batch]),
        ("timesteps", &own.timesteps, vec![batch, tokens]),
        ("positions", &own.positions, vec![batch, sizes.max_pos.len(), tokens, 2]),
        ("context", &own.context, vec![batch, text, sizes.width()]),
    ];
    if let Some(mask) = &own.context_mask {
        wanted.push(("context_mask", mask, vec![batch, text]));
    }
    if let Some(mask) = &own.attention_mask {
        wanted.push(("attention_mask", mask, vec![batch, tokens, tokens]));
    }
    if tokens == 0 || text == 0 {
        return Err(Error::input(stream.name(), "no tokens"));
    }
    for (name, tensor, want) in wanted {
        if tensor.dims() != want {
            let problem = format!("expected shape {want:?}, found {:?}", tensor.dims());
            return Err(Error::input(format!("{}.{name}", stream.name()), problem));
        }
    }
    Ok(())
}
