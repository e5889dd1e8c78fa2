//! Decoded log-mel to a 48 kHz waveform: a generator at 16 kHz, then bandwidth extension.
//!
//! The second generator hears the log-mel of what the first one said (through stored bases) and adds what lies above
//! the band, on top of a plain up-sampling. Computes in f32 whatever the weights are stored as.
//!
//! Source: Lightricks/LTX-2 `ltx_core/model/audio_vae/vocoder.py` at 400fd31.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use kernels::{Walk1d, conv_transpose1d, conv1d};
use serde_json::Value;

use super::{
    config::AudioVaeConfig,
    generator::{Generator, GeneratorConfig},
};
use crate::{Checkpoint, Component, Error, Result, Section, Weights};

/// Smallest mel value before the logarithm.
const FLOOR: f64 = 1e-5;
/// Half width of the up-sampling filter, in input samples. Source: `model-vocoder.md` §4.
const SINC_WIDTH: usize = 7;
/// Part of the band the up-sampling filter keeps.
const ROLLOFF: f32 = 0.99;

/// Sizes of the vocoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VocoderConfig {
    /// The generator at the lower rate.
    pub main: GeneratorConfig,
    /// The generator that extends the band.
    pub extension: GeneratorConfig,
    /// Mel bins of the input.
    pub mel_bins: usize,
    /// Rate after the first generator, in Hz.
    pub input_sample_rate_hz: usize,
    /// Rate of the output, in Hz.
    pub output_sample_rate_hz: usize,
    /// Samples from one frame to the next in the mel between the stages.
    pub hop: usize,
    /// Samples of one frame there.
    pub window: usize,
    /// Mel bins there.
    pub extension_mel_bins: usize,
}

impl VocoderConfig {
    /// Reads the `vocoder` object of a checkpoint's configuration.
    ///
    /// # Errors
    /// `Config` naming the key that is missing or holds a value this program does not implement.
    pub fn new(config: &Value) -> Result<Self> {
        let bwe = Section::of(config, "vocoder.bwe")?;
        bwe.require("apply_final_activation", false)?;
        let main = Section::of(config, "vocoder.vocoder")?;
        main.require_or_absent("apply_final_activation", true)?;
        let this = Self {
            main: GeneratorConfig::new(main)?,
            extension: GeneratorConfig::new(bwe)?,
            mel_bins: AudioVaeConfig::new(config)?.mel_bins,
            input_sample_rate_hz: bwe.size("input_sampling_rate")?,
            output_sample_rate_hz: bwe.size("output_sampling_rate")?,
            hop: bwe.size("hop_length")?,
            window: bwe.size("n_fft")?,
            extension_mel_bins: bwe.size("num_mels")?,
        };
        bwe.require_or_absent("win_size", this.window)?;
        if this.window < this.hop {
            return Err(bwe.refuse("n_fft", "must not be shorter than hop_length"));
        }
        if !this.output_sample_rate_hz.is_multiple_of(this.input_sample_rate_hz) {
            return Err(bwe.refuse("output_sampling_rate", "must be a multiple of input_sampling_rate"));
        }
        if this.extension.factor() != this.hop * this.ratio() {
            let problem = format!(
                "the extension makes {} samples of a frame, hop_length and the rates ask for {}",
                this.extension.factor(),
                this.hop * this.ratio()
            );
            return Err(bwe.refuse("upsample_rates", problem));
        }
        Ok(this)
    }

    /// Output samples per sample of the first generator.
    pub fn ratio(&self) -> usize {
        self.output_sample_rate_hz / self.input_sample_rate_hz
    }

    /// Output samples of a mel of `frames`.
    pub fn output_samples(&self, frames: usize) -> usize {
        frames * self.main.factor() * self.ratio()
    }
}

/// The stored bases of the mel between the stages: what lies under `vocoder.mel_stft.`.
struct MelStft {
    /// [mel bins, bins].
    mel_basis: Tensor,
    /// [2·bins, 1, window]: real rows, then imaginary rows, the window inside.
    forward_basis: Tensor,
    window: usize,
    hop: usize,
}

