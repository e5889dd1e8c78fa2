//! Convolution in two axes against plain f64 loops over the definition.

use candle_core::{Device, Tensor};
use kiln_kernels::{Walk2d, conv2d};
use rand::{Rng, SeedableRng};

fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).expect("a tensor of that shape")
}

#[test]
fn conv2d_follows_its_definition_for_every_walk() {
    let walk = |stride, rows, columns| Walk2d { stride, rows, columns };
    for (batch, channels, outputs, height, width, taps, walk) in [
        (1, 1, 1, 1, 1, (1, 1), walk(1, (0, 0), (0, 0))),
        (2, 3, 4, 13, 16, (3, 3), walk(1, (2, 0), (1, 1))),
        (1, 5, 2, 11, 8, (3, 3), walk(2, (2, 0), (0, 1))),
        (1, 2, 7, 9, 33, (1, 1), walk(1, (0, 0), (0, 0))),
        (1, 3, 2, 40, 50, (3, 5), walk(3, (4, 1), (7, 2))),
    ] {
        let x = random(1, batch * channels * height * width);
        let w = random(2, outputs * channels * taps.0 * taps.1);
        let bias = random(3, outputs);
        let out_height = (height + walk.rows.0 + walk.rows.1 - taps.0) / walk.stride + 1;
        let out_width = (width + walk.columns.0 + walk.columns.1 - taps.1) / walk.stride + 1;
        let got = conv2d(
            &tensor(&x, &[batch, channels, height, width]),
            &tensor(&w, &[outputs, channels, taps.0, taps.1]),
            Some(&tensor(&bias, &[outputs])),
            walk,
        )
        .unwrap();
        assert_eq!(got.dims(), [batch, outputs, out_height, out_width]);
        let got = got.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let inside = |at: usize, padding: usize, size: usize| at.checked_sub(padding).filter(|at| *at < size);
        for (index, got) in got.iter().enumerate() {
            let (ox, oy) = (index % out_width, index / out_width % out_height);
            let o = index / (out_width * out_height) % outputs;
            let b = index / (out_width * out_height * outputs);
            let mut want = f64::from(bias[o]);
            for c in 0..channels {
                for r in 0..taps.0 {
                    for s in 0..taps.1 {
                        let y = inside(oy * walk.stride + r, walk.rows.0, height);
                        let x_at = inside(ox * walk.stride + s, walk.columns.0, width);
                        if let (Some(y), Some(x_at)) = (y, x_at) {
                            let value = x[((b * channels + c) * height + y) * width + x_at];
                            let weight = w[((o * channels + c) * taps.0 + r) * taps.1 + s];
                            want += f64::from(value) * f64::from(weight);
                        }
                    }
                }
            }
            assert!((f64::from(*got) - want).abs() < 1e-5, "element {index}: {got} instead of {want}");
        }
    }
}

#[test]
fn a_misfit_is_an_error_that_names_the_op() {
    let x = tensor(&random(1, 8), &[1, 2, 2, 2]);
    let w = tensor(&random(1, 18), &[1, 2, 3, 3]);
    let walk = Walk2d { stride: 1, rows: (0, 0), columns: (1, 1) };
    let error = conv2d(&x, &w, None, walk).unwrap_err();
    assert!(error.to_string().contains("positions are fewer"), "{error}");
}
