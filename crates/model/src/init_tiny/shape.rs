//! Sizes of a tiny model, and the configurations they make.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{Error, Result};

/// Sizes that can be chosen. The defaults make a model of a few MB; any combination the checks of the components accept
/// works, which is the point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TinyShape {
    /// Transformer blocks.
    pub layers: usize,
    /// Attention heads of both streams.
    pub heads: usize,
    /// Size of a video head, even.
    pub head_dim: usize,
    /// Size of an audio head, even.
    pub audio_head_dim: usize,
    /// Channels of a video latent.
    pub latent_channels: usize,
    /// Width at the video decoder's pixel end.
    pub decoder_channels: usize,
    /// Residual blocks per level of the video VAE.
    pub video_res_blocks: usize,
    /// Channels of an audio latent (each has 16 bins).
    pub audio_latent_channels: usize,
    /// Width of the audio VAE's first level.
    pub audio_channels: usize,
    /// Residual blocks per level of the audio encoder.
    pub audio_res_blocks: usize,
    /// Width both vocoder generators start with, a multiple of 64.
    pub vocoder_channels: usize,
    /// Blocks of each text connector.
    pub connector_layers: usize,
    /// Attention heads of the text connectors.
    pub connector_heads: usize,
    /// Learned registers; contexts are a multiple of it long.
    pub registers: usize,
    /// Width of the language model.
    pub gemma_width: usize,
    /// Layers of the language model.
    pub gemma_layers: usize,
    /// Query heads of the language model.
    pub gemma_heads: usize,
    /// Key and value heads of the language model, a divisor of the query heads.
    pub gemma_kv_heads: usize,
    /// Size of a head of the language model, even.
    pub gemma_head_dim: usize,
    /// Width inside the language model's feed-forward.
    pub gemma_inner: usize,
    /// Tokens a sliding layer sees.
    pub gemma_window: usize,
    /// Every how many layers one sees all tokens.
    pub gemma_pattern: usize,
}

impl Default for TinyShape {
    fn default() -> Self {
        Self {
            layers: 4,
            heads: 4,
            head_dim: 16,
            audio_head_dim: 8,
            latent_channels: 16,
            decoder_channels: 4,
            video_res_blocks: 1,
            audio_latent_channels: 2,
            audio_channels: 8,
            audio_res_blocks: 1,
            vocoder_channels: 64,
            connector_layers: 2,
            connector_heads: 4,
            registers: 128,
            gemma_width: 32,
            gemma_layers: 7,
            gemma_heads: 4,
            gemma_kv_heads: 2,
            gemma_head_dim: 8,
            gemma_inner: 64,
            gemma_window: 32,
            gemma_pattern: 6,
        }
    }
}

/// Mel bins of the real model, and bins of its latents.
const MEL_BINS: usize = 64;
const LATENT_BINS: usize = 16;

/// Numbers and words of the transformer's configuration that do not depend on its size.
fn transformer_constants() -> Value {
    json!({
        "norm_eps": 1e-6,
        "positional_embedding_theta": 10000.0,
        "positional_embedding_max_pos": [20, 2048, 2048],
        "audio_positional_embedding_max_pos": [20],
        "connector_positional_embedding_max_pos": [4096],
        "timestep_scale_multiplier": 1000,
        "av_ca_timestep_scale_multiplier": 1000.0,
        "rope_type": "split",
        "frequencies_precision": "float64",
        "qk_norm": "rms_norm",
        "standardization_norm": "rms_norm",
        "positional_embedding_type": "rope",
        "activation_fn": "gelu-approximate",
        "attention_type": "default",
        "text_encoder_norm_type": "per_token_rms",
        "dropout": 0.0,
        "num_vector_embeds": null,
    })
}

