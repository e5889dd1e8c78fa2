//! How close is close: comparing tensors, and checking backward passes against finite differences.
//!
//! For tests, here and in the crates above (feature `check`).

use crate::error::Result;
use candle_core::{DType, Device, Tensor, Var};

/// What two results may differ by: |got − want| ≤ `abs` + `rel`·|want|, element by element.
///
/// The named constructors are the one table of tolerances; each says where its numbers come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tol {
    /// Absolute part.
    pub abs: f64,
    /// Relative part.
    pub rel: f64,
}

impl Tol {
    /// Nothing: the same numbers by the same steps.
    #[must_use]
    pub fn exact() -> Self {
        Self { abs: 0.0, rel: 0.0 }
    }

    /// f32, a handful of operations per element, no sums: a few units in the last place (1.2e-7), the
    /// vector exponential among them (1e-7).
    #[must_use]
    pub fn elementwise() -> Self {
        Self { abs: 1e-6, rel: 1e-6 }
    }

    /// f32 with sums of up to some thousand terms of order one: rounding grows with the square root of
    /// the terms (√4096·6e-8 = 4e-6), on results of order one after scaling.
    #[must_use]
    pub fn reduced() -> Self {
        Self { abs: 1e-5, rel: 1e-5 }
    }

    /// Plain f32 products of `terms` random terms of order one: the result has order √terms and so has
    /// its error, 6e-8·√terms per rounding, with a factor 10 for the tail.
    #[must_use]
    pub fn product(terms: usize) -> Self {
        Self { abs: 1e-6 * (terms as f64).sqrt(), rel: 1e-5 }
    }

    /// Rounded to bf16 once at the end: half a unit of 8 bits is 2⁻⁹ = 2e-3; two inputs that were
    /// rounded alike give twice that.
    #[must_use]
    pub fn bf16() -> Self {
        Self { abs: 4e-3, rel: 8e-3 }
    }

    /// f64 backward against central differences in f64 with h = 1e-5: truncation h²·f‴ ≈ 1e-10,
    /// rounding 1e-16/h = 1e-11 per unit of the function, sums of hundreds of terms on top.
    #[must_use]
    pub fn finite_difference() -> Self {
        Self { abs: 1e-7, rel: 1e-6 }
    }

    /// The f32 backward against differences of the f64 reference, relative to the largest element of
    /// that gradient: f32 rounding through a forward and a backward pass.
    #[must_use]
    pub fn gradient32() -> Self {
        Self { abs: 2e-5, rel: 0.0 }
    }
}

/// The result of a comparison; prints the worst element and where it is.
#[derive(Clone, Debug)]
pub struct Closeness {
    /// Largest |got − want|; infinite where only one of the two is NaN.
    pub max_abs: f64,
    /// Largest |got − want| / |want|, over elements of at least a thousandth of the largest.
    pub max_rel: f64,
    /// Where `max_abs` was found.
    pub index: Vec<usize>,
    /// The value there.
    pub got: f64,
    /// What it should be.
    pub want: f64,
    /// Elements outside the tolerance, when one was given.
    pub outside: usize,
    /// The element furthest outside, with both values.
    pub furthest: Option<(Vec<usize>, f64, f64)>,
}

impl std::fmt::Display for Closeness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { max_abs, max_rel, index, got, want, .. } = self;
        write!(
            f,
            "max abs {max_abs:.3e} at {index:?} (got {got:.7e}, want {want:.7e}), max rel {max_rel:.3e}"
        )
    }
}

fn flat(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()
}

fn index_of(mut flat: usize, dims: &[usize]) -> Vec<usize> {
    let mut index = vec![0; dims.len()];
    for (at, dim) in index.iter_mut().zip(dims).rev() {
        *at = flat % dim;
        flat /= dim;
    }
    index
}

/// Compares two tensors of one shape, whatever their dtypes.
///
/// # Errors
/// When the shapes differ.
pub fn compare(got: &Tensor, want: &Tensor) -> Result<Closeness> {
    compare_within(got, want, Tol { abs: f64::INFINITY, rel: 0.0 })
}

