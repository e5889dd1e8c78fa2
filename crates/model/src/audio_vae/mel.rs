//! From a waveform as a file has it to the log-mel the encoder takes: channel mixing, resampling, log-mel.
//!
//! C channels, N samples, T mel frames. Waveforms are f32, roughly in [-1, 1].
//!
//! Source: Lightricks/LTX-2 at 400fd31 (`ltx_core/model/audio_vae/ops.py`, the trainer's `process_videos.py`) and
//! torchaudio's `resample`, `MelSpectrogram` as it calls them.

use std::f64::consts::PI;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::config::AudioVaeConfig;
use crate::{Error, Result};

/// Weight of the centre, side and back channels in a mix. Source: `model-audio-vae.md` §2.
const SIDE: f64 = 0.707;
/// Zero crossings of the resampling filter on each side.
const ZERO_CROSSINGS: f32 = 6.0;
/// Part of the band the resampling filter keeps.
const ROLLOFF: f32 = 0.99;
/// The highest sampling rate accepted, in Hz: four times what any sound card records.
pub const MAX_SAMPLE_RATE_HZ: usize = 768_000;
/// Smallest mel value before the logarithm: silence is ln(1e-5) = −11.51.
const FLOOR: f64 = 1e-5;
/// Frames transformed at once, so that a long clip does not hold its spectrum whole.
const FRAMES_PER_PASS: usize = 1024;

/// Mixes `wave` [C, N] to stereo [2, N]: mono is doubled, 5.1 (L R C LFE Ls Rs) and 7.1 (… and back) are folded
/// with their centre and sides, other counts above two become their mean on both sides.
///
/// # Errors
/// `Input` when there is no channel.
pub fn to_stereo(wave: &Tensor) -> Result<Tensor> {
    let (channels, _) = wave.dims2()?;
    let take = |index| wave.narrow(0, index, 1);
    let fold = |front: usize, others: &[usize]| -> Result<Tensor> {
        let mut sum = (take(front)? + (take(2)? * SIDE)?)?;
        for other in others {
            sum = (sum + (take(*other)? * SIDE)?)?;
        }
        Ok((sum / (1.0 + SIDE * (1 + others.len()) as f64))?)
    };
    let (left, right) = match channels {
        0 => return Err(Error::input("wave", "has no channel")),
        1 => (take(0)?, take(0)?),
        2 => return Ok(wave.clone()),
        6 => (fold(0, &[4])?, fold(1, &[5])?),
        8 => (fold(0, &[4, 6])?, fold(1, &[5, 7])?),
        _ => {
            let mean = wave.mean_keepdim(0)?;
            (mean.clone(), mean)
        }
    };
    Ok(Tensor::cat(&[left, right], 0)?)
}

/// Cuts or zero-pads `wave` [C, N] to `samples`.
///
/// # Errors
/// Only what the tensor library reports.
pub fn fit_length(wave: &Tensor, samples: usize) -> Result<Tensor> {
    let (_, found) = wave.dims2()?;
    Ok(if found >= samples {
        wave.narrow(1, 0, samples)?
    } else {
        wave.pad_with_zeros(1, 0, samples - found)?
    })
}

