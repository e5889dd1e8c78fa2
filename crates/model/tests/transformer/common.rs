//! Small models with random weights and inputs that fit them.

use candle_core::{DType, Device, Tensor};
use kiln_model::{
    Component, LoraSet, Weights,
    lora::Target,
    transformer::{Halves, Modality, Stream, Streams, Transformer, TransformerConfig},
};
use serde_json::{Value, json};

/// Sizes that differ from the reference model's, and from each other in all respects.
pub(crate) struct Geometry {
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) head_dims: [usize; 2],
    pub(crate) in_channels: [usize; 2],
    pub(crate) out_channels: [usize; 2],
    pub(crate) max_pos: [f64; 4],
    pub(crate) precision: &'static str,
    pub(crate) tokens: [usize; 2],
    pub(crate) text: usize,
}

pub(crate) const GEOMETRIES: [Geometry; 2] = [
    Geometry {
        layers: 3,
        heads: 3,
        head_dims: [10, 6],
        in_channels: [5, 7],
        out_channels: [4, 9],
        max_pos: [13.0, 700.0, 900.0, 11.0],
        precision: "float64",
        tokens: [6, 5],
        text: 4,
    },
    Geometry {
        layers: 1,
        heads: 1,
        head_dims: [8, 14],
        in_channels: [3, 2],
        out_channels: [3, 2],
        max_pos: [20.0, 2048.0, 2048.0, 40.0],
        precision: "float32",
        tokens: [4, 7],
        text: 1,
    },
];

impl Geometry {
    pub(crate) fn config(&self) -> TransformerConfig {
        let [video, audio] = self.head_dims.map(|d| d * self.heads);
        let [seconds, height, width, audio_seconds] = self.max_pos;
        let config: Value = json!({"transformer": {
            "num_layers": self.layers,
            "num_attention_heads": self.heads, "attention_head_dim": self.head_dims[0],
            "audio_num_attention_heads": self.heads, "audio_attention_head_dim": self.head_dims[1],
            "in_channels": self.in_channels[0], "out_channels": self.out_channels[0],
            "audio_in_channels": self.in_channels[1], "audio_out_channels": self.out_channels[1],
            "cross_attention_dim": video, "audio_cross_attention_dim": audio,
            "positional_embedding_max_pos": [seconds, height, width],
            "audio_positional_embedding_max_pos": [audio_seconds],
            "positional_embedding_theta": 10000.0, "frequencies_precision": self.precision,
            "timestep_scale_multiplier": 1000, "av_ca_timestep_scale_multiplier": 1000,
            "norm_eps": 1e-6, "rope_type": "split", "apply_gated_attention": true,
            "use_middle_indices_grid": true, "cross_attention_adaln": true,
            "caption_proj_before_connector": true,
        }});
        TransformerConfig::new(&config).unwrap()
    }

    pub(crate) fn model(&self, halves: Halves, dtype: DType) -> Transformer {
        let w = Weights::random(Component::Transformer, 5, &Device::Cpu, dtype);
        Transformer::new(&self.config(), halves, &w).unwrap()
    }

    /// Inputs of `batch` samples; the first token of each is clean.
    pub(crate) fn modality(&self, stream: Stream, batch: usize, dtype: DType) -> Modality {
        let config = self.config();
        let sizes = config.stream(stream);
        let i = usize::from(stream == Stream::Audio);
        let tokens = self.tokens[i];
        let axes = sizes.max_pos.len();
        let sigma: Vec<f32> = (0..batch).map(|b| 0.7 - 0.25 * b as f32 - 0.1 * i as f32).collect();
        let timesteps: Vec<f32> =
            (0..batch * tokens).map(|n| if n % tokens == 0 { 0.0 } else { sigma[n / tokens] }).collect();
        let positions: Vec<f32> = (0..batch * axes * tokens)
            .flat_map(|n| {
                let start = (n * 7 % 11) as f32 * 0.3;
                [start, start + 0.4]
            })
            .collect();
        Modality {
            latent: random(20 + i as u64, (batch, tokens, sizes.in_channels), dtype),
            sigma: Tensor::from_vec(sigma, batch, &Device::Cpu).unwrap(),
            timesteps: Tensor::from_vec(timesteps, (batch, tokens), &Device::Cpu).unwrap(),
            positions: Tensor::from_vec(positions, (batch, axes, tokens, 2), &Device::Cpu).unwrap(),
            context: random(30 + i as u64, (batch, self.text, sizes.width()), dtype),
            context_mask: None,
            attention_mask: None,
            enabled: true,
        }
    }
}

/// Values of the standard normal distribution.
pub(crate) fn random(seed: u64, shape: impl Into<candle_core::Shape>, dtype: DType) -> Tensor {
    let shape = shape.into();
    // A matrix of one column has deviation 1.
    let values = kiln_model::random_values(seed, "weight", &[shape.elem_count(), 1]);
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// The sum of products of two tensors' values.
pub(crate) fn dot(a: &Tensor, b: &Tensor) -> f64 {
    let values =
        |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    values(a).iter().zip(values(b)).map(|(a, b)| a * b).sum()
}

/// The largest absolute difference.
pub(crate) fn apart(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let values =
        |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    values(a).iter().zip(values(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

pub(crate) fn both(g: &Geometry, batch: usize, dtype: DType) -> [Modality; 2] {
    Stream::BOTH.map(|stream| g.modality(stream, batch, dtype))
}

pub(crate) fn weights_like(out: &Streams) -> Streams {
    let like = |t: &Tensor, seed| random(seed, t.shape().clone(), t.dtype());
    Streams { video: out.video.as_ref().map(|t| like(t, 40)), audio: out.audio.as_ref().map(|t| like(t, 41)) }
}

pub(crate) fn lora(model: &Transformer, halves: Halves) -> LoraSet {
    let specs = Transformer::specs(model.config(), halves).unwrap();
    let prefix = if halves == Halves::Only(Stream::Audio) { "audio_" } else { "" };
    let patterns = ["to_q", "to_k", "to_v", "to_out.0"].map(str::to_owned);
    let patterns = [&patterns[..], &[format!("{prefix}ff.net.0.proj"), format!("{prefix}ff.net.2")]].concat();
    let targets = Target::matching(&specs, &patterns).unwrap();
    let set = LoraSet::init(&targets, 2, 1.0, &Device::Cpu, || 0.5).unwrap();
    for (i, (_, var)) in set.vars().enumerate() {
        let small = (random(60 + i as u64, var.shape().clone(), DType::F32) * 0.2).unwrap();
        var.set(&small).unwrap();
    }
    set
}
