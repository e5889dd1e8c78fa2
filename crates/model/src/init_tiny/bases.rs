//! Constants that a real checkpoint stores for the vocoder: filters, Fourier and mel bases.

use std::f64::consts::PI;

use serde_json::Value;

use crate::{
    Result,
    audio_vae::{VocoderConfig, mel::slaney_filters},
};

/// The values of the tensor with this full name, if it is a constant; `None` for one that is learned.
pub(super) fn stored(config: &Value, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>> {
    let values = if name.ends_with("sample.filter") || name.ends_with("lowpass.filter") {
        kaiser_sinc(shape.iter().product())
    } else if name.ends_with("mel_stft.mel_basis") {
        let config = VocoderConfig::new(config)?;
        let rate = config.input_sample_rate_hz;
        let filters = slaney_filters(rate, config.window, config.extension_mel_bins, 0.0, rate as f64 / 2.0);
        // [bins, mel bins] there, [mel bins, bins] in the file.
        let (mel_bins, bins) = (shape[0], shape[1]);
        (0..mel_bins * bins).map(|i| filters[i % bins * mel_bins + i / bins]).collect()
    } else if name.ends_with("stft_fn.forward_basis") || name.ends_with("stft_fn.inverse_basis") {
        fourier(shape[2])
    } else {
        return Ok(None);
    };
    Ok(Some(values.into_iter().map(|value| value as f32).collect()))
}

/// The half-band low-pass filter of the anti-aliased activations. Source: `model-vocoder.md` §2.
fn kaiser_sinc(taps: usize) -> Vec<f64> {
    const CUTOFF: f64 = 0.25;
    const BETA: f64 = 4.6638;
    let centre = (taps as f64 - 1.0) / 2.0;
    let raw: Vec<f64> = (0..taps)
        .map(|n| {
            let t = n as f64 - centre;
            let x = 2.0 * PI * CUTOFF * t;
            let sinc = if x == 0.0 { 1.0 } else { x.sin() / x };
            let window = bessel_i0(BETA * (1.0 - (t / centre).powi(2)).max(0.0).sqrt()) / bessel_i0(BETA);
            2.0 * CUTOFF * sinc * window
        })
        .collect();
    let sum: f64 = raw.iter().sum();
    raw.iter().map(|tap| tap / sum).collect()
}

/// The modified Bessel function of order zero, by its series.
fn bessel_i0(x: f64) -> f64 {
    let mut term = 1.0;
    let mut sum = 1.0;
    for k in 1..64 {
        term *= (x / (2.0 * f64::from(k))).powi(2);
        sum += term;
    }
    sum
}

/// Windowed cosines of every bin, then windowed negative sines: [2·bins, 1, window].
fn fourier(window: usize) -> Vec<f64> {
    let bins = window / 2 + 1;
    let row = |bin: usize, function: fn(f64) -> f64| {
        (0..window).map(move |k| {
            let hann = 0.5 - 0.5 * (2.0 * PI * k as f64 / window as f64).cos();
            hann * function(2.0 * PI * (k * bin % window) as f64 / window as f64)
        })
    };
    let real = (0..bins).flat_map(|bin| row(bin, f64::cos));
    let imaginary = (0..bins).flat_map(|bin| row(bin, |x| -x.sin()));
    real.chain(imaginary).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The taps of `model-vocoder.md` §2.
    #[test]
    fn the_filter_has_the_published_taps() {
        let want = [0.002_028_966, 0.009_389_464, -0.025_543_464, -0.057_657_375, 0.128_572_609, 0.443_209_8];
        let got = kaiser_sinc(12);
        for (index, got) in got.iter().enumerate() {
            assert!((got - want[index.min(11 - index)]).abs() < 1e-6, "tap {index}: {got}");
        }
    }
}
