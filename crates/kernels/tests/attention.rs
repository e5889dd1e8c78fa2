//! Attention, forward and backward, with every mask.

#![expect(clippy::unwrap_used, reason = "helpers outside the test functions fail as loudly")]

mod support;
use kiln_kernels::{Attention, Mask, attention, softmax_last_dim};
use support::*;

const NO: f32 = f32::NEG_INFINITY;

/// [B, T, H·D] → [B, H, T, D]
fn split(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, t, width) = x.dims3()?;
    x.reshape((b, t, heads, width / heads))?.transpose(1, 2)?.contiguous()
}

/// The same with every score written out. bias: [B or 1, 1, Tq, Tk].
fn composed(x: &[Tensor], how: &Attention, bias: Option<&Tensor>) -> Result<Tensor> {
    let (b, tq, width) = x[0].dims3()?;
    let group = how.heads / how.kv_heads;
    let spread = |x: &Tensor| -> Result<Tensor> {
        let x = split(x, how.kv_heads)?;
        let (b, h, t, d) = x.dims4()?;
        x.unsqueeze(2)?.broadcast_as((b, h, group, t, d))?.contiguous()?.reshape((b, h * group, t, d))
    };
    let (q, k, v) = (split(&x[0], how.heads)?, spread(&x[1])?, spread(&x[2])?);
    let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? * how.scale)?;
    let scores = match bias {
        Some(bias) => scores.broadcast_add(&bias.to_dtype(scores.dtype())?)?,
        None => scores,
    };
    softmax_last_dim(&scores)?.matmul(&v)?.transpose(1, 2)?.reshape((b, tq, width))
}

fn inputs(b: usize, tq: usize, tk: usize, heads: usize, kv_heads: usize, d: usize) -> [Tensor; 3] {
    [f32s(&[b, tq, heads * d], 1), f32s(&[b, tk, kv_heads * d], 2), f32s(&[b, tk, kv_heads * d], 3)]
}

/// The bias of a causal mask with a window: [1, 1, Tq, Tk].
fn causal_bias(tq: usize, tk: usize, window: Option<usize>) -> Tensor {
    let see = |i: usize, j: usize| {
        let p = (i + tk) as i64 - tq as i64;
        (j as i64) <= p && window.is_none_or(|w| (j as i64) > p - w as i64)
    };
    let data: Vec<f32> =
        (0..tq).flat_map(|i| (0..tk).map(move |j| if see(i, j) { 0.0 } else { NO })).collect();
    Tensor::from_vec(data, (1, 1, tq, tk), &Device::Cpu).unwrap()
}

fn check(name: &str, x: &[Tensor; 3], how: &Attention, bias: Option<&Tensor>) {
    let op = |x: &[Tensor]| attention(&x[0], &x[1], &x[2], how);
    forward_agrees(name, Tol::reduced(), x, op);
    same_gradients(name, Tol::reduced(), x, op, |x| composed(x, how, bias));
}

#[test]
fn attention_equals_the_composition_over_odd_and_even_sizes() {
    // Blocks are 128 queries and 512 keys: below, across and just beyond them.
    for (b, tq, tk, heads, kv_heads, d) in [
        (1, 1, 1, 1, 1, 1),
        (2, 5, 3, 2, 2, 4),
        (1, 129, 513, 2, 2, 8),
        (2, 33, 7, 3, 1, 5),
        (1, 300, 64, 4, 2, 16),
        (1, 7, 1100, 1, 1, 32),
    ] {
        let how = Attention { kv_heads, ..Attention::new(heads, d) };
        check(
            &format!("{b}×{tq}×{tk}×{heads}/{kv_heads}×{d}"),
            &inputs(b, tq, tk, heads, kv_heads, d),
            &how,
            None,
        );
    }
}

