//! Convolutions in one axis, and the vocoder's activation, against plain f64 loops over the definition.

use candle_core::{Device, Tensor};
use kiln_kernels::{SNAKE_TAPS, Snake, Walk1d, conv_transpose1d, conv1d, snake};
use rand::{Rng, SeedableRng};

fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).expect("a tensor of that shape")
}

fn assert_near(got: &Tensor, want: &[f64], bound: f64) {
    let got = got.flatten_all().and_then(|got| got.to_vec1::<f32>());
    let got = got.expect("f32 values");
    assert_eq!(got.len(), want.len());
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*got) - want).abs() <= bound, "element {index}: {got} instead of {want}");
    }
}

#[test]
fn conv1d_follows_its_definition_for_every_walk() {
    let cases = [
        // B, C, O, L, K, stride, dilation, padding
        (1, 1, 1, 1, 1, 1, 1, (0, 0)),
        (2, 3, 5, 37, 7, 1, 1, (3, 3)),
        (1, 24, 24, 300, 11, 1, 5, (25, 25)),
        (2, 1, 6, 160, 32, 8, 1, (24, 0)),
        (1, 4, 2, 9, 3, 2, 3, (1, 6)),
        (1, 2, 3, 5, 3, 1, 1, (9, 9)),
    ];
    for (batch, channels, outputs, length, taps, stride, dilation, padding) in cases {
        let x = random(1, batch * channels * length);
        let w = random(2, outputs * channels * taps);
        let bias = random(3, outputs);
        let out_length = (length + padding.0 + padding.1 - dilation * (taps - 1) - 1) / stride + 1;
        let mut want = Vec::new();
        for b in 0..batch {
            for o in 0..outputs {
                for n in 0..out_length {
                    let mut sum = f64::from(bias[o]);
                    for c in 0..channels {
                        for k in 0..taps {
                            let at = (n * stride + k * dilation).checked_sub(padding.0);
                            if let Some(at) = at.filter(|at| *at < length) {
                                sum += f64::from(x[(b * channels + c) * length + at])
                                    * f64::from(w[(o * channels + c) * taps + k]);
                            }
                        }
                    }
                    want.push(sum);
                }
            }
        }
        let got = conv1d(
            &tensor(&x, &[batch, channels, length]),
            &tensor(&w, &[outputs, channels, taps]),
            Some(&tensor(&bias, &[outputs])),
            Walk1d { stride, dilation, padding },
        )
        .unwrap();
        assert_eq!(got.dims(), [batch, outputs, out_length]);
        assert_near(&got, &want, 2e-5);
    }
}

#[test]
fn conv_transpose1d_follows_its_definition() {
    for (batch, channels, outputs, length, taps, stride, padding) in [
        (1, 1, 1, 1, 1, 1, 0),
        (2, 6, 3, 21, 11, 5, 3),
        (1, 4, 2, 40, 4, 2, 1),
        (2, 1, 1, 30, 43, 3, 0),
        (1, 3, 4, 7, 2, 5, 0),
    ] {
        let x = random(4, batch * channels * length);
        let w = random(5, outputs * channels * taps);
        let bias = random(6, outputs);
        let out_length = (length - 1) * stride + taps - 2 * padding;
        let mut want = vec![0f64; batch * outputs * out_length];
        for b in 0..batch {
            for o in 0..outputs {
                let row = &mut want[(b * outputs + o) * out_length..][..out_length];
                row.fill(f64::from(bias[o]));
                for c in 0..channels {
                    for n in 0..length {
                        for k in 0..taps {
                            let at = (n * stride + k).checked_sub(padding);
                            if let Some(sum) = at.and_then(|at| row.get_mut(at)) {
                                *sum += f64::from(x[(b * channels + c) * length + n])
                                    * f64::from(w[(c * outputs + o) * taps + k]);
                            }
                        }
                    }
                }
            }
        }
        let got = conv_transpose1d(
            &tensor(&x, &[batch, channels, length]),
            &tensor(&w, &[channels, outputs, taps]),
            Some(&tensor(&bias, &[outputs])),
            stride,
            padding,
        )
        .unwrap();
        assert_eq!(got.dims(), [batch, outputs, out_length]);
        assert_near(&got, &want, 1e-5);
    }
}

