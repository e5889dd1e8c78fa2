//! The split rotary embedding.

#![expect(clippy::unwrap_used, reason = "helpers outside the test functions fail as loudly")]

mod support;
use kiln_kernels::{Precision, Rope, rope, rope_grid};
use support::*;

/// The rotation composed of tensor operations. Tables: [B or 1, T, H·d/2].
fn composed(x: &Tensor, cos: &Tensor, sin: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, t, width) = x.dims3()?;
    let half = width / heads / 2;
    let z = x.reshape((b, t, heads, 2 * half))?;
    let (z1, z2) = (z.narrow(3, 0, half)?, z.narrow(3, half, half)?);
    let table = |t4: &Tensor| -> Result<Tensor> {
        let (tb, tt, entries) = t4.dims3()?;
        t4.to_dtype(x.dtype())?.reshape((tb, tt, entries / half, half))
    };
    let (cos, sin) = (table(cos)?, table(sin)?);
    let first = (z1.broadcast_mul(&cos)? - z2.broadcast_mul(&sin)?)?;
    let second = (z2.broadcast_mul(&cos)? + z1.broadcast_mul(&sin)?)?;
    Tensor::cat(&[first, second], 3)?.reshape((b, t, width))
}

#[test]
fn rotation_equals_the_composition_forward_and_backward() {
    // (batch, table batch, tokens, heads, head size, tables shared by the heads)
    for (b, tb, t, h, d, shared) in
        [(1, 1, 1, 1, 2, false), (2, 1, 5, 3, 6, false), (2, 2, 4, 2, 34, false), (2, 1, 3, 4, 16, true)]
    {
        let entries = if shared { d / 2 } else { h * d / 2 };
        let (cos, sin) = (f32s(&[tb, t, entries], 1), f32s(&[tb, t, entries], 2));
        let tables = Rope::new(&cos, &sin, d).unwrap();
        let x = f32s(&[b, t, h * d], 3);
        let name = format!("rope {b}×{t}×{h}×{d}");
        forward_agrees(&name, Tol::elementwise(), one(&x), |x| rope(&x[0], &tables));
        same_gradients(
            &name,
            Tol::elementwise(),
            one(&x),
            |x| rope(&x[0], &tables),
            |x| composed(&x[0], &cos, &sin, h),
        );
        gradients(&name, &[wide(&x)], |x| rope(&x[0], &tables));
    }
}

#[test]
fn the_grid_has_the_values_of_the_specification() {
    // spec/model-transformer.md §4, test vectors
    let grid = rope_grid(10_000.0, 682, Precision::F64);
    for (k, want) in
        [(0, std::f64::consts::FRAC_PI_2), (1, 1.5922), (2, 1.6139), (680, 15_496.947), (681, 15_707.963)]
    {
        assert!((grid[k] - want as f32).abs() < 1e-4 * want as f32, "g_{k} = {}", grid[k]);
    }
    let single = rope_grid(10_000.0, 682, Precision::F32);
    assert!(grid.iter().zip(&single).any(|(a, b)| a != b), "the two precisions differ somewhere");
    assert!(grid.iter().zip(&single).all(|(a, b)| (a - b).abs() < 1e-5 * a), "and nowhere by much");
}

#[test]
fn the_tables_have_the_values_of_the_specification() {
    // fps 24, token f=1, y=2, x=3: middle of [1, 9)/24 s, [64, 96), [96, 128) pixels
    let u = |q: f32, max: f32| 2.0 * (q / max) - 1.0;
    let start = (1.0f32 / 24.0, 9.0f32 / 24.0);
    let u = [u((start.0 + start.1) / 2.0, 20.0), u(80.0, 2048.0), u(112.0, 2048.0)];
    let positions = Tensor::new(&[[u]], &Device::Cpu).unwrap();
    let tables = Rope::split(&positions, &rope_grid(10_000.0, 682, Precision::F64), 32, 128).unwrap();
    assert_eq!(tables.cos().dims(), [1, 1, 2048]);
    let (cos, sin) = (tables.cos().flatten_all().unwrap(), tables.sin().flatten_all().unwrap());
    let near = |table: &Tensor, start: usize, want: &[f32], tol: f64| {
        let want = Tensor::new(want, &Device::Cpu).unwrap();
        let got = table.narrow(0, start, want.elem_count()).unwrap();
        assert_close("table", &got, &want, Tol { abs: tol, rel: 0.0 });
    };
    near(&cos, 0, &[1.0, 1.0, 0.032_719, 0.122_410_6, 0.170_961_9, 0.011_781_3], 1e-6);
    near(&sin, 0, &[0.0, 0.0, -0.999_464_6, -0.992_479_6, -0.985_277_7, -0.999_930_6], 1e-6);
    // The last angles are above 10⁴ rad, where one unit of f32 is 1e-3 rad: equal only because the
    // order of the products is the specification's.
    near(&cos, 2045, &[0.865_942_4, -0.382_976_6, -0.924_066_4], 1e-6);
}

#[test]
fn scattered_inputs_are_handled() {
    let tables = Rope::new(&f32s(&[1, 4, 3], 1), &f32s(&[1, 4, 3], 2), 6).unwrap();
    let x = f32s(&[2, 4, 6], 3);
    assert_close(
        "scattered",
        &rope(&scattered(&x), &tables).unwrap(),
        &rope(&x, &tables).unwrap(),
        Tol::exact(),
    );
}

#[test]
fn bf16_tables_are_a_round_trip() {
    let tables = Rope::new(&f32s(&[1, 4, 3], 1), &f32s(&[1, 4, 3], 2), 6).unwrap();
    let narrow = tables.rounded_to(DType::BF16).unwrap();
    assert_close("cos", narrow.cos(), &rounded(tables.cos()), Tol::exact());
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let said = |error: candle_core::Error, words: &str| {
        assert!(error.to_string().contains(words), "{error}");
    };
    said(Rope::new(&f32s(&[1, 4, 3], 1), &f32s(&[1, 4, 4], 2), 6).unwrap_err(), "sin has shape [1, 4, 4]");
    said(Rope::new(&f32s(&[1, 4, 3], 1), &f32s(&[1, 4, 3], 2), 5).unwrap_err(), "head_dim");
    let tables = Rope::new(&f32s(&[1, 4, 3], 1), &f32s(&[1, 4, 3], 2), 6).unwrap();
    said(rope(&f32s(&[2, 5, 6], 1), &tables).unwrap_err(), "x has shape [2, 5, 6]");
    let positions = f32s(&[1, 2, 3], 1);
    said(Rope::split(&positions, &[1.0; 5], 2, 8).unwrap_err(), "5 frequencies on 3 axes");
    let half = positions.to_dtype(DType::BF16).unwrap();
    said(Rope::split(&half, &[1.0], 2, 8).unwrap_err(), "positions has dtype BF16");
}
