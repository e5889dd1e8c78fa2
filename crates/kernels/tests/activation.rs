//! GELU, SiLU, and the gated product of Gemma.

#![expect(clippy::unwrap_used, reason = "helpers outside the test functions fail as loudly")]

mod support;
use kiln_kernels::{gelu_tanh, gelu_tanh_mul, silu};
use support::*;

/// From -30 to 30, where every branch of the curve shows.
fn sweep(count: usize) -> Tensor {
    let step = 60.0 / count as f64;
    Tensor::from_vec((0..count).map(|i| -30.0 + i as f64 * step).collect(), count, &Device::Cpu).unwrap()
}

#[test]
fn gelu_and_silu_equal_their_references() {
    for shape in [&[1usize][..], &[7, 3], &[2, 3, 17], &[5, 1000]] {
        let x = f32s(shape, 1);
        forward_agrees("gelu", Tol::elementwise(), one(&x), |x| gelu_tanh(&x[0]));
        forward_agrees("silu", Tol::elementwise(), &[x], |x| silu(&x[0]));
    }
    let x = sweep(100_001).to_dtype(DType::F32).unwrap();
    assert_close("gelu", &gelu_tanh(&x).unwrap(), &gelu_tanh(&wide(&x)).unwrap(), Tol::elementwise());
    assert_close("silu", &silu(&x).unwrap(), &silu(&wide(&x)).unwrap(), Tol::elementwise());
}

#[test]
fn the_backward_pass_is_accurate_over_the_whole_curve() {
    let x = sweep(40_001);
    let narrow = x.to_dtype(DType::F32).unwrap();
    for (name, f) in [("gelu", gelu_tanh as fn(&Tensor) -> Result<Tensor>), ("silu", silu)] {
        let want = &backward(&[wide(&narrow)], |x| f(&x[0])).unwrap()[0];
        let got = &backward(one(&narrow), |x| f(&x[0])).unwrap()[0];
        // the projection weights reach 4.5
        println!("{name}: {}", assert_close(name, got, want, Tol { abs: 5e-6, rel: 1e-6 }));
    }
}

#[test]
fn gradients_equal_finite_differences() {
    let (x, y) = (random(&[3, 5], 1).unwrap(), random(&[3, 5], 2).unwrap());
    gradients("gelu_tanh", one(&x), |x| gelu_tanh(&x[0]));
    gradients("silu", one(&x), |x| silu(&x[0]));
    gradients("gelu_tanh_mul", &[x.clone(), y], |x| gelu_tanh_mul(&x[0], &x[1]));
    gradients("scattered", &[x], |x| gelu_tanh(&x[0].t()?));
}

#[test]
fn gradients_equal_those_of_the_composition() {
    let (x, y) = (random(&[3, 37], 1).unwrap(), random(&[3, 37], 2).unwrap());
    same_gradients("gelu", Tol::elementwise(), one(&x), |x| gelu_tanh(&x[0]), |x| x[0].gelu());
    same_gradients("silu", Tol::elementwise(), one(&x), |x| silu(&x[0]), |x| x[0].silu());
    let product = |x: &[Tensor]| gelu_tanh_mul(&x[0], &x[1]);
    same_gradients("gelu_tanh_mul", Tol::elementwise(), &[x, y], product, |x| x[0].gelu()? * &x[1]);
}

#[test]
fn the_gated_product_equals_its_reference() {
    let inputs = [f32s(&[4, 33], 1), f32s(&[4, 33], 2)];
    forward_agrees("gelu_tanh_mul", Tol::elementwise(), &inputs, |x| gelu_tanh_mul(&x[0], &x[1]));
    let got = gelu_tanh_mul(&scattered(&inputs[0]), &scattered(&inputs[1])).unwrap();
    assert_close("scattered", &got, &gelu_tanh_mul(&inputs[0], &inputs[1]).unwrap(), Tol::exact());
    let error = gelu_tanh_mul(&inputs[0], &f32s(&[4, 32], 1)).unwrap_err().to_string();
    assert!(error.contains("up has shape [4, 32]"), "{error}");
}

#[test]
fn infinities_and_nan_behave_as_the_curve_says() {
    let x = Tensor::new(&[f32::MAX, -f32::MAX, 0.0, f32::NAN], &Device::Cpu).unwrap();
    for f in [gelu_tanh as fn(&Tensor) -> Result<Tensor>, silu] {
        let y = f(&x).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(y[0], f32::MAX);
        assert!(y[1] <= 0.0 && y[1] >= -1e-30 && y[2] == 0.0 && y[3].is_nan(), "{y:?}");
    }
}