/// Switches of the transformer's configuration, as in the real file.
fn transformer_flags() -> Value {
    json!({
        "use_middle_indices_grid": true,
        "apply_gated_attention": true,
        "cross_attention_adaln": true,
        "causal_temporal_positioning": true,
        "attention_bias": true,
        "use_audio_video_cross_attention": true,
        "av_cross_ada_norm": true,
        "cross_attention_norm": true,
        "use_embeddings_connector": true,
        "connector_apply_gated_attention": true,
        "connector_norm_output": true,
        "caption_proj_before_connector": true,
        "caption_projection_first_linear": false,
        "caption_projection_second_linear": false,
        "caption_proj_input_norm": false,
        "norm_elementwise_affine": false,
        "share_ff": false,
        "double_self_attention": false,
        "only_cross_attention": false,
        "upcast_attention": false,
        "use_linear_projection": false,
    })
}

impl TinyShape {
    /// Every size by its name, with its value, in the order of the struct.
    pub fn sizes(&self) -> Vec<(String, usize)> {
        let sizes = serde_json::to_value(self).expect("invariant: plain numbers");
        let sizes = sizes.as_object().expect("invariant: a struct").iter();
        sizes.map(|(name, n)| (name.clone(), n.as_u64().unwrap_or(0) as usize)).collect()
    }

    /// The same shape with the size called `name` changed.
    ///
    /// # Errors
    /// `Input` naming all sizes when there is none of that name.
    pub fn with(&self, name: &str, n: usize) -> Result<Self> {
        let mut sizes = serde_json::to_value(self).expect("invariant: plain numbers");
        match sizes.get_mut(name) {
            Some(size) => *size = n.into(),
            None => {
                let names: Vec<String> = self.sizes().into_iter().map(|(name, _)| name).collect();
                return Err(Error::input(name, format!("no such size; there are {}", names.join(", "))));
            }
        }
        Ok(serde_json::from_value(sizes).expect("invariant: the same names, plain numbers"))
    }

    /// The `config` metadata of the checkpoint.
    pub(super) fn config(&self) -> Value {
        json!({
            "transformer": self.transformer(),
            "vae": self.vae(),
            "scheduler": {"_class_name": "RectifiedFlowScheduler", "num_train_timesteps": 1000,
                "sampler": "LinearQuadratic"},
            "audio_vae": self.audio_vae(),
            "vocoder": self.vocoder(),
        })
    }

    fn transformer(&self) -> Value {
        let (width, audio_width) = (self.heads * self.head_dim, self.heads * self.audio_head_dim);
        let audio_tokens = self.audio_latent_channels * LATENT_BINS;
        let mut transformer = json!({
            "_class_name": "AVTransformer3DModel",
            "num_layers": self.layers,
            "num_attention_heads": self.heads,
            "attention_head_dim": self.head_dim,
            "in_channels": self.latent_channels,
            "out_channels": self.latent_channels,
            "cross_attention_dim": width,
            "audio_num_attention_heads": self.heads,
            "audio_attention_head_dim": self.audio_head_dim,
            "audio_in_channels": audio_tokens,
            "audio_out_channels": audio_tokens,
            "audio_cross_attention_dim": audio_width,
            "caption_channels": self.gemma_width,
            "connector_num_attention_heads": self.connector_heads,
            "connector_attention_head_dim": width / self.connector_heads.max(1),
            "connector_num_layers": self.connector_layers,
            "audio_connector_num_attention_heads": self.connector_heads,
            "audio_connector_attention_head_dim": audio_width / self.connector_heads.max(1),
            "connector_num_learnable_registers": self.registers,
        });
        for fixed in [transformer_constants(), transformer_flags()] {
            for (key, value) in fixed.as_object().expect("invariant: written as an object") {
                transformer[key] = value.clone();
            }
        }
        transformer
    }