/// Resamples the last axis of `wave` (f32) from one rate to the other: ⌈N·to/from⌉ samples.
///
/// A windowed sinc filter; its taps are computed in f32 in the reference's order, because latents differ by 4e-5
/// otherwise.
///
/// # Errors
/// `Input` for a rate of 0 or above [`MAX_SAMPLE_RATE_HZ`].
pub fn resample(wave: &Tensor, from_hz: usize, to_hz: usize) -> Result<Tensor> {
    for rate in [from_hz, to_hz] {
        if !(1..=MAX_SAMPLE_RATE_HZ).contains(&rate) {
            let problem = format!("{rate} Hz; 1 to {MAX_SAMPLE_RATE_HZ} are supported");
            return Err(Error::input("sample rate", problem));
        }
    }
    if from_hz == to_hz {
        return Ok(wave.clone());
    }
    let filter = Resampler::new(from_hz, to_hz);
    let length = *wave.dims().last().ok_or_else(|| Error::input("wave", "has no axis"))?;
    let mut shape = wave.dims().to_vec();
    let out_length = (length * filter.new).div_ceil(filter.old);
    *shape.last_mut().expect("invariant: looked at above") = out_length;
    let values = wave.flatten_all()?.to_vec1::<f32>()?;
    let mut out = vec![0f32; shape.iter().product()];
    if out_length > 0 {
        for (line, out) in values.chunks_exact(length).zip(out.chunks_exact_mut(out_length)) {
            filter.run(line, out);
        }
    }
    Ok(Tensor::from_vec(out, shape, wave.device())?)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// One filter per phase of the output.
struct Resampler {
    /// Input and output rate without their common factor.
    old: usize,
    new: usize,
    phases: Vec<Phase>,
}

/// Taps that are not zero: tap k weighs the sample `first + k` after the phase's origin.
struct Phase {
    first: isize,
    taps: Vec<f32>,
}

impl Resampler {
    fn new(from_hz: usize, to_hz: usize) -> Self {
        let common = gcd(from_hz, to_hz);
        let (old, new) = (from_hz / common, to_hz / common);
        let phases = (0..new).into_par_iter().map(|phase| Self::phase(phase, old, new)).collect();
        Self { old, new, phases }
    }

    /// t = (−p/n + i/o)·base; h = sinc(t)·cos²(πt/12)·base/o where |t| < 6.
    fn phase(phase: usize, old: usize, new: usize) -> Phase {
        let base = ROLLOFF * old.min(new) as f32;
        let width = (f64::from(ZERO_CROSSINGS) * old as f64 / f64::from(base)).ceil() as isize;
        let offset = -(phase as f32) / new as f32;
        let pi = std::f32::consts::PI;
        let tap = |index: isize| {
            let t = (offset + index as f32 / old as f32) * base;
            if t.abs() >= ZERO_CROSSINGS {
                return 0.0;
            }
            let window = (t * pi / ZERO_CROSSINGS / 2.0).cos().powi(2);
            let t = t * pi;
            let sinc = if t == 0.0 { 1.0 } else { t.sin() / t };
            sinc * (window * (base / old as f32))
        };
        // The filter lies around the phase's own place, p/n of an input block.
        let centre = (phase * old / new) as isize;
        let first = centre - width;
        Phase { first, taps: (first..=centre + width + 1).map(tap).collect() }
    }

    fn run(&self, line: &[f32], out: &mut [f32]) {
        out.par_iter_mut().enumerate().with_min_len(1024).for_each(|(index, out)| {
            let phase = &self.phases[index % self.new];
            let origin = (index / self.new * self.old) as isize + phase.first;
            let sample = |tap: usize| usize::try_from(origin + tap as isize).ok().and_then(|at| line.get(at));
            *out = phase.taps.iter().enumerate().filter_map(|(k, h)| sample(k).map(|x| h * x)).sum();
        });
    }
}

/// The log-mel front end.
#[derive(Debug)]
pub struct MelFrontEnd {
    window: usize,
    hop: usize,
    /// [window, 2·bins] f64: windowed cosines, then windowed sines.
    basis: Tensor,
    /// [bins, mel_bins] f64.
    filters: Tensor,
}

impl MelFrontEnd {
    /// Builds window, transform and mel filters. They are not stored in the checkpoint.
    ///
    /// # Errors
    /// Only what the tensor library reports.
    pub fn new(config: &AudioVaeConfig) -> Result<Self> {
        let window = config.window;
        let bins = window / 2 + 1;
        let mut basis = vec![0f64; window * 2 * bins];
        for (k, row) in basis.chunks_exact_mut(2 * bins).enumerate() {
            // Periodic Hann, not normalised.
            let hann = 0.5 - 0.5 * (2.0 * PI * k as f64 / window as f64).cos();
            for bin in 0..bins {
                let (sin, cos) = (2.0 * PI * ((k * bin) % window) as f64 / window as f64).sin_cos();
                row[bin] = hann * cos;
                row[bins + bin] = hann * sin;
            }
        }
        Ok(Self {
            window,
            hop: config.hop,
            basis: Tensor::from_vec(basis, (window, 2 * bins), &Device::Cpu)?,
            filters: Tensor::from_vec(mel_filters(config), (bins, config.mel_bins), &Device::Cpu)?,
        })
    }

    /// The log-mel of `wave` [C, N] at the model's rate: [C, T, mel_bins], T = ⌊N/hop⌋ + 1, frames centred on
    /// multiples of the hop, ends mirrored. Computes in f64, returns f32.
    ///
    /// # Errors
    /// `Input` when the wave is not longer than half a window (nothing to mirror).
    pub fn log_mel(&self, wave: &Tensor) -> Result<Tensor> {
        let (channels, samples) = wave.dims2()?;
        let half = self.window / 2;
        if samples <= half {
            let problem = format!("{samples} samples; more than {half} are needed");
            return Err(Error::input("wave", problem));
        }
        let frames = samples / self.hop + 1;
        let mut mels = Vec::new();
        for channel in 0..channels {
            let line = wave.get(channel)?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
            for start in (0..frames).step_by(FRAMES_PER_PASS) {
                let count = FRAMES_PER_PASS.min(frames - start);
                mels.push(self.pass(&line, start, count)?);
            }
        }
        let mel = Tensor::cat(&mels, 0)?.reshape((channels, frames, ()))?;
        Ok(mel.to_device(wave.device())?)
    }

    /// Frames `start..start + count`: [count, mel_bins].
    fn pass(&self, line: &[f32], start: usize, count: usize) -> Result<Tensor> {
        let half = (self.window / 2) as isize;
        let last = line.len() as isize - 1;
        let mut cut = Vec::with_capacity(count * self.window);
        for frame in start..start + count {
            let origin = (frame * self.hop) as isize - half;
            cut.extend((origin..origin + self.window as isize).map(|at| {
                let at = at.abs();
                let at = if at > last { 2 * last - at } else { at };
                f64::from(line[at as usize])
            }));
        }
        let bins = self.window / 2 + 1;
        let spectrum = Tensor::from_vec(cut, (count, self.window), &Device::Cpu)?.matmul(&self.basis)?;
        let power = spectrum.sqr()?;
        let magnitude = (power.narrow(1, 0, bins)? + power.narrow(1, bins, bins)?)?.sqrt()?;
        let mel = magnitude.matmul(&self.filters)?;
        Ok(mel.maximum(FLOOR)?.log()?.to_dtype(DType::F32)?)
    }
}

/// Slaney's mel scale.
fn mel_of_hz(hz: f64) -> f64 {
    if hz < 1000.0 { 3.0 * hz / 200.0 } else { 15.0 + (hz / 1000.0).ln() * 27.0 / 6.4f64.ln() }
}

fn hz_of_mel(mel: f64) -> f64 {
    if mel < 15.0 { mel * 200.0 / 3.0 } else { 1000.0 * ((mel - 15.0) * 6.4f64.ln() / 27.0).exp() }
}

/// The encoder's filters.
fn mel_filters(config: &AudioVaeConfig) -> Vec<f64> {
    slaney_filters(
        config.sample_rate_hz,
        config.window,
        config.mel_bins,
        config.mel_min_hz,
        config.mel_max_hz,
    )
}

/// Triangles of equal area on Slaney's mel scale, [window/2 + 1, mel_bins], row-major.
pub(crate) fn slaney_filters(
    rate_hz: usize,
    window: usize,
    mel_bins: usize,
    min_hz: f64,
    max_hz: f64,
) -> Vec<f64> {
    let (low, high) = (mel_of_hz(min_hz), mel_of_hz(max_hz));
    let step = (high - low) / (mel_bins + 1) as f64;
    let hz: Vec<f64> = (0..mel_bins + 2).map(|i| hz_of_mel(low + step * i as f64)).collect();
    let mut filters = Vec::with_capacity((window / 2 + 1) * mel_bins);
    for bin in 0..=window / 2 {
        let at = bin as f64 * rate_hz as f64 / window as f64;
        filters.extend(hz.windows(3).map(|f| {
            let rising = (at - f[0]) / (f[1] - f[0]);
            let falling = (f[2] - at) / (f[2] - f[1]);
            rising.min(falling).max(0.0) * 2.0 / (f[2] - f[0])
        }));
    }
    filters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AudioVaeConfig {
        AudioVaeConfig {
            sample_rate_hz: 16_000,
            window: 1024,
            hop: 160,
            mel_bins: 64,
            mel_min_hz: 0.0,
            mel_max_hz: 8000.0,
            in_channels: 2,
            out_channels: 2,
            channels: 1,
            multipliers: vec![1, 2, 4],
            res_blocks: 1,
            latent_channels: 8,
        }
    }

    fn wave(values: Vec<f32>, channels: usize) -> Tensor {
        let samples = values.len() / channels;
        Tensor::from_vec(values, (channels, samples), &Device::Cpu).expect("that many samples")
    }

    fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
        tensor.to_vec2().expect("two axes of f32")
    }

    /// The test vector of `model-audio-vae.md` §3.
    #[test]
    fn a_440_hz_tone_has_the_published_log_mel() {
        // In f32 throughout: the rounding of the angle is visible in the bins beside the tone.
        let turn = 2.0 * std::f32::consts::PI * 440.0;
        let tone = wave((0..16_000).map(|n| 0.5 * (turn * n as f32 / 16_000.0).sin()).collect(), 1);
        let mel = MelFrontEnd::new(&config()).unwrap().log_mel(&tone).unwrap();
        assert_eq!(mel.dims(), [1, 101, 64]);
        let frame = mel.get(0).unwrap().get(50).unwrap().to_vec1::<f32>().unwrap();
        let want = [-5.5659, -3.4820, 1.0858, 0.9799, -3.5017, -5.6024];
        for (got, want) in frame[6..12].iter().zip(want) {
            assert!((got - want).abs() < 1e-4, "{got} instead of {want}");
        }
    }

    #[test]
    fn the_mel_filters_have_the_published_weights() {
        let filters = mel_filters(&config());
        let first: Vec<f64> = (0..6).map(|bin| filters[bin * 64]).collect();
        for (got, want) in first.iter().zip([0.0, 0.007_255_6, 0.014_511_3, 0.021_331_2, 0.014_075_5]) {
            assert!((got - want).abs() < 1e-6, "{got} instead of {want}");
        }
        for filter in 0..64 {
            let sum: f64 = (0..513).map(|bin| filters[bin * 64 + filter]).sum();
            assert!((0.06315..=0.06515).contains(&sum), "filter {filter} sums to {sum}");
        }
    }

    #[test]
    fn silence_is_the_floor_and_too_short_a_wave_is_refused() {
        let front_end = MelFrontEnd::new(&config()).unwrap();
        let mel = front_end.log_mel(&wave(vec![0.0; 1600], 1)).unwrap();
        let silence = mel.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(silence.iter().all(|x| (x + 11.512_925).abs() < 1e-5));
        let error = front_end.log_mel(&wave(vec![0.0; 512], 1)).unwrap_err();
        assert!(error.to_string().contains("512 samples; more than 512 are needed"), "{error}");
    }

    #[test]
    fn every_channel_count_becomes_stereo_by_its_rule() {
        let near = |got: &Tensor, left: f32, right: f32| {
            let got = rows(got);
            assert!((got[0][0] - left).abs() < 1e-6 && (got[1][0] - right).abs() < 1e-6, "{got:?}");
        };
        let mono = wave(vec![0.5], 1);
        near(&to_stereo(&mono).unwrap(), 0.5, 0.5);
        near(&to_stereo(&wave(vec![0.1, 0.2], 2)).unwrap(), 0.1, 0.2);
        // L R C LFE Ls Rs: the low-frequency channel is dropped
        let surround = wave(vec![0.1, 0.2, 0.3, 9.0, 0.5, 0.6], 6);
        let left = (0.1 + 0.707 * 0.3 + 0.707 * 0.5) / 2.414;
        let right = (0.2 + 0.707 * 0.3 + 0.707 * 0.6) / 2.414;
        near(&to_stereo(&surround).unwrap(), left, right);
        let surround = wave(vec![0.1, 0.2, 0.3, 9.0, 0.5, 0.6, 0.7, 0.8], 8);
        let left = (0.1 + 0.707 * (0.3 + 0.7 + 0.5)) / 3.121;
        let right = (0.2 + 0.707 * (0.3 + 0.8 + 0.6)) / 3.121;
        near(&to_stereo(&surround).unwrap(), left, right);
        near(&to_stereo(&wave(vec![0.1, 0.2, 0.6], 3)).unwrap(), 0.3, 0.3);
    }

    #[test]
    fn resampling_keeps_a_tone_and_the_length_rule() {
        for (from, to, samples) in
            [(44_100, 16_000, 30_870), (8_000, 16_000, 801), (16_001, 16_000, 5_000), (48_000, 16_000, 3_001)]
        {
            let tone = |rate: usize, n: usize| (2.0 * PI * 440.0 * n as f64 / rate as f64).sin() as f32;
            let x = wave((0..samples).map(|n| tone(from, n)).collect(), 1);
            let y = rows(&resample(&x, from, to).unwrap()).remove(0);
            assert_eq!(y.len(), (samples * to).div_ceil(from));
            // away from the ends, where the filter sees zeros
            for (n, got) in y.iter().enumerate().skip(100).take(y.len() - 200) {
                assert!((got - tone(to, n)).abs() < 4e-3, "{from} → {to}, sample {n}: {got}");
            }
        }
    }

    #[test]
    fn rates_nobody_records_are_refused() {
        let x = wave(vec![0.0; 10], 1);
        for rate in [0, MAX_SAMPLE_RATE_HZ + 1] {
            let error = resample(&x, rate, 16_000).unwrap_err();
            assert!(error.to_string().contains("Hz; 1 to 768000"), "{error}");
        }
    }

    #[test]
    fn a_wave_is_cut_or_padded_with_silence() {
        let x = wave(vec![1.0, 2.0, 3.0], 1);
        assert_eq!(rows(&fit_length(&x, 2).unwrap()), [[1.0, 2.0]]);
        assert_eq!(rows(&fit_length(&x, 4).unwrap()), [[1.0, 2.0, 3.0, 0.0]]);
    }
}
