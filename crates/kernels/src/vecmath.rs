//! Scalar f32 functions without calls or branches, so that loops over them vectorise.
//!
//! `FMA` says whether the caller is compiled with fused multiply-add (see [`simd_fn!`](crate::simd_fn)):
//! without it `f32::mul_add` would be a library call.

/// a·b + c, fused where the machine can.
#[inline(always)]
#[must_use]
pub fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// eˣ to 1.5 units in the last place; 0 below -87.3 (where the exact value is under 1.2e-38),
/// ∞ above 88.3 (exact: over 2.2e38). NaN stays NaN.
///
/// Range reduction to |r| ≤ ln2/2 with a two-part ln 2, a degree 6 polynomial, and the exponent added
/// to the bits. Source: the classic Cephes scheme, coefficients from the Taylor series refined there.
#[inline(always)]
#[must_use]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5·2²³: adding it leaves the rounded integer in the low bits
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > 88.3 { 88.3 } else { x };
    let clamped = if clamped < -87.3 { -87.3 } else { clamped };
    let shifted = mul_add::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = mul_add::<FMA>(n, -LN2_HIGH, clamped);
    let r = mul_add::<FMA>(n, -LN2_LOW, r);
    let mut p = 1.987_569_1e-4;
    p = mul_add::<FMA>(p, r, 1.398_2e-3);
    p = mul_add::<FMA>(p, r, 8.333_452e-3);
    p = mul_add::<FMA>(p, r, 4.166_579_6e-2);
    p = mul_add::<FMA>(p, r, 1.666_666_5e-1);
    p = mul_add::<FMA>(p, r, 0.5);
    p = mul_add::<FMA>(p * r, r, r) + 1.0;
    let scaled = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    let scaled = if x > 88.3 { f32::INFINITY } else { scaled };
    if x < -87.3 { 0.0 } else { scaled }
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
#[must_use]
pub fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

const LANES: usize = 16;

#[inline(always)]
fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Σ f(xᵢ) in sixteen running sums: the order is fixed, so every run gives the same bits, and the
/// loop vectorises.
#[inline(always)]
pub fn sum1(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    for (lane, x) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane += f(*x);
    }
    for x in chunks {
        for lane in 0..LANES {
            lanes[lane] += f(x[lane]);
        }
    }
    fold(lanes)
}

/// Σ f(xᵢ, yᵢ), as [`sum1`]. The slices have one length.
#[inline(always)]
pub fn sum2(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    for (lane, (x, y)) in lanes.iter_mut().zip(xs.remainder().iter().zip(ys.remainder())) {
        *lane += f(*x, *y);
    }
    for (x, y) in xs.zip(ys) {
        for lane in 0..LANES {
            lanes[lane] += f(x[lane], y[lane]);
        }
    }
    fold(lanes)
}

/// The largest xᵢ, -∞ for none; a NaN is passed over.
#[inline(always)]
#[must_use]
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    for (lane, x) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = if *x > *lane { *x } else { *lane };
    }
    for x in chunks {
        for lane in 0..LANES {
            lanes[lane] = if x[lane] > lanes[lane] { x[lane] } else { lanes[lane] };
        }
    }
    lanes.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd_fn;

    simd_fn! {
        fn exp_all(x: &[f32], y: &mut [f32]) {
            for (y, x) in y.iter_mut().zip(x) {
                *y = exp::<FMA>(*x);
            }
        }
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let x: Vec<f32> = (0..2_000_000).map(|i| -87.2 + i as f32 * (87.2 + 88.2) / 2e6).collect();
        let mut y = vec![0.0; x.len()];
        exp_all(&x, &mut y);
        let mut worst = (0.0f64, 0.0f32);
        for (x, y) in x.iter().zip(&y) {
            for got in [*y, exp::<false>(*x)] {
                let want = f64::from(*x).exp();
                let error = ((f64::from(got) - want) / want).abs();
                if error > worst.0 {
                    worst = (error, *x);
                }
            }
        }
        println!("worst relative error of exp {:.3e} at {}", worst.0, worst.1);
        assert!(worst.0 < 2.0 * 1.2e-7, "{worst:?}");
    }

    #[test]
    fn exp_of_the_extremes_is_what_masks_need() {
        assert_eq!(exp::<false>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<false>(f32::MIN), 0.0);
        assert_eq!(exp::<false>(0.0), 1.0);
        assert!(exp::<false>(f32::NAN).is_nan());
        assert_eq!(exp::<false>(1e9), f32::INFINITY);
    }

    #[test]
    fn sum_counts_every_element_once() {
        for n in [0, 1, 15, 16, 17, 100] {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let total = (0..n).sum::<usize>() as f32;
            assert_eq!(sum1(&x, |x| x), total);
            assert_eq!(sum2(&x, &x, |x, y| 2.0 * x - y), total);
            assert_eq!(max(&x), if n == 0 { f32::NEG_INFINITY } else { (n - 1) as f32 });
        }
    }
}