#[test]
fn gradients_equal_finite_differences_under_every_mask() {
    let x = inputs(2, 4, 5, 2, 1, 3).map(|t| wide(&t));
    let keys = Tensor::new(&[[0f32, NO, 0.5, 0.0, -1.0], [0.0, 0.0, 0.0, NO, NO]], &Device::Cpu).unwrap();
    let pairs = f32s(&[2, 4, 5], 9);
    let masks = [
        Mask::None,
        Mask::Keys(keys.clone()),
        Mask::Pairs(pairs),
        Mask::Causal { window: None, keys: None },
        Mask::Causal { window: Some(2), keys: Some(keys.narrow(0, 0, 1).unwrap()) },
    ];
    for mask in masks {
        let how = Attention { heads: 2, kv_heads: 1, scale: 0.6, mask };
        gradients(&format!("attention, {:?}", how.mask), &x, |x| attention(&x[0], &x[1], &x[2], &how));
    }
}

#[test]
fn a_key_mask_removes_keys_for_every_query() {
    let x = inputs(2, 130, 600, 2, 2, 8);
    let data: Vec<f32> = (0..1200).map(|i| if i % 7 == 3 || i > 1100 { NO } else { 0.0 }).collect();
    let keys = Tensor::from_vec(data, (2, 600), &Device::Cpu).unwrap();
    let bias = keys.reshape((2, 1, 1, 600)).unwrap();
    let how = Attention { mask: Mask::Keys(keys), ..Attention::new(2, 8) };
    check("keys", &x, &how, Some(&bias));
}

#[test]
fn a_pair_mask_is_added_to_the_scores() {
    let x = inputs(2, 130, 600, 2, 2, 8);
    let pairs = f32s(&[2, 130, 600], 7);
    let bias = pairs.unsqueeze(1).unwrap();
    let how = Attention { mask: Mask::Pairs(pairs), ..Attention::new(2, 8) };
    check("pairs", &x, &how, Some(&bias));
}

#[test]
fn a_causal_mask_hides_what_comes_later_and_what_left_the_window() {
    for (tq, tk, window) in [(600, 600, None), (600, 600, Some(100)), (130, 600, Some(513)), (5, 5, Some(1))]
    {
        let x = inputs(1, tq, tk, 2, 1, 8);
        let mask = Mask::Causal { window, keys: None };
        let how = Attention { kv_heads: 1, mask, ..Attention::new(2, 8) };
        check(&format!("causal {tq} {tk} {window:?}"), &x, &how, Some(&causal_bias(tq, tk, window)));
    }
}

#[test]
fn left_padding_does_not_change_the_valid_rows() {
    // 3 padded keys in front: the tail equals attention without them.
    let [q, k, v] = inputs(1, 9, 9, 2, 2, 4);
    let keys = Tensor::new(&[[NO, NO, NO, 0f32, 0.0, 0.0, 0.0, 0.0, 0.0]], &Device::Cpu).unwrap();
    let padded = Attention { mask: Mask::Causal { window: None, keys: Some(keys) }, ..Attention::new(2, 4) };
    let short = Attention { mask: Mask::Causal { window: None, keys: None }, ..Attention::new(2, 4) };
    let tail = |t: &Tensor| t.narrow(1, 3, 6).unwrap();
    let got = attention(&q, &k, &v, &padded).unwrap();
    let want = attention(&tail(&q), &tail(&k), &tail(&v), &short).unwrap();
    assert_close("valid rows", &tail(&got), &want, Tol::reduced());
    let pads = got.narrow(1, 0, 3).unwrap();
    assert_close("a query without keys", &pads, &pads.zeros_like().unwrap(), Tol::exact());
}

#[test]
fn a_query_without_keys_has_no_gradient() {
    let x = inputs(1, 3, 3, 1, 1, 4);
    let pairs = Tensor::new(&[[[0f32, 0.0, 0.0], [NO, NO, NO], [0.0, NO, 0.0]]], &Device::Cpu).unwrap();
    let how = Attention { mask: Mask::Pairs(pairs), ..Attention::new(1, 4) };
    let grads = backward(&x, |x| attention(&x[0], &x[1], &x[2], &how)).unwrap();
    let blind = grads[0].narrow(1, 1, 1).unwrap();
    assert_close("its gradient", &blind, &blind.zeros_like().unwrap(), Tol::exact());
    gradients("one blind query", &x.map(|t| wide(&t)), |x| attention(&x[0], &x[1], &x[2], &how));
}

