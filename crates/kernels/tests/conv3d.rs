//! conv3d against the plain loop in f64, over odd sizes, paddings, strides and stored types.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use candle_core::{DType, Device, Tensor};
use kiln_kernels::{Conv3d, Padding, Walk3d};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn flat(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The position that stands at `at - pad` on an axis, found by walking the rule one step at a time.
fn source(at: usize, pad: usize, size: usize, padding: Padding) -> Option<usize> {
    let at = at as i64 - pad as i64;
    let last = size as i64 - 1;
    let inside = (0..=last).contains(&at);
    let at = match padding {
        _ if inside => at,
        Padding::Zeros => return None,
        Padding::Replicate => at.clamp(0, last),
        Padding::Reflect if at < 0 => -at,
        Padding::Reflect => last - (at - last),
    };
    Some(at as usize)
}

/// The definition, written out: x [B,T,H,W,I], w [O,I,kt,kh,kw].
fn plain(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    walk: &Walk3d,
) -> (Vec<f64>, [usize; 5]) {
    let (b, t, h, wd, i) = x.dims5().unwrap();
    let (o, _, kt, kh, kw) = w.dims5().unwrap();
    let (sizes, kernel) = ([t, h, wd], [kt, kh, kw]);
    let out: Vec<usize> =
        (0..3).map(|a| (sizes[a] + walk.pad[a].0 + walk.pad[a].1 - kernel[a]) / walk.stride[a] + 1).collect();
    let (xs, ws) = (flat(x), flat(w));
    let bias = bias.map(flat);
    let residual = residual.map(flat);
    let mut y = Vec::new();
    for sample in 0..b {
        for (p0, p1, p2) in itertools(&out) {
            for oc in 0..o {
                let mut sum = bias.as_ref().map_or(0.0, |b| b[oc]);
                for (j0, j1, j2) in itertools(&kernel) {
                    let at = |a: usize, p: usize, j: usize| {
                        source(p * walk.stride[a] + j, walk.pad[a].0, sizes[a], walk.padding[a])
                    };
                    let (Some(s0), Some(s1), Some(s2)) = (at(0, p0, j0), at(1, p1, j1), at(2, p2, j2)) else {
                        continue;
                    };
                    for c in 0..i {
                        sum += xs[(((sample * t + s0) * h + s1) * wd + s2) * i + c]
                            * ws[(((oc * i + c) * kt + j0) * kh + j1) * kw + j2];
                    }
                }
                y.push(sum + residual.as_ref().map_or(0.0, |r| r[y.len()]));
            }
        }
    }
    (y, [b, out[0], out[1], out[2], o])
}

fn itertools(sizes: &[usize]) -> Vec<(usize, usize, usize)> {
    let mut all = Vec::new();
    for a in 0..sizes[0] {
        for b in 0..sizes[1] {
            all.extend((0..sizes[2]).map(|c| (a, b, c)));
        }
    }
    all
}

fn causal(spatial: Padding) -> Walk3d {
    Walk3d { stride: [1; 3], pad: [(2, 0), (1, 1), (1, 1)], padding: [Padding::Replicate, spatial, spatial] }
}

/// Compares with the definition; the bound is 1e-6 of the largest possible sum.
fn check(name: &str, x: &Tensor, w: &Tensor, walk: &Walk3d, with_bias: bool, with_residual: bool) {
    let (o, i, kt, kh, kw) = w.dims5().unwrap();
    let bias = with_bias.then(|| random(&[o], 7));
    let (_, shape) = plain(x, w, None, None, walk);
    let residual = with_residual.then(|| random(&shape, 8));
    let (want, shape) = plain(x, w, bias.as_ref(), residual.as_ref(), walk);
    let conv = Conv3d::new(w.clone(), bias).unwrap();
    let y = conv.forward(x, walk, residual.as_ref()).unwrap();
    assert_eq!(y.dims(), shape, "{name}");
    let bound = 1e-6 * (i * kt * kh * kw) as f64 + 1e-6;
    for (at, (got, want)) in flat(&y).iter().zip(&want).enumerate() {
        assert!((got - want).abs() < bound, "{name}: {got} for {want} at {at} of {shape:?}");
    }
}

#[test]
fn it_equals_the_plain_loop_over_odd_sizes() {
    let sizes = [
        ([1, 1, 1, 1, 1], 1),
        ([1, 3, 5, 7, 3], 5),
        ([2, 4, 3, 11, 17], 16),
        ([1, 2, 9, 13, 48], 33),
        ([1, 5, 4, 4, 64], 7),
        ([1, 2, 3, 3, 300], 20),
        ([1, 1, 2, 2, 513], 129),
        ([1, 9, 12, 11, 5], 4),
    ];
    for (n, (x, outputs)) in sizes.into_iter().enumerate() {
        let w = random(&[outputs, x[4], 3, 3, 3], 50 + n as u64);
        let x = random(&x, n as u64);
        check(
            &format!("{:?} → {outputs}", x.dims()),
            &x,
            &w,
            &causal(Padding::Zeros),
            n % 2 == 0,
            n % 3 == 0,
        );
    }
}

#[test]
fn every_padding_equals_the_plain_loop() {
    let x = random(&[2, 3, 4, 5, 6], 1);
    let w = random(&[7, 6, 3, 3, 3], 2);
    for spatial in [Padding::Zeros, Padding::Replicate, Padding::Reflect] {
        check("causal", &x, &w, &causal(spatial), true, true);
        let both = Walk3d { pad: [(1, 1); 3], ..causal(spatial) };
        check("both sides", &x, &w, &both, true, false);
        let none = Walk3d { pad: [(0, 0); 3], ..causal(spatial) };
        check("valid", &x, &w, &none, false, false);
        let uneven =
            Walk3d { pad: [(3, 1), (0, 2), (2, 1)], padding: [Padding::Zeros, spatial, spatial], ..none };
        check("uneven", &x, &w, &uneven, false, true);
    }
}

#[test]
fn strides_and_other_kernels_equal_the_plain_loop() {
    let x = random(&[1, 7, 6, 9, 5], 1);
    for (kernel, stride) in
        [([3, 3, 3], [2, 2, 2]), ([1, 3, 5], [1, 2, 1]), ([2, 1, 1], [2, 3, 4]), ([1, 1, 1], [1, 1, 1])]
    {
        let w = random(&[18, 5, kernel[0], kernel[1], kernel[2]], 2);
        let walk = Walk3d { stride, ..causal(Padding::Zeros) };
        check(&format!("{kernel:?} by {stride:?}"), &x, &w, &walk, true, true);
    }
}

#[test]
fn a_bf16_weight_gives_what_its_widened_copy_gives() {
    let x = random(&[1, 3, 8, 8, 40], 1);
    let stored = random(&[24, 40, 3, 3, 3], 2).to_dtype(DType::BF16).unwrap();
    let walk = causal(Padding::Zeros);
    let narrow = Conv3d::new(stored.clone(), None).unwrap();
    let wide = Conv3d::new(stored.to_dtype(DType::F32).unwrap(), None).unwrap();
    assert_eq!(2 * narrow.bytes(), wide.bytes());
    let (a, b) = (narrow.forward(&x, &walk, None).unwrap(), wide.forward(&x, &walk, None).unwrap());
    assert_eq!(flat(&a), flat(&b));
}

#[test]
fn views_are_read_where_they_lie() {
    let wide = random(&[1, 4, 5, 6, 12], 1);
    let x = wide.narrow(4, 3, 7).unwrap().narrow(1, 1, 3).unwrap();
    let w = random(&[9, 14, 3, 3, 3], 2).narrow(1, 5, 7).unwrap();
    check("view", &x, &w, &causal(Padding::Reflect), true, false);
}

#[test]
fn a_stand_in_takes_no_memory_and_still_convolves() {
    let one = Tensor::full(0.5f32, (), &Device::Cpu).unwrap();
    let conv = Conv3d::new(one.broadcast_as((4, 3, 3, 3, 3)).unwrap(), None).unwrap();
    assert_eq!(conv.bytes(), 0);
    let x = Tensor::ones((1, 1, 3, 3, 3), DType::F32, &Device::Cpu).unwrap();
    let y = conv.forward(&x, &causal(Padding::Replicate), None).unwrap();
    assert_eq!(flat(&y), vec![0.5 * 81.0; 36]);
}

#[test]
fn what_cannot_be_computed_is_refused_by_name() {
    let w = random(&[4, 3, 3, 3, 3], 1);
    let walk = causal(Padding::Zeros);
    let conv = Conv3d::new(w.clone(), None).unwrap();
    let refused =
        |x: &Tensor, walk: &Walk3d, r: Option<&Tensor>| conv.forward(x, walk, r).unwrap_err().to_string();
    let x = random(&[1, 2, 4, 4, 3], 2);
    assert!(refused(&random(&[1, 2, 4, 4, 5], 2), &walk, None).contains("3 channels"));
    assert!(refused(&x.to_dtype(DType::F64).unwrap(), &walk, None).contains("dtype F64"));
    assert!(refused(&x, &Walk3d { stride: [0, 1, 1], ..walk }, None).contains("positive"));
    assert!(refused(&x, &Walk3d { pad: [(0, 0); 3], ..walk }, None).contains("does not fit"));
    let mirrored = Walk3d { pad: [(2, 0), (4, 4), (1, 1)], padding: [Padding::Reflect; 3], ..walk };
    assert!(refused(&x, &mirrored, None).contains("reflection"));
    assert!(refused(&x, &walk, Some(&x)).contains("residual"));
    let tracked = candle_core::Var::from_tensor(&x).unwrap();
    assert!(refused(tracked.as_tensor(), &walk, None).contains("tracked"));
    assert!(Conv3d::new(w.clone(), Some(random(&[5], 1))).unwrap_err().to_string().contains("bias"));
    assert!(Conv3d::new(w.to_dtype(DType::F64).unwrap(), None).unwrap_err().to_string().contains("F64"));
    assert!(Conv3d::new(random(&[4, 3, 3, 3], 1), None).is_err());
}
