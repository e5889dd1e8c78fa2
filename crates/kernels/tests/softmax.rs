//! Softmax over the last axis.

#![expect(clippy::unwrap_used, reason = "helpers outside the test functions fail as loudly")]

mod support;
use kiln_kernels::softmax_last_dim;
use support::*;

fn composed(x: &Tensor) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}

#[test]
fn softmax_equals_its_reference_and_sums_to_one() {
    for shape in [&[1usize, 1][..], &[3, 5], &[2, 3, 17], &[4, 1023]] {
        let x = (f32s(shape, 1) * 5.0).unwrap();
        forward_agrees("softmax", Tol::elementwise(), one(&x), |x| softmax_last_dim(&x[0]));
        let total = softmax_last_dim(&x).unwrap().sum(D::Minus1).unwrap();
        assert_close("sums", &total, &total.ones_like().unwrap(), Tol::elementwise());
    }
}

#[test]
fn gradients_equal_finite_differences_and_the_composition() {
    let x = random(&[3, 6], 1).unwrap();
    gradients("softmax", one(&x), |x| softmax_last_dim(&x[0]));
    gradients("scattered", one(&x), |x| softmax_last_dim(&x[0].t()?));
    same_gradients("softmax", Tol::elementwise(), &[x], |x| softmax_last_dim(&x[0]), |x| composed(&x[0]));
}

#[test]
fn removed_entries_are_zero_and_a_row_without_any_is_zeros() {
    let no = f32::NEG_INFINITY;
    let x = Tensor::new(&[[0.0, no, 0.0, no], [no; 4]], &Device::Cpu).unwrap();
    for x in [x.clone(), wide(&x)] {
        let y = softmax_last_dim(&x).unwrap().to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(y, [[0.5, 0.0, 0.5, 0.0], [0.0; 4]]);
    }
}
