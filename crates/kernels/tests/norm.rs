//! RMS and layer norm, alone and with a weight, a modulation, a rotation.

#![expect(clippy::unwrap_used, reason = "helpers outside the test functions fail as loudly")]

mod support;
use kiln_kernels::{
    Modulation, Rope, layer_norm, layer_norm_modulate, rms_norm, rms_norm_modulate, rms_norm_rope,
};
use support::*;

const EPS: f64 = 1e-6;

fn composed_rms(x: &Tensor, eps: f64) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean + eps)?.sqrt()?)
}

fn composed_layer(x: &Tensor, eps: f64) -> Result<Tensor> {
    let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    composed_rms(&x, eps)
}

#[test]
fn rms_norm_equals_its_reference_over_odd_and_even_widths() {
    for shape in [&[1usize, 1][..], &[3, 7], &[2, 5, 16], &[2, 3, 4, 33], &[1, 1024], &[5, 4099]] {
        let x = f32s(shape, 1);
        let weight = f32s(&shape[shape.len() - 1..], 2);
        forward_agrees(&format!("rms {shape:?}"), Tol::reduced(), one(&x), |x| rms_norm(&x[0], None, EPS));
        // the weight is a constant in its own dtype
        let weight = rounded(&weight);
        forward_agrees(&format!("rms weight {shape:?}"), Tol::reduced(), &[x], |x| {
            rms_norm(&x[0], Some(&weight), EPS)
        });
    }
}

#[test]
fn layer_norm_equals_its_reference() {
    for shape in [&[3usize, 7][..], &[2, 5, 16], &[1, 1000]] {
        let x = (f32s(shape, 1) + 3.0).unwrap();
        forward_agrees(&format!("layer {shape:?}"), Tol::reduced(), &[x], |x| layer_norm(&x[0], EPS));
    }
}

#[test]
fn gradients_equal_finite_differences() {
    let x = random(&[2, 3, 7], 3).unwrap();
    let weight = f32s(&[7], 4);
    gradients("rms_norm", one(&x), |x| rms_norm(&x[0], None, EPS));
    gradients("rms_norm with a weight", one(&x), |x| rms_norm(&x[0], Some(&weight), EPS));
    gradients("layer_norm", &[x], |x| layer_norm(&x[0], EPS));
    let x = random(&[2, 3, 8], 5).unwrap();
    let table = f32s(&[2, 3, 8], 6);
    let index = Tensor::new(&[[0u32, 1, 1], [1, 0, 0]], &Device::Cpu).unwrap();
    let m = Modulation::new(&table, &index).unwrap();
    gradients("rms_norm_modulate", one(&x), |x| rms_norm_modulate(&x[0], &m, 0, 2, EPS));
    gradients("layer_norm_modulate", one(&x), |x| layer_norm_modulate(&x[0], &m, 1, 0, EPS));
    let (cos, sin) = (f32s(&[1, 3, 4], 7), f32s(&[1, 3, 4], 8));
    let rope = Rope::new(&cos, &sin, 4).unwrap();
    let weight = f32s(&[8], 9);
    gradients("rms_norm_rope", one(&x), |x| rms_norm_rope(&x[0], &weight, EPS, Some(&rope)));
    gradients("rms_norm_rope without tables", &[x], |x| rms_norm_rope(&x[0], &weight, EPS, None));
}

#[test]
fn gradients_equal_those_of_the_composition() {
    for width in [5, 64, 100] {
        let x = random(&[2, 9, width], 3).unwrap();
        let weight = f32s(&[width], 4);
        same_gradients(
            "rms_norm",
            Tol::reduced(),
            one(&x),
            |x| rms_norm(&x[0], Some(&weight), EPS),
            |x| composed_rms(&x[0], EPS)?.broadcast_mul(&weight),
        );
        same_gradients(
            "layer_norm",
            Tol::reduced(),
            &[x],
            |x| layer_norm(&x[0], EPS),
            |x| composed_layer(&x[0], EPS),
        );
    }
}

#[test]
fn fused_forms_equal_their_parts() {
    let x = random(&[2, 5, 12], 5).unwrap();
    let table = f32s(&[3, 4, 12], 6);
    let index = Tensor::new(&[[0u32, 1, 1, 2, 0], [2, 2, 0, 1, 1]], &Device::Cpu).unwrap();
    let m = Modulation::new(&table, &index).unwrap();
    same_gradients(
        "rms_norm_modulate",
        Tol::elementwise(),
        one(&x),
        |x| rms_norm_modulate(&x[0], &m, 3, 1, EPS),
        |x| kiln_kernels::modulate(&rms_norm(&x[0], None, EPS)?, &m, 3, 1),
    );
    let rope = Rope::new(&f32s(&[2, 5, 6], 7), &f32s(&[2, 5, 6], 8), 4).unwrap();
    let weight = f32s(&[12], 9);
    same_gradients(
        "rms_norm_rope",
        Tol::elementwise(),
        &[x],
        |x| rms_norm_rope(&x[0], &weight, EPS, Some(&rope)),
        |x| kiln_kernels::rope(&rms_norm(&x[0], Some(&weight), EPS)?, &rope),
    );
}

#[test]
fn scattered_inputs_are_handled() {
    let x = random(&[3, 4, 6], 1).unwrap();
    let weight = f32s(&[6], 2);
    assert_close(
        "scattered",
        &rms_norm(&scattered(&x), Some(&weight), EPS).unwrap(),
        &rms_norm(&x, Some(&weight), EPS).unwrap(),
        Tol::exact(),
    );
    gradients("scattered", one(&x), |x| rms_norm(&x[0].transpose(1, 2)?, None, EPS));
    gradients("a view with an offset", &[x], |x| rms_norm(&x[0].narrow(0, 1, 2)?, None, EPS));
}

#[test]
fn a_row_of_zeros_stays_finite() {
    let x = Tensor::zeros((2, 8), DType::F32, &Device::Cpu).unwrap();
    assert_close("zeros", &rms_norm(&x, None, EPS).unwrap(), &x, Tol::exact());
    let grad = backward(&[x], |x| rms_norm(&x[0], None, EPS)).unwrap();
    assert!(check::compare(&grad[0], &grad[0].zeros_like().unwrap()).unwrap().max_abs.is_finite());
}

#[test]
fn large_and_small_rows_keep_their_precision() {
    for factor in [1e-15, 1e15] {
        let x = (f32s(&[4, 64], 1) * factor).unwrap();
        let want = composed_rms(&wide(&x), EPS).unwrap();
        assert_close("scaled", &rms_norm(&x, None, EPS).unwrap(), &want, Tol::reduced());
    }
}

#[test]
fn a_wrong_weight_is_refused_by_name() {
    let x = f32s(&[2, 8], 1);
    let error = rms_norm(&x, Some(&f32s(&[7], 1)), EPS).unwrap_err().to_string();
    assert!(error.contains("weight has shape [7], expected [8]"), "{error}");
    let tracked = Var::from_tensor(&f32s(&[8], 1)).unwrap();
    let error = rms_norm(&x, Some(&tracked), EPS).unwrap_err().to_string();
    assert!(error.contains("weight is tracked for gradients"), "{error}");
    let error = rms_norm(&x.to_dtype(DType::U32).unwrap(), None, EPS).unwrap_err().to_string();
    assert!(error.contains("expected f32, bf16 or f64"), "{error}");
}