/// The three steps one after the other, as the page describes them.
fn plain_snake(x: &[f64], alpha: f64, beta: f64, up: &[f32], down: &[f32]) -> Vec<f64> {
    let at = |x: &[f64], index: isize| x[index.clamp(0, x.len() as isize - 1) as usize];
    let padded: Vec<f64> = (-5..x.len() as isize + 5).map(|i| at(x, i)).collect();
    let mut spread = vec![0f64; 2 * (padded.len() - 1) + SNAKE_TAPS];
    for (index, value) in padded.iter().enumerate() {
        for (tap, weight) in up.iter().enumerate() {
            spread[2 * index + tap] += 2.0 * value * f64::from(*weight);
        }
    }
    let doubled: Vec<f64> = spread[15..spread.len() - 15]
        .iter()
        .map(|z| z + (alpha.exp() * z).sin().powi(2) / (beta.exp() + 1e-9))
        .collect();
    assert_eq!(doubled.len(), 2 * x.len());
    (0..x.len() as isize)
        .map(|m| {
            let tap = |(k, weight): (usize, &f32)| f64::from(*weight) * at(&doubled, 2 * m + k as isize - 5);
            down.iter().enumerate().map(tap).sum()
        })
        .collect()
}

#[test]
fn snake_equals_its_three_steps() {
    let (up, down) = (random(7, SNAKE_TAPS), random(8, SNAKE_TAPS));
    for (channels, length) in [(1, 1), (3, 2), (2, 5), (4, 333)] {
        let x: Vec<f32> = random(9, 2 * channels * length).iter().map(|x| x * 20.0).collect();
        let (alpha, beta) = (random(10, channels), random(11, channels));
        let mut want = Vec::new();
        for (row, x) in x.chunks(length).enumerate() {
            let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            let channel = row % channels;
            want.extend(plain_snake(&x, f64::from(alpha[channel]), f64::from(beta[channel]), &up, &down));
        }
        let constants = Snake::new(
            &tensor(&alpha, &[channels]),
            &tensor(&beta, &[channels]),
            &tensor(&up, &[1, 1, SNAKE_TAPS]),
            &tensor(&down, &[1, 1, SNAKE_TAPS]),
        )
        .unwrap();
        let got = snake(&tensor(&x, &[2, channels, length]), &constants).unwrap();
        assert_near(&got, &want, 2e-3);
    }
}

#[test]
fn a_misfit_is_an_error_that_names_the_op() {
    let x = tensor(&random(1, 12), &[1, 3, 4]);
    let w = tensor(&random(1, 8), &[2, 2, 2]);
    let error = conv1d(&x, &w, None, Walk1d::same(2, 1)).unwrap_err();
    assert!(error.to_string().contains("conv1d"), "{error}");
    let error = conv_transpose1d(&x, &w, None, 2, 0).unwrap_err();
    assert!(error.to_string().contains("conv_transpose1d"), "{error}");
    let walk = Walk1d { stride: 1, dilation: 9, padding: (0, 0) };
    let w = tensor(&random(1, 6), &[1, 3, 2]);
    let error = conv1d(&x, &w, None, walk).unwrap_err();
    assert!(error.to_string().contains("samples are fewer"), "{error}");
}

#[test]
fn asking_for_a_gradient_is_an_error_not_a_silent_zero() {
    let x = candle_core::Var::from_tensor(&tensor(&random(1, 12), &[1, 3, 4])).unwrap();
    let w = tensor(&random(1, 9), &[1, 3, 3]);
    let y = conv1d(&x, &w, None, Walk1d::same(3, 1)).unwrap();
    assert!(y.sum_all().unwrap().backward().is_err());
}