fn compare_within(got: &Tensor, want: &Tensor, tol: Tol) -> Result<Closeness> {
    if got.dims() != want.dims() {
        candle_core::bail!("compared shapes differ: got {:?}, want {:?}", got.dims(), want.dims());
    }
    let dims = want.dims();
    let (got, want) = (flat(got)?, flat(want)?);
    let floor = want.iter().fold(0.0f64, |a, b| a.max(b.abs())) * 1e-3;
    let mut worst = Closeness {
        max_abs: 0.0,
        max_rel: 0.0,
        index: vec![0; dims.len()],
        got: got.first().copied().unwrap_or(0.0),
        want: want.first().copied().unwrap_or(0.0),
        outside: 0,
        furthest: None,
    };
    let mut beyond = 0.0;
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        let same = g == w || (g.is_nan() && w.is_nan());
        let difference = if same { 0.0 } else { (g - w).abs() };
        let difference = if difference.is_nan() { f64::INFINITY } else { difference };
        if difference > worst.max_abs {
            (worst.max_abs, worst.index, worst.got, worst.want) = (difference, index_of(i, dims), *g, *w);
        }
        if w.abs() >= floor && *w != 0.0 {
            worst.max_rel = worst.max_rel.max(difference / w.abs());
        }
        let allowed = tol.abs + tol.rel * w.abs();
        if difference > allowed {
            worst.outside += 1;
            if difference - allowed > beyond || worst.furthest.is_none() {
                beyond = difference - allowed;
                worst.furthest = Some((index_of(i, dims), *g, *w));
            }
        }
    }
    Ok(worst)
}

/// Asserts that two tensors agree, and returns how well.
///
/// # Panics
/// With the worst element and its index when they do not, or when the shapes differ.
pub fn assert_close(name: &str, got: &Tensor, want: &Tensor, tol: Tol) -> Closeness {
    let closeness = match compare_within(got, want, tol) {
        Ok(closeness) => closeness,
        Err(error) => panic!("{name}: {error}"),
    };
    if let Some((index, got, want)) = &closeness.furthest {
        panic!(
            "{name}: {} elements outside abs {:e} + rel {:e}; furthest at {index:?}: got {got:.9e}, want {want:.9e}; {closeness}",
            closeness.outside, tol.abs, tol.rel
        );
    }
    closeness
}

/// Standard normal numbers in f64, the same for the same seed on every machine.
///
/// # Errors
/// Never on the CPU.
pub fn random(shape: &[usize], seed: u64) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678);
    // splitmix64, then Box and Muller.
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    let data: Vec<f64> = (0..count)
        .map(|_| (-2.0 * (1.0 - uniform()).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos())
        .collect();
    Tensor::from_vec(data, shape, &Device::Cpu)
}

