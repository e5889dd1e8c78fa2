//! Linear layers over frozen weights, with and without an adapter.

#![expect(clippy::unwrap_used, reason = "helpers outside the test functions fail as loudly")]

mod support;
use kiln_kernels::{Adapter, FrozenLinear, FrozenWeight, frozen_linear, lora_linear};
use support::*;

fn frozen(shape: &[usize], seed: u64, dtype: DType) -> FrozenWeight {
    let scale = 1.0 / (shape[1] as f64).sqrt();
    FrozenWeight::new((f32s(shape, seed) * scale).unwrap().to_dtype(dtype).unwrap()).unwrap()
}

/// x·Wᵀ + b of tensor operations.
fn composed(x: &Tensor, w: &FrozenWeight, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = x.broadcast_matmul(&w.to_tensor(x.dtype())?.t()?)?;
    bias.map_or(Ok(y.clone()), |b| y.broadcast_add(&b.to_dtype(x.dtype())?))
}

fn composed_lora(x: &[Tensor], w: &FrozenWeight, bias: Option<&Tensor>, scale: f64) -> Result<Tensor> {
    let side = x[0].broadcast_matmul(&x[1].t()?)?.broadcast_matmul(&x[2].t()?)?;
    composed(&x[0], w, bias)? + (side * scale)?
}

fn lora(x: &[Tensor], w: &FrozenWeight, bias: Option<&Tensor>, scale: f64) -> Result<Tensor> {
    lora_linear(&x[0], w, bias, &Adapter::new(x[1].clone(), x[2].clone(), scale)?)
}

#[test]
fn a_frozen_linear_equals_its_reference_over_odd_and_even_sizes() {
    for (m, out, inner) in [(1, 1, 1), (3, 5, 7), (17, 64, 32), (64, 33, 130), (5, 700, 257)] {
        for dtype in [DType::F32, DType::BF16] {
            let (w, bias) = (frozen(&[out, inner], 1, dtype), f32s(&[out], 2));
            let x = f32s(&[m, inner], 3);
            let name = format!("frozen_linear {m}×{out}×{inner} {dtype:?}");
            forward_agrees(&name, Tol::reduced(), one(&x), |x| frozen_linear(&x[0], &w, Some(&bias)));
            let op = |x: &[Tensor]| frozen_linear(&x[0], &w, None);
            same_gradients(&name, Tol::reduced(), &[x], op, |x| composed(&x[0], &w, None));
        }
    }
}

#[test]
fn a_bf16_weight_equals_the_f32_weight_of_the_same_numbers() {
    // Several widened blocks: 2 Mi elements are one block, and 4099 rows do not divide evenly.
    let narrow = frozen(&[4099, 1030], 1, DType::BF16);
    let full = FrozenWeight::new(narrow.to_tensor(DType::F32).unwrap()).unwrap();
    assert_eq!(narrow.bytes() * 2, full.bytes());
    for m in [1, 6, 65] {
        let x = f32s(&[m, 1030], 2);
        let (got, want) =
            (frozen_linear(&x, &narrow, None).unwrap(), frozen_linear(&x, &full, None).unwrap());
        println!("forward {m}: {}", assert_close("forward", &got, &want, Tol::reduced()));
        let got = &backward(one(&x), |x| frozen_linear(&x[0], &narrow, None)).unwrap()[0];
        let want = &backward(&[x], |x| frozen_linear(&x[0], &full, None)).unwrap()[0];
        println!("backward {m}: {}", assert_close("backward", got, want, Tol::reduced()));
    }
}

#[test]
fn gradients_equal_finite_differences() {
    for dtype in [DType::F32, DType::BF16] {
        let (w, bias) = (frozen(&[5, 6], 1, dtype), f32s(&[5], 2));
        let x = random(&[2, 3, 6], 3).unwrap();
        gradients("frozen_linear", one(&x), |x| frozen_linear(&x[0], &w, Some(&bias)));
        let (a, b) = (random(&[2, 6], 4).unwrap(), random(&[5, 2], 5).unwrap());
        gradients("lora_linear", &[x, a, b], |x| lora(x, &w, Some(&bias), 0.7));
    }
}

#[test]
fn an_adapter_equals_the_composition_forward_and_backward() {
    for (m, out, inner, rank) in [(1, 1, 1, 1), (7, 5, 9, 3), (33, 64, 48, 8), (100, 31, 130, 32)] {
        for dtype in [DType::F32, DType::BF16] {
            let (w, bias) = (frozen(&[out, inner], 1, dtype), f32s(&[out], 2));
            let scale = 1.0 / (inner as f64).sqrt();
            let inputs =
                [f32s(&[m, inner], 3), (f32s(&[rank, inner], 4) * scale).unwrap(), f32s(&[out, rank], 5)];
            let name = format!("lora_linear {m}×{out}×{inner}, rank {rank}, {dtype:?}");
            let op = |x: &[Tensor]| lora(x, &w, Some(&bias), 0.5);
            same_gradients(&name, Tol::product(m.max(16)), &inputs, op, |x| {
                composed_lora(x, &w, Some(&bias), 0.5)
            });
            let wide_inputs = inputs.clone().map(|t| wide(&t));
            let want = composed_lora(&wide_inputs, &w, Some(&bias), 0.5).unwrap();
            assert_close(&name, &op(&wide_inputs).unwrap(), &want, Tol { abs: 1e-12, rel: 1e-12 });
        }
    }
}

