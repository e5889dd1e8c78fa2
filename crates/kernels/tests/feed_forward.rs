//! The fused feed-forward part.

#![expect(clippy::unwrap_used, reason = "helpers outside the test functions fail as loudly")]

mod support;
use kiln_kernels::{FrozenLinear, FrozenWeight, feed_forward, gelu_tanh};
use support::*;

fn layer(out: usize, inner: usize, seed: u64, dtype: DType, bias: bool) -> FrozenLinear {
    let weight =
        (f32s(&[out, inner], seed) * (1.0 / (inner as f64).sqrt())).unwrap().to_dtype(dtype).unwrap();
    let bias = bias.then(|| f32s(&[out], seed + 1));
    FrozenLinear::new(FrozenWeight::new(weight).unwrap(), bias).unwrap()
}

fn composed(x: &Tensor, first: &FrozenLinear, second: &FrozenLinear) -> Result<Tensor> {
    second.forward(&gelu_tanh(&first.forward(x, None)?)?, None)
}

#[test]
fn one_pass_equals_the_three_ops_forward_and_backward() {
    // 4500 inner columns are three slices, the last one odd.
    for (m, width, inner) in [(1, 1, 1), (5, 12, 48), (9, 7, 4500)] {
        for (dtype, bias) in [(DType::F32, true), (DType::BF16, true), (DType::F32, false)] {
            let (first, second) = (layer(inner, width, 1, dtype, bias), layer(width, inner, 3, dtype, bias));
            let x = f32s(&[m, width], 5);
            let name = format!("feed_forward {m}×{width}×{inner} {dtype:?} bias {bias}");
            let op = |x: &[Tensor]| feed_forward(&x[0], &first, &second);
            forward_agrees(&name, Tol::reduced(), one(&x), op);
            same_gradients(&name, Tol::reduced(), &[x], op, |x| composed(&x[0], &first, &second));
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    let (first, second) = (layer(8, 3, 1, DType::F32, true), layer(3, 8, 3, DType::F32, true));
    let x = random(&[2, 4, 3], 5).unwrap();
    gradients("feed_forward", one(&x), |x| feed_forward(&x[0], &first, &second));
    gradients("scattered", &[random(&[2, 3, 4], 5).unwrap()], |x| {
        feed_forward(&x[0].transpose(1, 2)?, &first, &second)
    });
}

#[test]
fn layers_that_do_not_meet_are_refused() {
    let (first, second) = (layer(8, 3, 1, DType::F32, true), layer(3, 7, 3, DType::F32, true));
    let error = feed_forward(&f32s(&[2, 3], 1), &first, &second).unwrap_err().to_string();
    assert!(error.contains("second weight has shape [3, 7], expected [.., 8]"), "{error}");
    let error = feed_forward(&f32s(&[2, 4], 1), &first, &second).unwrap_err().to_string();
    assert!(error.contains("x has shape [2, 4], expected [.., 3]"), "{error}");
}