    fn vae(&self) -> Value {
        let res = json!(["res_x", {"num_layers": self.video_res_blocks}]);
        let compress = |kind: &str, multiplier: usize| json!([kind, {"multiplier": multiplier}]);
        json!({
            "_class_name": "CausalVideoAutoencoder",
            "dims": 3,
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": self.latent_channels,
            "encoder_blocks": [
                res, compress("compress_space_res", 1), res, compress("compress_time_res", 2), res,
                compress("compress_all_res", 2), res, compress("compress_all_res", 1), res,
            ],
            "decoder_blocks": [
                res, compress("compress_space", 2), res, compress("compress_time", 2), res,
                compress("compress_all", 1), res, compress("compress_all", 2), res,
            ],
            "decoder_base_channels": self.decoder_channels,
            "patch_size": 4,
            "norm_layer": "pixel_norm",
            "latent_log_var": "uniform",
            "causal_decoder": false,
            "timestep_conditioning": false,
            "spatial_padding_mode": "zeros",
            "normalize_latent_channels": false,
            "scaling_factor": 1.0,
            "use_quant_conv": false,
        })
    }

    fn audio_vae(&self) -> Value {
        json!({
            "model": {"params": {
                "ddconfig": {
                    "double_z": true, "mel_bins": MEL_BINS, "z_channels": self.audio_latent_channels,
                    "resolution": 256, "downsample_time": false, "in_channels": 2, "out_ch": 2,
                    "ch": self.audio_channels, "ch_mult": [1, 2, 4], "num_res_blocks": self.audio_res_blocks,
                    "attn_resolutions": [], "dropout": 0.0, "mid_block_add_attention": false,
                    "norm_type": "pixel", "causality_axis": "height",
                },
                "sampling_rate": 16000,
            }},
            "preprocessing": {
                "audio": {"sampling_rate": 16000, "max_wav_value": 32768.0, "duration": 5.12, "stereo": true,
                    "causal_padding": 3},
                "stft": {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "causal": true},
                "mel": {"n_mel_channels": MEL_BINS, "mel_fmin": 0, "mel_fmax": 8000},
            },
        })
    }

    fn vocoder(&self) -> Value {
        let generator = |rates: &[usize], kernels: &[usize]| {
            json!({
                "upsample_initial_channel": self.vocoder_channels,
                "resblock": "AMP1",
                "upsample_rates": rates,
                "upsample_kernel_sizes": kernels,
                "resblock_kernel_sizes": [3, 7, 11],
                "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
                "stereo": true,
                "activation": "snakebeta",
                "use_tanh_at_final": false,
                "use_bias_at_final": false,
            })
        };
        let mut bwe = generator(&[6, 5, 2, 2, 2], &[12, 11, 4, 4, 4]);
        for (key, value) in [
            ("apply_final_activation", json!(false)),
            ("input_sampling_rate", json!(16000)),
            ("output_sampling_rate", json!(48000)),
            ("hop_length", json!(80)),
            ("n_fft", json!(512)),
            ("win_size", json!(512)),
            ("num_mels", json!(MEL_BINS)),
        ] {
            bwe[key] = value;
        }
        json!({"vocoder": generator(&[5, 2, 2, 2, 2, 2], &[11, 4, 4, 4, 4, 4]), "bwe": bwe})
    }

    /// Gemma's `config.json` for a tokenizer of `tokens`.
    pub(super) fn gemma_config(&self, tokens: usize) -> Value {
        json!({
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "text_config": {
                "model_type": "gemma3_text",
                "hidden_activation": "gelu_pytorch_tanh",
                "attention_bias": false,
                "final_logit_softcapping": null,
                "attn_logit_softcapping": null,
                "pad_token_id": 0,
                "eos_token_id": 1,
                "bos_token_id": 2,
                "hidden_size": self.gemma_width,
                "intermediate_size": self.gemma_inner,
                "num_hidden_layers": self.gemma_layers,
                "num_attention_heads": self.gemma_heads,
                "num_key_value_heads": self.gemma_kv_heads,
                "head_dim": self.gemma_head_dim,
                // Rows beyond the tokens, as in the original.
                "vocab_size": tokens.next_multiple_of(64),
                "sliding_window": self.gemma_window,
                "sliding_window_pattern": self.gemma_pattern,
                "rope_theta": 1_000_000.0,
                "rope_local_base_freq": 10_000.0,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "query_pre_attn_scalar": self.gemma_head_dim,
                "rms_norm_eps": 1e-6,
                "max_position_embeddings": 4096,
            },
        })
    }
}