#[test]
fn f32_adapters_serve_bf16_activations_and_receive_f32_gradients() {
    let w = frozen(&[8, 16], 1, DType::BF16);
    let x = f32s(&[4, 16], 2).to_dtype(DType::BF16).unwrap();
    let (a, b) =
        (Var::from_tensor(&f32s(&[2, 16], 3)).unwrap(), Var::from_tensor(&f32s(&[8, 2], 4)).unwrap());
    let adapter = Adapter::new(a.as_tensor().clone(), b.as_tensor().clone(), 1.0).unwrap();
    let y = lora_linear(&x, &w, None, &adapter).unwrap();
    assert_eq!(y.dtype(), DType::BF16);
    let grads = y.to_dtype(DType::F32).unwrap().sum_all().unwrap().backward().unwrap();
    for var in [&a, &b] {
        assert_eq!(grads.get(var).unwrap().dtype(), DType::F32);
    }
}

#[test]
fn no_gradient_of_a_frozen_weight_is_stored() {
    let weight = (f32s(&[8, 6], 1) * 0.3).unwrap();
    let bias = f32s(&[8], 2);
    let layer = FrozenLinear::new(FrozenWeight::new(weight.clone()).unwrap(), Some(bias.clone())).unwrap();
    let x = Var::from_tensor(&f32s(&[3, 6], 3)).unwrap();
    let (a, b) = (Var::from_tensor(&f32s(&[2, 6], 4)).unwrap(), Var::from_tensor(&f32s(&[8, 2], 5)).unwrap());
    let adapter = Adapter::new(a.as_tensor().clone(), b.as_tensor().clone(), 1.0).unwrap();
    let loss = |y: Tensor| y.sqr().unwrap().sum_all().unwrap();
    let grads = loss(layer.forward(&x, Some(&adapter)).unwrap()).backward().unwrap();
    assert_eq!(grads.get_ids().count(), 3, "x, A and B, and nothing else");
    assert!(grads.get(&weight).is_none() && grads.get(&bias).is_none());
    let grads = loss(layer.forward(&x, None).unwrap()).backward().unwrap();
    assert_eq!(grads.get_ids().count(), 1, "x and nothing else");
}

#[test]
fn only_what_is_tracked_gets_a_gradient() {
    let w = frozen(&[5, 6], 1, DType::F32);
    let inputs = [f32s(&[3, 6], 2), f32s(&[2, 6], 3), f32s(&[5, 2], 4)];
    let all = backward(&inputs, |x| lora(x, &w, None, 1.0)).unwrap();
    for which in 0..3 {
        let one = backward(&inputs[which..=which], |v| {
            let mut x = inputs.clone();
            x[which] = v[0].clone();
            lora(&x, &w, None, 1.0)
        })
        .unwrap();
        assert_close("alone", &one[0], &all[which], Tol::exact());
    }
    assert!(!lora(&inputs, &w, None, 1.0).unwrap().track_op(), "nothing tracked, nothing recorded");
}

#[test]
fn scattered_inputs_and_leading_axes_are_handled() {
    let w = frozen(&[5, 6], 1, DType::BF16);
    let x = f32s(&[2, 4, 6], 2);
    let want = frozen_linear(&x.reshape((8, 6)).unwrap(), &w, None).unwrap().reshape((2, 4, 5)).unwrap();
    assert_close("leading axes", &frozen_linear(&x, &w, None).unwrap(), &want, Tol::exact());
    assert_close("scattered", &frozen_linear(&scattered(&x), &w, None).unwrap(), &want, Tol::exact());
    let t = FrozenWeight::new(f32s(&[6, 5], 1).t().unwrap()).unwrap();
    let want = composed(&x, &t, None).unwrap();
    assert_close("transposed weight", &frozen_linear(&x, &t, None).unwrap(), &want, Tol::reduced());
    let vector = f32s(&[6], 3);
    assert_eq!(frozen_linear(&vector, &w, None).unwrap().dims(), [5]);
}

#[test]
fn rows_of_a_weight_are_looked_up_by_id() {
    let w = frozen(&[7, 4], 1, DType::BF16);
    let all = w.to_tensor(DType::F32).unwrap();
    let got = w.rows(&[3, 0, 3], DType::F32).unwrap();
    let ids = Tensor::new(&[3u32, 0, 3], &Device::Cpu).unwrap();
    assert_close("rows", &got, &all.index_select(&ids, 0).unwrap(), Tol::exact());
    let error = w.rows(&[7], DType::F32).unwrap_err().to_string();
    assert!(error.contains("id is 7, expected below 7"), "{error}");
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let w = frozen(&[5, 6], 1, DType::F32);
    let x = f32s(&[3, 6], 2);
    let said = |error: candle_core::Error, words: &str| {
        assert!(error.to_string().contains(words), "{error}");
    };
    said(frozen_linear(&f32s(&[3, 5], 2), &w, None).unwrap_err(), "x has shape [3, 5], expected [.., 6]");
    said(frozen_linear(&x, &w, Some(&f32s(&[6], 1))).unwrap_err(), "bias has shape [6], expected [5]");
    said(Adapter::new(f32s(&[2, 6], 1), f32s(&[5, 3], 1), 1.0).unwrap_err(), "B has shape [5, 3]");
    said(lora(&[x, f32s(&[2, 5], 1), f32s(&[5, 2], 1)], &w, None, 1.0).unwrap_err(), "A has shape [2, 5]");
    said(FrozenWeight::new(f32s(&[5], 1)).unwrap_err(), "weight has shape [5], expected [out, in]");
    let tracked = Var::from_tensor(&f32s(&[5, 6], 1)).unwrap();
    said(FrozenWeight::new(tracked.as_tensor().clone()).unwrap_err(), "weight is tracked");
}
