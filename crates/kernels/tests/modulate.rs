//! Scale, shift and gate by each token's timestep.

#![expect(clippy::unwrap_used, reason = "helpers outside the test functions fail as loudly")]

mod support;
use kiln_kernels::{Modulation, gate_residual, modulate};
use support::*;

/// K = 3 sets of R = 4 rows, tokens [2, 5].
fn modulation(width: usize) -> (Modulation, Tensor) {
    let table = f32s(&[3, 4, width], 6);
    let index = Tensor::new(&[[0u32, 1, 1, 2, 0], [2, 2, 0, 1, 1]], &Device::Cpu).unwrap();
    let m = Modulation::new(&table, &index).unwrap();
    let per_token = table.index_select(&index.flatten_all().unwrap(), 0).unwrap();
    (m, per_token.reshape((2, 5, 4, width)).unwrap())
}

fn row(per_token: &Tensor, row: usize, like: &Tensor) -> Result<Tensor> {
    per_token.narrow(2, row, 1)?.squeeze(2)?.to_dtype(like.dtype())
}

#[test]
fn each_token_uses_the_rows_of_its_timestep() {
    for width in [1, 7, 32] {
        let (m, per_token) = modulation(width);
        let x = f32s(&[2, 5, width], 1);
        forward_agrees("modulate", Tol::elementwise(), one(&x), |x| modulate(&x[0], &m, 2, 1));
        let composed = |x: &[Tensor]| {
            let scale = (row(&per_token, 1, &x[0])? + 1.0)?;
            (&x[0] * scale)? + row(&per_token, 2, &x[0])?
        };
        same_gradients("modulate", Tol::elementwise(), &[x], |x| modulate(&x[0], &m, 2, 1), composed);
    }
}

#[test]
fn the_gate_scales_the_update_and_passes_the_residual() {
    for width in [1, 7, 32] {
        let (m, per_token) = modulation(width);
        let inputs = [f32s(&[2, 5, width], 1), f32s(&[2, 5, width], 2)];
        let op = |x: &[Tensor]| gate_residual(&x[0], &x[1], &m, 3);
        forward_agrees("gate_residual", Tol::elementwise(), &inputs, op);
        same_gradients("gate_residual", Tol::elementwise(), &inputs, op, |x| {
            &x[0] + (&x[1] * row(&per_token, 3, &x[1])?)?
        });
    }
}

#[test]
fn gradients_equal_finite_differences() {
    let (m, _) = modulation(6);
    let (x, y) = (random(&[2, 5, 6], 1).unwrap(), random(&[2, 5, 6], 2).unwrap());
    gradients("modulate", one(&x), |x| modulate(&x[0], &m, 0, 1));
    gradients("gate_residual", &[x, y], |x| gate_residual(&x[0], &x[1], &m, 2));
}

#[test]
fn one_set_per_sample_equals_an_index_of_constant_rows() {
    let table = f32s(&[2, 2, 8], 3);
    let index = Tensor::new(&[[0u32, 0, 0], [1, 1, 1]], &Device::Cpu).unwrap();
    let x = f32s(&[2, 3, 8], 4);
    let by_index = modulate(&x, &Modulation::new(&table, &index).unwrap(), 0, 1).unwrap();
    let by_sample = modulate(&x, &Modulation::per_sample(&table, 3).unwrap(), 0, 1).unwrap();
    assert_close("per sample", &by_sample, &by_index, Tol::exact());
}

#[test]
fn only_the_tracked_side_of_the_gate_gets_a_gradient() {
    let (m, _) = modulation(4);
    let x = Var::from_tensor(&f32s(&[2, 5, 4], 1)).unwrap();
    let residual = f32s(&[2, 5, 4], 2);
    let grads = gate_residual(&residual, &x, &m, 0).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&x).is_some() && grads.get(&residual).is_none());
}

#[test]
fn scattered_inputs_are_handled() {
    let (m, _) = modulation(6);
    let (x, y) = (f32s(&[2, 5, 6], 1), f32s(&[2, 5, 6], 2));
    let want = gate_residual(&x, &y, &m, 1).unwrap();
    let got = gate_residual(&scattered(&x), &scattered(&y), &m, 1).unwrap();
    assert_close("scattered", &got, &want, Tol::exact());
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let (m, _) = modulation(4);
    let x = f32s(&[2, 5, 4], 1);
    let said = |result: Result<Tensor>, words: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    said(modulate(&x, &m, 0, 4), "row is 4, expected below 4");
    said(modulate(&f32s(&[2, 4, 4], 1), &m, 0, 1), "x has shape [2, 4, 4], expected [2, 5, 4]");
    said(gate_residual(&f32s(&[2, 5, 3], 1), &x, &m, 0), "residual has shape [2, 5, 3]");
    let index = Tensor::new(&[[0u32, 3]], &Device::Cpu).unwrap();
    let error = Modulation::new(&f32s(&[3, 1, 4], 1), &index).unwrap_err().to_string();
    assert!(error.contains("index is 3, expected below 3"), "{error}");
    let tracked = Var::from_tensor(&f32s(&[1, 1, 4], 1)).unwrap();
    let error = Modulation::per_sample(&tracked, 5).unwrap_err().to_string();
    assert!(error.contains("table is tracked for gradients"), "{error}");
}