#[test]
fn large_scores_do_not_overflow() {
    let [q, k, v] = inputs(1, 40, 700, 1, 1, 8);
    let (q, k) = ((q * 60.0).unwrap(), (k * 60.0).unwrap());
    let how = Attention::new(1, 8);
    let got = attention(&q, &k, &v, &how).unwrap();
    // Scores reach 1e4, where one f32 rounding is 1e-3: only the shape of the result is asked for.
    let want = attention(&wide(&q), &wide(&k), &wide(&v), &how).unwrap();
    assert_close("large", &got, &want, Tol { abs: 2e-2, rel: 0.0 });
}

#[test]
fn only_tracked_inputs_get_a_gradient() {
    let x = inputs(1, 140, 30, 2, 2, 4);
    let how = Attention::new(2, 4);
    let all = backward(&x, |x| attention(&x[0], &x[1], &x[2], &how)).unwrap();
    for which in 0..3 {
        let var = Var::from_tensor(&x[which]).unwrap();
        let mut mixed = x.clone();
        mixed[which] = var.as_tensor().clone();
        let one = backward(&x[which..=which], |v| {
            let mut mixed = x.clone();
            mixed[which] = v[0].clone();
            attention(&mixed[0], &mixed[1], &mixed[2], &how)
        })
        .unwrap();
        assert_close("alone", &one[0], &all[which], Tol::exact());
        let out = attention(&mixed[0], &mixed[1], &mixed[2], &how).unwrap();
        let grads = out.sum_all().unwrap().backward().unwrap();
        assert_eq!(grads.get_ids().count(), 1, "one tracked input, one gradient");
    }
    assert!(!attention(&x[0], &x[1], &x[2], &how).unwrap().track_op(), "nothing tracked, nothing recorded");
}

#[test]
fn two_runs_give_the_same_bits() {
    let x = inputs(2, 200, 600, 4, 2, 16);
    let how = Attention { kv_heads: 2, ..Attention::new(4, 16) };
    let run = || backward(&x, |x| attention(&x[0], &x[1], &x[2], &how)).unwrap();
    for (a, b) in run().iter().zip(&run()) {
        assert_close("again", a, b, Tol::exact());
    }
}

#[test]
fn scattered_inputs_are_handled() {
    let x = inputs(2, 5, 6, 2, 2, 4);
    let how = Attention::new(2, 4);
    let got = attention(&scattered(&x[0]), &scattered(&x[1]), &scattered(&x[2]), &how).unwrap();
    assert_close("scattered", &got, &attention(&x[0], &x[1], &x[2], &how).unwrap(), Tol::exact());
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let x = inputs(2, 5, 6, 2, 2, 4);
    let said = |q: &Tensor, k: &Tensor, v: &Tensor, how: &Attention, words: &str| {
        let error = attention(q, k, v, how).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    let how = Attention::new(2, 4);
    said(&x[0], &x[1], &x[2].narrow(1, 0, 5).unwrap(), &how, "v has shape [2, 5, 8]");
    said(&x[0], &x[1].narrow(0, 0, 1).unwrap(), &x[2], &how, "k has shape [1, 6, 8]");
    said(&x[0], &x[1], &x[2], &Attention::new(3, 4), "q has shape [2, 5, 8]");
    said(&x[0], &x[1], &x[2], &Attention { kv_heads: 3, ..Attention::new(2, 4) }, "heads and kv_heads");
    let keys = Attention { mask: Mask::Keys(f32s(&[2, 5], 1)), ..Attention::new(2, 4) };
    said(&x[0], &x[1], &x[2], &keys, "the key mask has shape [2, 5]");
    let tracked = Var::from_tensor(&f32s(&[2, 6], 1)).unwrap();
    let keys = Attention { mask: Mask::Keys(tracked.as_tensor().clone()), ..Attention::new(2, 4) };
    said(&x[0], &x[1], &x[2], &keys, "the key mask is tracked");
    said(&x[0], &x[1].to_dtype(DType::BF16).unwrap(), &x[2], &how, "k has dtype BF16");
}