/// The gradients of Σ f(inputs)·weights with respect to every input, by the recorded backward pass.
///
/// # Errors
/// What `f` gives, and an input that received no gradient at all.
pub fn backward(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<Vec<Tensor>> {
    let vars = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let out = f(&tensors)?;
    if !out.track_op() {
        candle_core::bail!("the result is not part of a graph: no backward was recorded");
    }
    let weights = projection(&out)?;
    let grads = (out.to_dtype(weights.dtype())? * weights)?.sum_all()?.backward()?;
    vars.iter()
        .enumerate()
        .map(|(i, var)| match grads.get(var) {
            Some(grad) => Ok(grad.clone()),
            None => candle_core::bail!("input {i} received no gradient"),
        })
        .collect()
}

/// Fixed random weights that make a scalar of a result.
fn projection(out: &Tensor) -> Result<Tensor> {
    let dtype = if out.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    random(out.dims(), 4711)?.to_dtype(dtype)
}

/// Central differences of Σ f(inputs)·weights, element by element, in f64.
///
/// # Errors
/// What `f` gives.
pub fn differences(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<Vec<Tensor>> {
    const H: f64 = 1e-5;
    let value = |inputs: &[Tensor]| -> Result<f64> {
        let out = f(inputs)?;
        (out.to_dtype(DType::F64)? * random(out.dims(), 4711)?)?.sum_all()?.to_scalar::<f64>()
    };
    let mut inputs: Vec<Tensor> = inputs.to_vec();
    let mut grads = Vec::with_capacity(inputs.len());
    for which in 0..inputs.len() {
        let original = inputs[which].clone();
        let data = flat(&original)?;
        let mut grad = vec![0.0; data.len()];
        for (i, grad) in grad.iter_mut().enumerate() {
            let mut moved = |h: f64| -> Result<f64> {
                let mut data = data.clone();
                data[i] += h;
                inputs[which] = Tensor::from_vec(data, original.dims(), &Device::Cpu)?;
                value(&inputs)
            };
            *grad = (moved(H)? - moved(-H)?) / (2.0 * H);
        }
        inputs[which] = original.clone();
        grads.push(Tensor::from_vec(grad, original.dims(), &Device::Cpu)?);
    }
    Ok(grads)
}

/// Checks the backward pass of `f` at f64 `inputs`: the f64 reference against central differences, and
/// the f32 pass against those differences.
///
/// # Panics
/// With the worst element and its index when either is too far, when no backward was recorded, or
/// when a gradient is zero throughout (a check that cannot fail).
#[expect(clippy::print_stdout, reason = "tests show how close they came")]
pub fn gradients(name: &str, inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let run = || -> Result<()> {
        let numeric = differences(inputs, &f)?;
        let plain = backward(inputs, &f)?;
        let narrow = inputs.iter().map(|t| t.to_dtype(DType::F32)).collect::<Result<Vec<_>>>()?;
        let fast = backward(&narrow, &f)?;
        for (i, numeric) in numeric.iter().enumerate() {
            let largest = flat(numeric)?.iter().fold(0.0f64, |a, b| a.max(b.abs()));
            assert!(largest > 1e-6, "{name}: the gradient of input {i} is zero throughout");
            let label = format!("{name}: f64 gradient of input {i} against differences");
            let reference = assert_close(&label, &plain[i], numeric, Tol::finite_difference());
            let label = format!("{name}: f32 gradient of input {i} against differences");
            let Tol { abs, rel } = Tol::gradient32();
            let tol = Tol { abs: abs * largest.max(1.0), rel };
            let close = assert_close(&label, &fast[i], numeric, tol);
            println!(
                "{name}, input {i}: f64 {:.1e}, f32 {:.1e} of {largest:.2}",
                reference.max_abs, close.max_abs
            );
        }
        Ok(())
    };
    if let Err(error) = run() {
        panic!("{name}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_element_is_named() {
        let want = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
        let got = Tensor::new(&[[0f32, 0.0, 0.0], [0.0, 0.5, 0.1]], &Device::Cpu).unwrap();
        let closeness = compare(&got, &want).unwrap();
        assert_eq!((closeness.index, closeness.got), (vec![1, 1], 0.5));
    }

    #[test]
    #[should_panic(expected = "1 elements outside")]
    fn a_nan_is_never_close() {
        let want = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
        let got = Tensor::new(&[0f32, f32::NAN, 0.0], &Device::Cpu).unwrap();
        assert_close("nan", &got, &want, Tol { abs: 1e9, rel: 1e9 });
    }

    #[test]
    #[should_panic(expected = "f64 gradient of input 0")]
    fn a_wrong_backward_is_found() {
        let x = random(&[4], 1).unwrap();
        // The detached half contributes to the differences and not to the backward pass.
        gradients("half", &[x], |x| &x[0] + (x[0].detach() * 0.5)?);
    }

    #[test]
    #[should_panic(expected = "no backward was recorded")]
    fn a_missing_backward_is_found() {
        let x = random(&[4], 1).unwrap();
        gradients("detached", &[x], |x| Ok(x[0].detach()));
    }
}
