//! The vocoder's activation: up-sample ×2, SnakeBeta, down-sample ×2, in one pass per channel.
//!
//! Up- and down-sampling keep the sine's new harmonics from folding back into the band. Both filters have 12 taps and
//! come from the checkpoint. Done one after the other the three steps write two tensors of twice the length; here each
//! row stays in a task's scratch.
//!
//! Source: Lightricks/LTX-2 `ltx_core/model/audio_vae/vocoder.py` at 400fd31 (`Activation1d`, `SnakeBeta`).

use super::storage::{Frozen, cpu_f32};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Taps of both filters.
pub const SNAKE_TAPS: usize = 12;
/// Samples a row is extended by at both ends before up-sampling, enough for every tap.
const UP_MARGIN: usize = 3;
/// The same for one phase of the doubled row before down-sampling.
const DOWN_MARGIN: usize = 3;

/// Constants of one anti-aliased SnakeBeta activation.
pub struct Snake {
    alpha: Frozen,
    beta: Frozen,
    up: Frozen,
    down: Frozen,
}

impl Snake {
    /// Takes `alpha` and `beta` `[C]` (stored as logarithms) and the two filters (12 values in any shape), all f32.
    ///
    /// # Errors
    /// Other shapes or dtypes.
    pub fn new(alpha: &Tensor, beta: &Tensor, up: &Tensor, down: &Tensor) -> Result<Self> {
        let channels = alpha.dims1()?;
        let taps = |filter: &Tensor| -> Result<Frozen> { Frozen::vector(&filter.flatten_all()?, SNAKE_TAPS) };
        Ok(Self {
            alpha: Frozen::vector(&alpha.exp()?, channels)?,
            beta: Frozen::vector(&(beta.exp()? + 1e-9)?.recip()?, channels)?,
            up: taps(up)?,
            down: taps(down)?,
        })
    }
}

/// Applies the activation to `x` [B, C, L]: [B, C, L]. No backward: asking for one is an error.
///
/// # Errors
/// Another rank, dtype or channel count, no samples.
pub fn snake(x: &Tensor, constants: &Snake) -> Result<Tensor> {
    x.contiguous()?.apply_op1_arc(std::sync::Arc::new(Box::new(Apply {
        alpha: constants.alpha.share(),
        beta: constants.beta.share(),
        up: constants.up.share(),
        down: constants.down.share(),
    })))
}

struct Apply {
    alpha: Frozen,
    beta: Frozen,
    up: Frozen,
    down: Frozen,
}

/// The numbers one row needs.
#[derive(Clone, Copy)]
struct Row<'a> {
    alpha: f32,
    inverse_beta: f32,
    up: &'a [f32; SNAKE_TAPS],
    down: &'a [f32; SNAKE_TAPS],
}

/// Scratch of one task: the extended row and the two phases of the doubled one.
#[derive(Default)]
struct Scratch {
    line: Vec<f32>,
    even: Vec<f32>,
    odd: Vec<f32>,
}

