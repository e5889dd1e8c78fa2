//! Sums over rows.

#![expect(clippy::unwrap_used, reason = "helpers outside the test functions fail as loudly")]

mod support;
use kiln_kernels::column_sums;
use support::*;

#[test]
fn sums_equal_the_reference_and_keep_bf16_apart() {
    for shape in [&[1usize, 1][..], &[7, 3], &[2, 33, 5]] {
        forward_agrees("column_sums", Tol::reduced(), &[f32s(shape, 1)], |x| column_sums(&x[0]));
    }
    let ones = Tensor::ones((65_536, 2), DType::BF16, &Device::Cpu).unwrap();
    let sums = column_sums(&ones).unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(sums, [65_536.0; 2]);
}

#[test]
fn gradients_equal_finite_differences() {
    let x = random(&[4, 3], 1).unwrap();
    gradients("column_sums", one(&x), |x| column_sums(&x[0]));
    gradients("scattered", &[x], |x| column_sums(&x[0].t()?));
}
