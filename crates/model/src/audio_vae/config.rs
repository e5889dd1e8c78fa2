//! Sizes of the audio autoencoder and its mel front end.

use serde_json::Value;

use crate::{Result, Section};

/// The checkpoint's `audio_vae` object.
#[derive(Debug, Clone, PartialEq)]
pub struct AudioVaeConfig {
    /// Samples per second of the waveform, in Hz.
    pub sample_rate_hz: usize,
    /// Samples of one analysis window; also the size of its transform.
    pub window: usize,
    /// Samples from one mel frame to the next.
    pub hop: usize,
    /// Mel bins.
    pub mel_bins: usize,
    /// Lowest frequency of the mel filters, in Hz.
    pub mel_min_hz: f64,
    /// Highest frequency of the mel filters, in Hz.
    pub mel_max_hz: f64,
    /// Channels of the waveform and the encoder's input.
    pub in_channels: usize,
    /// Channels of the decoded mel.
    pub out_channels: usize,
    /// Width of the first level.
    pub channels: usize,
    /// Width of each level, in multiples of `channels`.
    pub multipliers: Vec<usize>,
    /// Residual blocks per encoder level; the decoder has one more.
    pub res_blocks: usize,
    /// Channels of the latent.
    pub latent_channels: usize,
}

impl AudioVaeConfig {
    /// Reads the `audio_vae` object of a checkpoint's configuration.
    ///
    /// # Errors
    /// `Config` naming the key that is missing or holds a value this program does not implement.
    pub fn new(config: &Value) -> Result<Self> {
        let params = Section::of(config, "audio_vae.model.params")?;
        let net = Section::of(config, "audio_vae.model.params.ddconfig")?;
        let audio = Section::of(config, "audio_vae.preprocessing.audio")?;
        let stft = Section::of(config, "audio_vae.preprocessing.stft")?;
        let mel = Section::of(config, "audio_vae.preprocessing.mel")?;
        net.require("double_z", true)?;
        net.require("norm_type", "pixel")?;
        net.require("causality_axis", "height")?;
        net.require_or_absent("mid_block_add_attention", false)?;
        net.require_or_absent("attn_resolutions", Vec::<Value>::new())?;
        audio.require_or_absent("stereo", true)?;

        let this = Self {
            sample_rate_hz: params.size("sampling_rate")?,
            window: stft.size("filter_length")?,
            hop: stft.size("hop_length")?,
            mel_bins: net.size("mel_bins")?,
            mel_min_hz: mel.number("mel_fmin")?,
            mel_max_hz: mel.positive("mel_fmax")?,
            in_channels: net.size("in_channels")?,
            out_channels: net.size("out_ch")?,
            channels: net.size("ch")?,
            multipliers: net.sizes("ch_mult")?,
            res_blocks: net.size("num_res_blocks")?,
            latent_channels: net.size("z_channels")?,
        };
        audio.require_or_absent("sampling_rate", this.sample_rate_hz)?;
        stft.require_or_absent("win_length", this.window)?;
        mel.require_or_absent("n_mel_channels", this.mel_bins)?;
        net.require("in_channels", 2)?;
        net.require("out_ch", 2)?;
        if !this.window.is_multiple_of(2) || this.window > 1 << 16 {
            return Err(stft.refuse("filter_length", "must be even and at most 65536"));
        }
        if this.multipliers.is_empty() || this.multipliers.len() > 8 {
            return Err(net.refuse("ch_mult", "must have 1 to 8 entries"));
        }
        if !this.mel_bins.is_multiple_of(this.downsampling()) {
            return Err(net.refuse("mel_bins", format!("must be a multiple of {}", this.downsampling())));
        }
        if !(0.0..this.mel_max_hz).contains(&this.mel_min_hz) {
            return Err(mel.refuse("mel_fmin", "must be at least 0 and below mel_fmax"));
        }
        Ok(this)
    }

    /// Mel frames per latent step, and mel bins per latent bin.
    pub fn downsampling(&self) -> usize {
        1 << (self.multipliers.len() - 1)
    }

    /// Bins of the latent.
    pub fn latent_bins(&self) -> usize {
        self.mel_bins / self.downsampling()
    }

    /// Values of one latent step: channels times bins, the token width.
    pub fn token_width(&self) -> usize {
        self.latent_channels * self.latent_bins()
    }

    /// Width of level `level`.
    pub(super) fn width(&self, level: usize) -> usize {
        self.channels * self.multipliers[level]
    }

    /// Mel frames of a waveform of `samples`.
    pub fn mel_frames(&self, samples: usize) -> usize {
        samples / self.hop + 1
    }

    /// Latent steps of a waveform of `samples`, as the encoder gives them.
    pub fn latent_steps(&self, samples: usize) -> usize {
        self.mel_frames(samples).div_ceil(self.downsampling())
    }
}