impl MelStft {
    fn new(config: &VocoderConfig, w: &Weights) -> Result<Self> {
        let bins = config.window / 2 + 1;
        let stft_fn = w.pp("stft_fn");
        // In every file, used by nothing: asked for so that it does not count as surplus.
        stft_fn.stored("inverse_basis", (2 * bins, 1, config.window))?;
        Ok(Self {
            mel_basis: w.tensor("mel_basis", (config.extension_mel_bins, bins))?,
            forward_basis: stft_fn.tensor("forward_basis", (2 * bins, 1, config.window))?,
            window: config.window,
            hop: config.hop,
        })
    }

    /// `wave` [B, 2, N] → log-mel [B, 2, N/hop, mel bins]; a frame ends where its hop ends (zeros in front only).
    fn log_mel(&self, wave: &Tensor) -> Result<Tensor> {
        let (batch, channels, samples) = wave.dims3()?;
        let walk = Walk1d { stride: self.hop, dilation: 1, padding: (self.window - self.hop, 0) };
        let lines = wave.reshape((batch * channels, 1, samples))?;
        let power = conv1d(&lines, &self.forward_basis, None, walk)?.sqr()?;
        let bins = self.window / 2 + 1;
        let magnitude = (power.narrow(1, 0, bins)? + power.narrow(1, bins, bins)?)?.sqrt()?;
        // One product per line: [mel bins, bins] · [bins, frames].
        let mel = self.mel_basis.broadcast_matmul(&magnitude)?.maximum(FLOOR)?.log()?;
        let (_, mel_bins, frames) = mel.dims3()?;
        Ok(mel.reshape((batch, channels, mel_bins, frames))?.transpose(2, 3)?)
    }
}

/// Plain up-sampling by a windowed sinc.
struct SincUpsample {
    /// [1, 1, taps], the factor for the inserted zeros included.
    filter: Tensor,
    ratio: usize,
}

impl SincUpsample {
    fn new(ratio: usize, device: &Device) -> Result<Self> {
        let taps = 2 * SINC_WIDTH * ratio + 1;
        let pi = std::f32::consts::PI;
        let filter: Vec<f32> = (0..taps)
            .map(|k| {
                let t = (k as f32 / ratio as f32 - SINC_WIDTH as f32) * ROLLOFF;
                let window = (t.clamp(-6.0, 6.0) * pi / 6.0 / 2.0).cos().powi(2);
                let sinc = if t == 0.0 { 1.0 } else { (pi * t).sin() / (pi * t) };
                // The zeros between samples would divide the level by `ratio`, so the product by it is left in.
                sinc * window * ROLLOFF
            })
            .collect();
        Ok(Self { filter: Tensor::from_vec(filter, (1, 1, taps), device)?, ratio })
    }

    /// `wave` [B, C, N] → [B, C, ratio·N]; the ends are extended by their last value.
    fn forward(&self, wave: &Tensor) -> Result<Tensor> {
        let (batch, channels, samples) = wave.dims3()?;
        let lines = wave.reshape((batch * channels, 1, samples))?;
        let lines = lines.pad_with_same(2, SINC_WIDTH, SINC_WIDTH)?;
        let spread = conv_transpose1d(&lines, &self.filter, None, self.ratio, 0)?;
        // The first sample's centre: the padding and half a filter.
        let front = 2 * SINC_WIDTH * self.ratio;
        let cut = spread.narrow(2, front, samples * self.ratio)?;
        Ok(cut.reshape((batch, channels, samples * self.ratio))?)
    }
}

/// Mel to waveform.
pub struct Vocoder {
    config: VocoderConfig,
    vocoder: Generator,
    bwe_generator: Generator,
    mel_stft: MelStft,
    upsample: SincUpsample,
}