impl CustomOp1 for Apply {
    fn name(&self) -> &'static str {
        "snake"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = cpu_f32(storage, layout)?;
        let (_, channels, length) = layout.shape().dims3()?;
        let mut out = vec![0f32; x.len()];
        self.alpha.read(|alpha| {
            self.beta.read(|beta| {
                self.up.read(|up| {
                    self.down.read(|down| {
                        if alpha.len() != channels || length == 0 {
                            bail!(
                                "snake: input {:?} does not fit {} channels of constants",
                                layout.dims(),
                                alpha.len()
                            );
                        }
                        let up = up.try_into().expect("invariant: checked in Snake::new");
                        let down = down.try_into().expect("invariant: checked in Snake::new");
                        out.par_chunks_exact_mut(length)
                            .zip(x.par_chunks_exact(length))
                            .enumerate()
                            .for_each_init(Scratch::default, |scratch, (index, (out, x))| {
                                let row = Row {
                                    alpha: alpha[index % channels],
                                    inverse_beta: beta[index % channels],
                                    up,
                                    down,
                                };
                                row.apply(x, scratch, out);
                            });
                        Ok(())
                    })
                })
            })
        })?;
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

impl Row<'_> {
    /// Runs the three steps, with AVX2 where the machine has it.
    fn apply(self, x: &[f32], scratch: &mut Scratch, out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            #[expect(unsafe_code, reason = "the same code compiled for AVX2")]
            // SAFETY: the feature was detected on this machine.
            return unsafe { self.apply_avx2(x, scratch, out) };
        }
        self.steps(x, scratch, out);
    }

    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "a function compiled for a CPU feature may only run where it exists")]
    #[target_feature(enable = "avx2")]
    /// # Safety
    /// The machine must have AVX2.
    unsafe fn apply_avx2(self, x: &[f32], scratch: &mut Scratch, out: &mut [f32]) {
        self.steps(x, scratch, out);
    }

    #[inline(always)]
    fn steps(self, x: &[f32], scratch: &mut Scratch, out: &mut [f32]) {
        let length = x.len();
        let Scratch { line, even, odd } = scratch;
        extend(line, x, UP_MARGIN, x[0], x[length - 1]);
        for phase in [&mut *even, &mut *odd] {
            phase.resize(length + 2 * DOWN_MARGIN, 0.0);
        }

        // Sample 2m of the doubled row sees x[m−3 … m+2] through the odd taps, sample 2m+1 sees x[m−2 … m+3] through
        // the even ones; the factor 2 keeps the level.
        let (f, span) = (self.up, DOWN_MARGIN..DOWN_MARGIN + length);
        for (index, (even, odd)) in even[span.clone()].iter_mut().zip(&mut odd[span.clone()]).enumerate() {
            let x = &line[index..index + 7];
            *even =
                2.0 * (x[0] * f[11] + x[1] * f[9] + x[2] * f[7] + x[3] * f[5] + x[4] * f[3] + x[5] * f[1]);
            *odd = 2.0 * (x[1] * f[10] + x[2] * f[8] + x[3] * f[6] + x[4] * f[4] + x[5] * f[2] + x[6] * f[0]);
        }
        self.activate(&mut even[span.clone()]);
        self.activate(&mut odd[span]);

        let (first, last) = (even[DOWN_MARGIN], odd[DOWN_MARGIN + length - 1]);
        for phase in [&mut *even, &mut *odd] {
            phase[..DOWN_MARGIN].fill(first);
            phase[DOWN_MARGIN + length..].fill(last);
        }
        // Tap k looks at sample 2m + k − 5.
        let f = self.down;
        for (index, out) in out.iter_mut().enumerate() {
            let (even, odd) = (&even[index + 1..index + 7], &odd[index..index + 6]);
            *out = odd[0] * f[0]
                + even[0] * f[1]
                + odd[1] * f[2]
                + even[1] * f[3]
                + odd[2] * f[4]
                + even[2] * f[5]
                + odd[3] * f[6]
                + even[3] * f[7]
                + odd[4] * f[8]
                + even[4] * f[9]
                + odd[5] * f[10]
                + even[5] * f[11];
        }
    }

    /// z + sin²(α·z)/β in place.
    #[inline(always)]
    fn activate(self, values: &mut [f32]) {
        for z in values {
            *z += self.inverse_beta * sin_squared(*z * self.alpha);
        }
    }
}

/// Writes `x` to `line` with `margin` values in front and behind.
fn extend(line: &mut Vec<f32>, x: &[f32], margin: usize, front: f32, behind: f32) {
    line.clear();
    line.resize(margin, front);
    line.extend_from_slice(x);
    line.resize(x.len() + 2 * margin, behind);
}

/// sin²(y), within 5e-7 of the exact value (3.6e-7 seen) up to |y| = 1e4; NaN for values that are not finite.
///
/// Takes y to [−π/2, π/2] by a multiple of π (which only changes the sign of the sine), in three parts so that nothing
/// is lost, then an odd polynomial of degree 11.
#[inline(always)]
fn sin_squared(y: f32) -> f32 {
    /// 1.5 · 2²³: adding and subtracting it rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    const PI_1: f32 = 3.140_625;
    const PI_2: f32 = 9.675_026e-4;
    const PI_3: f32 = 1.509_958e-7;
    let turns = (y * std::f32::consts::FRAC_1_PI + ROUND) - ROUND;
    let r = ((y - turns * PI_1) - turns * PI_2) - turns * PI_3;
    let s = r * r;
    let p = -2.505_210_8e-8;
    let p = p * s + 2.755_731_9e-6;
    let p = p * s - 1.984_127e-4;
    let p = p * s + 8.333_333e-3;
    let p = p * s - 0.166_666_67;
    let sine = r + r * s * p;
    sine * sine
}

#[cfg(test)]
mod tests {
    use super::sin_squared;

    #[test]
    fn the_polynomial_sine_stays_within_its_bound() {
        let mut worst = 0f64;
        for step in -2_000_000..2_000_000 {
            let y = step as f32 * 5e-3;
            worst = worst.max((f64::from(sin_squared(y)) - f64::from(y).sin().powi(2)).abs());
        }
        assert!(worst < 5e-7, "{worst:e}");
        assert!(sin_squared(f32::INFINITY).is_nan());
    }
}