impl Vocoder {
    /// Loads both generators and the bases between them.
    ///
    /// # Errors
    /// `Config`, `Tensors`, `Io`.
    pub fn load(checkpoint: &Arc<Checkpoint>, device: &Device) -> Result<Self> {
        let config = VocoderConfig::new(checkpoint.config()?)?;
        let generator = |component, sizes: &GeneratorConfig, bins: usize| {
            checkpoint.load(component, device, DType::F32, |w| Generator::new(sizes, 2 * bins, w))
        };
        Ok(Self {
            vocoder: generator(Component::Vocoder, &config.main, config.mel_bins)?,
            bwe_generator: generator(
                Component::BandwidthExtension,
                &config.extension,
                config.extension_mel_bins,
            )?,
            mel_stft: checkpoint
                .load(Component::VocoderMel, device, DType::F32, |w| MelStft::new(&config, w))?,
            upsample: SincUpsample::new(config.ratio(), device)?,
            config,
        })
    }

    /// Asks `w` (at `vocoder.vocoder.`) for every tensor of the first generator: for the walk over names.
    ///
    /// # Errors
    /// What `w` reports.
    pub fn walk_main(config: &VocoderConfig, w: &Weights) -> Result<()> {
        Generator::new(&config.main, 2 * config.mel_bins, w).map(drop)
    }

    /// Asks `w` (at `vocoder.bwe_generator.`) for every tensor of the second generator.
    ///
    /// # Errors
    /// What `w` reports.
    pub fn walk_extension(config: &VocoderConfig, w: &Weights) -> Result<()> {
        Generator::new(&config.extension, 2 * config.extension_mel_bins, w).map(drop)
    }

    /// Asks `w` (at `vocoder.mel_stft.`) for the stored bases.
    ///
    /// # Errors
    /// What `w` reports.
    pub fn walk_mel(config: &VocoderConfig, w: &Weights) -> Result<()> {
        MelStft::new(config, w).map(drop)
    }

    /// The sizes.
    pub fn config(&self) -> &VocoderConfig {
        &self.config
    }

    /// Speaks a log-mel [B, 2, T, bins]: [B, 2, N] in [-1, 1] at the output rate, N as
    /// [`VocoderConfig::output_samples`] says.
    ///
    /// # Errors
    /// `Input` when the shape does not fit.
    pub fn vocode(&self, mel: &Tensor) -> Result<Tensor> {
        let bins = self.config.mel_bins;
        if !matches!(mel.dims(), [_, 2, frames, b] if *frames > 0 && *b == bins) {
            let problem = format!("expected [B, 2, T, {bins}], found {:?}", mel.dims());
            return Err(Error::input("mel", problem));
        }
        let wave = self.vocoder.forward(&mel.to_dtype(DType::F32)?)?.clamp(-1f32, 1f32)?;
        let samples = wave.dim(2)?;
        let missing = samples.next_multiple_of(self.config.hop) - samples;
        let wave = wave.pad_with_zeros(2, 0, missing)?;
        let residual = self.bwe_generator.forward(&self.mel_stft.log_mel(&wave)?)?;
        let skip = self.upsample.forward(&wave)?;
        let out = (residual + skip)?.clamp(-1f32, 1f32)?;
        Ok(out.narrow(2, 0, samples * self.config.ratio())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The centre taps of `model-vocoder.md` §4, times three.
    #[test]
    fn the_upsampling_filter_has_the_published_taps() {
        let filter = SincUpsample::new(3, &Device::Cpu).unwrap().filter;
        let filter = filter.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(filter.len(), 43);
        for (got, want) in
            filter[19..24].iter().zip([0.135_345_9, 0.271_942_8, 0.33, 0.271_942_8, 0.135_345_9])
        {
            assert!((got - 3.0 * want).abs() < 1e-6, "{got}");
        }
    }

    #[test]
    fn upsampling_keeps_a_constant() {
        let x = Tensor::full(0.25f32, (1, 2, 50), &Device::Cpu).unwrap();
        let y = SincUpsample::new(3, &Device::Cpu).unwrap().forward(&x).unwrap();
        assert_eq!(y.dims(), [1, 2, 150]);
        let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(y.iter().all(|y| (y - 0.25).abs() < 1e-3), "{y:?}");
    }
}
